"""Recall at k: whether the nearest images are of the query's class."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sslzoo.evaluation.knn import check_labels
from sslzoo.evaluation.layers import prefix
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluation.retrieval import draw_neighbours, nearest, recall_at

VERSION = 1


@dataclass
class Config:
    """Options of the retrieval."""

    k: tuple[int, ...] = (1, 5, 10)
    """Numbers of neighbours among which the class has to be."""
    gallery: Literal["train", "test"] = "train"
    """Where the neighbours are looked for; queries are the test images, and find not themselves."""
    pictured: int = 8
    """Queries in the picture, evenly spaced; 0 draws none."""
    neighbours: int = 8
    """Neighbours of each query in the picture."""

    def __post_init__(self):
        if not self.k or min(self.k) < 1 or self.neighbours < 1 or self.pictured < 0:
            raise ValueError("k and neighbours must be at least 1, pictured at least 0")


def evaluate(subject, config):
    """Recall at each k, and the picture of the last layer."""
    rows, same = [], config.gallery == "test" or subject.is_same_set()
    for layer in subject.layers:
        queries, labels = subject.features("test", layer)
        gallery, gallery_labels = subject.features(config.gallery, layer)
        check_labels(gallery_labels, labels)
        most = max(config.k)
        found = nearest(queries, gallery, most, same_set=same)
        recall = recall_at(found, labels, gallery_labels, config.k)
        rows += [Row(f"{prefix(layer)}recall at {k}", recall[k], count=len(queries))
                 for k in config.k]  # fmt: skip
    pictures = {}
    if config.pictured:
        pictures["neighbours"] = draw(subject, config, queries, gallery, same)
    return Result(rows, pictures)


def draw(subject, config, queries, gallery, same):
    """Write the picture; returns its path."""
    test, other = subject.data("test"), subject.data(config.gallery)
    some = np.unique(np.linspace(0, len(test) - 1, config.pictured).astype(int))
    count = min(config.neighbours, len(other) - same)
    # Of all queries: a query that is alone would not know which of the images it is itself.
    found = nearest(queries, gallery, count, same_set=same)[some]
    path = subject.picture("neighbours.png")
    draw_neighbours(
        path,
        [test.load(i) for i in some],
        [[other.load(j) for j in row] for row in found],
        other.labels[found] == test.labels[some][:, None],
    )
    return path
