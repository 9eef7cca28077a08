"""Inputs of sinkhorn_knopp and what they cost: for tests, benchmarks and sslops.backends()."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """One call of sinkhorn_knopp with B rows of K cosines, times `scale`."""

    name: str
    B: int
    K: int
    temperature: float = 0.07
    iterations: int = 3
    scale: float = 0.3

    def inputs(self, device="cpu", dtype=torch.float32, seed=0):
        """The logits and the other arguments."""
        generator = torch.Generator().manual_seed(seed)
        logits = self.scale * torch.randn(self.B, self.K, generator=generator)
        return logits.to(device, dtype), (self.temperature, self.iterations)

    @property
    def D(self):
        """Width of a row, as benchmarks call it."""
        return self.K

    def floor(self, element_bytes=4):
        """One read of the logits per half-iteration and one write of the result."""
        size = self.B * self.K
        return {
            "exps": (2 * self.iterations + 1) * size,
            "bytes": ((2 * self.iterations + 1) * element_bytes + 4) * size,
        }


def example(device):
    """Arguments of a backend for a typical call."""
    return (torch.zeros(4, 8, device=device), 0.07), dict(iterations=3, group=None)


CASES = [
    Case("one row", 1, 8),
    Case("one prototype", 5, 1),
    Case("more rows than prototypes", 40, 7),
    Case("fewer rows than prototypes", 6, 130),
    Case("square", 21, 21),
    Case("one iteration", 9, 12, iterations=1),
    Case("many iterations", 7, 12, iterations=10),
    Case("cold", 12, 30, temperature=0.01),
    Case("exponentials beyond float32", 12, 20, temperature=0.02, scale=20.0),
    Case("several chunks", 9, 5000),
]

# What benchmarks measure: the two global crops of 64 images, DINOv2's prototypes.
MEASURED = [Case("128 rows, 65536 prototypes", 128, 65536)]


def case_of(shape):
    """A case from "128x65536" (rows, prototypes)."""
    return Case(shape, *map(int, shape.split("x")))
