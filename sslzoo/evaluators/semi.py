"""Accuracy with few labels: probe, fine-tuning, and frozen first stages with new last ones."""

from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from sslzoo.data import DataError
from sslzoo.evaluation.finetuning import classes_of, first_stages, recipe_for, renew
from sslzoo.evaluation.linear_probe import accuracies, draw_labelled, fit, prepare
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluators.finetune import accuracy

VERSION = 1
PROBE_STRENGTH = 100.0  # scikit-learn's C: with few labels there is nothing to choose it on
HEAD_LR_SCALE = 10.0  # 0.01 for the backbone, 0.1 for the head
BACKBONE_LR = 0.01


@dataclass
class Config:
    """Options of the evaluation with few labels."""

    shares: tuple[float, ...] = (0.01, 0.1)
    """Labelled shares of the training images, classes in equal numbers."""
    per_class: tuple[int, ...] = ()
    """Also so many labels of each class, such as [1,10]; with them the shares may be []."""
    forms: tuple[str, ...] = ("probe", "finetune", "scratch")
    """probe: a linear classifier on frozen features; finetune: the whole network; stages: the
    first stages frozen, the rest new and trained; scratch: all of it new, the control."""
    frozen_stages: int = 2
    """First stages that `stages` keeps and freezes."""
    draws: int = 5
    """Draws of the labels for the probe: mean and standard deviation are given."""
    trials: int = 1
    """Draws for the forms that train a network."""
    epochs: int = 100
    """Passes over the labelled images where a network is trained."""
    batch_size: int = 64
    """Images of a step there."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""

    def __post_init__(self):
        unknown = {*self.forms} - {"probe", "finetune", "stages", "scratch"}
        if unknown or not self.forms:
            raise ValueError(f"forms are probe, finetune, stages, scratch; got {self.forms}")
        if any(not 0 < share <= 1 for share in self.shares) or any(k < 1 for k in self.per_class):
            raise ValueError("shares must be above 0 and at most 1, per_class at least 1")
        if self.draws < 1 or self.trials < 1 or self.epochs < 1:
            raise ValueError("draws, trials and epochs must be at least 1")


def evaluate(subject, config):
    """Rows for each number of labels and form; with several numbers, the curve as a picture."""
    train, test = subject.data("train"), subject.data("test")
    classes_of(train, test)
    counts = label_counts(train.labels, config)
    rows, curves, drawn = [], {}, {}
    for k in counts:
        for form in config.forms:
            number = config.draws if form == "probe" else config.trials
            draws = [draw_labelled(train.labels.numpy(), k, (subject.seed, i))
                     for i in range(number)]  # fmt: skip
            drawn[str(k)] = max(drawn.get(str(k), []), [d.tolist() for d in draws], key=len)
            found = FORMS[form](subject, config, draws)
            std = float(np.std(found)) if len(found) > 1 else None
            metric = f"{k} label{'s' * (k > 1)} per class, {WORDS[form]}, top-1"
            rows.append(Row(metric, float(np.mean(found)), std, count=len(test)))
            curves.setdefault(WORDS[form], []).append((k, float(np.mean(found)), std))
    pictures = {"curve": draw_curve(subject.picture("semi.png"), curves)} if counts[1:] else {}
    return Result(rows, pictures, {"labelled": drawn, "curves": curves})


def label_counts(labels, config):
    """Rising numbers of labels of each class, of the shares and of per_class together."""
    classes = labels.unique()
    counts = {round(share * len(labels) / len(classes)) for share in config.shares}
    if 0 in counts:
        least = min(config.shares)
        raise DataError(f"{100 * least:g} % of {len(labels)} images is less than one label for "
                        f"each of {len(classes)} classes")  # fmt: skip
    counts |= {*config.per_class}
    if not counts:
        raise DataError("no number of labels was asked: name --shares or --per_class")
    return sorted(counts)


def probe(subject, config, draws):
    """Logistic regression on the frozen features, for each draw."""
    x, y, u, v = subject.sets(subject.layers[-1])
    x, u, y = *prepare(x, u), y.numpy()
    return [accuracies(fit(x[rows], y[rows], PROBE_STRENGTH), u, v)[0] for rows in draws]


def finetune(subject, config, draws):
    """The pretrained network, trained whole; a smaller step for it than for the new head."""
    recipe = plain_recipe(subject, config)
    if recipe.optimizer == "sgd":
        recipe = replace(recipe, lr=BACKBONE_LR, head_lr_scale=HEAD_LR_SCALE)
    return train_each(subject, draws, recipe, lambda: (subject.trainable(), frozenset()))


def scratch(subject, config, draws):
    """The same network and labels, from random weights."""
    return train_each(subject, draws, plain_recipe(subject, config),
                      lambda: (subject.untrained(), frozenset()))  # fmt: skip


def stages(subject, config, draws):
    """The first stages frozen, the others from random weights (Gidaris et al., 2018, table 5)."""

    def start():
        backbone = subject.trainable()
        kept = first_stages(backbone, config.frozen_stages)
        renew(backbone, kept, subject.untrained())
        return backbone, kept

    return train_each(subject, draws, plain_recipe(subject, config), start)


def plain_recipe(subject, config):
    return recipe_for(subject.backbone, epochs=config.epochs, batch_size=config.batch_size,
                      flip=config.flip)  # fmt: skip


def train_each(subject, draws, recipe, start):
    """Top-1 accuracy of a new start on each draw of labelled images."""
    train, test = subject.data("train"), subject.data("test")
    found = []
    for trial, rows in enumerate(draws):
        backbone, frozen = start()
        found.append(accuracy(subject, backbone, train.subset(rows), test, recipe,
                              subject.seed + trial, frozen)[0])  # fmt: skip
    return found


FORMS = {"probe": probe, "finetune": finetune, "stages": stages, "scratch": scratch}
WORDS = {"probe": "probe", "finetune": "fine-tuned", "stages": "first stages frozen",
         "scratch": "from scratch"}  # fmt: skip


def draw_curve(path, curves):
    """Accuracy over labels of each class, a line for each form; returns the path."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        k, mean, std = zip(*points, strict=True)
        axes.errorbar(k, mean, [s or 0 for s in std], marker="o", capsize=3, label=name)
    axes.set(xscale="log", xlabel="labels of each class", ylabel="accuracy", ylim=(0, 1))
    axes.set_xticks(k, k)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
