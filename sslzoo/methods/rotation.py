"""Rotation: every image is shown turned by 0, 90, 180 and 270 degrees; name the turn.

Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations",
ICLR 2018. The letters are the paper's: X image, g(X, y) its rotation, y the turn (from 0), K turns.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from sslzoo.drawing import confusion_matrix, confusion_picture
from sslzoo.draws import Draws, whole_numbers
from sslzoo.views import ViewSpec

# base_lr is for 256 images shown four times: 0.1 for the paper's 128.
DEFAULTS = {"optimizer": "sgd", "nesterov": True, "base_lr": 0.2, "batch_size": 128,
            "weight_decay": 5e-4, "epochs": 100, "warmup_epochs": 5}  # fmt: skip

QUARTER_TURNS = {"4": (0, 1, 2, 3), "0-180": (0, 2), "90-270": (1, 3)}


@dataclass
class Config:
    """Options of rotation prediction. The defaults suit images of 32 x 32."""

    rotations: Literal["4", "0-180", "90-270"] = "4"
    """Which turns there are, in degrees; "4" is all multiples of 90."""
    one_rotation: bool = False
    """Show each image under one turn drawn at random instead of under all of them."""
    crop_padding: int = 4
    """Largest random shift of the image either way, in its pixels; 0 takes random crops instead."""
    crop_min_scale: float = 0.08
    """Smallest random crop, as a share of the image's area, where crop_padding is 0."""
    flip: float = 0.5
    """Probability of a horizontal flip, before the turn."""
    grayscale_p: float = 0.0
    """Probability of dropping the colours. Paper: 0."""


def views(config, image_size):
    """One view, drawn once for each image: all of its turns show the same crop and flip."""
    return [
        ViewSpec(
            size=image_size,
            crop_padding=config.crop_padding,
            crop_scale=(config.crop_min_scale, 1.0),
            flip=config.flip,
            grayscale=config.grayscale_p,
        )
    ]


def rotate(x, quarter_turns):
    """Images [..., H, W] turned counter-clockwise by whole quarters: pixels move, none is mixed."""
    return torch.rot90(x, quarter_turns, dims=(-2, -1))


class Rotation(nn.Module):
    """The backbone and a linear classifier of the turn.

    Args:
        backbone: maps [N, C, S, S] to [N, d] and has `num_features` = d.
        config: Config.
    """

    def __init__(self, backbone, config):
        super().__init__()
        self.backbone = backbone
        self.turns = QUARTER_TURNS[config.rotations]
        self.head = nn.Linear(backbone.num_features, len(self.turns))
        nn.init.zeros_(self.head.bias)
        self.one_rotation = config.one_rotation
        self.draws = Draws()

    def forward(self, views, step):
        """Equations 2 and 3 for a batch of B images; views: one tensor [B, C, S, S]."""
        (x,) = views
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(f"rotation needs square images; got {tuple(x.shape)}")
        x, y = self.rotated(x, step)
        h = self.backbone(x)
        logits = self.head(h)
        predicted = logits.detach().argmax(1)
        by_turn = {
            f"accuracy_{90 * turn}": share(predicted == y, y == k)
            for k, turn in enumerate(self.turns)
        }
        return {
            "loss": F.cross_entropy(logits, y),
            "accuracy": (predicted == y).float().mean(),
            **by_turn,
            "features": h.detach(),
        }

    def rotated(self, x, step):
        """Turned images and which turn each shows: every turn of every image, or one of each."""
        K = len(self.turns)
        turned = torch.stack([rotate(x, turn) for turn in self.turns], 1)  # [B, K, C, S, S]
        if not self.one_rotation:
            return turned.flatten(0, 1), torch.arange(K, device=x.device).repeat(len(x))
        y = whole_numbers(self.draws(step, len(x)).uniform(len(x), 1, device=x.device)[:, 0], K)
        return turned[torch.arange(len(x), device=x.device), y], y

    def test_scores(self, views, step):
        """Loss and accuracies on images that were not trained on."""
        return self(views, step)

    def pictures(self, views):
        """Which turn is taken for which."""
        x, y = self.rotated(views[0], 0)
        counts = confusion_matrix(y, self.head(self.backbone(x)).argmax(1), len(self.turns))
        names = [f"{90 * turn}°" for turn in self.turns]
        return {"confusion": confusion_picture(counts, names, "Rotation, % of each row")}


def share(is_right, is_counted):
    """Mean of `is_right` over the counted rows; 0 where there are none."""
    return (is_right & is_counted).sum() / is_counted.sum().clamp(min=1)
