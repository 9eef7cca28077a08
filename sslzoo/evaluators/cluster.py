"""How well k-means on the frozen features finds the classes."""

from dataclasses import dataclass

import numpy as np

from sslzoo.data import DataError
from sslzoo.evaluation.clustering import agreement, cluster
from sslzoo.evaluation.layers import prefix
from sslzoo.evaluation.results import Result, Row

VERSION = 1


@dataclass
class Config:
    """Options of the clustering."""

    seeds: int = 5
    """Runs with other seeds: their mean and standard deviation are given."""
    restarts: int = 20
    """Starts of k-means in a run; the one with the least inertia counts."""
    over: int = 5
    """Also with this many clusters for each class; 0 leaves it out."""
    pca: int = 0
    """Dimensions kept before the clustering; 0 keeps all."""
    splits: tuple[str, ...] = ("test", "train")
    """Splits that are clustered, each by itself."""

    def __post_init__(self):
        if self.seeds < 1 or self.restarts < 1 or self.over < 0 or self.pca < 0:
            raise ValueError("seeds and restarts must be at least 1, over and pca at least 0")


def evaluate(subject, config):
    """NMI, ARI and matched accuracy of each split; majority accuracy of the over-clustering."""
    rows = []
    for layer in subject.layers:
        for split in config.splits:
            features, labels = subject.features(split, layer)
            where = f"{prefix(layer)}{split}, "
            rows += split_rows(where, features, check(labels, split), config, subject.seed)
    return Result(rows)


def split_rows(where, features, labels, config, seed):
    """The rows of one split."""
    classes = len(labels.unique())
    rows = measure(features, labels, classes, config, seed, where, ("nmi", "ari", "accuracy"))
    many = classes * config.over
    if config.over and many <= len(labels):
        where += f"{many} clusters, "
        rows += measure(features, labels, many, config, seed, where, ("nmi", "majority"))
    return rows


def measure(features, labels, clusters, config, seed, where, names):
    """Mean and standard deviation over the seeds."""
    found = [agreement(cluster(features, clusters, restarts=config.restarts, pca=config.pca,
                               seed=seed + i), labels) for i in range(config.seeds)]  # fmt: skip
    rows = []
    for name in names:
        values = [getattr(result, name) for result in found]
        unit = "" if name in ("nmi", "ari") else "share"
        word = name.upper() if unit == "" else f"{'matched ' * (name == 'accuracy')}{name}"
        word = word if name != "majority" else "majority accuracy"
        rows.append(Row(where + word, float(np.mean(values)), float(np.std(values)), unit))
    return rows


def check(labels, split):
    """Labels of two classes or more."""
    if labels is None:
        raise DataError(f"clusters are compared with labels; the {split} split has none")
    if len(labels.unique()) < 2:
        raise DataError(f"clusters need two classes or more; the {split} split has one")
    return labels
