"""Judge the frozen features of a run: what `sslzoo evaluate` does."""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from accelerate import PartialState

from sslzoo.data import DataError, open_data
from sslzoo.evaluation import extract, few_labels_probe, knn_accuracy, linear_probe, sgd_probe
from sslzoo.run_folder import load_backbone
from sslzoo.track import track
from sslzoo.tracking_config import TrackingConfig


@dataclass
class KNNConfig:
    """Options of the k-nearest-neighbour accuracy."""

    data: str = ""
    """Data set or path with a train and a test split; empty is the one of the run."""
    download: bool = False
    """Fetch a named data set where it is missing."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    k: tuple[int, ...] = (20, 200)
    """Numbers of neighbours, in samples."""
    temperature: float = 0.07
    """Divides the cosine similarities in the votes; no unit, above 0."""


@dataclass
class LinearConfig:
    """Options of the linear probe."""

    data: str = ""
    """Data set or path with a train and a test split; empty is the one of the run."""
    download: bool = False
    """Fetch a named data set where it is missing."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    """How the probe with all labels is fitted: lbfgs is deterministic, sgd is for large sets."""
    labels_per_class: tuple[int, ...] = ()
    """Also with only so many labels of each class, such as [1,10]."""
    draws: int = 5
    """Draws of these few labels: their mean and standard deviation are given."""
    seed: int = 0
    """Seed of the draws and of held-out samples."""


def knn(config, sets):
    """Rows of (metric, share of right predictions, standard deviation or None)."""
    result = knn_accuracy(*sets, k=config.k, temperature=config.temperature)
    ranks = (("top-1", result.top1), ("top-5", result.top5))
    return [(f"{k} nearest neighbours, {name}", by_k[k], None)
            for k in config.k for name, by_k in ranks]  # fmt: skip


def linear(config, sets):
    """Rows of (metric, share of right predictions, standard deviation or None)."""
    few = [(k, few_labels_probe(*sets, k, draws=config.draws, seed=config.seed))
           for k in config.labels_per_class]  # fmt: skip
    probe = linear_probe if config.solver == "lbfgs" else sgd_probe
    full = probe(*sets, seed=config.seed)
    return [
        *((f"{k} labels per class, top-1", result.mean, result.std) for k, result in few),
        ("all labels, top-1", full.top1, None),
        ("all labels, top-5", full.top5, None),
    ]


EVALUATORS = {
    "knn": (KNNConfig, knn),
    "linear": (LinearConfig, linear),
    "tracking": (TrackingConfig, None),  # which has no classes: see sslzoo.track
}


def evaluate(name, path, config):
    """Judge a run and add the result to its evaluations.jsonl.

    Args:
        name: "knn", "linear" or "tracking".
        path: a run folder, its backbone.safetensors or its checkpoint.pt.
        config: KNNConfig, LinearConfig or TrackingConfig.

    Returns:
        Rows of (metric, value from 0 to 1, standard deviation or None).
    """
    judge = track if name == "tracking" else partial(classify, name)
    rows, features = judge(path, config)
    if Path(path).is_dir():
        names = ("metric", "value", "std")
        record = {
            "protocol": name,
            "options": asdict(config),
            "features": features,
            "results": [dict(zip(names, row, strict=True)) for row in rows],
        }
        with Path(path, "evaluations.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    return rows


def classify(name, path, config):
    """(rows of metrics of a classifier on frozen features, the features in words)."""
    backbone, about = load_backbone(path)
    device = PartialState(cpu=config.device == "cpu").device
    backbone.to(device)
    config.data = config.data or about["data"]
    view = about["image_size"], about["mean"], about["std"]
    sets = []
    for split in ("train", "test"):
        data = open_data(config.data, split, download=config.download)
        if data.channels != about["channels"]:
            raise DataError(f"{data.name} has {data.channels} channels; this backbone takes "
                             f"{about['channels']}")  # fmt: skip
        sets += extract(backbone, data, *view, device=device)
    features = f"output of {about['backbone']} at {about['image_size']} pixels"
    return EVALUATORS[name][1](config, sets), features


def percent(value, std=None):
    """A share as a percentage, with its standard deviation where there is one."""
    return f"{100 * value:.1f} %" + (f" ± {100 * std:.1f}" if std is not None else "")
