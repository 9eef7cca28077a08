"""`sslzoo evaluate tracking` and `sslzoo propagate` on sprites, from command line to files."""

import csv
import io
import json

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from videos import Frames, sprite_video

from sslzoo import registry
from sslzoo.cli import main
from sslzoo.data import DataError
from sslzoo.data.video import Video
from sslzoo.data.video_file import VideoFile, write_video
from sslzoo.evaluate import Common, Subject, evaluate, load
from sslzoo.evaluation.propagation import PROTOCOLS
from sslzoo.masks import number_objects, overlay, read_mask, save_mask
from sslzoo.tracker import Tracker
from sslzoo.tracking_config import TrackerConfig

JOINTS = 4


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def corners(mask):
    """The corners of a square as joints [4][x, y, visible]."""
    y, x = mask.numpy().nonzero()
    return [[float(u), float(v), 1.0] for v in (y.min(), y.max()) for u in (x.min(), x.max())]


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    """Parquet files of two sequences: frames with masks, and joints of every second frame."""
    folder = tmp_path_factory.mktemp("sprites")
    rows, marks = [], []
    for seed, name in ((3, "left"), (4, "right")):
        frames, masks = sprite_video(seed, frames=7)
        for t in range(7):
            image = frames[t].permute(1, 2, 0).numpy()
            mask = (255 * masks[t]).numpy().astype(np.uint8)
            rows.append((name, t, encoded(image), encoded(mask)))
            if t % 2 == 0:
                marks.append((name, t, corners(masks[t])))
    names = ("sequence", "frame_index", "image", "mask")
    table = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(table), folder / "videos.parquet")
    names = ("sequence", "frame_index", "keypoints")
    table = pa.table(dict(zip(names, map(list, zip(*marks, strict=True)), strict=True)))
    named = table.replace_schema_metadata({"joint_names": json.dumps(["a", "b", "c", "d"])})
    pq.write_table(named, folder / "joints.parquet")
    return folder


def subject(sprites, tmp_path, source="convnet4", **options):
    common = dict(data=str(sprites / "videos.parquet"), device="cpu", out=str(tmp_path / "out"))
    return Subject(source, Common(**(common | options)))


def track(subject, sprites, **options):
    config = dict(keypoints=str(sprites / "joints.parquet"), size=64)
    return evaluate(
        "tracking", subject, registry.evaluator("tracking").Config(**(config | options))
    )


@pytest.fixture(scope="module")
def tracked(sprites, tmp_path_factory):
    """What the command leaves."""
    out = tmp_path_factory.mktemp("tracked")
    argv = ["evaluate", "tracking", "convnet4", "--data", str(sprites / "videos.parquet"),
            "--keypoints", str(sprites / "joints.parquet"), "--size", "64", "--masks",
            "--device", "cpu", "--out", str(out)]  # fmt: skip
    assert main(argv) == 0
    return out


def mean_J(folder):
    """J of the masks in a folder, or of the first mask, frame by frame as the definition says."""
    values = []
    for seed, name in ((3, "left"), (4, "right")):
        truth = sprite_video(seed, frames=7)[1].numpy() > 0
        for t in range(1, 6):
            path = folder and folder / "evaluation" / f"tracking_{name}_masks" / f"{t:05d}.png"
            found = np.array(Image.open(path)) > 0 if folder else truth[0]
            values.append((found & truth[t]).sum() / (found | truth[t]).sum())
    return np.mean(values)


def test_the_evaluation_names_every_number(tracked):
    (entry,) = load(tracked / "evaluation.json")
    rows = {row["metric"]: row["value"] for row in entry["results"]}
    for start in ("", "first labels copied, "):
        J, F = rows[f"{start}J"], rows[f"{start}F"]
        assert rows[f"{start}J&F"] == pytest.approx((J + F) / 2)
        for name in ("J recall", "J decay", "F recall", "F decay", "PCK@0.1", "PCK@0.5, strict"):
            assert start + name in rows
    assert rows["J"] == pytest.approx(mean_J(tracked), abs=1e-9)
    assert rows["first labels copied, J"] == pytest.approx(mean_J(None), abs=1e-9)
    (details,) = entry["details"].values()
    assert set(details["J&F"]) == {"left", "right"}
    assert list(details["PCK of joints"]) == ["a", "b", "c", "d"]
    assert np.mean(list(details["J&F"].values())) == pytest.approx(rows["J&F"])


def test_pictures_and_masks_are_written(tracked, sprites):
    (entry,) = load(tracked / "evaluation.json")
    files = {name: tracked / path for name, path in entry["pictures"].items()}
    assert set(files) == {"overlay of left", "overlay of right", "contact sheet", "keypoints"}
    with av.open(str(files["overlay of left"])) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(frames) == 7 and frames[0].shape == (64, 64, 3)
    sheet = np.array(Image.open(files["contact sheet"]))
    assert sheet.shape[:2] == (2 * 322 + 2, 6 * 322 + 2)
    masks = sorted((tracked / "evaluation" / "tracking_left_masks").iterdir())
    assert [path.name for path in masks] == [f"{t:05d}.png" for t in range(7)]
    _, truth = sprite_video(3, frames=7)
    assert Image.open(masks[0]).mode == "P"
    assert (np.array(Image.open(masks[0])) == truth[0].numpy()).all()


def test_the_same_command_gives_the_same_numbers_and_options_change_them(sprites, tmp_path):
    first = track(subject(sprites, tmp_path), sprites, videos=False, sequences=("left",))
    again = track(subject(sprites, tmp_path), sprites, videos=False, sequences=("left",))
    assert first.rows == again.rows and len(load(tmp_path / "out" / "evaluation.json")) == 1
    other = track(subject(sprites, tmp_path), sprites, videos=False, sequences=("left",), topk=1)
    assert other.rows[:3] != first.rows[:3]
    assert len(load(tmp_path / "out" / "evaluation.json")) == 2


def test_layers_and_transformers_track_too(sprites, tmp_path):
    """A ViT for 32 pixels sees frames of 64; its positions are interpolated, in a copy."""
    judged = subject(sprites, tmp_path, source="vit_micro_p4", layers="blocks.1,blocks.3")
    before = judged.backbone.pos_embed.clone()
    result = track(judged, sprites, videos=False, sequences=("right",))
    assert {"blocks.1: J", "blocks.3: PCK@0.1"} <= {row.metric for row in result.rows}
    assert torch.equal(judged.backbone.pos_embed, before)
    assert len(result.pictures) == 4


def test_frames_are_cut_to_the_patches_of_a_transformer(sprites, tmp_path):
    tracker = Tracker(
        subject(sprites, tmp_path, source="vit_micro_p4"), None, TrackerConfig(size=66)
    )
    assert tracker.input_size(66, 200) == (64, 192)
    features = next(
        tracker.features(Video("one", Frames([torch.zeros(3, 66, 200, dtype=torch.uint8)])))
    )
    assert features.shape == (128, 16, 48)


def test_options_replace_those_of_the_protocol(sprites, tmp_path):
    config = TrackerConfig(protocol="crw", temperature=0.2, last_frames=3, topk=4, radius=5)
    protocol = Tracker(subject(sprites, tmp_path), None, config).protocol
    assert (protocol.temperature, protocol.last_frames) == (0.2, 3)
    assert (protocol.topk, protocol.radius, protocol.limits_first) == (4, 5, False)
    kept = Tracker(subject(sprites, tmp_path), None, TrackerConfig()).protocol
    assert kept == PROTOCOLS["dino"]


def test_a_run_of_video_colorization_tracks_by_its_embeddings(sprites, tmp_path):
    data, run = str(sprites / "videos.parquet"), str(tmp_path / "run")
    argv = ["pretrain", "video_colorization", "--data", data, "--backbone", "convnet4",
            "--out", run, "--image_size", "32", "--batch_size", "2", "--epochs", "2",
            "--clips_per_video", "3", "--log_every", "3", "--gap", "[1,2]",
            "--colors", "4", "--test_temperature", "0.25", "--device", "cpu"]  # fmt: skip
    assert main(argv) == 0
    assert {p.name for p in (tmp_path / "run" / "pictures").iterdir()} == {
        "colors_0002.png", "attention_0002.png"}  # fmt: skip
    found = {}
    for untrained in (False, True):
        judged = Subject(run, Common(device="cpu", untrained=untrained))
        found[untrained] = track(judged, sprites, sequences=("left",))
        (description,) = found[untrained].details
        assert description == "embeddings of video_colorization"
    assert found[False].rows[:3] != found[True].rows[:3]
    assert Tracker(judged, None, TrackerConfig(protocol="paper")).protocol.temperature == 0.25
    assert Tracker(judged, None, TrackerConfig()).protocol.temperature == 0.1
    names = {path.name for path in (tmp_path / "run" / "evaluation").iterdir()}
    assert {"tracking_left.mp4", "tracking_untrained_left.mp4"} <= names


# Propagation


@pytest.fixture
def clip(tmp_path):
    """A video file of a sprite, and the mask of its first frame."""
    frames, masks = sprite_video(3, frames=9)
    write_video(tmp_path / "clip.mp4", frames.permute(0, 2, 3, 1).numpy())
    save_mask(tmp_path / "mask.png", masks[0].byte())
    return tmp_path


def propagate(folder, *options, video="clip.mp4"):
    return main(["propagate", "convnet4", "--video", str(folder / video), "--mask",
                 str(folder / "mask.png"), "--out", str(folder / "out"), "--size", "64",
                 "--device", "cpu", *options])  # fmt: skip


def test_a_mask_goes_through_a_video_file(clip, capsys):
    assert propagate(clip) == 0
    assert "written to" in capsys.readouterr().out
    masks = [np.array(Image.open(p)) for p in sorted((clip / "out" / "masks").iterdir())]
    _, truth = sprite_video(3, frames=9)
    assert len(masks) == 9 and (masks[0] == truth[0].numpy()).all()
    # The way without files: frames as the video holds them, the tracker's own masks.
    tracker = Tracker(Subject("convnet4", Common(device="cpu")), None, TrackerConfig(size=64))
    video = Video("clip", VideoFile(clip / "clip.mp4"))
    expected = list(tracker.masks(tracker.features(video), truth[0].byte()))
    assert all((mask == e.numpy()).all() for mask, e in zip(masks, expected, strict=True))
    assert any((mask != masks[0]).any() for mask in masks)
    with av.open(str(clip / "out" / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
    assert Image.open(clip / "out" / "contact_sheet.png").size == (4 * 322 + 2, 3 * 322 + 2)


def test_a_sequence_of_a_parquet_file_is_chosen_by_name(clip, sprites, capsys):
    _, masks = sprite_video(4, frames=7)
    save_mask(clip / "mask.png", masks[0].byte())
    video = sprites / "videos.parquet"
    assert propagate(clip, video=video) == 2
    assert "holds 2 videos: name one by --sequence, such as left" in capsys.readouterr().err
    assert propagate(clip, "--sequence", "middle", video=video) == 2
    assert "has no video middle; it has left, right" in capsys.readouterr().err
    assert propagate(clip, "--sequence", "right", video=video) == 0
    assert len(list((clip / "out" / "masks").iterdir())) == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((64, 64), np.uint8), "holds no object"),
        (np.ones((32, 64), np.uint8), "is 64 x 32 pixels; the video is 64 x 64"),
        (np.ones((64, 64, 3), np.uint8), "must be an indexed or grey PNG"),
    ],
)
def test_masks_that_do_not_fit_are_refused(clip, capsys, values, message):
    Image.fromarray(values).save(clip / "mask.png")
    assert propagate(clip) == 2
    assert message in capsys.readouterr().err


def folder_of_masks(folder, masks):
    folder.mkdir()
    for number, mask in enumerate(masks):
        save_mask(folder / f"{number:05d}.png", mask.byte())
    return folder


def scores_of(folder):
    found = json.loads((folder / "out" / "scores.json").read_text())
    return {row["metric"]: row["value"] for row in found["results"]}


def test_a_propagation_is_scored_by_the_true_masks_of_a_parquet_file(clip, sprites, capsys):
    video = sprites / "videos.parquet"
    words = ["--sequence", "left", "--keypoints", str(sprites / "joints.parquet")]
    assert main(["propagate", "convnet4", "--video", str(video), "--out", str(clip / "out"),
                 "--size", "64", "--device", "cpu", *words]) == 0  # fmt: skip
    printed, found = capsys.readouterr().out, scores_of(clip)
    truth = sprite_video(3, frames=7)[1].numpy() > 0
    masks = [np.array(Image.open(p)) > 0 for p in sorted((clip / "out" / "masks").iterdir())]
    J = [(m & t).sum() / (m | t).sum() for m, t in zip(masks[1:-1], truth[1:-1], strict=True)]
    assert found["J"] == pytest.approx(np.mean(J), abs=1e-9) and 0 < found["J"] < 1
    assert found["J&F"] == pytest.approx((found["J"] + found["F"]) / 2)
    assert f"J&F: {100 * found['J&F']:.1f} %" in printed and "PCK@0.1" in printed
    # The numbers of the evaluation of the same sequence.
    whole = track(subject(sprites, clip), sprites, sequences=("left",), videos=False)
    assert {row.metric: row.value for row in whole.rows} == found
    names = {path.name for path in (clip / "out").iterdir()}
    assert names >= {"overlay.mp4", "contact_sheet.png", "keypoints.png", "scores.json", "masks"}


def test_a_video_file_is_scored_by_a_folder_of_masks(clip, capsys):
    _, truth = sprite_video(3, frames=9)
    folder = folder_of_masks(clip / "truth", truth)
    words = ["propagate", "convnet4", "--video", str(clip / "clip.mp4"), "--size", "64",
             "--out", str(clip / "out"), "--device", "cpu", "--truth", str(folder)]  # fmt: skip
    assert main(words) == 0  # the first of the true masks is carried on
    alone = scores_of(clip)
    assert main([*words, "--mask", str(clip / "mask.png")]) == 0
    assert scores_of(clip) == alone and 0 < alone["J"] < 1
    (folder / "00008.png").unlink()
    assert main(words) == 2
    assert "has 8 masks of clip.mp4, which has 9 frames" in capsys.readouterr().err


def test_a_run_logs_how_well_its_encoder_tracks(sprites, tmp_path):
    data, run = str(sprites / "videos.parquet"), tmp_path / "run"
    argv = ["pretrain", "video_colorization", "--data", data, "--backbone", "convnet4",
            "--out", str(run), "--image_size", "32", "--batch_size", "2", "--epochs", "2",
            "--log_every", "1", "--gap", "[1,2]", "--colors", "4", "--device", "cpu",
            "--tracking_every", "2", "--tracking_size", "64",
            "--tracking_keypoints", str(sprites / "joints.parquet")]  # fmt: skip
    assert main(argv) == 0
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("tracking_J&F")]
    assert [row["epoch"] for row in rows] == ["2"]
    judged = track(Subject(str(run), Common(device="cpu")), sprites, videos=False)
    expected = {row.metric: row.value for row in judged.rows}
    found = {name.removeprefix("tracking_"): float(value) for name, value in rows[0].items()
             if name.startswith("tracking_")}  # fmt: skip
    assert set(found) == {"J&F", "J", "F", "PCK@0.1", "PCK@0.2", "PCK@0.5"}
    assert found == pytest.approx({name: expected[name] for name in found})


def test_any_method_s_encoder_can_be_tracked_with_while_it_trains(sprites, photos, tmp_path):
    argv = ["pretrain", "rotation", "--data", str(photos), "--backbone", "convnet4", "--out",
            str(tmp_path / "run"), "--image_size", "16", "--batch_size", "20", "--epochs", "1",
            "--warmup_epochs", "0", "--device", "cpu", "--tracking_every", "1",
            "--tracking_size", "64"]  # fmt: skip
    assert main(argv) == 2  # photographs are no videos
    argv += ["--tracking_data", str(sprites / "videos.parquet")]
    assert main(argv) == 0
    last = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    row = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
    judged = track(Subject(str(tmp_path / "run"), Common(device="cpu", data=str(
        sprites / "videos.parquet"))), sprites, videos=False, keypoints="")  # fmt: skip
    found = {r.metric: r.value for r in judged.rows}
    assert float(row["tracking_J&F"]) == pytest.approx(found["J&F"])


def test_a_missing_option_and_a_broken_video_are_told(clip, capsys):
    assert main(["propagate", "convnet4", "--video", str(clip / "clip.mp4")]) == 2
    assert "propagate needs --mask" in capsys.readouterr().err
    (clip / "clip.mp4").write_bytes(b"broken")
    assert propagate(clip) == 2
    assert "is not a readable video" in capsys.readouterr().err
    assert propagate(clip, "--protocol", "other") == 2


# Masks


def test_objects_keep_their_numbers_where_one_is_gone():
    values = np.array([[[0, 128, 255]], [[0, 255, 255]]], np.uint8)
    assert number_objects(values, "L").tolist() == [[[0, 1, 2]], [[0, 2, 2]]]
    indices = np.array([[[0, 3, 255]]], np.uint8)
    assert number_objects(indices, "P").tolist() == [[[0, 3, 0]]]  # 255 is void
    assert number_objects(np.array([[[False, True]]]), "1").tolist() == [[[0, 1]]]


def test_a_mask_is_read_as_it_was_written(tmp_path):
    mask = torch.tensor([[0, 1, 2], [7, 0, 200]], dtype=torch.uint8)
    save_mask(tmp_path / "mask.png", mask)
    assert torch.equal(read_mask(tmp_path / "mask.png", (2, 3)), mask)


def test_an_overlay_tints_objects_and_draws_true_boundaries():
    frame = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    mask, truth = torch.zeros(2, 4, 4, dtype=torch.uint8)
    mask[0, 0], truth[2:, 2:] = 1, 1
    picture = overlay(frame, mask, truth)
    assert picture[0, 0].tolist() == [160, 75, 73] and picture[0, 3].tolist() == [100] * 3
    assert picture[1, 1].tolist() == [255] * 3 and picture[3, 3].tolist() == [100] * 3


@pytest.mark.parametrize("name", ["..", "../../left"])
def test_a_sequence_whose_name_is_a_path_leads_nowhere(sprites, tmp_path, name):
    (tmp_path / "data").mkdir()
    table = pq.read_table(sprites / "videos.parquet").filter(pc.field("sequence") == "left")
    names = pa.array([name] * len(table))
    pq.write_table(table.set_column(0, "sequence", names), tmp_path / "data/videos.parquet")
    judged = subject(tmp_path / "data", tmp_path)
    if name == "..":
        assert track(judged, sprites, keypoints="", masks=True).rows
    else:
        with pytest.raises(DataError, match="has no masks of a sequence left"):
            track(judged, sprites, keypoints="")
    assert {p.name for p in tmp_path.iterdir()} <= {"data", "out"}
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["videos.parquet"]


def test_why_data_is_unsuitable(sprites, tmp_path):
    unsuitable = registry.evaluator("tracking").unsuitable
    assert unsuitable(subject(sprites, tmp_path)) is None
    assert "needs a Parquet file" in unsuitable(subject(sprites, tmp_path, data="cifar10"))
    assert "no column mask" in unsuitable(
        subject(sprites, tmp_path, data=str(sprites / "joints.parquet"))
    )
    grey = subject(sprites, tmp_path, channels=1)
    assert "RGB" in unsuitable(grey)
