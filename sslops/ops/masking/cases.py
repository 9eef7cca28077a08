"""Inputs of the masking functions and what they move: for tests, benchmarks, sslops.backends()."""

from dataclasses import dataclass

import torch

from sslops.counter_generator import CounterGenerator


@dataclass(frozen=True)
class Case:
    """B samples of P + L tokens of width D (or patches of C channels and p x p pixels)."""

    name: str
    B: int
    L: int
    D: int
    P: int = 0
    mask_ratio: float = 0.75

    @property
    def K(self):
        return int(self.L * (1 - self.mask_ratio))

    def tokens(self, device="cpu", dtype=torch.float32, seed=0):
        """x [B, P + L, D] and noise [B, L]."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.B, self.P + self.L, self.D, generator=generator)
        noise = torch.rand(self.B, self.L, generator=generator)
        return x.to(device, dtype), noise.to(device)

    def decoder(self, device="cpu", dtype=torch.float32, seed=0):
        """x_kept [B, P + K, D], ids_restore [B, L], mask_token [D], pos_embed [1, P + L, D]."""
        generator = torch.Generator().manual_seed(seed)
        shapes = (self.B, self.P + self.K, self.D), (self.D,), (1, self.P + self.L, self.D)
        x_kept, token, position = (torch.randn(s, generator=generator) for s in shapes)
        noise = torch.rand(self.B, self.L, generator=generator)
        ids_restore = noise.argsort(dim=1).argsort(dim=1).to(device)
        return (
            x_kept.to(device, dtype),
            ids_restore,
            token.to(device, dtype),
            position.to(device, dtype),
        )

    def bytes_moved(self, element_bytes=4):
        """The least that random_masking and restore_tokens must read and write, forward."""
        kept, all_rows = self.B * (self.P + self.K), self.B * (self.P + self.L)
        row = self.D * element_bytes
        return {
            "random_masking": 2 * kept * row + self.B * self.L * (4 + 4 + 8),
            "random_masking_backward": (kept + all_rows) * row + self.B * self.L * 8,
            "restore_tokens": (kept + all_rows) * row + self.B * self.L * 8,
        }


def _ids(device):
    return torch.tensor([[1, 0, 3, 2]], device=device)


def example_random_masking(device):
    """Arguments of a backend for a typical call; so do the next three."""
    return (torch.zeros(1, 4, 8, device=device), None, CounterGenerator(0), 2, 0), {}


def example_gather_tokens(device):
    return (torch.zeros(1, 4, 8, device=device), _ids(device), 0), {}


def example_restore_tokens(device):
    x_kept, token = torch.zeros(1, 2, 8, device=device), torch.zeros(8, device=device)
    return (x_kept, _ids(device), token, None, 0), {}


def example_gather_patches(device):
    return (torch.zeros(1, 3, 8, 8, device=device), _ids(device), 4), {}


CASES = [
    Case("one token", 2, 1, 8, mask_ratio=0.0),
    Case("one token, removed", 2, 1, 8),
    Case("two tokens", 1, 2, 3, mask_ratio=0.5),
    Case("nothing removed", 3, 16, 8, mask_ratio=0.0),
    Case("nearly all removed", 2, 64, 8, mask_ratio=0.999),
    Case("vit", 4, 196, 192),
    Case("class token", 3, 49, 24, P=1),
    Case("odd width", 3, 63, 63, P=2, mask_ratio=0.6),
    Case("width 1", 2, 40, 1),
    Case("power of two", 2, 256, 32, mask_ratio=0.9),
    Case("past a power of two", 2, 257, 20, mask_ratio=0.9),
    Case("video", 1, 1568, 16, mask_ratio=0.9),
]
