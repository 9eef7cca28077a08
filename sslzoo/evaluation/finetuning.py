"""Training a classifier through the backbone: whole, or its last stages only."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sslzoo import backbones
from sslzoo.data import DataError
from sslzoo.evaluation.features import extract_layers
from sslzoo.evaluation.knn import check_labels
from sslzoo.evaluation.layer_decay import decayed_groups
from sslzoo.evaluation.regularisers import RandAugment, RandomErasing, mixing, set_drop_path
from sslzoo.loader import ViewLoader
from sslzoo.optimizers import build
from sslzoo.progress import with_bar
from sslzoo.schedules import scaled_learning_rate, warmup_cosine
from sslzoo.views import ViewSpec

SMALL_IMAGE = 64  # pixels: up to here a crop is the whole image, shifted
SHIFT = 4 / 32  # of the side, as crops of 32 pixels after padding by 4


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained; see `recipe_for` for what suits which backbone."""

    optimizer: str
    lr: float  # per 256 images for adamw, as it stands for sgd, times sqrt(batch) for lars
    weight_decay: float
    layer_decay: float
    head_std: float
    epochs: int = 100
    batch_size: int = 128
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    head_lr_scale: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    flip: float = 0.5
    rand_augment: float = 0.0
    erasing: float = 0.0
    drop_path: float = 0.0


VIT = Recipe("adamw", lr=5e-4, weight_decay=0.05, layer_decay=0.65, head_std=2e-5,
             warmup_epochs=5, min_lr=1e-6, smoothing=0.1)  # fmt: skip
# SimCLR v1's for 1 % of ImageNet's labels; its v2 starts from a layer of the projector.
SIMCLR = Recipe("lars", lr=0.005, weight_decay=0.0, layer_decay=1.0, head_std=0.01, epochs=60,
                batch_size=1024)  # fmt: skip
CONVNET = Recipe("sgd", lr=0.05, weight_decay=5e-4, layer_decay=1.0, head_std=0.01)


def recipe_for(backbone, **changes):
    """MAE's recipe for transformers, plain SGD for convolutional networks.

    Args:
        changes: fields of Recipe; None keeps the recipe's own value.
    """
    recipe = VIT if hasattr(backbone, "blocks") and hasattr(backbone, "pos_embed") else CONVNET
    return replace(recipe, **{name: v for name, v in changes.items() if v is not None})


class Classifier(nn.Module):
    """A backbone and a linear layer.

    Args:
        tokens: "class" takes the backbone's output; "mean" the mean of the patch tokens with a
            LayerNorm of its own, as MAE fine-tunes.
    """

    def __init__(self, backbone, classes, *, head_std, tokens="class"):
        super().__init__()
        self.backbone, self.tokens = backbone, tokens
        width = backbone.num_features
        is_mean = tokens == "mean" and hasattr(backbone, "num_prefix_tokens")
        self.fc_norm = nn.LayerNorm(width, eps=1e-6) if is_mean else None
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        if self.fc_norm is None:
            return self.head(self.backbone(x))
        tokens = self.backbone.forward_features(x)[:, self.backbone.num_prefix_tokens :]
        return self.head(self.fc_norm(tokens.mean(1)))


def classes_of(train, test):
    """Number of classes, by the largest label; a DataError where labels do not allow training."""
    check_labels(train.labels, test.labels)
    return int(max(train.labels.max(), test.labels.max())) + 1


def train_view(data, size, mean, std, flip):
    """Small images are shifted and flipped, larger ones cropped at random and flipped."""
    shape = data.load(0).shape[-2:]
    small = size <= SMALL_IMAGE and len({*shape}) == 1
    crop = dict(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), translate=SHIFT) if small else {}
    return ViewSpec(size, flip=flip, jitter=0.0, grayscale=0.0, mean=tuple(mean),
                    std=tuple(std), **crop)  # fmt: skip


def fit(model, data, view, recipe, *, seed, device, frozen=frozenset(), dtype=None):
    """Train a Classifier on the labelled images; it ends in eval mode.

    Args:
        model: Classifier, on the device.
        data: ImageData with labels.
        view: ViewSpec of the training views.
        recipe: Recipe.
        seed: of order, views, mixing and dropout: the same seed gives the same weights.
        frozen: names of parameters and buffers of the backbone that stay as they are.
        dtype: of the forward pass where it is not float32.
    """
    freeze(model.backbone, frozen)
    loader = ViewLoader(data, [view], batch_size=min(recipe.batch_size, len(data)), seed=seed,
                        device=device)  # fmt: skip
    optimizer, peak = optimizer_of(model, recipe, loader.batch_size)
    mix = mixing(recipe.mixup, recipe.cutmix, model.head.out_features)
    augment, erase = (
        RandAugment(recipe.rand_augment, view.mean, view.std),
        RandomErasing(recipe.erasing),
    )
    set_drop_path(model.backbone, recipe.drop_path)
    steps = recipe.epochs * loader.steps_per_epoch
    warmup = recipe.warmup_epochs * loader.steps_per_epoch
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        seen = with_bar(batches(loader, recipe.epochs), steps, "fine-tuning")
        for step, batch in enumerate(seen):
            lr = warmup_cosine(step, steps, peak, warmup_steps=warmup, minimum=recipe.min_lr)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            set_training(model, frozen)
            x, y = mix(erase(augment(batch.views[0])), batch.labels)
            with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y, label_smoothing=recipe.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if not torch.isfinite(loss):
        raise DataError(f"fine-tuning diverged: the loss is {loss.item()}; try a lower lr than "
                        f"{recipe.lr:g}")  # fmt: skip
    return model.eval()


def batches(loader, epochs):
    for epoch in range(epochs):
        yield from loader.epoch(epoch)


def optimizer_of(model, recipe, batch_size):
    """The optimizer and its highest learning rate; the head may have a larger one."""
    groups = decayed_groups(model, recipe.weight_decay, recipe.layer_decay)
    head = {id(value) for value in model.head.parameters()}
    for group in list(groups):
        ours = [value for value in group["params"] if id(value) in head]
        if ours and recipe.head_lr_scale != 1:
            group["params"] = [value for value in group["params"] if id(value) not in head]
            groups.append({**group, "params": ours,
                           "lr_scale": group["lr_scale"] * recipe.head_lr_scale})  # fmt: skip
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "lars":
        peak = recipe.lr * batch_size**0.5
    else:
        rule = "linear" if recipe.optimizer == "adamw" else "none"
        peak = scaled_learning_rate(recipe.lr, batch_size, rule)
    return build(recipe.optimizer, groups, lr=peak), peak


def first_stages(backbone, count):
    """Names of parameters and buffers of all that comes before stage `count` (counted from 0).

    A stage is a residual stage, a block of a small network, or a block of a transformer; the
    stem, the embeddings and the class token belong to the first.
    """
    stages = [name for name in backbones.layers(backbone) if name != "maxpool"]
    if not 0 <= count < len(stages):
        raise DataError(f"{count} stages can not be frozen: the backbone has {len(stages)}, and "
                        "one at least is trained")  # fmt: skip
    names = list(backbone.state_dict())
    first = next(i for i, name in enumerate(names) if name.startswith(stages[count] + "."))
    return frozenset(names[:first]) if count else frozenset()


def renew(backbone, kept, twin):
    """Give all but the kept parameters and buffers the values of a random twin."""
    state = {name: value for name, value in twin.state_dict().items() if name not in kept}
    backbone.load_state_dict(state, strict=False)


def freeze(backbone, names):
    """No gradient for the named parameters, one for all others."""
    for name, value in backbone.named_parameters():
        value.requires_grad_(name not in names)


def set_training(model, frozen):
    """Training mode, but eval mode for modules that hold frozen values (batch norms, dropout)."""
    model.train()
    for name, module in model.backbone.named_modules():
        own = [f"{name}.{n}".lstrip(".") for n in module.state_dict() if "." not in n]
        if own and all(n in frozen for n in own):
            module.eval()


def test_accuracy(model, test, size, mean, std, device, dtype=None):
    """Top-1 and top-5 accuracy under the evaluation view; on a tie the lowest class wins."""
    scores, labels = extract_layers(model, test, [None], size, mean, std, device=device,
                                    dtype=dtype)  # fmt: skip
    ranked = np.argsort(-scores[None].numpy(), axis=1, kind="stable")[:, :5]
    hits = ranked == labels.numpy()[:, None]
    return float(hits[:, 0].mean()), float(hits.any(1).mean())
