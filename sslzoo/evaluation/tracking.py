"""How well masks and keypoints were tracked: J, F and PCK, as the official tools define them."""

import math
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from sslzoo.data import DataError

# The tolerance of F, as a share of the frame's diagonal.
BOUNDARY_SHARE = 0.008
# PCK measures distances in this share of the diagonal of the box around a frame's joints.
BOX_SHARE = 0.6
PCK_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)


class MaskScore(NamedTuple):
    """Of J or F over the frames of one object."""

    mean: float
    recall: float  # share of frames above 0.5
    decay: float  # mean of the first quarter of the frames minus that of the last


def region_similarity(predicted, truth):
    """J: intersection over union of two masks, bool [H, W]; 1 where both are empty.

    Example:
        >>> import numpy as np
        >>> predicted, truth = np.eye(4, dtype=bool), np.ones((4, 4), dtype=bool)
        >>> region_similarity(predicted, truth)
        0.25
    """
    union = np.logical_or(predicted, truth).sum()
    return float(np.logical_and(predicted, truth).sum() / union) if union else 1.0


def contour_accuracy(predicted, truth):
    """F: how well the boundaries of two masks, bool [H, W], match.

    Precision is the share of the predicted boundary's pixels with a true one within
    ceil(0.008 diagonals) pixels, recall the converse; F = 2 P R / (P + R). Both empty give 1, one
    empty gives 0.

    Source:
        Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
        Segmentation", CVPR 2016, section 5.
    """
    radius = math.ceil(BOUNDARY_SHARE * math.hypot(*truth.shape))
    of_predicted, of_truth = (np.argwhere(boundary(mask)) for mask in (predicted, truth))
    if not len(of_predicted) or not len(of_truth):
        return float(len(of_predicted) == len(of_truth))
    precision = share_near(of_predicted, of_truth, radius)
    recall = share_near(of_truth, of_predicted, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask):
    """Where a pixel differs from its right, lower or lower right neighbour, bool [H, W].

    The last row has right neighbours only, the last column lower ones; the corner has none.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, lower, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask != right) | (mask != lower) | (mask != diagonal)


def share_near(points, others, radius):
    """The share of points [N, 2] that have one of `others` within `radius`."""
    distance, _ = cKDTree(others).query(points, distance_upper_bound=radius + 1e-6)
    return float(np.isfinite(distance).mean())


def score_sequence(predicted, truth):
    """J and F of every object of a sequence, as the semi-supervised protocol counts them.

    The first frame, which is given, and the last are left out.

    Args:
        predicted, truth: integer [T, H, W], 0 for the background and 1, 2, ... for objects; the
            objects are those of the true first frame. T is at least 3.

    Returns:
        List with (MaskScore of J, MaskScore of F) for each object.
    """
    if predicted.shape != truth.shape:
        raise DataError(
            f"masks of another size: predicted {predicted.shape}, true {truth.shape} (frames, "
            "height, width)"
        )
    if len(truth) < 3:
        raise DataError(f"a sequence needs 3 frames to be scored; this has {len(truth)}")
    objects = [number for number in np.unique(truth[0]) if number]
    scores = []
    for number in objects:
        pairs = [(p == number, t == number)
                 for p, t in zip(predicted[1:-1], truth[1:-1], strict=True)]  # fmt: skip
        J, F = (np.array([measure(p, t) for p, t in pairs])
                for measure in (region_similarity, contour_accuracy))  # fmt: skip
        scores.append((summarise(J), summarise(F)))
    return scores


def summarise(values):
    """MaskScore of one value for each frame.

    Example:
        >>> import numpy as np
        >>> summarise(np.array([1.0, 0.9, 0.8, 0.4]))
        MaskScore(mean=0.775, recall=0.75, decay=0.35)
    """
    # Neighbouring quarters share a frame, as in davis2017-evaluation.
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[: edges[1] + 1], values[edges[3] :]
    numbers = values.mean(), (values > 0.5).mean(), first.mean() - last.mean()
    return MaskScore(*(round(float(x), 10) for x in numbers))


class PCK(NamedTuple):
    """Shares of right keypoints by level."""

    lenient: dict  # keypoints that the model gave up are left out
    strict: dict  # and here they count as wrong


def pck(predicted, truth, levels=PCK_LEVELS, joint=None):
    """Percentage of correct keypoints, as shares from 0 to 1, pooled over all frames and joints.

    A keypoint is right within a x 0.6 x the diagonal of the box around the frame's visible joints.

    Args:
        predicted: [T, K, 2] x and y in pixels; (-1, -1) for a joint that was given up. Without the
            first frame, which is given.
        truth: [T, K, 3] x, y and whether the joint is visible; others are not counted.
        levels: the values of a.
        joint: only this one is counted; None counts all.

    Returns:
        PCK; nan where nothing is counted.

    Source:
        Yang, Ramanan, "Articulated Human Detection with Flexible Mixtures of Parts", 2013; the box
        and its factor as in ajabri/videowalk.

    Example:
        >>> import numpy as np
        >>> truth = np.array([[[0, 0, 1], [30, 40, 1]]])  # a box of diagonal 50, so 30 pixels
        >>> predicted = np.array([[[0, 4], [-1, -1]]])
        >>> pck(predicted, truth, levels=(0.1, 0.2))
        PCK(lenient={0.1: 0.0, 0.2: 1.0}, strict={0.1: 0.0, 0.2: 0.5})
    """
    errors, given_up = [], 0
    for guess, frame in zip(predicted, truth, strict=True):
        visible = frame[:, 2] > 0
        if not visible.any():
            continue
        unit = BOX_SHARE * np.hypot(*np.ptp(frame[visible, :2], axis=0))
        if joint is not None:
            visible &= np.arange(len(frame)) == joint
        places, guess = frame[visible, :2], guess[visible]
        found = (guess != -1).any(1)
        given_up += int((~found).sum())
        distance = np.hypot(*(guess - places)[found].T)
        errors += (distance / unit if unit else np.where(distance > 0, np.inf, 0.0)).tolist()
    right = {a: int((np.array(errors) <= a).sum()) for a in levels}
    counts = len(errors), len(errors) + given_up
    return PCK(*({a: n / count if count else math.nan for a, n in right.items()}
                 for count in counts))  # fmt: skip
