"""Sounds: files and tables, windows as functions of their numbers, a run from end to end."""

import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from sslzoo.cli import main
from sslzoo.data import DataError
from sslzoo.data.audio import AudioData, Waves, open_audio
from sslzoo.evaluate import Common, Subject
from sslzoo.evaluation.audio import LogMel, extract_audio, mel_bands, wave_statistics
from sslzoo.waves import WaveLoader, WaveSpec

RATE = 8000


def ramp(length, first=0.0):
    return first + torch.arange(length) / 2**14


def encoded(wave, kind="WAV", rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, wave.numpy(), rate, format=kind)
    return file.getvalue()


@pytest.fixture
def table(tmp_path):
    """Eighteen sounds of two classes and two speakers, of which six are for testing."""
    torch.manual_seed(0)
    waves = [0.1 * torch.randn(1000 + 100 * i) for i in range(18)]
    columns = {
        "audio": [{"bytes": encoded(w), "path": f"{i}.wav"} for i, w in enumerate(waves)],
        "label": [i % 2 for i in range(18)],
        "speaker": ["ann" if i < 9 else "bob" for i in range(18)],
        "split": ["test" if i % 3 == 0 else "train" for i in range(18)],
    }
    path = tmp_path / "sounds.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_folder_of_class_folders(tmp_path, kind):
    for split, count in (("train", 3), ("test", 1)):
        for name in ("no", "yes"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                content = encoded(ramp(400 + i, 0.1 * i), kind.upper())
                (folder / f"{i}.{kind}").write_bytes(content)
    train, test = open_audio(tmp_path), open_audio(tmp_path, "test")
    assert len(train) == 6 and len(test) == 2 and len(open_audio(tmp_path, "all")) == 8
    assert train.class_names == ["no", "yes"] and train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.rate == RATE and train.channels == 1 and train.groups is None
    torch.testing.assert_close(train.load(1), ramp(401, 0.1)[None], atol=1e-4, rtol=0)


def test_a_flat_folder_has_no_labels_and_channels_are_averaged(tmp_path):
    stereo = torch.stack([ramp(100), ramp(100, 0.2)], 1)
    (tmp_path / "a.wav").write_bytes(encoded(stereo))
    (tmp_path / ".hidden.wav").write_bytes(b"nothing")
    data = open_audio(tmp_path)
    assert len(data) == 1 and data.labels is None
    torch.testing.assert_close(data.load(0), ramp(100, 0.1)[None], atol=1e-4, rtol=0)


def test_a_table_is_divided_by_its_column(table):
    train, test = open_audio(table), open_audio(table, "test")
    assert (len(train), len(test), len(open_audio(table, "all"))) == (12, 6, 18)
    assert test.labels.tolist() == [0, 1, 0, 1, 0, 1] and test.load(1).shape == (1, 1300)
    assert test.groups.tolist() == [0, 0, 0, 1, 1, 1]
    speakers = open_audio(table, "test", label_column="speaker")
    assert speakers.labels.tolist() == [0, 0, 0, 1, 1, 1] and speakers.class_names == ["ann", "bob"]


def test_a_subset_keeps_its_labels_and_the_fingerprint_follows_the_sounds(table):
    data = open_audio(table)
    some = data.subset([5, 2])
    assert torch.equal(some.load(0), data.load(5)) and some.rate == RATE
    assert some.labels.tolist() == data.labels[[5, 2]].tolist()
    assert some.fingerprint() != data.fingerprint() == open_audio(table).fingerprint()


@pytest.mark.parametrize("content, split, words", [
    (None, "train", "no Parquet file of sounds"),
    ("empty", "train", "holds no sounds"),
    ("broken", "train", "not a readable sound"),
    ("image", "train", "has no column audio; it has image"),
    ("table", "unlabeled", "split must be one of"),
])  # fmt: skip
def test_data_that_cannot_be_used_is_refused_in_words(tmp_path, table, content, split, words):
    path = tmp_path / "given"
    if content == "table":
        path = table
    elif content == "image":
        path = tmp_path / "image.parquet"
        pq.write_table(pa.table({"image": [b"x"]}), path)
    elif content:
        path.mkdir()
        if content == "broken":
            (path / "a.wav").write_bytes(b"RIFF but no more")
    with pytest.raises(DataError, match=words):
        open_audio(path, split)


def test_sounds_of_another_rate_are_refused():
    class Mixed(Waves):
        def read(self, index):
            return self.waves[index], self.rate * (1 + index)

    data = AudioData("mixed", Mixed([ramp(9), ramp(9)], RATE))
    with pytest.raises(DataError, match="sound 1 has 16000 samples per second"):
        data.load(1)


def sounds(lengths, groups=None):
    """Sound i holds the value i + 1 everywhere."""
    waves = [torch.full((n,), i + 1.0) for i, n in enumerate(lengths)]
    groups = None if groups is None else torch.tensor(groups)
    return AudioData("made", Waves(waves, RATE), groups=groups)


def test_windows_of_long_sounds_are_uniform_crops():
    data = AudioData("ramp", Waves([torch.arange(100.0)], RATE))
    loader = WaveLoader(data, [WaveSpec(10)], batch_size=1, seed=3)
    starts = []
    for epoch in range(400):
        window = next(loader.epoch(epoch)).views[0][0, 0]
        torch.testing.assert_close(window, window[0] + torch.arange(10.0))
        starts.append(window[0].item())
    assert min(starts) < 3 and max(starts) > 87 and abs(np.mean(starts) - 45) < 4


def test_short_sounds_are_followed_by_others_of_their_speaker():
    data = sounds([30, 30, 30, 30], groups=[0, 0, 1, 1])
    loader = WaveLoader(data, [WaveSpec(100)], batch_size=4)
    for epoch in range(5):
        batch = next(loader.epoch(epoch))
        for window, index in zip(batch.views[0][:, 0], batch.indices.tolist(), strict=True):
            assert (window[:30] == index + 1).all()
            speakers = {int(v - 1) // 2 for v in window.tolist()}
            assert speakers == {index // 2}


def test_zeros_fill_where_they_are_asked_for():
    loader = WaveLoader(sounds([30, 60]), [WaveSpec(50, fill="zeros")], batch_size=2)
    batch = next(loader.epoch(0))
    short = batch.views[0][batch.indices == 0][0, 0]
    assert (short[:30] == 1).all() and (short[30:] == 0).all()


def test_windows_do_not_depend_on_batch_process_or_history():
    data = sounds(range(20, 60, 2), groups=[0] * 10 + [1] * 10)
    spec = WaveSpec(64)
    whole = WaveLoader(data, [spec], batch_size=4, seed=5)
    batches = list(whole.epoch(2))
    assert len(batches) == whole.steps_per_epoch == 5
    again = list(whole.epoch(2, first_step=3))
    torch.testing.assert_close(again[0].views[0], batches[3].views[0], rtol=0, atol=0)
    for rank in (0, 1):
        part = WaveLoader(data, [spec], batch_size=4, seed=5, rank=rank, world_size=2)
        share = next(part.epoch(2)).views[0]
        expected = batches[0].views[0][2 * rank : 2 * rank + 2]
        torch.testing.assert_close(share, expected, rtol=0, atol=0)
    other = next(whole.epoch(3)).views[0]
    assert not torch.equal(other, batches[0].views[0])


def test_a_batch_is_of_one_speaker_and_an_epoch_holds_all():
    groups = [0] * 8 + [1] * 12
    data = sounds([50] * 20, groups=groups)
    loader = WaveLoader(data, [WaveSpec(40, same_group=True)], batch_size=4)
    seen = []
    for batch in loader.epoch(1):
        assert len({groups[i] for i in batch.indices.tolist()}) == 1
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(20)) and loader.steps_per_epoch == 5
    firsts = [groups[next(loader.epoch(e)).indices[0]] for e in range(20)]
    assert set(firsts) == {0, 1}
    with pytest.raises(ValueError, match="has the 16 sounds of a batch"):
        WaveLoader(data, [WaveSpec(40, same_group=True)], batch_size=16)


def test_statistics_scale_to_one():
    torch.manual_seed(0)
    data = AudioData("noise", Waves([0.2 * torch.randn(5000) for _ in range(5)], RATE))
    mean, std = wave_statistics(data)
    assert mean == (0.0,) and std[0] == pytest.approx(0.2, rel=0.02)


def test_a_tone_lights_its_own_band():
    log_mel = LogMel()
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(8000) / RATE)[None, None]
    features = log_mel(tone)[0]
    bands = mel_bands(40, 256, RATE)
    centres = (bands * torch.linspace(0, 4000, 129)).sum(1) / bands.sum(1)
    assert abs(centres[features[:40].argmax()] - 1000) < 60
    torch.testing.assert_close(log_mel(10 * tone)[0, :40].max() - features[:40].max(),
                               torch.tensor(math.log(100.0)), atol=1e-3, rtol=0)  # fmt: skip


def test_whole_sounds_are_encoded_one_by_one():
    data = sounds([100, 300])
    features, labels = extract_audio(torch.nn.AdaptiveAvgPool1d(1), data, 0, (1.0,), (2.0,))
    assert features.flatten().tolist() == [0.0, 0.5] and labels is None


def test_cpc_trains_and_is_judged_from_the_command_line(table, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["pretrain", "cpc", "--data", str(table), "--out", str(run), "--window", "2400",
             "--epochs", "2", "--batch_size", "4", "--log_every", "1", "--negatives", "8",
             "--warmup_epochs", "0"]  # fmt: skip
    assert main(words) == 0
    assert "cpc on 12 sounds of" in capsys.readouterr().out
    for switch in ([], ["--untrained"], ["--raw"]):
        words = ["evaluate", "linear", str(run), "--label_column", "speaker", *switch]
        assert main(words) == 0
    entries = json.loads((run / "evaluation.json").read_text())["evaluations"]
    assert [entry["features"] for entry in entries] == [
        ["output of cpc_audio, 128 values"], ["output of cpc_audio, 128 values"],
        ["log-mel features, 80 values"]]  # fmt: skip
    assert len({entry["backbone"]["weights"] for entry in entries}) == 3
    assert entries[0]["options"]["label_column"] == "speaker"
    capsys.readouterr()
    assert main(["evaluate", "retrieval", str(run)]) == 2
    assert (
        "needs an encoder of images; cluster, knn, linear judge sounds" in capsys.readouterr().err
    )
    assert main(["evaluate", "knn", str(run), "--layers", "gru"]) == 2
    assert "layers cannot be chosen for sounds" in capsys.readouterr().err
    assert main(["pretrain", "cpc", "--data", str(tmp_path / "none"), "--out", str(run)]) == 2
    assert "is no Parquet file of sounds" in capsys.readouterr().err


def test_a_subject_of_sounds_has_their_classes_and_log_mel_as_its_input(table, tmp_path):
    options = dict(data=str(table), device="cpu", out=str(tmp_path / "out"))
    speakers = Subject("cpc_audio", Common(label_column="speaker", **options))
    x, y = speakers.features("test")
    assert y.tolist() == [0, 0, 0, 1, 1, 1] and x.shape == (6, 128)
    data, size, mean, std = speakers.data("test"), *speakers.view
    torch.testing.assert_close(x, extract_audio(speakers.backbone, data, size, mean, std)[0])
    x, y = Subject("cpc_audio", Common(raw=True, **options)).features("test")
    assert y.tolist() == [0, 1, 0, 1, 0, 1]
    log_mel = LogMel()
    expected = torch.cat([log_mel(data.load(i)[None]) for i in range(6)])
    torch.testing.assert_close(x, expected)
