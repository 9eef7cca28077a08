"""Encoders of contrastive predictive coding: a grid of latents, and a context of earlier ones.

Both have, beside forward(x) [B, channels, ...] -> features [B, num_features],

    latents(x)   z [B, R, J, C]: R rows in the order of prediction, J columns
    context(z)   c [B, R, J, H]: c at row r depends on the rows 0 to r of z only
    pooled(z, c) the features, from either
    shared_steps how many steps ahead latents share samples or pixels, which makes them easy

A sound is a grid of one column whose rows are time steps; an image one of overlapping patches.
"""

import torch
import torch.nn.functional as F
from torch import nn


class ChannelNorm(nn.Module):
    """Normalises over the channels at each place [B, C, ...] alone, with a scale and a shift.

    As facebookresearch/CPC_audio does, the variance is the unbiased one. Places do not mix, so
    nothing of the future leaks through statistics.
    """

    def __init__(self, channels, epsilon=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.epsilon = epsilon

    def forward(self, x):
        # (x - mean)² / (v C / (C - 1) + ε), as layer norm with its v, the biased variance.
        C = len(self.weight)
        biased = (C - 1) / C
        weight, epsilon = self.weight * biased**0.5, self.epsilon * biased
        return F.layer_norm(x.movedim(1, -1), (C,), weight, self.bias, epsilon).movedim(-1, 1)


class WaveEncoder(nn.Module):
    """Five strided convolutions and a GRU: a latent and a context every 160 samples.

    Latent t sees the samples 160 t - 153 to 160 t + 311, and context t all before these.

    Args:
        channels: of the sound, 1.
        width: C, channels of the latents.
        context_width: H, of the GRU.
        norm: "channel" (over the channels of a time step), "batch" or "none".

    Source:
        van den Oord, Li, Vinyals, 2018, section 3.1; the channel norm: CPC_audio.
    """

    KERNELS, STRIDES, PADDINGS = (10, 8, 4, 4, 4), (5, 4, 2, 2, 2), (3, 2, 1, 1, 1)
    LEAST_SAMPLES = 160
    shared_steps = 2

    def __init__(self, channels=1, width=128, context_width=128, norm="channel"):
        super().__init__()
        norms = {"channel": ChannelNorm, "batch": nn.BatchNorm1d, "none": lambda c: nn.Identity()}
        layers = []
        sizes = [channels] + [width] * len(self.KERNELS)
        for i, geometry in enumerate(zip(self.KERNELS, self.STRIDES, self.PADDINGS, strict=True)):
            convolution = nn.Conv1d(sizes[i], sizes[i + 1], *geometry)
            layers += [convolution, norms[norm](width), nn.ReLU(inplace=True)]
        self.convolutions = nn.Sequential(*layers)
        self.gru = nn.GRU(width, context_width, batch_first=True)
        self.latent_width, self.num_features = width, context_width

    def latents(self, x):
        return self.convolutions(x).mT[:, :, None]

    def context(self, z):
        return self.gru(z[:, :, 0])[0][:, :, None]

    def pooled(self, z, c):
        return c.mean((1, 2))

    def forward(self, x):
        """The mean of the context over time, [B, H]."""
        return self.context(self.latents(x)).mean((1, 2))


class PatchGridEncoder(nn.Module):
    """Overlapping patches, each encoded alone, and a context of masked convolutions.

    Seven by seven patches of a quarter of the image's side, half a patch apart: 64 pixels for
    images of 256 (the paper's), 8 for images of 32. No batch norm: it would mix patches.

    Args:
        image_size: side of the images in pixels, a multiple of 8.
        channels: of the images.
        width: C and H, channels of latents and context; the convolutions before have a quarter
            and a half as many.

    Source:
        van den Oord, Li, Vinyals, 2018, section 3.2, with a small patch encoder.
    """

    shared_steps = 1

    def __init__(self, image_size, channels=3, width=256):
        super().__init__()
        if image_size % 8:
            raise ValueError(f"image_size must be a multiple of 8 pixels; got {image_size}")
        self.patch = image_size // 4
        sizes = (channels, width // 4, width // 2, width)
        layers = []
        for i, stride in enumerate((1, 2, 2)):
            layers += [nn.Conv2d(sizes[i], sizes[i + 1], 3, stride, 1), nn.ReLU(inplace=True),
                       ChannelNorm(sizes[i + 1])]  # fmt: skip
        self.convolutions = nn.Sequential(*layers)
        self.above = nn.Sequential(*(RowsAbove(width) for _ in range(4)))
        self.latent_width = self.num_features = width

    def patches(self, x):
        """[B, R, J, channels, side, side]."""
        patches = x.unfold(2, self.patch, self.patch // 2).unfold(3, self.patch, self.patch // 2)
        return patches.permute(0, 2, 3, 1, 4, 5)

    def encode(self, patches):
        """Latents [B, R, J, C] of patches."""
        z = self.convolutions(patches.flatten(0, 2)).mean((2, 3))
        return z.view(*patches.shape[:3], -1)

    def latents(self, x):
        return self.encode(self.patches(x))

    def context(self, z):
        return self.above(z.movedim(-1, 1)).movedim(1, -1)

    def pooled(self, z, c):
        return z.mean((1, 2))

    def forward(self, x):
        """The mean of the latents over the grid, [B, C]."""
        return self.latents(x).mean((1, 2))

    def layers(self):
        """The modules whose grid a probe may read: that of the latents, and of the contexts."""
        return ["convolutions", "above"]

    def layer_features(self, x, names):
        """{name: mean and standard deviation over the grid, side by side [B, 2 C]}."""
        z = self.latents(x)
        grids = {"convolutions": z}
        if "above" in names:
            grids["above"] = self.context(z)
        return {name: mean_and_spread(grids[name].flatten(1, 2)) for name in names}


def mean_and_spread(z):
    """[B, P, C] -> [B, 2 C]: how much of each feature there is, and how it varies by place."""
    return torch.cat([z.mean(1), z.std(1, correction=0)], 1)


class RowsAbove(nn.Module):
    """A residual 3 x 3 convolution that sees its own row and the two above, never one below."""

    def __init__(self, width):
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3)

    def forward(self, x):
        return x + F.relu(self.convolution(F.pad(x, (1, 1, 2, 0))))
