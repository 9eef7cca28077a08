"""k-nearest-neighbour accuracy of the frozen features."""

from dataclasses import dataclass

from sslzoo.data import DataError
from sslzoo.evaluation.knn import knn_accuracy
from sslzoo.evaluation.layers import each_layer
from sslzoo.evaluation.results import Result, Row

VERSION = 1
NEIGHBOURS = (10, 20, 100, 200)


@dataclass
class Config:
    """Options of the k-nearest-neighbour accuracy."""

    k: tuple[int, ...] = ()
    """Numbers of neighbours, in samples; empty takes those of 10, 20, 100, 200 that fit."""
    temperature: float = 0.07
    """Divides the cosine similarities in the votes; no unit, above 0."""

    def __post_init__(self):
        if not self.temperature > 0 or any(k < 1 for k in self.k):
            raise ValueError("temperature must be above 0 and each k at least 1")


def evaluate(subject, config):
    """Top-1 and top-5 for each k."""
    rows, same = [], subject.is_same_set()
    for prefix, sets in each_layer(subject):
        ks = neighbours(config.k, len(sets[0]) - same)
        result = knn_accuracy(*sets, k=ks, temperature=config.temperature, leave_one_out=same)
        for k in ks:
            for name, by_k in (("top-1", result.top1), ("top-5", result.top5)):
                metric = f"{prefix}{k} nearest neighbours, {name}"
                rows.append(Row(metric, by_k[k], count=len(sets[2])))
    return Result(rows, details={"temperature": config.temperature})


def neighbours(asked, count):
    """The numbers of neighbours asked for, which must fit; or those of the protocol that do."""
    if asked and max(asked) > count:
        raise DataError(f"k is {max(asked)}, but there are only {count} training images")
    return asked or tuple(k for k in NEIGHBOURS if k <= count) or (count,)
