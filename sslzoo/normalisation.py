"""From normalised views back to pixels, for methods whose formulas speak of pixels."""

import torch
from torch import nn


class Normalisation(nn.Module):
    """The channel statistics that the views are normalised by, set by `set`; until then 0 and 1.

    They follow from the data and the options, so they are no part of the state_dict.

    Example:
        >>> norm = Normalisation()
        >>> norm.set((0.5,), (0.25,))
        >>> pixels = norm.pixels(torch.tensor([[[[-2.0, 2.0]]]]))
        >>> pixels.flatten().tolist(), norm(pixels).flatten().tolist()
        ([0.0, 1.0], [-2.0, 2.0])
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 1, 1), persistent=False)

    def set(self, mean, std):
        """mean, std: one value for each channel, in units of the range 0 to 1."""
        self.mean = torch.tensor(mean, device=self.mean.device).float()[:, None, None]
        self.std = torch.tensor(std, device=self.std.device).float()[:, None, None]

    def pixels(self, x):
        """Views [..., C, H, W] as pixels, 0 to 1."""
        return x * self.std + self.mean

    def forward(self, pixels):
        """Pixels [..., C, H, W], 0 to 1, normalised as the views are."""
        return (pixels - self.mean) / self.std
