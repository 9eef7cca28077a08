"""`sslzoo evaluate all` on a run, twice: every protocol that the data allows, the same numbers."""

import json
import shutil

import pytest

from sslzoo import registry
from sslzoo.cli import main

# The digits have neither videos nor boxes, and 1 % of 200 images is no label for each class.
LEFT_OUT = {"semi", "svm", "tracking", "transfer"}
MEASURED = ("speed", "training so far", "memory", "energy", "cost")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all") / "run"
    argv = ["pretrain", "simclr", "--backbone", "convnet4_narrow", "--image_size", "8",
            "--epochs", "1", "--batch_size", "256", "--warmup_epochs", "0", "--device", "cpu",
            "--out", str(folder)]  # fmt: skip
    assert main(argv) == 0
    return folder


def evaluate_all(run, capsys):
    """(what was printed, evaluation.json without what a clock tells); nothing is left behind."""
    argv = ["evaluate", "all", str(run), "--max_train", "200", "--max_test", "60",
            "--device", "cpu"]  # fmt: skip
    assert main(argv) == 0
    content = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    shutil.rmtree(run / "evaluation")
    for entry in content["evaluations"]:
        for row in entry["results"]:
            if any(word in row["metric"] for word in MEASURED):
                row["value"] = row["std"] = None
    return capsys.readouterr().out, content["evaluations"]


@pytest.mark.slow
def test_all_says_the_same_again_and_leaves_out_what_the_data_does_not_have(run, capsys):
    printed, first = evaluate_all(run, capsys)
    _, again = evaluate_all(run, capsys)
    assert again == first, "the features were computed anew: the cache was gone"
    done = {entry["protocol"] for entry in first}
    assert done == {*registry.evaluators()} - LEFT_OUT
    for name in LEFT_OUT:
        assert f"[{name}]\nleft out: " in printed
    numbers = [row["value"] for entry in first for row in entry["results"]]
    assert sum(value is not None for value in numbers) == 76
    for entry in first:
        assert entry["version"] == registry.evaluator(entry["protocol"]).VERSION
        assert entry["seed"] == 0 and entry["versions"]["torch"]
        assert all(len(part["fingerprint"]) == 12 for part in entry["data"].values())
