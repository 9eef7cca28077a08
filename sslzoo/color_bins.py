"""Colours as classes: bins, soft codes over the nearest of them, weights of rare ones, and back.

Zhang, Isola, Efros, "Colorful Image Colorization", ECCV 2016. P pixels, Q bins, k neighbours.
"""

from dataclasses import dataclass

import torch
from torch import nn

ROWS = 2**16  # pixels whose distances to all bins exist at once where none is kept
# For each a, the first and the last b of its bins, in steps of 10: the 313 bins of the paper.
# Not all of them hold a colour of sRGB, so a list computed from colours has fewer.
RANGES_313 = {
    **{-90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100)},
    **{-40: (-40, 100), -30: (-50, 100), -20: (-50, 100), -10: (-60, 100), 0: (-70, 100)},
    **{10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90), 50: (-100, 80)},
    **{60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0)},
}

# The same in steps of 20, for small images: the 64 of these bins that hold a colour of sRGB.
RANGES_64 = {
    **{-90: (80, 80), -70: (20, 80), -50: (-20, 80), -30: (-40, 80), -10: (-40, 80)},
    **{10: (-60, 80), 30: (-80, 80), 50: (-80, 60), 70: (-100, 60), 90: (-80, 0)},
}


def ab_centers(bins=313):
    """Centres of the ab bins, float32 [bins, 2]: 313 in steps of 10, or 64 in steps of 20."""
    if bins == 313:
        rows = [(a, b) for a, (low, high) in RANGES_313.items() for b in range(low, high + 1, 10)]
    elif bins == 64:
        rows = [(a, b) for a, (low, high) in RANGES_64.items() for b in range(low, high + 1, 20)]
    else:
        raise ValueError(f"ab bins must be 313 or 64; got {bins}")
    return torch.tensor(rows, dtype=torch.float32)


@dataclass
class Code:
    """Soft codes of pixels: k bins each, the nearest first, and their weights, which sum to 1."""

    ids: torch.Tensor  # int64 [..., k]
    weights: torch.Tensor  # float32 [..., k]

    def entropy(self):
        """Entropy of each code in nats: the least that a cross-entropy can reach."""
        return torch.special.entr(self.weights).sum(-1)


class Bins(nn.Module):
    """A set of bins, which encodes colours, judges predictions of them and decodes these.

    Args:
        centers: [Q, d].
        neighbours: bins in a code.
        sigma: width of the weights exp(-distance^2 / (2 sigma^2)), in the units of the centres.
    """

    def __init__(self, centers, neighbours, sigma):
        super().__init__()
        self.neighbours, self.sigma = neighbours, sigma
        self.register_buffer("centers", centers, persistent=False)
        self.register_buffer("weights", torch.ones(len(centers)))
        self.register_buffer("prior", torch.full((len(centers),), 1 / len(centers)))

    def __len__(self):
        return len(self.centers)

    def encode(self, values):
        """The Code of values [..., d]; only the k weights of a pixel exist, never Q."""
        flat = values.reshape(-1, values.shape[-1])
        squared, ids = self.squared_distances(flat).topk(self.neighbours, largest=False)
        weights = (-squared / (2 * self.sigma**2)).softmax(-1)
        shape = *values.shape[:-1], self.neighbours
        return Code(ids.reshape(shape), weights.reshape(shape))

    def nearest(self, values):
        """The nearest bin of values [P, d], int64 [P]."""
        parts = [self.squared_distances(rows).argmin(-1) for rows in values.split(ROWS)]
        return torch.cat(parts)

    def squared_distances(self, values):
        """[P, Q]; by products the digits that tell near bins apart would be lost."""
        return sum((v[:, None] - c).square() for v, c in zip(values.T, self.centers.T, strict=True))

    def cross_entropy(self, logits, code):
        """-sum_q Z_q log softmax(logits)_q of each pixel; logits [..., Q]."""
        logits = logits.float()
        return logits.logsumexp(-1) - (code.weights * logits.gather(-1, code.ids)).sum(-1)

    def prior_cross_entropy(self, code):
        """The same of a prediction that never looks at the image: the prior itself."""
        log_prior = self.prior.clamp(min=torch.finfo(torch.float32).tiny).log()
        return -(code.weights * log_prior[code.ids]).sum(-1)

    def decode(self, logits, temperature):
        """The annealed mean sum_q c_q softmax(logits / T)_q: [..., d]."""
        return (logits.float() / temperature).softmax(-1) @ self.centers

    def count(self, values):
        """How many of the values [..., d] are nearest to each bin, int64 [Q]."""
        return torch.bincount(self.nearest(values.flatten(0, -2)), minlength=len(self))

    def rebalance(self, counts, *, smoothing, uniform_share):
        """Set prior and weights from the colours of a training set.

        Args:
            counts: of `count`, summed over the set.
            smoothing: sigma of the Gaussian that smooths the prior, in the units of the centres; 0
                is none.
            uniform_share: lambda of `class_weights`; 1 sets the prior and weighs all bins alike.
        """
        prior = smooth(counts.double() / counts.sum(), self.centers.double(), smoothing)
        self.prior.copy_(prior)
        self.weights.copy_(class_weights(prior, uniform_share))


def smooth(prior, centers, sigma):
    """Spread the share of each bin over all bins by a Gaussian of their distance."""
    if not sigma:
        return prior
    kernel = (-torch.cdist(centers, centers).square() / (2 * sigma**2)).exp()
    return prior @ (kernel / kernel.sum(1, keepdim=True))


def class_weights(prior, uniform_share):
    """w = 1 / ((1 - lambda) p + lambda u), scaled such that sum_q p_q w_q = 1.

    u is uniform over the bins with p > 0: over all of them, bins that no colour ever reaches would
    take a share of it.

    Args:
        prior: p, [Q], sums to 1.
        uniform_share: lambda, above 0 to 1.

    Example:
        >>> import torch
        >>> w = class_weights(torch.tensor([0.75, 0.25, 0.0]), 0.5)
        >>> w[:2] / w[0]  # mixed: 0.625 and 0.375
        tensor([1.0000, 1.6667])
    """
    occurs = prior > 0
    mixed = (1 - uniform_share) * prior + uniform_share * occurs / occurs.sum()
    weights = torch.where(occurs, 1 / mixed.clamp(min=1e-300), 1 / (uniform_share / occurs.sum()))
    return weights / (prior * weights).sum()


def lightness_bins(bins, sigma=1.0, neighbours=2):
    """Bins of equal width over the lightness 0 to 100."""
    width = 100 / bins
    centers = (torch.arange(bins, dtype=torch.float32) + 0.5) * width
    return Bins(centers[:, None], neighbours, sigma * max(width, 1.0))


def color_bins(bins, neighbours):
    """The ab bins; the codes' sigma is half the step between bins, 5 for the paper's."""
    return Bins(ab_centers(bins), neighbours, 5.0 if bins == 313 else 10.0)


def pick(channels, shape):
    """Pixels of [B, C, H, W] at a coarser grid, by strided picking: [B, h, w, C].

    Averaging instead would give colours that are greyer than any in the image.
    """
    h, w = shape
    H, W = channels.shape[-2:]
    rows, columns = (torch.arange(n, device=channels.device) * N // n for n, N in ((h, H), (w, W)))
    return channels[:, :, rows[:, None], columns].permute(0, 2, 3, 1)


def hits(logits, code, k):
    """Whether the pixel's nearest bin is among the k most likely ones, float."""
    truth = code.ids[..., :1]
    return (logits > logits.gather(-1, truth)).sum(-1).lt(k).float()


def error_area(error, weights=None, largest=150):
    """Area under the share of pixels with an error of at most t = 0, 1, ..., largest: 0 to 1."""
    score = (largest + 1 - error.ceil()).clamp(0) / (largest + 1)
    if weights is None:
        return score.mean()
    return (score * weights).sum() / weights.sum()
