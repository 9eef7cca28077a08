"""Tables of whole runs, worked by hand, and the scripts that make them, at tiny sizes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import run_tables

ROOT = Path(__file__).parents[1]
ABOUT = dict(method="simclr", model="net, 16 x 16, batch 8", images=50, epochs=2,
             untrained={"knn": 0.3, "linear": 0.35})  # fmt: skip


def side(variant, seed, loss, knn, **more):
    return dict(variant=variant, seed=seed, loss=loss, knn=knn, linear=0.5, share_waiting=0.25,
                images_per_second=1000.0, **ABOUT, **more)  # fmt: skip


RECORDS = [
    side("sslops", 0, [4.0, 3.0], 0.40, ratio_to_best_peer=2.0),
    side("lightly", 0, [4.2, 3.2], 0.42),
    side("sslops", 1, [4.1, 3.2], 0.42, ratio_to_best_peer=3.0),
    side("lightly", 1, [4.4, 3.1], 0.42),
]


def test_sides_are_means_over_seeds_with_their_deviation():
    untrained, ours, theirs = run_tables.representations_table(RECORDS)[3:]
    assert "50 images, 2 epochs | untrained | 2 | | 30.0 | 35.0 |" in untrained
    # Of 40 and 42 %: mean 41, deviation sqrt(2) = 1.4; of losses 3.0 and 3.2: 3.1 and 0.1414.
    assert "| 3.1000 ± 0.1414 | 41.0 ± 1.4 | 50.0 ± 0.0 | 1000 | 25% | 2.50 |" in ours
    assert theirs.endswith("| 42.0 ± 0.0 | 50.0 ± 0.0 | 1000 | 25% |  |")


def test_curves_are_compared_epoch_by_epoch():
    # Means: ours 4.05, 3.1; lightly's 4.3, 3.15: gap 0.25. Spread: 0.2, of lightly's first epoch.
    assert run_tables.curves_table(RECORDS)[-1] == "| simclr, net | 0.250 | 0.200 |"


def test_a_side_that_is_absent_says_so():
    absent = dict(variant="lightly", absent="lightly is not installed", seed=0, **ABOUT)
    lines = run_tables.representations_table([RECORDS[0], absent])
    assert "absent: lightly is not installed" in lines[-1]
    assert run_tables.curves_table([RECORDS[0], absent]) == []


def test_runs_show_the_best_layer_beside_the_published_number():
    run = dict(
        method="simclr", recipe="simclr_cifar10", seed=0, tiny=False, sha256="ab",
        minutes=7.0, kilojoules=None, images_per_second=20000.0, peak_memory_mib=3000.0,
        share_waiting=0.01, knn={"output": 0.8, "layer3": 0.85}, linear={"output": 0.9},
    )  # fmt: skip
    table = run_tables.runs_table([run, {**run, "tiny": True}])
    assert "| simclr_cifar10 | 1 | 85.0 | 90.0 | 84.7 | 7 | 2e+04 | 3000 | not told | 1% |" in table
    assert table[-1] == "- `ab` simclr_cifar10, seed 0"


def script(name, *arguments, out):
    env = os.environ | {"OUT": str(out), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--tiny", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_both_sides_train_and_are_judged(tmp_path):
    text = script("representations", "--method", "simclr", "--seeds", "1", out=tmp_path)
    assert "epoch 2/2: loss sslops" in text and "images/s" in text
    has_lightly = importlib.util.find_spec("lightly") is not None
    assert ("absent: lightly is not installed" in text) is not has_lightly
    assert not list(tmp_path.iterdir())  # a trial leaves no results


@pytest.mark.slow
def test_a_recipe_is_run_judged_and_written_down(tmp_path):
    script("full_runs", "--method", "simclr", "--runs", str(tmp_path / "runs"), out=tmp_path)
    (file,) = tmp_path.glob("*.json")
    (run,) = json.loads(file.read_text())["runs"]
    assert run["epochs"] == 2 and run["tiny"] and len(run["sha256"]) == 64
    assert 0 <= run["knn"]["20 nearest neighbours, top-1"] <= 1
    assert 0 <= run["linear"]["all labels, top-1"] <= 1
