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
    function: str = "random_masking"  # what a benchmark measures

    @property
    def K(self):
        return int(self.L * (1 - self.mask_ratio))

    def inputs(self, device="cpu", dtype=torch.float32, seed=0):
        """The tensors with which a benchmark calls `function`, and no options."""
        if self.function == "random_masking":
            x, noise = self.tokens(device, dtype, seed)
            return [x.requires_grad_(), noise], {}
        x_kept, ids_restore, *parameters = self.decoder(device, dtype, seed)
        return [t.requires_grad_() for t in (x_kept, *parameters)] + [ids_restore], {}

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
        """The least that forward and backward of `function` must read and write."""
        kept, rows = self.B * (self.P + self.K), self.B * (self.P + self.L)
        row, ids = self.D * element_bytes, self.B * self.L * 8
        if self.function == "random_masking":  # kept rows, noise and mask; then all gradients
            return 2 * kept * row + 2 * ids + (kept + rows) * row + ids
        # kept and all rows; then all gradients, those of kept rows and the sums over the batch
        return 2 * (kept + rows) * row + 2 * ids + 2 * (self.P + self.L) * row


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

MEASURED = [
    Case("encoder, ViT-B/16", 256, 196, 768),
    Case("decoder, ViT-B/16", 256, 196, 512, function="restore_tokens"),
    Case("decoder as wide as the encoder", 256, 196, 768, function="restore_tokens"),
]


def case_of(shape):
    """A case from "256x196x768" (random_masking) or "restore-256x196x768"."""
    restore = shape.startswith("restore-")
    B, L, D = map(int, shape.removeprefix("restore-").split("x"))
    return Case(shape, B, L, D, function="restore_tokens" if restore else "random_masking")
