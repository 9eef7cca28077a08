"""Jigsaw: nine tiles of an image are shuffled by one of P permutations; name the permutation.

Noroozi, Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", ECCV
2016. B images, P permutations, N = 9 tiles of t x t pixels; H is a permutation: slot s of the
input shows cell H[s] of the image, cells numbered from 0 row by row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sslzoo import pixels
from sslzoo.colour_axis import project
from sslzoo.drawing import confusion_matrix, confusion_picture
from sslzoo.draws import Draws, whole_numbers
from sslzoo.normalisation import Normalisation
from sslzoo.permutations import permutation_set
from sslzoo.pictures import grid, to_uint8
from sslzoo.views import ViewSpec

DEFAULTS = {"optimizer": "sgd", "nesterov": True, "base_lr": 0.05, "batch_size": 256,
            "weight_decay": 5e-4, "epochs": 200, "warmup_epochs": 0}  # fmt: skip

SIDE = 3  # cells a side
N = SIDE**2
# Numbers drawn for a sample: permutation, gray, projection, place of the crop (2), shift of a tile
# (N x 2), of its channels (N x 3 x 2).
DRAWN = 5 + 2 * N + 6 * N
PICTURED = 16  # images whose puzzles are shown
COUNTED_PUZZLES = 16  # puzzles of each image in the confusion matrix


@dataclass
class Config:
    """Options of jigsaw puzzles. The defaults suit images of 32 x 32."""

    permutations: int = 100
    """P, the number of permutations to choose from. Paper: 1000."""
    perm_seed: int = 0
    """Seed of the set of permutations."""
    tile: int = 0
    """Side of a tile in pixels; 0 is three quarters of a cell: 8 of 10, 16 of 21, 64 of 85."""
    jitter: int = -1
    """Largest shift of a tile inside its cell, in pixels; -1 is all that the cell allows."""
    channel_shift: int = 0
    """Largest further shift of each colour channel, in pixels; it stays inside the cell."""
    gray: float = 0.3
    """Probability that a puzzle has no colours. Official: 0.5."""
    projection: float = 0.0
    """Probability that a puzzle with colours loses the green-magenta axis. Official: 0.5."""
    per_tile_norm: bool = True
    """Each channel of each tile by its own mean and deviation, not by those of the data."""
    tile_features: int = 128
    """Width of the linear layer on the features of each tile."""
    hidden: int = 0
    """Width of a layer between the nine tiles and the P outputs; 0 is none. Paper: 4096."""
    position_weight: float = 0.0
    """Weight of the loss of a second layer on the nine tiles, which names the cell of each slot; 0
    is off, as in the paper."""
    dropout: float = 0.0
    """Probability of dropping a feature of a tile or of the hidden layer. Official: 0.5."""
    crop_min_scale: float = 1.0
    """Smallest random square crop, as a share of the image's area; 1 is the whole image."""
    flip: float = 0.0
    """Probability of a horizontal flip."""


def views(config, image_size):
    """The whole image; gray and shifts are drawn in forward, tile by tile."""
    margin(config, image_size)
    return [
        ViewSpec(
            size=image_size,
            crop_scale=(config.crop_min_scale, 1.0),
            crop_ratio=(1.0, 1.0),
            flip=config.flip,
            grayscale=0.0,
        )
    ]


def margin(config, image_size):
    """(side of a cell, side of a tile, largest shift of a tile)."""
    cell = image_size // SIDE
    tile = config.tile or round(0.75 * cell)
    room = cell - tile
    jitter = room if config.jitter < 0 else config.jitter
    if not (tile >= 1 and 0 <= jitter <= room):
        raise ValueError(f"tile {tile} and jitter {jitter} do not fit into a cell of {cell} pixels")
    return cell, tile, jitter


class Jigsaw(nn.Module):
    """The context-free network: a trunk and a layer for each tile alone, then one for all.

    Args:
        backbone: maps [N, C, t, t] to [N, d] and has `num_features` = d; any t.
        config: Config.
    """

    sees_parts = True  # the backbone knows tiles: whole images have other statistics

    def __init__(self, backbone, config):
        super().__init__()
        self.config, self.backbone = config, backbone
        chosen = permutation_set(config.permutations, N, config.perm_seed)
        self.register_buffer("permutations", torch.from_numpy(chosen))  # kept with the weights
        self.tile_head = nn.Sequential(
            nn.Linear(backbone.num_features, config.tile_features, bias=False),
            nn.BatchNorm1d(config.tile_features),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
        )
        self.head = puzzle_head(N * config.tile_features, config)
        self.position_head = None
        if config.position_weight:
            self.position_head = nn.Linear(N * config.tile_features, N * N)
        self.normalisation = Normalisation()
        self.draws = Draws()

    def normalised_by(self, mean, std):
        """The channel statistics of the views."""
        self.normalisation.set(mean, std)

    def forward(self, views, step):
        """One puzzle of each of B images; views: one tensor [B, C, S, S]."""
        (x,) = views
        label, tiles = self.puzzles(x, step)
        h, z = self.read(tiles)
        logits = self.head(z)
        predicted = logits.detach().argmax(1)
        wrong = predicted != label
        cells = self.permutations[predicted] == self.permutations[label]  # [B, N]
        outputs = {
            "loss": F.cross_entropy(logits, label),
            "accuracy": (~wrong).float().mean(),
            "tile_accuracy": cells.float().mean(),
            "wrong_hamming": (~cells).sum() / wrong.sum().clamp(min=1),
            "features": h.detach(),
        }
        if self.position_head is not None:
            outputs |= self.positions(z, self.permutations[label])
            outputs["loss"] = outputs["loss"] + self.config.position_weight * outputs["positions"]
        return outputs

    def read(self, tiles):
        """Features of every tile [B N, d], and of all nine in the order of the slots."""
        h = self.backbone(tiles.flatten(0, 1))
        return h, self.tile_head(h).unflatten(0, (-1, N)).flatten(1)

    def solve(self, tiles):
        """Logits [B, P]; tiles meet in the last layer only."""
        return self.head(self.read(tiles)[1])

    def positions(self, z, cells):
        """The auxiliary loss, and of every slot the share of tiles whose cell was named."""
        logits = self.position_head(z).unflatten(1, (N, N))  # [B, slot, cell]
        right = (logits.detach().argmax(-1) == cells).float().mean(0)
        return {
            "positions": F.cross_entropy(logits.flatten(0, 1), cells.flatten()),
            **{f"slot_accuracy_{s}": share for s, share in enumerate(right)},
        }

    def puzzles(self, x, step, label=None, gray=None):
        """(label [B], tiles [B, N, C, t, t]): slot s shows cell H[s] of the permutation H.

        Args:
            x: views [B, C, S, S].
            step: of the random numbers.
            label: [B] instead of random ones.
            gray: probability of gray instead of the option.
        """
        config, B = self.config, len(x)
        u = self.draws(step, B).uniform(B, DRAWN, device=x.device)
        label = whole_numbers(u[:, 0], config.permutations) if label is None else label
        colours = self.recoloured(self.normalisation.pixels(x), u[:, 1], u[:, 2], gray)
        tiles = self.cut(colours, self.permutations[label], u[:, 3:])
        if not config.per_tile_norm:
            return label, self.normalisation(tiles)
        std, mean = torch.std_mean(tiles, (-1, -2), keepdim=True, correction=0)
        return label, (tiles - mean) / std.clamp(min=1 / 255)  # a flat tile stays flat

    def recoloured(self, x, u_gray, u_projected, gray=None):
        """Some images gray, some of the others without the green-magenta axis."""
        is_gray = u_gray < (self.config.gray if gray is None else gray)
        is_projected = u_projected < self.config.projection
        coloured = torch.where(is_projected[:, None, None, None], project(x), x)
        return torch.where(is_gray[:, None, None, None], pixels.grey(x), coloured)

    def cut(self, x, cells, u):
        """Tiles [B, N, C, t, t] of the cells [B, N], each at a random place in its cell."""
        B, C, S, _ = x.shape
        cell, tile, jitter = margin(self.config, S)
        crop = whole_numbers(u[:, None, :2], S - SIDE * cell + 1)
        shift = whole_numbers(u[:, 2 : 2 + 2 * N].unflatten(1, (N, 2)), jitter + 1)
        # By slot like the rest: which cell a slot shows does not change what it draws.
        fringe = whole_numbers(u[:, 2 + 2 * N :].unflatten(1, (N, 3, 2)),
                               self.config.channel_shift + 1)  # fmt: skip
        inside = (shift[:, :, None] + fringe[:, :, :C]).clamp(max=cell - tile)  # [B, N, C, 2]
        corner = crop + cell * torch.stack([cells // SIDE, cells % SIDE], -1)  # [B, N, 2]
        start = corner[:, :, None] + inside
        line = torch.arange(tile, device=x.device)
        row = start[..., 0, None, None] + line[:, None]  # [B, N, C, t, 1]
        column = start[..., 1, None, None] + line
        image = torch.arange(B, device=x.device)[:, None, None, None, None]
        channel = torch.arange(C, device=x.device)[:, None, None]
        return x[image, channel, row, column]

    def test_scores(self, views, step):
        """As in training, and the accuracies on puzzles with colours and without."""
        scores = self(views, step)
        for name, gray in (("accuracy_gray", 1.0), ("accuracy_colour", 0.0)):
            label, tiles = self.puzzles(views[0], step, gray=gray)
            scores[name] = (self.solve(tiles).argmax(1) == label).float().mean()
        return scores

    def pictures(self, views):
        """Which cell is taken for which, and puzzles as shuffled and as put together again."""
        x = views[0]
        counts = 0
        for step in range(COUNTED_PUZZLES):
            label, tiles = self.puzzles(x, step)
            H, guess = (self.permutations[v] for v in (label, self.solve(tiles).argmax(1)))
            counts = counts + confusion_matrix(H, guess, N)
        u = torch.zeros(len(x), DRAWN - 3, device=x.device)
        whole = self.cut(
            self.normalisation.pixels(x), torch.arange(N, device=x.device).expand_as(H), u
        )
        image = torch.arange(len(x), device=x.device)[:, None]
        shown = whole[image, H]
        solved = shown[image, guess.argsort(1)]
        columns = [to_uint8(mosaic(tiles[:PICTURED])) for tiles in (shown, solved, whole)]
        cells = [str(cell) for cell in range(N)]
        return {
            "confusion": confusion_picture(counts, cells, "Cell of a tile, % of each row"),
            "puzzles": grid(columns, least_side=96),
        }


def puzzle_head(inputs, config):
    """From the nine tiles to the P permutations."""
    if not config.hidden:
        return nn.Linear(inputs, config.permutations)
    hidden = nn.Linear(inputs, config.hidden), nn.ReLU(inplace=True), nn.Dropout(config.dropout)
    return nn.Sequential(*hidden, nn.Linear(config.hidden, config.permutations))


def mosaic(tiles):
    """Tiles [B, N, C, t, t] in their slots as images [B, C, 3 t, 3 t]."""
    B, _, C, t, _ = tiles.shape
    grid = tiles.reshape(B, SIDE, SIDE, C, t, t).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(B, C, SIDE * t, SIDE * t)
