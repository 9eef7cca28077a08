"""Accuracies of frozen features while a method trains."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import live_probes
from sslzoo.cli import main
from sslzoo.data import open_data
from sslzoo.evaluate import load
from sslzoo.evaluation import extract, linear_probe
from sslzoo.run_folder import load_backbone
from sslzoo.watch import Watch

TRAIN = ["pretrain", "simclr", "--backbone", "convnet4", "--image_size", "8", "--batch_size", "256",
         "--warmup_epochs", "0", "--log_every", "1", "--device", "cpu"]  # fmt: skip


def run(folder, *words):
    assert main([*TRAIN, "--epochs", "2", "--out", str(folder), *words]) == 0
    with (folder / "metrics.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


def logged(rows, name):
    return [(float(row["epoch"]), float(row[name])) for row in rows if row.get(name)]


def test_probes_come_when_due_and_leave_training_as_it_is(tmp_path):
    plain = run(tmp_path / "plain")
    rows = run(tmp_path / "probed", "--knn_every", "1", "--linear_every", "2")
    assert [epoch for epoch, _ in logged(rows, "knn_accuracy")] == [1, 2]
    assert [epoch for epoch, _ in logged(rows, "linear_accuracy")] == [2]
    assert all(0.5 < value <= 1 for _, value in logged(rows, "linear_accuracy"))
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    ours, theirs = (load_backbone(tmp_path / name)[0].state_dict() for name in ("plain", "probed"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_last_probe_is_that_of_the_saved_backbone_on_the_chosen_layer(tmp_path):
    rows = run(tmp_path, "--linear_every", "2", "--probe_layer", "blocks.0")
    backbone, about = load_backbone(tmp_path)
    size, mean, std = (about[name] for name in ("image_size", "mean", "std"))
    sets = [part for split in ("train", "test")
            for part in extract(backbone, open_data("digits", split), size, mean, std,
                                layer="blocks.0")]  # fmt: skip
    assert logged(rows, "linear_accuracy") == [(2, linear_probe(*sets).top1)]


@pytest.mark.slow
def test_several_layers_are_probed_side_by_side(tmp_path):
    words = ["--linear_every", "2", "--knn_every", "2", "--epochs", "2"]
    several = run(tmp_path / "several", *words, "--probe_layer", "blocks.0,blocks.3")[-1]
    every = run(tmp_path / "every", *words, "--probe_layer", "all")[-1]
    one = run(tmp_path / "one", *words, "--probe_layer", "blocks.3")[-1]
    for probe in ("linear_accuracy", "knn_accuracy"):
        assert probe not in several and several[f"{probe}_blocks.3"] == one[probe]
        found = [every[f"{probe}_blocks.{i}"] for i in range(4)]
        assert found[0] == several[f"{probe}_blocks.0"] and found[3] == one[probe]
        assert len(set(found)) > 1


def test_each_half_of_a_split_brain_is_probed_alone_and_both_together(photos, tmp_path):
    words = ["--data", str(photos), "--image_size", "16", "--batch_size", "8", "--epochs", "1"]
    words += ["--backbone", "convnet4", "--output_stride", "4", "--device", "cpu"]
    words += ["--knn_every", "1", "--probe_layer", "blocks.2,L.blocks.2,ab.blocks.2"]
    assert main(["pretrain", "split_brain", *words, "--out", str(tmp_path / "run")]) == 0
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        last = [*csv.DictReader(file)][-1]
    words = ["--layers", "blocks.2,L.blocks.2,ab.blocks.2", "--k", "[20]", "--device", "cpu"]
    assert main(["evaluate", "knn", str(tmp_path / "run"), *words]) == 0
    rows = load(tmp_path / "run" / "evaluation.json")[-1]["results"]
    judged = {row["metric"].split(":")[0]: row["value"] for row in rows if "top-1" in row["metric"]}
    assert {layer: float(last[f"knn_accuracy_{layer}"]) for layer in judged} == judged
    assert len(judged) == 3


def test_an_unlabelled_folder_has_no_probe_unless_one_is_named(tmp_path):
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(0)
    for i in range(256):
        pixels = generator.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    words = ["--data", str(tmp_path / "photos"), "--knn_every", "1"]
    assert logged(run(tmp_path / "none", *words), "knn_accuracy") == []
    for split in ("train", "test"):
        for i in range(30):
            name = tmp_path / "named" / split / "ab"[i % 2]
            name.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 100, (8, 8, 3)) + 100 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(name / f"{i}.png")
    rows = run(tmp_path / "other", *words, "--probe_data", str(tmp_path / "named"))
    assert [value for _, value in logged(rows, "knn_accuracy")][-1] > 0.8


@pytest.mark.parametrize(
    "words, message",
    [
        (["--knn_every", "1", "--probe_layer", "blocks.9"], "probe_layer: no layer 'blocks.9'"),
        (["--knn_every", "1", "--probe_data", "no/where"], "no/where"),
        (["--linear_every", "-1"], "linear_every must be 0 or more"),
    ],
)
def test_a_probe_that_can_not_be_is_told_before_training(tmp_path, capsys, words, message):
    assert main([*TRAIN, "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_between_probes_no_feature_is_computed(tmp_path, monkeypatch):
    """A step between probes costs what it costs without them: the same code runs."""
    epochs, features = [], Watch.features
    monkeypatch.setattr(Watch, "features", lambda self, *a, **k: epochs.append(self.epoch)
                        or features(self, *a, **k))  # fmt: skip
    rows = run(tmp_path, "--knn_every", "2")
    assert len(rows) > 8 and epochs == [2, 2, 2], (
        "train and test of the probe, and the last picture"
    )


def test_the_tool_that_times_steps_between_probes_runs(capsys):
    live_probes.main(["--tiny", "--blocks", "2", "--steps", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("without: ") and lines[3].startswith("with: ")


def test_a_ratio_of_blocks_is_of_those_of_one_round():
    seconds = {"without": [1.0, 10.0, 2.0], "with": [1.1, 9.0, 2.0]}  # ratios 1.1, 0.9, 1
    assert live_probes.ratios(seconds, "with") == pytest.approx([0.9, 1.0, 1.1])
