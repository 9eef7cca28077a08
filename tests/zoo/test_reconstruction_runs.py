"""Whole runs of MAE, colourisation and split-brain on small coloured images, and their probes."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo import backbones
from sslzoo.cli import main
from sslzoo.color_bins import color_bins
from sslzoo.data import ImageData, open_data
from sslzoo.evaluate import load
from sslzoo.evaluation import extract
from sslzoo.evaluation.features import extract_layers
from sslzoo.lab import rgb_to_lab
from sslzoo.patch_targets import patchify
from sslzoo.run_folder import load_backbone, load_untrained

RUNS = {
    "mae": dict(backbone="vit_micro_p4", decoder_width=16, decoder_depth=1, target="pca"),
    "colorization": dict(backbone="convnet4", output_stride=4),
    "split_brain": dict(backbone="convnet4", output_stride=4, rebalance="true"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Reddish and bluish noise, 16 training and 8 test images of each, 16 x 16."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for name, tint in (("blue", (0, 0, 90)), ("red", (90, 0, 0))):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 160, (16, 16, 3)) + np.array(tint)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module", params=RUNS)
def run(request, images, tmp_path_factory):
    """The name of a method and its run folder, after three epochs of four steps."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    options = dict(data=images, image_size=16, epochs=3, batch_size=8, log_every=4, device="cpu",
                   base_lr=1e-3, warmup_epochs=0, pictures_every=2, out=folder)  # fmt: skip
    options |= RUNS[request.param]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["pretrain", request.param, *words]) == 0
    return request.param, folder


def test_a_run_leaves_metrics_and_pictures(run):
    name, folder = run
    with (folder / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    expected = {
        "mae": {"visible_loss", "target_variance_min", "target_variance_median", "mask_ratio"},
        "colorization": {"cross_entropy", "kl", "prior_cross_entropy", "prior_loss", "bin_top1",
                         "bin_top5", "gray_images", "ab_rmse", "chroma_ratio", "error_area",
                         "error_area_rebalanced"},
        "split_brain": {"ab_loss", "ab_kl", "ab_prior_loss", "ab_top1", "lightness_loss",
                        "lightness_kl", "lightness_prior_loss", "lightness_top1",
                        "L_feature_std", "ab_feature_std"},
    }[name]  # fmt: skip
    assert expected | {"loss", "feature_std", "effective_rank"} <= set(row)
    assert all(np.isfinite(float(row[key])) for key in expected)


def test_the_methods_own_task_is_tested_on_images_not_trained_on(run, images):
    name, folder = run
    with (folder / "metrics.csv").open() as file:
        row = {k: float(v) for k, v in list(csv.DictReader(file))[-1].items() if v}
    expected = {
        "mae": {"loss", "visible_loss"},
        "colorization": {"loss", "kl", "prior_loss", "bin_top1", "chroma_ratio", "error_area"},
        "split_brain": {"ab_loss", "ab_prior_loss", "ab_top1", "lightness_loss", "lightness_top1"},
    }[name]  # fmt: skip
    assert {f"test_{key}" for key in expected} <= set(row)
    if name == "colorization":  # gray_images is no matter of the network: the test images' own
        ab = rgb_to_lab(open_data(str(images), "test").images / 255)[:, 1:]
        is_gray = (ab.abs() <= 5).flatten(1).all(1).float().mean().item()
        assert row["test_gray_images"] == pytest.approx(is_gray, abs=1e-6)
        assert row["test_loss"] != row["loss"]


def test_pictures_are_written_every_so_many_epochs_and_at_the_end(run):
    _, folder = run
    first, last = sorted((folder / "pictures").iterdir())
    assert first.name.endswith("_0002.png") and last.name.endswith("_0003.png")
    pixels = np.asarray(Image.open(last))
    assert pixels.shape[2] == 3 and pixels.std() > 10


def test_what_the_data_taught_is_in_the_checkpoint(run, images):
    name, folder = run
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["method"]
    pixels = open_data(str(images)).images
    if name == "mae":
        mean, std = (torch.tensor(load_backbone(folder)[1][key])[:, None, None]
                     for key in ("mean", "std"))  # fmt: skip
        patches = patchify((pixels / 255 - mean) / std, 4).flatten(0, 1)
        torch.testing.assert_close(state["target.mean"], patches.mean(0), rtol=0, atol=1e-4)
        components = patches @ state["target.basis"]
        assert components.var(0).diff().max() < 1e-3  # falling
        return
    ab = rgb_to_lab(pixels / 255)[:, 1:, ::4, ::4].permute(0, 2, 3, 1)
    bins = color_bins(313, 10)
    bins.rebalance(bins.count(ab), smoothing=5.0, uniform_share=0.5)
    prefix = "bins" if name == "colorization" else "ab_bins"
    torch.testing.assert_close(state[f"{prefix}.prior"], bins.prior, rtol=0, atol=1e-6)
    torch.testing.assert_close(state[f"{prefix}.weights"], bins.weights, rtol=1e-4, atol=0)


def test_the_saved_encoder_is_the_trained_one_and_differs_from_the_untrained(run):
    _, folder = run
    x = torch.rand(4, 3, 16, 16)
    trained, about = load_backbone(folder)
    again, _ = load_backbone(folder / "checkpoint.pt")
    untrained, _ = load_untrained(folder)
    with torch.no_grad():
        assert torch.equal(trained(x), again(x))
        assert not torch.allclose(trained(x), untrained(x), rtol=1e-2)
        assert torch.equal(untrained(x), load_untrained(folder)[0](x))
    assert (about["mean"] == [0, 0, 0]) == (run[0] != "mae")


def test_every_layer_is_probed(run, capsys):
    name, folder = run
    assert main(["evaluate", "linear", str(folder), "--layers", "all", "--device", "cpu"]) == 0
    rows = load(folder / "evaluation.json")[-1]["results"]
    top1 = {row["metric"].split(":")[0]: row["value"] for row in rows if "top-1" in row["metric"]}
    stages = [f"blocks.{i}" for i in range(4)]
    halves = [f"{half}.{stage}" for half in ("L", "ab") for stage in stages]
    assert list(top1) == stages + halves * (name == "split_brain")
    assert max(top1.values()) == 1 or name == "colorization"  # which does not see the colour
    capsys.readouterr()
    assert main(["evaluate", "knn", str(folder), "--untrained", "--k", "[5]", "--max_train", "20",
                 "--device", "cpu"]) == 0  # fmt: skip
    assert "5 nearest neighbours, top-1" in capsys.readouterr().out
    assert main(["evaluate", "linear", str(folder), "--layers", "nothing"]) == 2
    assert "no layer 'nothing'" in capsys.readouterr().err


def test_layers_from_one_pass_are_those_taken_alone():
    model = backbones.build("vit_micro_p4", image_size=16)
    data = ImageData("noise", images=torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8))
    view = 16, (0.5,) * 3, (0.2,) * 3
    names = ["blocks.0", "blocks.3"]
    found, labels = extract_layers(model, data, names, *view, batch_size=4)
    assert labels is None and list(found) == names
    for name in names:
        alone, _ = extract(model, data, *view, layer=name)
        torch.testing.assert_close(found[name], alone)
    means, _ = extract_layers(model, data, names, *view, tokens="mean")
    seen = []
    model.blocks[3].register_forward_hook(lambda m, inputs, output: seen.append(output))
    extract(model, data, *view)
    torch.testing.assert_close(means["blocks.3"], seen[0][:, 1:].mean(1))
    torch.testing.assert_close(found["blocks.3"], seen[0][:, 0])


def test_an_encoder_without_stages_is_refused_in_words(images, capsys):
    words = ["--data", str(images), "--backbone", "vit_micro_p4", "--image_size", "16"]
    assert main(["pretrain", "colorization", *words, "--batch_size", "8"]) == 2
    assert "VisionTransformer has no known stages" in capsys.readouterr().err
