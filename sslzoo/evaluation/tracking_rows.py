"""Sequences followed by a tracker, and the rows of J, F, J&F and PCK of what it found."""

import numpy as np
import torch

from sslzoo.data import DataError
from sslzoo.evaluation.results import Row
from sslzoo.evaluation.tracking import PCK_LEVELS, pck, score_sequence

COPIED = "first labels copied, "  # what an encoder has to beat


def follow(tracker, video, mask, joints=None):
    """What a tracker finds in a video.

    Args:
        tracker: sslzoo.tracker.Tracker.
        video: sslzoo.data.video.Video.
        mask: uint8 [H, W], of the first frame, or None.
        joints: None, or (frame numbers [A], keypoints float32 [A, K, 3]) of some frames.

    Returns:
        Masks uint8 [T, H, W] of all frames, or None; places [A - 1, K, 2] of the joints in the
        frames after the first that has them, or None.
    """
    features = tracker.features(video)
    features = features if joints is None else list(features)
    masks = None if mask is None else torch.stack(list(tracker.masks(features, mask)))
    if joints is None:
        return masks, None
    frames, places = joints
    start = frames[0]
    begin = torch.from_numpy(places[0])
    found = list(tracker.keypoints(features[start : frames[-1] + 1], begin, video.size))
    return masks, np.stack([found[t - start - 1].numpy() for t in frames[1:]])


def mask_rows(words, scores):
    """Rows of J and F, means over all objects of all sequences, and their mean J&F."""
    objects = [pair for pairs in scores.values() for pair in pairs]
    if not objects:
        raise DataError("no sequence has an object in its first mask")
    rows, means = [], {}
    for part, name in enumerate("JF"):
        values = np.array([pair[part] for pair in objects]).mean(0)
        means[name] = float(values[0])
        labels = (name, f"{name} recall", f"{name} decay")
        rows += [Row(words + label, float(v)) for label, v in zip(labels, values, strict=True)]
    return [Row(f"{words}J&F", (means["J"] + means["F"]) / 2), *rows]


def pck_rows(words, places):
    """Rows of PCK over all joints of all sequences; strict: given-up joints are wrong."""
    if not places:
        return []
    result = pooled(places)
    return [Row(f"{words}PCK@{a}{kind}", shares[a])
            for kind, shares in (("", result.lenient), (", strict", result.strict))
            for a in PCK_LEVELS]  # fmt: skip


def pooled(places, joint=None):
    """The PCK of (tracked, true) joints of several sequences, which may differ in number."""
    guesses = [frame for tracked, _ in places for frame in tracked]
    truths = [frame for _, truth in places for frame in truth]
    return pck(guesses, truths, joint=joint)


def copied_rows(truth, joints):
    """The same rows for labels that stay where they are in the first frame."""
    still = {name: score_sequence(masks[:1].expand_as(masks).numpy(), masks.numpy())
             for name, masks in truth.items()}  # fmt: skip
    places = []
    for _, marks in joints.values():
        first = np.where(marks[:1, :, 2:] > 0, marks[:1, :, :2], -1)
        places.append((np.broadcast_to(first, (len(marks) - 1, *first.shape[1:])), marks[1:]))
    return (mask_rows(COPIED, still) if still else []) + pck_rows(COPIED, places)
