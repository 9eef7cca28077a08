"""One linear support vector machine for each class on frozen features, where an image has several.

The protocol of VOC07's classification: features of unit length, squared hinge loss, the cost of
each class chosen by cross-validation on the training images.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import precision_recall_curve
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from sslzoo.data import DataError

COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
FOLDS = 3
ITERATIONS = 2000
NEGATIVES = 19  # for each positive image of a draw of few
PRESENT, UNSURE, ABSENT = 1, 0, -1


class AveragePrecision(NamedTuple):
    """Of one class, 0 to 1."""

    area: float  # under precision, made falling, over recall: VOC from 2010 on
    eleven: float  # the mean of the largest precision from 11 recalls on: VOC07


def average_precision(right, scores):
    """AveragePrecision of a ranking.

    Args:
        right: bool [N], whether the class is in the image; at least one is.
        scores: [N].

    Example:
        >>> import numpy as np
        >>> right = np.array([True, False, True])
        >>> found = average_precision(right, np.array([0.9, 0.8, 0.7]))  # precisions 1 and 2/3
        >>> print(f"{found.area:.4f} {found.eleven:.4f}")
        0.8333 0.8485
    """
    precision, recall, _ = precision_recall_curve(right, scores)
    # Recalls fall; the last pair is scikit-learn's own, of no ranking.
    precision, recall = np.maximum.accumulate(precision[:-1]), recall[:-1]
    area = -np.diff(np.append(recall, 0.0)) @ precision
    at = [precision[recall >= tenth / 10 - 1e-9].max() for tenth in range(11)]
    return AveragePrecision(float(area), float(np.mean(at)))


def unit(features):
    """Features of unit length, float64 [N, d]."""
    return F.normalize(features.double(), dim=-1).numpy()


def machine(cost, positive_weight, seed):
    """The classifier; a positive_weight of 0 gives both sides the same weight in all."""
    weight = "balanced" if positive_weight == 0 else {True: positive_weight, False: 1.0}
    return LinearSVC(C=cost, loss="squared_hinge", dual=True, class_weight=weight,
                     max_iter=ITERATIONS, random_state=seed)  # fmt: skip


def fit_class(x, is_present, *, costs=COSTS, positive_weight=0.0, seed=0):
    """(fitted machine, cost that was best in cross-validation by average precision).

    Args:
        x: [N, d], of unit length.
        is_present: bool [N]; three images at least of either kind.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = {cost: cross_val_score(machine(cost, positive_weight, seed), x, is_present,
                                        cv=FOLDS, scoring="average_precision").mean()
                  for cost in sorted(costs)} if len(costs) > 1 else {costs[0]: 0.0}  # fmt: skip
        best = max(scores, key=scores.get)  # of equals the strongest penalty
        return machine(best, positive_weight, seed).fit(x, is_present), best


def check_counts(targets, names, least, where):
    """A DataError for a class with fewer images than `least`, or fewer without it."""
    for number, name in enumerate(names):
        for value, words in ((PRESENT, "with"), (ABSENT, "without")):
            count = int((targets[:, number] == value).sum())
            if count < least:
                raise DataError(f"{where} has {count} images {words} {name}; the support vector "
                                f"machines need {least}")  # fmt: skip


def judge(model, x, targets):
    """AveragePrecision of a machine on test images; those that are unsure do not count."""
    sure = targets != UNSURE
    return average_precision(targets[sure] == PRESENT, model.decision_function(x[sure]))


def draw_few(targets, per_class, seed):
    """Rows with `per_class` images of a class and 19 without it for each, or as many as there are.

    Args:
        targets: of the class, 1, 0 or -1 for each image, int [N].
    """
    generator = np.random.default_rng(seed)
    kinds = (PRESENT, per_class), (ABSENT, NEGATIVES * per_class)
    rows = [np.flatnonzero(targets == value) for value, _ in kinds]
    taken = [generator.choice(of, min(count, len(of)), replace=False)
             for of, (_, count) in zip(rows, kinds, strict=True)]  # fmt: skip
    return np.sort(np.concatenate(taken))
