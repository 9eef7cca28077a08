"""Features of sounds: those of a frozen encoder, and log-mel features to compare with."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@torch.no_grad()
def extract_audio(backbone, data, size, mean, std, device="cpu"):
    """Features of every whole sound, one by one: no window, no padding.

    Args:
        backbone: a module, sounds [1, 1, samples] to features [1, d].
        data: AudioData.
        size: not used; sounds have their own length.
        mean, std: normalisation, one value each.
        device: where the encoder is.

    Returns:
        (features float32 [N, d], labels int64 [N] or None), on the CPU.
    """
    was_training = backbone.training
    backbone.eval()
    least = getattr(backbone, "LEAST_SAMPLES", 1)
    backbone.rate = data.rate
    rows = []
    for index in range(len(data)):
        wave = (data.load(index)[None].to(device) - mean[0]) / std[0]
        wave = F.pad(wave, (0, max(least - wave.shape[-1], 0)))
        rows.append(backbone(wave).float().cpu())
    backbone.train(was_training)
    return torch.cat(rows), data.labels


def wave_statistics(data, max_sounds=200):
    """Mean 0 and the standard deviation of the samples of evenly spaced sounds, as two tuples."""
    picked = np.unique(np.linspace(0, len(data) - 1, max_sounds).astype(int))
    waves = torch.cat([data.load(index)[0] for index in picked])
    return (0.0,), (max(waves.double().std().item(), 1e-8),)


class LogMel(nn.Module):
    """Mean and standard deviation over time of log-mel energies: what a sound's spectrum says.

    `torch.stft` of frames of 25 ms every 10 ms (Hann), power, triangular bands on the mel scale
    2595 log10(1 + f / 700), logarithm.

    Args:
        bands: number of bands; the features are twice as many.

    Attributes:
        rate: samples per second of the sounds.

    Example:
        >>> import torch
        >>> LogMel()(torch.randn(2, 1, 8000)).shape
        torch.Size([2, 80])
    """

    def __init__(self, bands=40):
        super().__init__()
        self.bands, self.rate = bands, 8000

    def forward(self, x):
        frame, hop = self.rate // 40, self.rate // 100
        size = 2 ** math.ceil(math.log2(frame))
        x = F.pad(x[:, 0], (0, max(frame - x.shape[-1], 0)))
        window = torch.hann_window(frame, device=x.device)
        spectrum = torch.stft(x, size, hop, frame, window, pad_mode="constant", return_complex=True)
        energy = mel_bands(self.bands, size, self.rate).to(x.device) @ spectrum.abs().square()
        log = (energy + 1e-6).log()
        return torch.cat([log.mean(-1), log.std(-1, correction=0)], 1)


def mel_bands(bands, size, rate):
    """Triangles of height 1, evenly spaced on the mel scale: [bands, size / 2 + 1]."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    frequency = torch.linspace(0, rate / 2, size // 2 + 1)
    left, centre, right = (edges[i : i + bands, None] for i in range(3))
    rising, falling = (frequency - left) / (centre - left), (right - frequency) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0)
