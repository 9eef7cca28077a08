"""Inputs of nt_xent and what they cost: for tests, benchmarks and sslops.backends()."""

from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Case:
    """One call of nt_xent with N pairs."""

    name: str
    N: int
    D: int
    options: dict = field(default_factory=dict)

    def inputs(self, device="cpu", dtype=torch.float32, seed=0):
        """The tensors that want gradients and the keyword arguments; rows are not unit length."""
        generator = torch.Generator().manual_seed(seed)
        z0 = torch.randn(self.N, self.D, generator=generator)
        z1 = z0 + 1.5 * torch.randn(self.N, self.D, generator=generator)
        return [z.to(device, dtype).requires_grad_() for z in (z0, z1)], dict(self.options)

    def small(self):
        """The same call at a size that the specification runs in no time."""
        return replace(self, N=min(self.N, 300))

    @property
    def rows(self):
        """Number of losses before their mean."""
        return 2 * self.N

    @property
    def logits(self):
        return self.rows**2

    def floor(self, element_bytes=4):
        """The least that forward and backward must do by symmetry (kernels.md: the triangle)."""
        return {
            "flops": 4 * self.D * self.logits,
            "exps": self.logits,
            "bytes": 3 * 2 * self.N * self.D * element_bytes,
        }


def example(device):
    """Arguments of a backend for a typical call."""
    return (torch.zeros(4, 8, device=device), 0.5), dict(normalize=True, return_stats=False)


CASES = [
    Case("one pair", 1, 8),
    Case("two pairs", 2, 1),
    Case("three pairs", 3, 24),
    Case("odd", 31, 63),
    Case("block edge", 64, 64),
    Case("past the block edge", 129, 128, {"temperature": 0.1}),
    Case("cold", 40, 32, {"temperature": 0.02}),
    Case("no normalisation", 33, 16, {"normalize": False, "temperature": 5.0}),
    Case("wide", 40, 200),
    Case("very wide", 33, 768, {"temperature": 0.07}),
]

# What benchmarks measure.
MEASURED = [Case("4096 pairs", 4096, 128)]


def case_of(shape):
    """A case from "4096x128" (pairs, width)."""
    N, D = map(int, shape.split("x"))
    return Case(shape, N, D)
