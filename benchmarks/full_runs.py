"""The small-budget recipes on all of CIFAR-10, beside published tables.

python benchmarks/full_runs.py CIFAR10                      every method, one after the other
python benchmarks/full_runs.py CIFAR10 --method simclr --seed 1 --budget 540
python benchmarks/full_runs.py --tiny                       a few steps on noise, to try the script

CIFAR10 is a folder and the start of the names of two Parquet files, as in `sslzoo pretrain --data`.
Each run is `sslzoo pretrain --config METHOD_cifar10 --epochs 200`, then `sslzoo evaluate knn`
(k = 200, T = 0.1) and `linear` (all layers for pretext methods), in processes of their own. A run
that `--budget` seconds cut short is continued by the next call. Features are those after the last
epoch.
"""

import argparse
import csv
import hashlib
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from benchmarks import measure, results  # noqa: E402
from benchmarks.representations import noise  # noqa: E402
from sslzoo.evaluation.efficiency import energy_joules  # noqa: E402

RECIPES = {
    "simclr": "simclr_cifar10",
    "moco": "moco_v2_cifar10",
    "moco_v3": "moco_v3_cifar10",
    "dino": "dino_cifar10",
    "mae": "mae_cifar10",
    "rotation": "rotation_cifar10",
    "colorization": "colorization_cifar10",
}
PRETEXT = ("mae", "rotation", "colorization")  # a middle layer is the best
EPOCHS = 200
TINY = ["--batch_size", "16", "--warmup_epochs", "0", "--backbone", "convnet4_narrow"]
TINY_VIT = [*TINY[:-1], "vit_micro_p4"]


def sslzoo(*arguments, seconds):
    """`sslzoo ARGUMENTS`, asked to stop and save after so many seconds: its exit code."""
    command = [sys.executable, "-m", "sslzoo", *map(str, arguments)]
    print("$ sslzoo", *arguments, flush=True)
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=120)


def pretrain(method, run, options, seconds):
    """Go on with a run, or begin it; whether it is done."""
    if (run / "backbone.safetensors").exists():
        return True
    if (run / "checkpoint.pt").exists():
        arguments = ["--resume", run]
    else:
        more = (TINY_VIT if "vit" in backbone_of(method) else TINY) if options.tiny else []
        arguments = ["--config", RECIPES[method], "--data", options.data, "--out", run,
                     "--epochs", 2 if options.tiny else EPOCHS, "--seed", options.seed,
                     "--workers", options.workers, *more]  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start, before = time.monotonic(), energy_joules(device)
    code = sslzoo("pretrain", *arguments, seconds=seconds)
    after = energy_joules(device)
    if code not in (0, 75):
        raise SystemExit(f"{method}: the run ended with code {code}")
    add_cost(run, time.monotonic() - start, None if before is None else after - before)
    return code == 0


def backbone_of(method):
    text = (ROOT / "sslzoo" / "recipes" / f"{RECIPES[method]}.yaml").read_text()
    return yaml.safe_load(text)["backbone"]


def add_cost(run, seconds, joules):
    """Sum up over the calls that a run takes."""
    path = run / "cost.json"
    cost = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "joules": 0.0}
    cost["seconds"] += seconds
    cost["joules"] = None if None in (joules, cost["joules"]) else cost["joules"] + joules
    path.write_text(json.dumps(cost))


def evaluate(method, run, seconds, k):
    layers = ["--layers", "all"] if method in PRETEXT else []
    tokens = ["--tokens", "mean"] if method == "mae" else []
    end = time.monotonic() + seconds
    for protocol in (["knn", run, "--k", f"[{k}]", "--temperature", "0.1"], ["linear", run]):
        code = sslzoo("evaluate", *protocol, *layers, *tokens, seconds=end - time.monotonic())
        if code:
            raise SystemExit(f"{method}: sslzoo evaluate {protocol[0]} ended with code {code}")


def record(method, run, options):
    """What the run folder says."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cost = json.loads((run / "cost.json").read_text())
    weights = hashlib.sha256((run / "backbone.safetensors").read_bytes()).hexdigest()

    def column(name):
        return [float(row[name]) for row in rows if row.get(name)]

    return dict(
        method=method,
        recipe=RECIPES[method],
        seed=options.seed,
        tiny=options.tiny,
        epochs=int(float(rows[-1]["epoch"])),
        minutes=cost["seconds"] / 60,
        kilojoules=None if cost["joules"] is None else cost["joules"] / 1000,
        images_per_second=statistics.median(column("images_per_second")),
        share_waiting=statistics.mean(column("data_wait_share")),
        peak_memory_mib=max(column("peak_memory_mib"), default=None),
        loss=[[int(float(row["epoch"])), float(row["loss"])] for row in rows],
        knn_of_epoch=[
            [int(float(row["epoch"])), float(row["knn_accuracy"])]
            for row in rows
            if row.get("knn_accuracy")
        ],
        sha256=weights,
        **accuracies(run),
    )  # fmt: skip


def accuracies(run):
    """{"knn", "linear": {layer or "output": top-1}} of the last evaluation of each kind."""
    found = {}
    for evaluation in json.loads((run / "evaluation.json").read_text())["evaluations"]:
        found[evaluation["protocol"]] = {
            row["metric"]: row["value"] for row in evaluation["results"] if "top-1" in row["metric"]
        }
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="folder and start of two files' names")
    parser.add_argument("--method", choices=RECIPES, help="default: all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders go")
    parser.add_argument("--tiny", action="store_true", help="a few steps, to try the script")
    options = parser.parse_args()
    if options.tiny:
        options.data = noise(options.runs)
    elif options.data is None:
        parser.error("which data? see --help")
    options.data = options.data.absolute()
    end = time.monotonic() + options.budget
    machine = measure.machine("cuda" if torch.cuda.is_available() else "cpu")
    for method in RECIPES if options.method is None else [options.method]:
        run = options.runs.absolute() / f"{RECIPES[method]}_seed{options.seed}"
        if not pretrain(method, run, options, end - time.monotonic()):
            print(f"{method}: not done; the next call goes on from {run}", flush=True)
            return
        evaluate(method, run, end - time.monotonic(), 20 if options.tiny else 200)
        results.add(machine, "runs", [record(method, run, options)])


if __name__ == "__main__":
    main()
