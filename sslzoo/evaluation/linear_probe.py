"""Logistic regression on frozen features: all labels, or a few for each class.

Features are prepared alike everywhere: unit length, minus the training features' mean, unit
length. Without the mean, features that share a large common part (an untrained encoder's) need a
penalty a hundred times weaker than others, and no comparison at one penalty is fair.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from sslzoo.data import DataError
from sslzoo.evaluation.knn import check_labels

HELD_OUT_SHARE = 0.1
MANY_VALUES = 10_000_000  # of the feature matrix; smaller ones gain nothing from threads
# Inverse strengths of the L2 penalty, as scikit-learn's C.
STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0)
# With a few labels there is nothing to choose it on.
FEW_LABELS_STRENGTH = 100.0


class ProbeResult(NamedTuple):
    """Accuracies, 0 to 1, and the setting that was best on held-out training samples."""

    top1: float
    top5: float
    held_out: float
    chosen: dict


class FewLabelsResult(NamedTuple):
    """Accuracy over several draws of the labelled samples; `std` is that of the draws."""

    mean: float
    std: float
    accuracies: list
    indices: list  # the labelled training samples of each draw, int64 [classes * k]


def linear_probe(
    train_features, train_labels, test_features, test_labels, *, strengths=STRENGTHS, seed=0
):
    """Deterministic linear probe: L-BFGS, the penalty chosen on a tenth of the training samples.

    Args:
        train_features: [N, d]; train_labels: int64 [N].
        test_features: [M, d]; test_labels: int64 [M].
        strengths: values of scikit-learn's C to choose from.
        seed: of the held-out samples.

    Returns:
        ProbeResult; `chosen` holds C.

    Raises:
        DataError: labels are missing, or one class only.

    Example:
        >>> import torch
        >>> labels = torch.arange(4).repeat(30)
        >>> linear_probe(torch.eye(4)[labels], labels, torch.eye(4), torch.arange(4)).top1
        1.0
    """
    check_labels(train_labels, test_labels)
    x, x_test = prepare(train_features, test_features)
    y = np.asarray(train_labels)
    model, held_out = fit_best(x, y, strengths, seed)
    top1, top5 = accuracies(model, x_test, test_labels)
    return ProbeResult(top1, top5, held_out, {"C": model.C})


def fit_best(x, y, strengths=STRENGTHS, seed=0):
    """Fit with the penalty that is best on a tenth of the samples: (model, accuracy there)."""
    fitted, held_out = hold_out(y, seed)
    scores = {}
    model = None
    for C in sorted(strengths):
        model = fit(x[fitted], y[fitted], C, model)
        scores[C] = float((model.predict(x[held_out]) == y[held_out]).mean())
    best = max(scores, key=scores.get)  # of equals the strongest penalty
    return fit(x, y, best, model), scores[best]


def few_labels_probe(
    train_features, train_labels, test_features, test_labels, labels_per_class, *, draws=5,
    seed=0, strength=FEW_LABELS_STRENGTH,
):  # fmt: skip
    """Linear probe with `labels_per_class` labels, mean and standard deviation over draws.

    The draws depend on the labels and the seed alone: every kind of feature gets the same.

    Args:
        labels_per_class: labelled training samples of each class.
        draws: number of draws.
        strength: scikit-learn's C.

    Returns:
        FewLabelsResult.

    Raises:
        DataError: labels are missing, one class only, or a class with too few samples.
    """
    check_labels(train_labels, test_labels)
    x, x_test = prepare(train_features, test_features)
    y = np.asarray(train_labels)
    chosen = [draw_labelled(y, labels_per_class, (seed, draw)) for draw in range(draws)]
    models = [fit(x[rows], y[rows], strength) for rows in chosen]
    results = [accuracies(model, x_test, test_labels)[0] for model in models]
    return FewLabelsResult(float(np.mean(results)), float(np.std(results)), results, chosen)


def draw_labelled(labels, per_class, seed):
    """Rows of `per_class` samples of each class, int64, in rising order."""
    generator = np.random.default_rng(seed)
    rows = []
    for c in np.unique(labels):
        of_class = np.flatnonzero(labels == c)
        if len(of_class) < per_class:
            raise DataError(f"class {c} has {len(of_class)} samples; {per_class} labels are asked")
        rows.append(generator.choice(of_class, per_class, replace=False))
    return np.sort(np.concatenate(rows))


def hold_out(labels, seed):
    """Rows to fit and rows to choose on, stratified where every class has two samples."""
    counts = np.unique(labels, return_counts=True)[1]
    classes, N = len(counts), len(labels)
    share = max(int(np.ceil(HELD_OUT_SHARE * N)), classes)
    can_stratify = counts.min() >= 2 and N - share >= classes
    stratify = labels if can_stratify else None
    if 2 * classes > N or not can_stratify:
        raise DataError(f"a probe needs two samples of each class or more; got {counts.min()}")
    return train_test_split(np.arange(N), test_size=share, stratify=stratify, random_state=seed)


def fit(x, y, C, start=None):
    """Multinomial logistic regression; `start` is a model of the same classes to start from."""
    model = LogisticRegression(C=C, max_iter=1000, tol=1e-5, warm_start=True)
    if start is not None:
        model.coef_, model.intercept_ = start.coef_.copy(), start.intercept_.copy()
        model.classes_ = start.classes_
    # Measured 60 times slower with two threads than with one where another process is busy.
    threads = 1 if x.size < MANY_VALUES else None
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def prepare(train_features, test_features):
    """Both as float64 [., d]: unit rows, centred on the training features' mean, unit rows."""
    prepared = preparation(train_features)
    return prepared(train_features), prepared(test_features)


def preparation(train_features):
    """The function of features [., d] that `prepare` applies."""
    mean = F.normalize(train_features.double(), dim=-1).mean(0)
    return lambda x: F.normalize(F.normalize(x.double(), dim=-1) - mean, dim=-1).numpy()


def accuracies(model, x, labels):
    """Top-1 and top-5 accuracy; on a tie the lowest class number wins."""
    scores = model.decision_function(x)
    if scores.ndim == 1:  # two classes: the score of the second
        scores = np.stack([-scores, scores], 1)
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hit = model.classes_[ranked] == np.asarray(labels)[:, None]
    return float(hit[:, 0].mean()), float(hit.any(1).mean())
