"""Accuracy with few labels: probe, fine-tuning, and frozen first stages with new last ones."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from sslzoo.data import DataError
from sslzoo.evaluation.finetuning import SIMCLR, classes_of, first_stages, recipe_for, renew
from sslzoo.evaluation.linear_probe import accuracies, draw_labelled, fit, prepare
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluators.finetune import accuracy

VERSION = 1
PROBE_STRENGTH = 100.0  # scikit-learn's C: with few labels there is nothing to choose it on
HEAD_LR_SCALE = 10.0  # 0.01 for the backbone, 0.1 for the head
BACKBONE_LR = 0.01
FEW = 0.01  # of the labels: up to here the small recipe trains for twice as many epochs
BATCH_SIZE = 64  # not less: batch norms need it
EPOCHS = {True: 200, False: 100}  # with few labels, with more
TOP5_CLASSES = 100  # from so many classes on, top-5 is given too


@dataclass
class Config:
    """Options of the evaluation with few labels."""

    shares: tuple[float, ...] = (0.01, 0.1)
    """Labelled shares of the training images, classes in equal numbers."""
    per_class: tuple[int, ...] = ()
    """Also so many labels of each class, such as [1,10]; with them the shares may be []."""
    forms: tuple[str, ...] = ("probe", "finetune", "stages", "scratch")
    """probe: a linear classifier on frozen features; finetune: the whole network; stages: the
    first stages frozen, the rest new and trained; scratch: all of it new, the control."""
    frozen_stages: int = 2
    """First stages that `stages` keeps and freezes."""
    draws: int = 5
    """Draws of the labels for the probe: mean and standard deviation are given."""
    trials: int = 1
    """Draws for the forms that train a network."""
    epochs: int = 0
    """Passes over the labelled images where a network is trained; 0 is 200 with up to 1 % of the
    labels and 100 with more (60 with the recipe simclr)."""
    batch_size: int = 0
    """Images of a step there; 0 is 64 (1024 with the recipe simclr)."""
    recipe: Literal["small", "simclr"] = "small"
    """Of the fine-tuning: small is SGD, or MAE's for transformers; simclr is LARS as SimCLR's for
    ImageNet."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""

    def __post_init__(self):
        unknown = {*self.forms} - {"probe", "finetune", "stages", "scratch"}
        if unknown or not self.forms:
            raise ValueError(f"forms are probe, finetune, stages, scratch; got {self.forms}")
        if any(not 0 < share <= 1 for share in self.shares) or any(k < 1 for k in self.per_class):
            raise ValueError("shares must be above 0 and at most 1, per_class at least 1")
        if self.draws < 1 or self.trials < 1 or min(self.epochs, self.batch_size) < 0:
            raise ValueError("draws and trials must be at least 1, epochs and batch_size 0 or more")


def evaluate(subject, config):
    """Rows for each number of labels and form; with several numbers, the curve as a picture."""
    train, test = subject.data("train"), subject.data("test")
    classes_of(train, test)
    counts = label_counts(train.labels, config)
    forms, notes = usable_forms(subject, config)
    rows, curves, drawn = [], {}, {}
    for k in counts:
        for form in forms:
            number = config.draws if form == "probe" else config.trials
            draws = [draw_labelled(train.labels.numpy(), k, (subject.seed, i))
                     for i in range(number)]  # fmt: skip
            drawn[str(k)] = max(drawn.get(str(k), []), [d.tolist() for d in draws], key=len)
            found = np.array(FORMS[form](subject, config, draws))  # [draws, top-1 and top-5]
            metric = f"{k} label{'s' * (k > 1)} per class, {WORDS[form]}"
            rows += form_rows(metric, found, len(test), len(train.labels.unique()))
            curves.setdefault(WORDS[form], []).append((k, *mean_std(found[:, 0])))
    pictures = {"curve": draw_curve(subject.picture("semi.png"), curves)} if counts[1:] else {}
    return Result(rows, pictures, {"labelled": drawn, "curves": curves}, notes)


def form_rows(metric, found, count, classes):
    """Top-1, and where there are very many classes top-5, over the draws."""
    names = ("top-1", "top-5") if classes >= TOP5_CLASSES else ("top-1",)
    return [Row(f"{metric}, {name}", *mean_std(found[:, i]), count=count)
            for i, name in enumerate(names)]  # fmt: skip


def mean_std(values):
    """(mean, standard deviation or None for a single value)."""
    return float(values.mean()), float(values.std()) if len(values) > 1 else None


def usable_forms(subject, config):
    """The forms asked for; without `stages`, and with a note, where the backbone has too few."""
    try:
        if "stages" in config.forms:
            first_stages(subject.backbone, config.frozen_stages)
    except ValueError as error:
        others = tuple(form for form in config.forms if form != "stages")
        if not others:
            raise DataError(str(error)) from error
        return others, [f"the form stages is left out: {error}"]
    return config.forms, []


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
    return [accuracies(fit(x[rows], y[rows], PROBE_STRENGTH), u, v) for rows in draws]


def finetune(subject, config, draws):
    """The pretrained network, trained whole; a smaller step for it than for the new head."""
    recipe = plain_recipe(subject, config, draws)
    if config.recipe == "simclr":
        asked = {"epochs": config.epochs, "batch_size": config.batch_size, "flip": config.flip}
        recipe = replace(SIMCLR, **{name: value for name, value in asked.items() if value})
    elif recipe.optimizer == "sgd":
        recipe = replace(recipe, lr=BACKBONE_LR, head_lr_scale=HEAD_LR_SCALE)
    return train_each(subject, draws, recipe, lambda: (subject.trainable(), frozenset()))


def scratch(subject, config, draws):
    """The same network and labels, from random weights."""
    return train_each(subject, draws, plain_recipe(subject, config, draws),
                      lambda: (subject.untrained(), frozenset()))  # fmt: skip


def stages(subject, config, draws):
    """The first stages frozen, the others from random weights (Gidaris et al., 2018, table 5)."""

    def start():
        backbone = subject.trainable()
        kept = first_stages(backbone, config.frozen_stages)
        renew(backbone, kept, subject.untrained())
        return backbone, kept

    return train_each(subject, draws, plain_recipe(subject, config, draws), start)


def plain_recipe(subject, config, draws):
    """MAE's or SGD, for longer where there are very few labels."""
    is_few = len(draws[0]) <= round(FEW * len(subject.data("train")))
    return recipe_for(subject.backbone, epochs=config.epochs or EPOCHS[is_few],
                      batch_size=config.batch_size or BATCH_SIZE, flip=config.flip)  # fmt: skip


def train_each(subject, draws, recipe, start):
    """Top-1 and top-5 accuracy of a new start on each draw of labelled images."""
    train, test = subject.data("train"), subject.data("test")
    found = []
    for trial, rows in enumerate(draws):
        backbone, frozen = start()
        found.append(accuracy(subject, backbone, train.subset(rows), test, recipe,
                              subject.seed + trial, frozen))  # fmt: skip
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
