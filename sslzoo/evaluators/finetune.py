"""Accuracy after training the whole network on the labels, and of the same from scratch."""

from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import torch

from sslzoo.evaluation.finetuning import (
    Classifier,
    Recipe,
    classes_of,
    fit,
    recipe_for,
    test_accuracy,
    train_view,
)
from sslzoo.evaluation.linear_probe import hold_out
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluation.subject import DTYPES

VERSION = 1


@dataclass
class Config:
    """Options of the fine-tuning. None is the recipe's: MAE's for transformers, else SGD."""

    epochs: int = 100
    """Passes over the labelled images."""
    batch_size: int = 128
    """Images of a step."""
    learning_rates: tuple[float, ...] = ()
    """Several are compared on a tenth of the training images; empty is the recipe's one."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """Optimizer; the recipe's learning rate and weight decay are for its own one."""
    weight_decay: float | None = None
    """Of matrices and kernels."""
    layer_decay: float | None = None
    """Factor of the learning rate from a layer to the one before it; 1 is off."""
    warmup_epochs: float | None = None
    """Linear warm-up, in epochs."""
    mixup: float = 0.0
    """α of mixup; 0 is off. MAE: 0.8."""
    cutmix: float = 0.0
    """α of CutMix; 0 is off. MAE: 1.0."""
    rand_augment: float = 0.0
    """Magnitude of RandAugment's two operations, 0 to 10; 0 is off. MAE: 9."""
    erasing: float = 0.0
    """Share of the images of which a rectangle becomes noise; 0 is off. MAE: 0.25."""
    drop_path: float = 0.0
    """Stochastic depth of a transformer's last block; 0 is off. MAE: 0.1 (B), 0.2 (L), 0.3 (H)."""
    smoothing: float | None = None
    """Label smoothing, 0 to 1."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""
    trials: int = 1
    """Trainings with other seeds: their mean and standard deviation are given."""
    control: bool = True
    """Also train the same network from random weights with the same budget."""

    def __post_init__(self):
        if self.epochs < 1 or self.batch_size < 1 or self.trials < 1:
            raise ValueError("epochs, batch_size and trials must be at least 1")
        if not 0 <= self.rand_augment <= 10 or not 0 <= self.erasing <= 1:
            raise ValueError("rand_augment must be 0 to 10, erasing 0 to 1")
        if not 0 <= self.drop_path < 1:
            raise ValueError("drop_path must be at least 0 and below 1")


def evaluate(subject, config):
    """Rows of the fine-tuned network and of the one from scratch."""
    train, test = subject.data("train"), subject.data("test")
    recipe = recipe_of(subject, config)
    rows, details = [], {}
    starts = {"fine-tuned": subject.trainable}
    if config.control:
        starts["from scratch"] = lambda: subject.untrained().requires_grad_(True)
    for name, start in starts.items():
        chosen = choose(subject, start, train, recipe, config)
        found = [accuracy(subject, start(), train, test, chosen, subject.seed + trial)
                 for trial in range(config.trials)]  # fmt: skip
        details[name] = asdict(chosen)
        rows += accuracy_rows(name, found, len(test))
    return Result(rows, details={"recipes": details})


def recipe_of(subject, config):
    """The Recipe of a Config; its own values where the Config says None."""
    names = {field.name for field in fields(Recipe)} & {field.name for field in fields(config)}
    changes = {name: getattr(config, name) for name in names}
    if len(config.learning_rates) == 1:
        changes["lr"] = config.learning_rates[0]
    return recipe_for(subject.backbone, **changes)


def choose(subject, start, train, recipe, config):
    """The recipe with the learning rate that is best on held-out training images."""
    if len(config.learning_rates) < 2:
        return recipe
    fitted, held_out = (train.subset(rows) for rows in hold_out(train.labels, subject.seed))
    recipes = [recipe_for(subject.backbone, **(asdict(recipe) | {"lr": lr}))
               for lr in config.learning_rates]  # fmt: skip
    scores = [accuracy(subject, start(), fitted, held_out, r, subject.seed)[0] for r in recipes]
    return recipes[int(np.argmax(scores))]


def accuracy(subject, backbone, train, test, recipe, seed, frozen=frozenset()):
    """Train a classifier and judge it: top-1 and top-5."""
    size, mean, std = subject.view
    view = train_view(train, size, mean, std, recipe.flip)
    device, dtype = subject.device, DTYPES[subject.common.precision]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = Classifier(backbone, classes_of(train, test), head_std=recipe.head_std,
                           tokens=subject.common.tokens).to(device)  # fmt: skip
    fit(model, train, view, recipe, seed=seed, device=device, frozen=frozen, dtype=dtype)
    return test_accuracy(model, test, size, mean, std, device, dtype)


def accuracy_rows(name, found, count):
    """Rows of the mean top-1 and top-5 of several trials."""
    means, stds = np.mean(found, 0), np.std(found, 0)
    spread = stds.tolist() if len(found) > 1 else (None, None)
    return [Row(f"{name}, top-{k}", float(mean), std, count=count)
            for k, mean, std in zip((1, 5), means, spread, strict=True)]  # fmt: skip
