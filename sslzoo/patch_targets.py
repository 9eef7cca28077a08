"""Patches of images, and what a masked autoencoder predicts of them.

B images of L patches, each of n = p * p * channels values in the order row, column, channel.
"""

import torch
from torch import nn

EPSILON = 1e-6  # added to the variance of a patch


def patchify(x, patch_size):
    """[B, C, S, S] to patches [B, L, n], each in the order row, column, channel."""
    B, C, H, W = x.shape
    p = patch_size
    x = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(B, -1, p * p * C)


def unpatchify(patches, patch_size):
    """The inverse of patchify for square images."""
    B, L = patches.shape[:2]
    side, p = round(L**0.5), patch_size
    x = patches.reshape(B, side, side, p, p, -1).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(B, -1, side * p, side * p)


def make_target(kind, values, components=0):
    """The target "pixel", "norm_pixel" or "pca" of patches of `values` values."""
    if kind != "pca":
        return PixelTarget(values, kind == "norm_pixel")
    return PCATarget(values, components or min(96, values // 2))


class PixelTarget(nn.Module):
    """The pixels of a patch, as they are or normalised by the patch's own mean and variance."""

    def __init__(self, size, is_normalised):
        super().__init__()
        self.size, self.is_normalised = size, is_normalised

    def statistics(self, patches):
        """Mean and standard deviation, with the unbiased variance of the official code."""
        var, mean = torch.var_mean(patches, -1, keepdim=True)
        return mean, (var + EPSILON).sqrt()

    def forward(self, patches):
        if not self.is_normalised:
            return patches
        mean, std = self.statistics(patches)
        return (patches - mean) / std

    def invert(self, pred, patches):
        """Predictions in pixels; the statistics of a normalised patch are the original's."""
        if not self.is_normalised:
            return pred
        mean, std = self.statistics(patches)
        return pred * std + mean


class PCATarget(nn.Module):
    """The largest principal components of a patch, as fitted to the training images."""

    def __init__(self, values, size):
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.eye(values)[:, :size].clone())

    def fit(self, batches):
        """Fit to an iterable of patches [rows, n]."""
        count = total = outer = 0.0
        for rows in batches:
            rows = rows.double()
            count, total, outer = count + len(rows), total + rows.sum(0), outer + rows.T @ rows
        mean = total / count
        _, vectors = torch.linalg.eigh(outer / count - mean[:, None] * mean)  # rising
        self.mean.copy_(mean)
        self.basis.copy_(vectors.flip(1)[:, : self.size])

    def forward(self, patches):
        return (patches - self.mean) @ self.basis

    def invert(self, pred, patches):
        return pred @ self.basis.T + self.mean
