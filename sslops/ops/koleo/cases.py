"""Inputs of koleo and what they cost: for tests, benchmarks and sslops.backends()."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """One call of koleo with N rows of width D."""

    name: str
    N: int
    D: int
    lead: tuple[int, ...] = ()

    def inputs(self, device="cpu", dtype=torch.float32, seed=0):
        """The features, which want a gradient; not of unit length."""
        generator = torch.Generator().manual_seed(seed)
        x = 3 * torch.randn(*self.lead, self.N, self.D, generator=generator)
        return x.to(device, dtype).requires_grad_()

    def floor(self, element_bytes=4):
        """Every product once (the two sides of a pair are the same), and the gradient."""
        batches = torch.Size(self.lead).numel()
        return {
            "flops": batches * self.N**2 * self.D,
            "bytes": 3 * batches * self.N * self.D * element_bytes,
        }


def example(device):
    """Arguments of a backend for a typical call."""
    x = torch.zeros(1, 4, 8, device=device)
    return (x, x, 0), {}


CASES = [
    Case("two rows", 2, 3),
    Case("odd", 31, 24),
    Case("block edge", 64, 64),
    Case("past the block edge", 65, 65),
    Case("two crops", 33, 48, (2,)),
    Case("leading dims", 9, 16, (2, 3)),
    Case("wide", 40, 384),
]

# What benchmarks measure: the global crops of a batch, and a batch gathered over many ranks.
MEASURED = [Case("two crops of 64", 64, 1024, (2,)), Case("4096 rows", 4096, 1024)]


def case_of(shape):
    """A case from "4096x1024" (rows, width)."""
    return Case(shape, *map(int, shape.split("x")))
