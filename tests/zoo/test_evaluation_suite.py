"""What all protocols share: opening a backbone, the feature cache, evaluation.json, `all`."""

from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf

from sslzoo import backbones, registry
from sslzoo.cli import main
from sslzoo.data import DataError, ImageData
from sslzoo.evaluate import Common, Subject, evaluate, load
from sslzoo.evaluation import cache
from sslzoo.evaluation.opening import fit_to, open_backbone
from sslzoo.evaluation.results import Result, Row

SMALL = ["--data", "digits", "--channels", "1", "--image_size", "8", "--device", "cpu",
         "--max_train", "120", "--max_test", "60"]  # fmt: skip


def subject(tmp_path, source="convnet4", **options):
    defaults = dict(data="digits", channels=1, image_size=8, device="cpu", max_train=120,
                    max_test=60, out=str(tmp_path / "out"))  # fmt: skip
    return Subject(source, Common(**(defaults | options)))


def knn(subject, **options):
    return evaluate("knn", subject, registry.evaluator("knn").Config(**options))


def test_every_protocol_holds_what_the_contract_says():
    assert {"knn", "linear", "cluster", "embedding", "retrieval", "semi"} <= {
        *registry.evaluators()
    }
    for name in registry.evaluators():
        module = registry.evaluator(name)
        assert isinstance(module.VERSION, int) and module.Config() and callable(module.evaluate)


def test_a_name_of_timm_has_the_weights_of_its_seed(tmp_path):
    first, again = (open_backbone("resnet10t", image_size=32, seed=3)[0] for _ in range(2))
    other, about = open_backbone("resnet10t", image_size=32, seed=4)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(first(x), again(x)) and not torch.equal(first(x), other(x))
    assert about["image_size"] == 32 and len(about["mean"]) == 3


def test_a_hugging_face_folder_gives_what_timm_gives(tmp_path):
    torch.manual_seed(0)
    options = dict(img_size=32, patch_size=8, depth=2, in_chans=1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **options).eval()
    save_for_hf(model, tmp_path / "hub", model_args=options, safe_serialization=True,
                model_config={"pretrained_cfg": {"input_size": [1, 32, 32], "mean": [0.4],
                                                 "std": [0.3]}})  # fmt: skip
    ours, about = open_backbone(tmp_path / "hub")
    x = torch.randn(3, 1, 32, 32)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(ours(x), expected)
    assert about["image_size"] == 32 and about["mean"] == [0.4] and about["channels"] == 1


def test_faults_of_a_hugging_face_folder_are_told(tmp_path):
    model = timm.create_model("resnet10t", num_classes=0)
    save_for_hf(model, tmp_path, safe_serialization=True)
    state = model.state_dict()
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be read"):
        open_backbone(tmp_path)
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing, 0 unknown, such as layer1\.0\.conv1"):
        open_backbone(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet99"}')
    with pytest.raises(ValueError, match="names no architecture of timm"):
        open_backbone(tmp_path)


def test_weights_that_are_not_in_the_cache_are_not_fetched_unasked(monkeypatch):
    with pytest.raises(DataError, match="--download fetches them"):
        open_backbone("resnet10t", pretrained=True)


def test_a_run_a_file_and_a_seed_are_told_apart(tmp_path):
    assert main(["pretrain", "simclr", "--backbone", "convnet4", "--image_size", "8", "--epochs",
                 "1", "--out", str(tmp_path / "run"), "--batch_size", "256"]) == 0  # fmt: skip
    run = Subject(tmp_path / "run", Common(device="cpu"))
    file = Subject(tmp_path / "run" / "checkpoint.pt", Common(device="cpu"))
    before = Subject(tmp_path / "run", Common(device="cpu", untrained=True))
    assert run.weights == file.weights != before.weights
    assert run.folder == file.folder == tmp_path / "run" and run.spec == "digits"


def test_an_image_size_that_does_not_fit_is_told(tmp_path):
    options = dict(img_size=32, depth=1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    save_for_hf(model, tmp_path / "hub", model_args=options, safe_serialization=True)
    words = "takes images of 32 x 32 pixels, or of a multiple of 16; image_size is 40"
    with pytest.raises(DataError, match=words):
        subject(tmp_path, tmp_path / "hub", image_size=40)
    embed = SimpleNamespace(img_size=(224, 224), strict_img_size=True, patch_size=(16, 16))
    windows = SimpleNamespace(patch_embed=embed, pos_embed=None)
    with pytest.raises(DataError, match="takes images of 224 x 224 pixels; image_size is 64"):
        fit_to(windows, {"backbone": "swin", "image_size": 224}, 64)
    mixer = timm.create_model("mixer_s32_224", num_classes=0)  # its patch embedding does not mind
    save_for_hf(mixer, tmp_path / "mixer", safe_serialization=True)
    with pytest.raises(DataError, match="mixer_s32_224 does not take images of 64 x 64 pixels"):
        subject(tmp_path, tmp_path / "mixer", image_size=64)


def test_positions_are_interpolated_for_another_size(tmp_path):
    options = dict(img_size=32, depth=1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).eval()
    save_for_hf(model, tmp_path / "hub", model_args=options, safe_serialization=True)
    options = dict(channels=3, data="cifar10")
    small = subject(tmp_path, tmp_path / "hub", image_size=32, **options)
    large = subject(tmp_path, tmp_path / "hub", image_size=64, **options)
    assert small.weights == large.weights and small.size == 32 and large.size == 64
    grid = model.pos_embed[:, 1:].detach().mT.unflatten(2, (2, 2))
    expected = F.interpolate(grid, (4, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(large.backbone.pos_embed[:, 1:].mT.unflatten(2, (4, 4)), expected)
    assert torch.equal(large.backbone.pos_embed[:, :1], model.pos_embed[:, :1])
    assert large.untrained().pos_embed.shape == large.backbone.pos_embed.shape


def test_channels_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(DataError, match="digits/train has 1 channels; this backbone takes 3"):
        knn(subject(tmp_path, channels=3))


def test_an_unknown_layer_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no layer 'blocks\.9'; the nearest are blocks"):
        subject(tmp_path, layers="blocks.9")


def test_the_raw_input_is_the_pixels_whatever_the_encoder(tmp_path):
    raw = subject(tmp_path, raw=True)
    features, labels = raw.features("test")
    images = raw.data("test").images
    mean, std = raw.about["mean"][0], raw.about["std"][0]
    expected = (images.flatten(1).float() / 255 - mean) / std
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert len(labels) == 60 and raw.describe() == "pixels, 64 values, at 8 pixels"


# The cache


def test_features_come_from_the_cache_unless_the_weights_change(tmp_path, monkeypatch):
    first = subject(tmp_path)
    features, _ = first.features("train")
    extracted = []
    monkeypatch.setattr(Subject, "extract", lambda *a, **k: extracted.append(a) or 1 / 0)
    again, _ = subject(tmp_path).features("train")
    assert torch.equal(features, again) and not extracted
    with pytest.raises(ZeroDivisionError):
        subject(tmp_path, seed=1).features("train")
    monkeypatch.undo()

    changed = subject(tmp_path)
    with torch.no_grad():
        changed.backbone.blocks[0][0].weight[0, 0, 0, 0] += 1e-6
    changed.weights = cache.weights_digest(changed.backbone)
    changed.features("train")
    assert len([*(tmp_path / "out/evaluation/features").iterdir()]) == 2


@pytest.mark.parametrize("part", ["weights", "data", "size", "mean", "layer", "precision"])
def test_every_part_of_the_key_counts(part):
    parts = dict(weights="w", data="d", size=8, mean=[0.5], layer=None, precision="fp32")
    assert cache.key_of(**parts) == cache.key_of(**parts)
    assert cache.key_of(**(parts | {part: "other"})) != cache.key_of(**parts)


def test_buffers_belong_to_the_weights():
    model = backbones.build("convnet4", image_size=8)
    before = cache.weights_digest(model)
    model.blocks[0][1].running_mean += 1
    assert cache.weights_digest(model) != before
    assert cache.weights_digest(model.bfloat16()) != before


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def damage_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def damage_swap(path):
    other = path.with_name("0" * 32 + path.suffix)
    cache.save(path.parent, other.stem, torch.zeros(120, 128))
    other.rename(path)


@pytest.mark.parametrize("damage", [damage_cut, damage_bit, damage_swap])
def test_a_damaged_cache_is_found_out_and_mended(tmp_path, damage):
    first = knn(subject(tmp_path)).rows
    path = sorted((tmp_path / "out/evaluation/features").iterdir())[0]
    damage(path)
    with pytest.raises(cache.DamagedCache, match="is damaged"):
        cache.load(path.parent, path.stem)
    result = knn(subject(tmp_path))
    assert result.rows == first and "is damaged" in result.notes[0]
    assert knn(subject(tmp_path)).notes == []


def test_all_layers_come_from_one_pass(tmp_path):
    judged = subject(tmp_path, layers="all")
    calls = []
    judged.backbone.register_forward_hook(lambda *a: calls.append(1))
    result = evaluate("knn", judged, registry.evaluator("knn").Config(k=(10,)))
    assert len(calls) == 2  # one batch of train, one of test
    names = [row.metric for row in result.rows]
    assert names[0] == "blocks.0: 10 nearest neighbours, top-1" and len(names) == 8


# evaluation.json


def test_everything_printed_is_in_the_json_and_comes_again(tmp_path, capsys):
    argv = ["evaluate", "knn", "convnet4", *SMALL, "--out", str(tmp_path), "--k", "[5]"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    [entry] = load(tmp_path / "evaluation.json")
    for row in entry["results"]:
        assert f"{row['metric']}: {100 * row['value']:.1f} %" in printed
    assert entry["protocol"] == "knn" and entry["version"] == 1 and entry["seed"] == 0
    assert entry["versions"]["torch"] == metadata.version("torch")
    assert entry["data"]["digits/train"]["images"] <= 120
    assert len(entry["data"]["digits/test"]["fingerprint"]) == 12
    assert entry["features"] == ["output of convnet4, 128 values, at 8 pixels"]
    assert entry["backbone"]["network"] == "encoder" and len(entry["options_digest"]) == 32
    low, high = entry["results"][0]["interval"]
    assert low < entry["results"][0]["value"] < high

    assert main(argv) == 0
    assert capsys.readouterr().out == printed
    assert load(tmp_path / "evaluation.json") == [entry], "the same question is kept once"
    assert main([*argv, "--seed", "1"]) == 0
    assert len(load(tmp_path / "evaluation.json")) == 2


def test_the_interval_of_a_share_is_wilsons():
    low, high = Row("", 0.9, count=100).interval
    assert low == pytest.approx(0.8256, abs=1e-4) and high == pytest.approx(0.9448, abs=1e-4)
    assert Row("", 1.0, count=20).interval[0] == pytest.approx(0.8389, abs=1e-4)
    assert Row("", 3.0, unit="ms", count=9).interval is None
    assert Row("", 0.5, 0.01).text == "50.0 % ± 1.0"


def test_all_runs_what_the_data_allows(tmp_path, capsys, monkeypatch):
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / split / f"{i}.png")
    argv = ["evaluate", "all", "convnet4", "--data", str(tmp_path / "data"), "--image_size", "8",
            "--device", "cpu", "--out", str(tmp_path / "out"),
            "--skip", "[efficiency,attention]"]  # fmt: skip
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "[knn]\nleft out: this evaluation needs labels; the data has none" in out
    assert "[embedding]\n" in out and "t-SNE 30, trustworthiness: " in out
    assert {entry["protocol"] for entry in load(tmp_path / "out/evaluation.json")} == {
        "embedding"}  # fmt: skip


def fails(capsys, *argv):
    assert main([*argv]) == 2
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    "argv, words",
    [
        (["knn", "resnet1"], "unknown backbone 'resnet1'"),
        (["knn", "convnet4"], "does not say what it was trained on: name --data"),
        (["knn", "convnet4", *SMALL, "--k", "[500]"], "k is 500, but there are only 120"),
        (["knn", "convnet4", *SMALL, "--temperature", "0"], "temperature must be above 0"),
        (["retrieval", "convnet4", *SMALL, "--k", "[500]"], "500 neighbours were asked"),
        (["semi", "convnet4", *SMALL, "--per_class", "[40]", "--shares", "[]"],
         "40 labels are asked"),
        (["semi", "convnet4", *SMALL], "1 % of 120 images is less than one label"),
        (["semi", "convnet4", *SMALL, "--shares", "[0.5]", "--forms", "[stages]",
          "--frozen_stages", "9"], "9 stages can not be frozen"),
        (["cluster", "convnet4", *SMALL, "--splits", "[dev]"], "split must be one of"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(tmp_path, capsys, argv, words):
    message = fails(capsys, "evaluate", *argv, "--out", str(tmp_path))
    assert words in message and "\n" not in message


@pytest.mark.parametrize("name", ["knn", "linear", "cluster", "retrieval", "semi", "finetune"])
def test_one_class_and_missing_labels_are_told(tmp_path, name):
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    for labels, words in ((None, "label"), (torch.zeros(20, dtype=torch.int64), "two classes")):
        data = ImageData("some", images=images, labels=labels)
        judged = subject(tmp_path, cache=False)
        judged.kind = judged.kind._replace(open=lambda *a, d=data, **k: d)
        with pytest.raises(DataError, match=words):
            evaluate(name, judged, registry.evaluator(name).Config())


def test_result_lines_hold_pictures_and_notes(capsys, tmp_path):
    from sslzoo.cli import show_result

    show_result(Result([Row("speed", 1234.5, unit="images/s")], {"map": tmp_path}, {}, ["why"]))
    assert capsys.readouterr().out == f"speed: 1234.5 images/s\nmap: {tmp_path}\nnote: why\n"
