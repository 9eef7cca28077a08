"""Every file in examples/ runs, reduced, and does what it says."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from videos import sprite_video

from sslops import registry
from sslzoo.data.video_file import write_video
from sslzoo.masks import read_mask, save_mask

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(p.name for p in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def example(monkeypatch):
    """Import a file of examples/ as if it were on the path."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def photos(tmp_path):
    """Thirty images of each of three classes: bright spots at different places, in noise."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("left", "middle", "right")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(30):
            image = rng.integers(0, 90, (16, 24, 3), dtype=np.uint8)
            image[4:12, 8 * label : 8 * label + 8] = 200 + rng.integers(0, 50)
            Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_opens_with_its_command_and_is_listed(name):
    text = (ROOT / "examples" / name).read_text()
    opening = text.split('"""')[1]
    assert f"examples/{name}" in opening, "no command that starts it"
    assert f"examples/{name}" in (ROOT / "docs/examples.md").read_text()
    assert f"test_{name.removesuffix('.py')}" in Path(__file__).read_text()


def test_plain_loop(example, capsys):
    module = example("plain_loop")
    module.main(["--steps", "25", "--batch", "128"])
    lines = capsys.readouterr().out.splitlines()
    before = float(re.search(r"neighbours ([\d.]+)", lines[0])[1])
    found = [re.search(r"loss ([\d.]+), neighbours ([\d.]+)", line) for line in lines[1:]]
    losses, neighbours = zip(*((float(f[1]), float(f[2])) for f in found), strict=True)
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert min(neighbours) > before + 10


def test_plain_loop_losses_are_equal(example):
    module = example("plain_loop")
    q, k = torch.randn(2, 9, 5, dtype=torch.float64)
    values = [loss(q, k, temperature=0.3).item() for loss in module.LOSSES.values()]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_own_folder(example, photos, capsys, tmp_path):
    out = tmp_path / "run"
    example("own_folder").main([str(photos), "--out", str(out), "--epochs", "3", "--batch_size",
                                "45", "--image_size", "16", "--backbone", "convnet4"])  # fmt: skip
    text = capsys.readouterr().out
    assert "90 images of left, middle, right" in text and (out / "backbone.safetensors").exists()
    accuracy = float(re.search(r"([\d.]+) % of 18 images", text)[1])
    assert accuracy > 60  # a guess is right in 33 %


def test_barlow_twins(example):
    """Equation 1 by hand: two features, C = [[1, 1/2], [1/2, -1]] from whitened embeddings."""
    module = example("barlow_twins")
    method = module.BarlowTwins(Columns(2), module.Config(off_diagonal=0.1, features=2))
    method.projector = torch.nn.Identity()
    a = torch.tensor([1.0, 1.0, -1.0, -1.0])
    b = torch.tensor([1.0, -1.0, 1.0, -1.0])
    # C_ij is the mean of column i of Z^A (a, b) times column j of Z^B (a + b / 2, a / 2 - b).
    z0, z1 = torch.stack([a, b], 1), torch.stack([a + b / 2, a / 2 - b], 1)
    out = method([z0, z1], 0)
    assert out["loss"].item() == pytest.approx((1 - 1) ** 2 + (-1 - 1) ** 2 + 0.1 * (0.25 + 0.25))
    assert out["mean_correlation"].item() == pytest.approx(0.0)


class Columns(torch.nn.Module):
    """A backbone that changes nothing."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, x):
        return x


@pytest.fixture
def op():
    """info_nce, whose backends are put back after the test."""
    op = registry.OPS["info_nce"]
    before = op.order, op.backends
    yield op
    op.order, op.backends = before


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"),
                    reason="needs torch 2.13")  # fmt: skip
def test_custom_backend(example, op, capsys):
    module = example("custom_backend")
    module.main()
    text = capsys.readouterr().out
    assert "torch      yes, taken by default" in text and "same gradient" in text
    for options in ({"symmetric": True}, {"negative_keys": torch.ones(3, 8)},
                    {"return_stats": True}):  # fmt: skip
        with pytest.raises(RuntimeError, match="'torch' cannot run here"):
            module.sslops.info_nce(torch.eye(8), torch.eye(8), backend="torch", **options)


def test_track_video(example, tmp_path, capsys):
    frames, masks = sprite_video(3, frames=6)
    write_video(tmp_path / "clip.mp4", [f.permute(1, 2, 0).numpy() for f in frames], 6)
    save_mask(tmp_path / "first.png", masks[0].to(torch.uint8))
    out = tmp_path / "tracked"
    argv = [tmp_path / "clip.mp4", tmp_path / "first.png", "--size", 192, "--epochs", 1,
            "--clips", 24, "--out", out]  # fmt: skip
    example("track_video").main([str(word) for word in argv])
    assert str(out) in capsys.readouterr().out
    assert (out / "overlay.mp4").stat().st_size > 0 and (out / "run/backbone.safetensors").exists()
    last = read_mask(out / "masks/00005.png", (64, 64))
    assert overlap(last, masks[-1]) > overlap(masks[0], masks[-1]) + 0.1  # than to stand still


def overlap(a, b):
    """J, intersection over union of two masks."""
    a, b = a > 0, b > 0
    return ((a & b).sum() / (a | b).sum()).item()


@pytest.mark.slow
@pytest.mark.parametrize("bank", [[], ["--memory_bank", "64"]])
def test_lightly_simclr(example, photos, capsys, bank):
    pytest.importorskip("lightly", reason="lightly is not installed (pip install lightly)")
    example("lightly_simclr").main([str(photos), "--epochs", "2", "--batch_size", "30",
                                    "--image_size", "32", *bank])  # fmt: skip
    text = capsys.readouterr().out
    epochs = [float(value) for value in re.findall(r"epoch \d: loss ([\d.]+)", text)]
    assert len(epochs) == 2 and all(0 < value < 10 for value in epochs)
    if not bank:
        ours, theirs = map(float, re.search(r"sslops ([\d.]+), lightly ([\d.]+)", text).groups())
        assert ours == pytest.approx(theirs, rel=1e-5)
