"""A classifier of clean features, and its errors on images that are not clean."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from sslzoo.evaluation.linear_probe import fit_best, preparation

BINS = 15  # of the calibration error
# Distances from the training images that need no other data set.
SHIFTS = ("rotated", "translated", "inverted")
MOST_TURN = 30  # degrees
MOST_MOVE = 1 / 8  # of the side
# One thing under two names in data sets that are compared.
SAME = {"car": "automobile", "plane": "airplane"}


class CleanProbe:
    """Logistic regression on the features of clean training images.

    Args:
        features: [N, d]; labels: int64 [N].
        seed: of the held-out samples on which the penalty is chosen.
    """

    def __init__(self, features, labels, seed=0):
        self.prepare = preparation(features)
        self.model, _ = fit_best(self.prepare(features), labels.numpy(), seed=seed)

    def probabilities(self, features, classes=None):
        """Probabilities [M, C] of the classes, or of some of them, which then sum to 1."""
        p = self.model.predict_proba(self.prepare(features))
        if classes is None:
            return p
        p = p * np.isin(self.model.classes_, classes)
        return p / np.maximum(p.sum(1, keepdims=True), 1e-300)

    def error(self, features, labels):
        """Share of wrong predictions; on a tie the lowest class wins."""
        return float((self.predictions(self.probabilities(features)) != labels.numpy()).mean())

    def predictions(self, probabilities):
        return self.model.classes_[probabilities.argmax(1)]


def calibration_error(confidence, right, bins=BINS):
    """ECE: mean distance of confidence and accuracy over bins of equal width, by their samples.

    Args:
        confidence: [N], 0 to 1, of the predicted class.
        right: bool [N].

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 5.

    Example:
        >>> import numpy as np
        >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
        0.4
    """
    number = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    gap = np.bincount(number, confidence, bins) - np.bincount(number, right, bins)
    return round(float(np.abs(gap).sum() / len(confidence)), 12)


def mean_corruption_error(errors, reference, clean=None, reference_clean=None):
    """mCE: the errors of each kind in shares of a reference model's, averaged over kinds.

    `mean_c sum_s E[c, s] / sum_s R[c, s]`; with both clean errors these are subtracted from each
    error before (relative mCE).

    Args:
        errors: {kind: errors of the severities}; reference: the same of the reference model.

    Returns:
        A share, 1 for the reference itself; nan where the reference makes no error.

    Source:
        Hendrycks, Dietterich, 2019, section 4.

    Example:
        >>> mean_corruption_error({"fog": [0.2, 0.4]}, {"fog": [0.5, 0.7]})
        0.5
    """
    parts = []
    for kind, values in errors.items():
        ours = sum(values) - len(values) * (clean or 0)
        theirs = sum(reference[kind]) - len(values) * (reference_clean or 0)
        parts.append(ours / theirs if theirs else np.nan)
    return round(float(np.mean(parts)), 12)


def shift(images, kind, seed=0):
    """Images uint8 [N, C, S, S] moved away from what was trained on, each by its own draw."""
    if kind == "inverted":
        return 255 - images
    generator = np.random.default_rng((seed, SHIFTS.index(kind)))
    draws = generator.uniform(-1, 1, (len(images), 2))
    S = images.shape[-1]
    pairs = zip(images, draws, strict=True)
    return torch.stack([_moved(image, kind, draw, S) for image, draw in pairs])


def _moved(image, kind, draw, S):
    is_turn = kind == "rotated"
    angle = MOST_TURN * draw[0] if is_turn else 0.0
    move = [0, 0] if is_turn else [round(MOST_MOVE * S * x) for x in draw]
    fill = image.float().mean((1, 2)).tolist()  # the image's mean colour where nothing is known
    return tv.affine(image, angle, move, 1.0, [0.0, 0.0], fill=fill,
                     interpolation=tv.InterpolationMode.BILINEAR)  # fmt: skip


def shared_classes(names, other_names):
    """{class number of the other data set: that of ours} of the classes both have, by name."""
    ours = {SAME.get(name, name): i for i, name in enumerate(names)}
    pairs = {i: ours.get(SAME.get(name, name)) for i, name in enumerate(other_names)}
    return {i: c for i, c in pairs.items() if c is not None}
