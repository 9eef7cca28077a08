"""Inputs of the queue and what they move: for tests, benchmarks and sslops.backends()."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """Batches of B keys of width D into a queue of `size`."""

    name: str
    size: int
    D: int
    batches: tuple[int, ...]

    def inputs(self, device="cpu", dtype=torch.float32, seed=0):
        """The first batch of keys, and no options: what a benchmark calls with."""
        return self.keys(device, dtype, seed)[:1], {}

    def keys(self, device="cpu", dtype=torch.float32, seed=0):
        """The batches of keys, none of unit length; one key is zero."""
        generator = torch.Generator().manual_seed(seed)
        keys = [3 * torch.randn(B, self.D, generator=generator) for B in self.batches]
        keys[0][:1] = 0
        return [k.to(device, dtype) for k in keys]

    def bytes_moved(self, key_bytes=4, stored_bytes=4):
        """The least that one enqueue of the first batch must read and write."""
        return min(self.batches[0], self.size) * self.D * (key_bytes + stored_bytes)


def example_enqueue_(device):
    """Arguments of a backend for a typical call."""
    stored, keys = torch.zeros(8, 4, device=device), torch.zeros(2, 4, device=device)
    pointer = torch.zeros((), dtype=torch.int64, device=device)
    blocks_done = torch.zeros(1, dtype=torch.int32, device=device)
    return (stored, pointer, blocks_done, keys, 8, 0, True), {}


CASES = [
    Case("divides", 16, 8, (4, 4, 4, 4, 4)),
    Case("wraps in the middle of a batch", 10, 4, (4, 4, 4, 4, 4)),
    Case("ends at the end", 12, 24, (5, 7, 1)),
    Case("a batch as large as the queue", 7, 5, (7, 3, 7)),
    Case("a batch larger than the queue", 5, 8, (12, 3, 23)),
    Case("queue of one", 1, 8, (1, 3, 1)),
    Case("one at a time", 3, 1, (1, 1, 1, 1, 1)),
    Case("an empty batch", 4, 3, (2, 0, 3)),
    Case("odd width", 33, 63, (20, 20)),
    Case("wide", 40, 768, (31, 31)),
    Case("moco", 4096, 128, (256, 256)),
]

MEASURED = [Case("MoCo, batch 256", 65536, 128, (256,)), Case("batch 4096", 65536, 128, (4096,))]


def case_of(shape):
    """A case from "256x65536x128": batch, size of the queue, width."""
    B, size, D = map(int, shape.split("x"))
    return Case(shape, size, D, (B,))
