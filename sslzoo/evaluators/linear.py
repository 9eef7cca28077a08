"""Accuracy of a linear classifier on the frozen features."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sslzoo.evaluation.layers import each_layer
from sslzoo.evaluation.linear_probe import few_labels_probe, linear_probe
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluation.sgd_probe import LEARNING_RATES, WEIGHT_DECAYS, sgd_probe

VERSION = 1


@dataclass
class Config:
    """Options of the linear probe."""

    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    """How the probe with all labels is fitted: lbfgs is deterministic, sgd is for large sets."""
    learning_rates: tuple[float, ...] = LEARNING_RATES
    """Of sgd, per 256 samples: all are trained at once, the best on held-out samples is judged."""
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    """Of sgd, tried with each learning rate."""
    epochs: int = 100
    """Passes of sgd over the training features."""
    repeats: int = 3
    """Seeds of sgd's order and held-out samples: their mean and standard deviation are given."""
    labels_per_class: tuple[int, ...] = ()
    """Also with only so many labels of each class, such as [1,10]."""
    draws: int = 5
    """Draws of these few labels: their mean and standard deviation are given."""


def evaluate(subject, config):
    """Rows of each layer; what was chosen on held-out samples is in the details."""
    rows, chosen = [], {}
    for prefix, sets in each_layer(subject):
        count = len(sets[2])
        for k in config.labels_per_class:
            few = few_labels_probe(*sets, k, draws=config.draws, seed=subject.seed)
            rows.append(Row(f"{prefix}{k} labels per class, top-1", few.mean, few.std))
        probes = fit(subject, config, sets)
        chosen[prefix.removesuffix(": ") or "output"] = [
            {**probe.chosen, "held_out": probe.held_out} for probe in probes
        ]
        for name in ("top1", "top5"):
            values = [getattr(probe, name) for probe in probes]
            std = float(np.std(values)) if len(values) > 1 else None
            metric = f"{prefix}all labels, top-{name[-1]}"
            rows.append(Row(metric, float(np.mean(values)), std, count=count))
    return Result(rows, details={"chosen": chosen})


def fit(subject, config, sets):
    """The probe of each seed; lbfgs has one."""
    if config.solver == "lbfgs":
        return [linear_probe(*sets, seed=subject.seed)]
    grid = dict(learning_rates=config.learning_rates, weight_decays=config.weight_decays,
                epochs=config.epochs, device=subject.device)  # fmt: skip
    return [sgd_probe(*sets, seed=subject.seed + i, **grid) for i in range(config.repeats)]
