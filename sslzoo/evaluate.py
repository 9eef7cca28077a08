"""Judge the frozen features of a run: what `sslzoo evaluate` does."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from accelerate import PartialState

from sslzoo import backbones
from sslzoo.data import DataError, open_data
from sslzoo.evaluation import few_labels_probe, knn_accuracy, linear_probe, sgd_probe
from sslzoo.evaluation.features import extract_layers
from sslzoo.run_folder import load_backbone, load_untrained


@dataclass
class KNNConfig:
    """Options of the k-nearest-neighbour accuracy."""

    data: str = ""
    """Data set or path with a train and a test split; empty is the one of the run."""
    download: bool = False
    """Fetch a named data set where it is missing."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    layers: str = ""
    """Layers to judge: names such as blocks.2,blocks.5, or all; empty is the encoder's output."""
    tokens: Literal["class", "mean"] = "class"
    """What stands for a layer of tokens: the class token, or the mean of the patches."""
    untrained: bool = False
    """Judge the run's encoder as it was before training: what training has to beat."""
    max_train: int = 0
    """Images of the training split that are used, evenly spaced; 0 is all of them."""
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
    layers: str = ""
    """Layers to judge: names such as blocks.2,blocks.5, or all; empty is the encoder's output."""
    tokens: Literal["class", "mean"] = "class"
    """What stands for a layer of tokens: the class token, or the mean of the patches."""
    untrained: bool = False
    """Judge the run's encoder as it was before training: what training has to beat."""
    max_train: int = 0
    """Images of the training split that are used, evenly spaced; 0 is all of them."""
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


EVALUATORS = {"knn": (KNNConfig, knn), "linear": (LinearConfig, linear)}


def evaluate(name, path, config):
    """Judge a run and add the result to its evaluations.jsonl.

    Args:
        name: "knn" or "linear".
        path: a run folder, its backbone.safetensors or its checkpoint.pt.
        config: KNNConfig or LinearConfig.

    Returns:
        Rows of (metric, value from 0 to 1, standard deviation or None).
    """
    load = load_untrained if config.untrained else load_backbone
    backbone, about = load(path)
    device = PartialState(cpu=config.device == "cpu").device
    backbone.to(device)
    layers = chosen_layers(backbone, config.layers)
    splits = [features(backbone, about, split, layers, config, device)
              for split in ("train", "test")]  # fmt: skip
    rows = []
    for layer in layers:
        sets = [x for by_layer, labels in splits for x in (by_layer[layer], labels)]
        prefix = f"{layer}: " if layer else ""
        rows += [
            (prefix + metric, *values) for metric, *values in EVALUATORS[name][1](config, sets)
        ]
    if Path(path).is_dir():
        record(name, path, config, about, rows)
    return rows


def chosen_layers(backbone, text):
    """The layers of an option: [None], the encoder's output, where there is none."""
    if not text:
        return [None]
    return backbones.layers(backbone) if text == "all" else text.split(",")


def features(backbone, about, split, layers, config, device):
    """({layer: features}, labels) of one split."""
    data = open_data(config.data or about["data"], split, download=config.download)
    if data.channels != about["channels"]:
        raise DataError(f"{data.name} has {data.channels} channels; this backbone takes "
                         f"{about['channels']}")  # fmt: skip
    if split == "train" and config.max_train:
        data = data.subset(range(0, len(data), math.ceil(len(data) / config.max_train)))
    view = about["image_size"], about["mean"], about["std"]
    return extract_layers(backbone, data, layers, *view, device=device, tokens=config.tokens)


def record(name, path, config, about, rows):
    """Add a line to the run's evaluations.jsonl."""
    names = ("metric", "value", "std")
    line = {
        "protocol": name,
        "options": {**asdict(config), "data": config.data or about["data"]},
        "features": f"{config.layers or 'output'} of {about['backbone']} at "
        f"{about['image_size']} pixels",
        "results": [dict(zip(names, row, strict=True)) for row in rows],
    }
    with Path(path, "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def percent(value, std=None):
    """A share as a percentage, with its standard deviation where there is one."""
    return f"{100 * value:.1f} %" + (f" ± {100 * std:.1f}" if std is not None else "")
