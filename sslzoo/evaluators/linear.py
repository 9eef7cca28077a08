"""Accuracy of a linear classifier on the frozen features."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sslzoo.data import DataError
from sslzoo.evaluation.layers import prefix
from sslzoo.evaluation.linear_probe import few_labels_probe, linear_probe
from sslzoo.evaluation.online_probe import online_probe
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
    augment: Literal["none", "crop", "shift"] = "none"
    """Views that sgd learns from: none is the cached features of one centre view; crop (8 to 100 %
    of the image) and shift (by up to an eighth of the side) give other views in each epoch, and
    the encoder computes their features anew."""
    flip: float = 0.5
    """Probability of a horizontal flip of these views; 0 where left and right mean something."""
    labels_per_class: tuple[int, ...] = ()
    """Also with only so many labels of each class, such as [1,10]."""
    draws: int = 5
    """Draws of these few labels: their mean and standard deviation are given."""

    def __post_init__(self):
        if self.augment != "none" and self.solver != "sgd":
            raise ValueError(f"augment {self.augment} is for --solver sgd; lbfgs sees all at once")
        if self.epochs < 1 or self.repeats < 1 or self.draws < 1 or not 0 <= self.flip <= 1:
            raise ValueError("epochs, repeats and draws must be at least 1, flip 0 to 1")


def evaluate(subject, config):
    """Rows of each layer; what was chosen on held-out samples is in the details."""
    rows, chosen = [], {}
    fitted = fit(subject, config)
    for layer, probes in fitted.items():
        sets, words = subject.sets(layer), prefix(layer)
        for k in config.labels_per_class:
            few = few_labels_probe(*sets, k, draws=config.draws, seed=subject.seed)
            rows.append(Row(f"{words}{k} labels per class, top-1", few.mean, few.std))
        chosen[layer or "output"] = [
            {**probe.chosen, "held_out": probe.held_out} for probe in probes
        ]
        for name in ("top1", "top5"):
            values = [getattr(probe, name) for probe in probes]
            std = float(np.std(values)) if len(values) > 1 else None
            metric = f"{words}all labels, top-{name[-1]}"
            rows.append(Row(metric, float(np.mean(values)), std, count=len(sets[2])))
    return Result(rows, details={"chosen": chosen})


def fit(subject, config):
    """{layer: the probe of each seed}; lbfgs has one."""
    if config.solver == "lbfgs":
        return {layer: [linear_probe(*subject.sets(layer), seed=subject.seed)]
                for layer in subject.layers}  # fmt: skip
    seeds = range(subject.seed, subject.seed + config.repeats)
    grid = dict(learning_rates=config.learning_rates, weight_decays=config.weight_decays,
                epochs=config.epochs)  # fmt: skip
    if config.augment == "none":
        return {layer: [sgd_probe(*subject.sets(layer), seed=seed, device=subject.device, **grid)
                        for seed in seeds] for layer in subject.layers}  # fmt: skip
    if subject.is_sound:
        raise DataError("augment makes views of images; sounds have none")
    found = [online_probe(subject, config.augment, flip=config.flip, seed=seed, **grid)
             for seed in seeds]  # fmt: skip
    return {layer: [one[layer] for one in found] for layer in subject.layers}
