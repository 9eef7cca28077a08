"""A method of the user's own, named by the path of its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sslzoo import registry
from sslzoo.cli import main
from sslzoo.run_folder import load_untrained

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/barlow_twins.py"
TINY = ["--image_size", "8", "--epochs", "2", "--batch_size", "6", "--warmup_epochs", "0",
        "--features", "16"]  # fmt: skip


@pytest.fixture
def own(tmp_path):
    """The example, copied under a name of its own in the user's folder."""
    file = tmp_path / "my_twins.py"
    file.write_text(EXAMPLE.read_text().replace("class BarlowTwins", "class MyTwins"))
    return file


@pytest.fixture
def photos(tmp_path):
    """Two classes of images in train and test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for i in range(count):
            path = tmp_path / "photos" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def fails(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sslzoo: error: ") and err.count("\n") == 1, err
    return err


def test_a_method_file_is_trained_judged_and_continued(own, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "my_twins.py", "--data", str(photos), *TINY]) == 0
    run = tmp_path / "runs/my_twins_photos"  # called like the file
    assert yaml.safe_load((run / "config.yaml").read_text())["method"] == str(own)
    whole = torch.load(run / "checkpoint.pt", weights_only=True)["method"]
    assert "projector.0.weight" in whole and len(whole["projector.0.weight"]) == 16

    # From another folder, and without the file: judging runs no code of the run's.
    monkeypatch.chdir(ROOT)
    own.rename(tmp_path / "moved.py")
    registry._METHOD_FILES.clear()
    assert main(["evaluate", "knn", str(run), "--device", "cpu"]) == 0
    assert "knn" in (run / "evaluation.json").read_text()
    backbone, _ = load_untrained(run)
    assert not torch.equal(next(backbone.parameters()), whole["backbone." + first_name(backbone)])

    capsys.readouterr()
    message = fails(capsys, "pretrain", "--resume", run)
    assert f"name it, as in `sslzoo pretrain {own}" in message
    assert "there is no method file" in fails(capsys, "pretrain", own, "--resume", run)
    (tmp_path / "moved.py").rename(own)
    assert main(["pretrain", str(own), "--resume", str(run)]) == 0


def first_name(module):
    return next(iter(module.state_dict()))


def test_its_options_are_shown(own, capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", str(own), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Barlow Twins: each feature" in text and "λ, weight of the features' correlation" in text


PARTS = """
class Config: pass
def views(config, image_size): return []
class Mine: pass
"""
WRONG = [
    ("class Config: pass", "", "defines no Config"),
    ("def views(config, image_size): return []", "", "defines no views"),
    ("class Mine: pass", "", "defines no class called like the file: mine"),
    ("class Mine: pass", "class Mine: pass\ndef build_backbone(name): pass", "makes a backbone"),
]


@pytest.mark.parametrize("old, new, message", WRONG)
def test_a_file_that_lacks_a_part_says_which(tmp_path, capsys, old, new, message):
    (tmp_path / "mine.py").write_text(PARTS.replace(old, new))
    assert message in fails(capsys, "pretrain", tmp_path / "mine.py")


def test_a_missing_file_is_named(tmp_path, capsys):
    assert f"there is no method file {tmp_path / 'no.py'}" in fails(
        capsys, "pretrain", tmp_path / "no.py"
    )


def test_a_configuration_runs_no_file_by_itself(tmp_path, capsys):
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "recipe.yaml").write_text(f"method: {tmp_path / 'evil.py'}\n")
    assert "name it, as in" in fails(capsys, "pretrain", "--config", tmp_path / "recipe.yaml")


def test_two_files_of_one_name_stay_apart(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PARTS + f"VALUE = {value}\n")
    a, b = (registry.method(str(tmp_path / folder / "mine.py")) for folder in "ab")
    assert (a.VALUE, b.VALUE) == (1, 2)
    assert registry.method(str(tmp_path / "a/mine.py")) is a
