"""Relative position: two patches of an image; where around the first is the second?

Doersch, Gupta, Efros, "Unsupervised Visual Representation Learning by Context Prediction", ICCV
2015. B images, n x n patches of p x p pixels in a grid of pitch p + gap, each moved by its own
jitter. Labels 0 to 7 are the cells around the first patch, row by row.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from sslzoo.colour_axis import project
from sslzoo.drawing import confusion_matrix, confusion_picture
from sslzoo.draws import Draws, whole_numbers
from sslzoo.normalisation import Normalisation
from sslzoo.views import ViewSpec

# base_lr is for 256 images: 0.05 per 256 pairs at 16 pairs an image.
DEFAULTS = {"optimizer": "sgd", "base_lr": 0.8, "batch_size": 256, "weight_decay": 5e-4,
            "epochs": 200, "warmup_epochs": 0}  # fmt: skip

NEIGHBOURS = ((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1))  # dx, dy
NAMES = ("↖", "↑", "↗", "←", "→", "↙", "↓", "↘")
RMS = 50 / 255  # of a patch after colour dropping: 50 grey levels
LEAST_RMS = 1 / 255  # a flatter patch is not blown up
NOISE_STREAM = 1
PROBE_RIDGES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)


@dataclass
class Config:
    """Options of relative position. The defaults suit images of 32 x 32."""

    patch: int = 8
    """p, side of a patch in pixels. 64 x 64 images: 16; paper: 96."""
    gap: int = 2
    """Pixels between neighbouring patches, at least 2 x position_jitter. 64 x 64: 6; paper: 48."""
    position_jitter: int = 1
    """Largest shift of a patch either way in x and y, in pixels. 64 x 64: 2; paper: 7."""
    grid: int = 3
    """n, patches a side."""
    grids: int = 1
    """Grids of an image, each with an origin of its own. Paper: 4."""
    pairs: Literal["centre", "adjacent"] = "centre"
    """The centre with its eight neighbours, or all neighbours; each pair in both orders."""
    color: Literal["drop", "project", "keep"] = "drop"
    """Against chromatic aberration: keep one channel and put noise in the others, or remove the
    green-magenta axis; "keep" leaves the colours."""
    downsample: float = 0.0
    """Probability that a patch is made coarse. 64 x 64 and paper: 0.33."""
    downsample_sides: tuple[int, int] = (6, 16)
    """Smallest and largest side of a coarse patch before it is enlarged again. Paper: 10, 95."""
    trunk_features: int = 0
    """Width of a layer on the features of each patch; 0 is none. Paper: 4096."""
    hidden: int = 512
    """Width of the two layers on a pair of patches. Paper: 4096."""
    crop_min_scale: float = 1.0
    """Smallest random square crop, as a share of the image's area; 1 is the whole image."""

    def __post_init__(self):
        if self.gap < 2 * self.position_jitter:
            raise ValueError(f"gap must be 2 x position_jitter or more, or patches may touch; got "
                             f"{self.gap} and {self.position_jitter}")  # fmt: skip
        if self.grid < 2 or (self.pairs == "centre" and self.grid % 2 == 0):
            raise ValueError(f"grid must be 2 or more, and odd for pairs with the centre; got "
                             f"{self.grid}")  # fmt: skip


def views(config, image_size):
    """The whole image; patches and colours are drawn in forward."""
    room(config, image_size)
    return [
        ViewSpec(
            size=image_size,
            crop_scale=(config.crop_min_scale, 1.0),
            crop_ratio=(1.0, 1.0),
            flip=0.0,
            grayscale=0.0,
        )
    ]


def room(config, image_size):
    """Places of the grid's origin along a side, so that jitter never leaves the image."""
    span = config.grid * config.patch + (config.grid - 1) * config.gap
    left = image_size - span - 2 * config.position_jitter
    if left < 0:
        raise ValueError(f"{config.grid} patches with gaps and jitter need {image_size - left} "
                         f"pixels; image_size is {image_size}")  # fmt: skip
    return left + 1


def pair_table(grid, pairs):
    """int64 [K, 3]: first patch, second patch, label; patches numbered row by row."""
    rows = []
    for first in range(grid**2):
        y, x = divmod(first, grid)
        for label, (dx, dy) in enumerate(NEIGHBOURS):
            second = (y + dy) * grid + x + dx
            inside = 0 <= x + dx < grid and 0 <= y + dy < grid
            if inside and (pairs == "adjacent" or grid**2 // 2 in (first, second)):
                rows.append((first, second, label))
    return torch.tensor(rows)


class RelativePatch(nn.Module):
    """One trunk for both patches, and a head that sees their features side by side, in order.

    Args:
        backbone: maps [N, C, p, p] to [N, d] and has `num_features` = d; any p.
        config: Config.
    """

    sees_parts = True  # the backbone knows patches: whole images have other statistics

    def __init__(self, backbone, config):
        super().__init__()
        self.config, self.backbone = config, backbone
        d, H = config.trunk_features or backbone.num_features, config.hidden
        trunk = (nn.Linear(backbone.num_features, d), nn.ReLU(inplace=True))
        self.trunk_head = nn.Sequential(*trunk) if config.trunk_features else nn.Identity()
        # Without scale and shift, as in the official code: no unit can be switched off early.
        self.head = nn.Sequential(
            *(nn.Linear(2 * d, H), nn.BatchNorm1d(H, affine=False), nn.ReLU(inplace=True)),
            *(nn.Linear(H, H), nn.ReLU(inplace=True), nn.Linear(H, len(NEIGHBOURS))),
        )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.register_buffer("table", pair_table(config.grid, config.pairs), persistent=False)
        self.register_buffer("coarse", coarseners(config), persistent=False)
        self.normalisation = Normalisation()
        self.draws = Draws()

    def normalised_by(self, mean, std):
        """The channel statistics of the views."""
        self.normalisation.set(mean, std)

    def forward(self, views, step):
        """All pairs of B images; views: one tensor [B, C, S, S]."""
        h, _ = self.embed(views[0], step)
        logits, label = self.compare(h)
        predicted = logits.detach().argmax(1)
        return {
            "loss": F.cross_entropy(logits, label),
            "accuracy": (predicted == label).float().mean(),
            # A pair taken the wrong way round: many of them are a problem of symmetry.
            "opposite": (predicted == 7 - label).float().mean(),
            "features": h.detach().flatten(0, 1),
        }

    def embed(self, x, step, color=None):
        """Features of every patch [G, n n, d], embedded once, and their places [G, n n, 2]."""
        patches, place = self.patches(x, step, color)
        return self.backbone(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]), place

    def compare(self, h):
        """Logits [pairs, 8] and labels [pairs], from features [G, n n, d]."""
        first, second, label = self.table.T
        z = self.trunk_head(h)
        pairs = torch.cat([z[:, first], z[:, second]], -1)
        return self.head(pairs.flatten(0, 1)), label.repeat(len(h))

    def patches(self, x, step, color=None):
        """Patches [G, n n, C, p, p] of G = B grids grids, ready for the trunk, and their places."""
        config = self.config
        x = self.normalisation.pixels(x).repeat_interleave(config.grids, 0)
        G, n = len(x), config.grid**2
        generator = self.draws(step, G)
        # Of a sample: origin of the grid; then of each patch jitter (2), coarse or not, how
        # coarse, and which channel stays.
        u = generator.uniform(G, 2 + 5 * n, device=x.device)
        of_patch = u[:, 2:].unflatten(1, (n, 5))
        patches, place = self.cut(x, u[:, :2], of_patch[..., :2])
        patches = self.coarsened(patches, of_patch[..., 2], of_patch[..., 3])
        count = n * math.prod(patches.shape[2:])
        color = color or config.color
        noise = None
        if color == "drop" and patches.shape[2] > 1:
            noise = generator.uniform(G, count, stream=NOISE_STREAM, device=x.device) - 0.5
            noise = noise.view_as(patches) / 255
        patches = recoloured(patches, color, of_patch[..., 4], noise)
        # In the units of the views, so that the trunk meets values of the same size in whole ones.
        return patches / self.normalisation.std.mean(), place

    def cut(self, x, u_origin, u_jitter):
        """Patches [G, n n, C, p, p] and the row and column [G, n n, 2] of their first pixels."""
        p, j, n = self.config.patch, self.config.position_jitter, self.config.grid
        origin = j + whole_numbers(u_origin, room(self.config, x.shape[-1]))
        number = torch.arange(n * n, device=x.device)
        cell = (p + self.config.gap) * torch.stack([number // n, number % n], -1)
        place = origin[:, None] + cell + whole_numbers(u_jitter, 2 * j + 1) - j
        line = torch.arange(p, device=x.device)
        row = place[..., 0, None, None, None] + line[:, None]  # [G, n n, 1, p, 1]
        column = place[..., 1, None, None, None] + line
        image = torch.arange(len(x), device=x.device)[:, None, None, None, None]
        channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
        return x[image, channel, row, column], place

    def coarsened(self, patches, u_whether, u_side):
        """Some patches shrunk to a random side and enlarged again: both are one matrix, M x Mᵀ."""
        if not self.config.downsample:
            return patches
        low, high = self.config.downsample_sides
        # Official: the square root of a uniform area.
        side = (low**2 + u_side * ((high + 1) ** 2 - low**2)).sqrt().long().clamp(low, high)
        is_fine = u_whether >= self.config.downsample
        M = self.coarse[torch.where(is_fine, len(self.coarse) - 1, side - low)][:, :, None]
        return M @ patches @ M.mT

    def test_scores(self, views, step):
        """As in training; the accuracy with all colours; how far patches know their own place.

        accuracy_color above accuracy is the shortcut that chromatic aberration leaves.
        """
        scores = self(views, step)
        h, place = self.embed(views[0], step)
        scores["position_r2"] = position_r2(h, place)
        logits, label = self.compare(self.embed(views[0], step, "keep")[0])
        scores["accuracy_color"] = (logits.argmax(1) == label).float().mean()
        return scores

    def pictures(self, views):
        """Which position is taken for which."""
        logits, label = self.compare(self.embed(views[0], 0)[0])
        counts = confusion_matrix(label, logits.argmax(1), len(NEIGHBOURS))
        return {"confusion": confusion_picture(counts, NAMES, "Position, % of each row")}


def recoloured(patches, color, u_channel, noise):
    """Patches [..., C, p, p] of mean 0 whose root mean square is 50 grey levels.

    "drop" keeps one random channel, less its mean; `noise` [..., C, p, p] fills the others.
    """
    patches = project(patches) if color == "project" else patches
    patches = patches - patches.mean((-1, -2), keepdim=True)
    C = patches.shape[-3]
    if color == "drop" and C > 1:
        channel = torch.arange(C, device=patches.device)
        is_kept = channel == whole_numbers(u_channel, C)[..., None]
        patches = torch.where(is_kept[..., None, None], patches, noise)
    rms = patches.square().mean((-1, -2, -3), keepdim=True).sqrt()
    return patches * (RMS / rms.clamp(min=LEAST_RMS))


def coarseners(config):
    """[sides + 1, p, p]: M x Mᵀ shrinks a patch to a side and enlarges it again; the last is 1."""
    low, high = config.downsample_sides
    unit = torch.eye(config.patch)
    matrices = []
    for side in range(low, high + 1) if config.downsample else ():
        small = F.interpolate(unit[None, None], (side, config.patch), mode="bilinear",
                              antialias=True)  # fmt: skip
        matrices.append(F.interpolate(small, unit.shape, mode="bilinear")[0, 0])
    return torch.stack([*matrices, unit])


def position_r2(h, place):
    """Share of the variance of a patch's place that is linear in its features, on held-out images.

    Of several ridge penalties the best counts: a batch has few patches for its features, and at a
    weak penalty alone the regression would learn them by heart.

    Args:
        h: features [G, n, d]; half of the grids fit the regression, the others judge it.
        place: [G, n, 2].
    """
    half = max(len(h) // 2, 1)
    x, y = h.flatten(2).double(), place.double()
    x = (x - x[:half].mean((0, 1))) / (x[:half].std((0, 1)) + 1e-8)
    y = y - y[:half].mean((0, 1))
    a, b = x[:half].flatten(0, 1), y[:half].flatten(0, 1)
    values, V = torch.linalg.eigh(a.T @ a)
    found, truth = V.T @ (a.T @ b), y[half:].flatten(0, 1)
    penalties = len(a) * torch.tensor(PROBE_RIDGES, dtype=a.dtype, device=a.device)
    weights = V @ (found / (values + penalties[:, None])[..., None])  # [penalties, d, 2]
    residual = (truth - x[half:].flatten(0, 1) @ weights).square().sum((1, 2))
    return (1 - residual / (truth - truth.mean(0)).square().sum()).max()
