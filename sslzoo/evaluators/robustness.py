"""Errors of a linear probe on corrupted images, and on other data sets of the same classes."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from sslzoo.data import DataError
from sslzoo.evaluation import corruptions
from sslzoo.evaluation.features import evaluation_views
from sslzoo.evaluation.knn import check_labels
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluation.robustness import (
    SHIFTS,
    CleanProbe,
    calibration_error,
    mean_corruption_error,
    shared_classes,
    shift,
)
from sslzoo.progress import with_bar

VERSION = 1
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass
class Config:
    """Options of the robustness."""

    kinds: tuple[str, ...] = corruptions.BENCHMARK
    """Kinds of corruption; speckle_noise, gaussian_blur, spatter and saturate exist too."""
    severities: tuple[int, ...] = SEVERITIES
    """Severities, 1 to 5; the mean corruption error is defined over all five."""
    images: int = 1000
    """Test images that are corrupted, evenly spaced; 0 is all of them."""
    frost: str = ""
    """Folder with textures frost*.png or .jpg; without it the kind frost is left out."""
    reference: bool = True
    """Also the untrained encoder, whose errors are the unit of the mean corruption error."""
    other: tuple[str, ...] = ()
    """Data sets (their test split) of which some classes have the names of this one's."""
    shifts: tuple[str, ...] = SHIFTS
    """rotated (up to 30 degrees), translated (up to an eighth of the side), inverted."""

    def __post_init__(self):
        unknown = [*({*self.kinds} - {*corruptions.NAMES}), *({*self.shifts} - {*SHIFTS})]
        if unknown:
            known = ", ".join([*corruptions.NAMES, *SHIFTS])
            raise ValueError(f"no corruption {unknown[0]!r}; known: {known}")
        if not self.severities or not {*self.severities} <= {*SEVERITIES} or self.images < 0:
            raise ValueError("severities must be of 1 to 5, and images at least 0")


@dataclass
class Judged:
    """An encoder with its probe of clean features, and what it got wrong."""

    backbone: object
    probe: CleanProbe
    clean: float
    errors: dict = field(default_factory=dict)  # kind -> errors of the severities


def evaluate(subject, config):
    """Clean error, mean error over kinds and severities, mCE, and accuracy under shift."""
    textures = corruptions.load_frost(config.frost) if config.frost else []
    kinds, notes = usable(config, textures, subject.size)
    views, labels = test_views(subject, config.images)
    models = {"trained": judged(subject, subject.backbone, views, labels)}
    if config.reference:
        models["untrained"] = judged(subject, subject.untrained(), views, labels)
    changes = list(product(kinds, config.severities))
    for kind, severity in with_bar(changes, len(changes), "corruptions"):
        changed = corrupted(views, kind, severity, subject.seed, textures)
        for model in models.values():
            error = model.probe.error(encode(subject, model.backbone, changed), labels)
            model.errors.setdefault(kind, []).append(error)
    rows = corruption_rows(models, len(labels)) if kinds else []
    rows += shift_rows(subject, config, models["trained"], views, labels)
    rows += other_rows(subject, config, models["trained"])
    details = {"severities": config.severities,
               "errors": {name: model.errors for name, model in models.items()},
               "clean": {name: model.clean for name, model in models.items()}}  # fmt: skip
    path = subject.picture("robustness.png")
    pictures = {"errors": draw(path, models, config.severities)} if kinds else {}
    return Result(rows, pictures, details, notes)


def usable(config, textures, size):
    """The kinds that can be computed here, and a note on those that can not."""
    large = [t for t in textures if min(t.shape[:2]) >= size]
    if "frost" not in config.kinds or large:
        textures[:] = large
        return list(config.kinds), []
    if config.frost:
        raise DataError(f"{Path(config.frost)} holds no texture frost*.* that is {size} pixels "
                        "wide after it is shrunk to a fifth")  # fmt: skip
    kinds = [kind for kind in config.kinds if kind != "frost"]
    return kinds, [f"frost is left out, it needs textures (--frost); means are of {len(kinds)} "
                   "kinds"]  # fmt: skip


def test_views(subject, most):
    """Views uint8 [N, C, S, S] and labels of evenly spaced test images."""
    data = subject.data("test")
    check_labels(subject.data("train").labels, data.labels)
    if most and most < len(data):
        data = data.subset(torch.from_numpy(np.linspace(0, len(data) - 1, most).astype(int)))
    views = evaluation_views(data, subject.size, 256, subject.common.workers)
    return torch.cat(list(views)), data.labels


def encode(subject, backbone, views):
    return subject.encode(views.split(256), [subject.layers[-1]], backbone)[subject.layers[-1]]


def judged(subject, backbone, views, labels):
    """A Judged with its error on the clean views."""
    layer = subject.layers[-1]
    if backbone is subject.backbone:
        features, train_labels = subject.features("train", layer)
    else:
        data = subject.data("train")
        features, train_labels = subject.extract(data, [layer], backbone)[layer], data.labels
    probe = CleanProbe(features, train_labels, subject.seed)
    return Judged(backbone, probe, probe.error(encode(subject, backbone, views), labels))


def corrupted(views, kind, severity, seed, textures):
    """All views under one corruption, batch by batch; the draws depend on the view's number."""
    parts = []
    for rows in torch.arange(len(views)).split(256):
        parts.append(corruptions.corrupt(views[rows], kind, severity, indices=rows.tolist(),
                                         seed=seed, frost=textures))  # fmt: skip
    return torch.cat(parts)


def corruption_rows(models, count):
    """Error rates, and those of each kind in units of the untrained encoder."""
    ours = models["trained"]
    means = {kind: float(np.mean(values)) for kind, values in ours.errors.items()}
    rows = [Row("clean error", ours.clean, count=count),
            Row("mean error under corruption", float(np.mean([*means.values()])))]  # fmt: skip
    rows += [Row(f"{kind}, mean error", value) for kind, value in means.items()]
    if "untrained" in models:
        unit = models["untrained"]
        both = ours.errors, unit.errors
        found = {"mCE": mean_corruption_error(*both),
                 "relative mCE": mean_corruption_error(*both, ours.clean, unit.clean)}  # fmt: skip
        # Where the untrained encoder loses nothing there is no unit to count in.
        rows += [Row(f"{name} (untrained encoder = 100 %)", value)
                 for name, value in found.items() if np.isfinite(value)]  # fmt: skip
    return rows


def shift_rows(subject, config, model, views, labels):
    """Accuracy, drop and calibration error of simple changes of all images."""
    rows = calibrated(model.probe, encode(subject, model.backbone, views), labels, "clean")
    clean = rows[0].value
    for kind in config.shifts:
        features = encode(subject, model.backbone, shift(views, kind, subject.seed))
        found = calibrated(model.probe, features, labels, kind)
        rows += [*found, Row(f"{kind}, drop", clean - found[0].value)]
    return rows


def other_rows(subject, config, model):
    """The same on the shared classes of other data sets, beside our own test images of these."""
    rows, layer = [], subject.layers[-1]
    for spec in config.other:
        ours, theirs = subject.data("test"), subject.data("test", spec)
        pairs = shared_classes(ours.class_names or [], theirs.class_names or [])
        if len(pairs) < 2 or theirs.labels is None:
            raise DataError(f"{theirs.name} shares fewer than two class names with {ours.name}")
        classes = [*pairs.values()]
        name = f"{theirs.name}, {len(pairs)} shared classes"
        features, labels = subject.features("test", layer, spec)
        kept = torch.isin(labels, torch.tensor([*pairs]))
        mapped = torch.tensor([pairs[int(c)] for c in labels[kept]])
        there = calibrated(model.probe, features[kept], mapped, name, classes)
        features, labels = subject.features("test", layer)
        kept = torch.isin(labels, torch.tensor(classes))
        here = calibrated(model.probe, features[kept], labels[kept], "", classes)[0]
        rows += [*there, Row(f"{name}, drop", here.value - there[0].value)]
    return rows


def calibrated(probe, features, labels, name, classes=None):
    """Accuracy and calibration error."""
    p = probe.probabilities(features, classes)
    right = probe.predictions(p) == labels.numpy()
    error = calibration_error(p.max(1), right)
    return [Row(f"{name}, accuracy", float(right.mean()), count=len(right)),
            Row(f"{name}, calibration error", error)]  # fmt: skip


def draw(path, models, severities):
    """Error of each kind over severity as a picture of rows; returns the path."""
    kinds = [*models["trained"].errors]
    figure = Figure(figsize=(3 + 1.5 * len(models), 0.3 * len(kinds) + 1.5), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, (name, model) in zip(panels, models.items(), strict=True):
        values = np.array([model.errors[kind] for kind in kinds])
        axes.imshow(values, vmin=0, vmax=1, cmap="magma", aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            colour = "white" if value < 0.6 else "black"
            axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=colour, size=7)
        axes.set(title=f"{name}, error in %", xlabel="severity", xticks=range(len(severities)),
                 xticklabels=severities, yticks=range(len(kinds)),
                 yticklabels=kinds if axes is panels[0] else [""] * len(kinds))  # fmt: skip
    figure.savefig(path, dpi=120)
    return path
