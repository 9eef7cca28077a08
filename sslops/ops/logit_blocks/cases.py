"""Inputs of blocks of logits: for tests and sslops.backends()."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A block of N queries and M keys, whose row i has its positive at i + `positive` if given."""

    name: str
    N: int
    M: int
    D: int
    B: int = 1
    positive: int | None = 0
    excluded: int | None = None
    temperature: float = 0.2
    normalize: bool = True

    def inputs(self, dtype=torch.float32, seed=0):
        """The arguments that both ops share."""
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(self.B, self.N, self.D, generator=generator)
        k = torch.randn(self.B, self.M, self.D, generator=generator)
        i = torch.arange(self.N)
        options = dict(normalize=self.normalize)
        for name, offset in (("positive_at", self.positive), ("excluded_at", self.excluded)):
            options[name] = None if offset is None else (i + offset) % self.M
        T = torch.tensor(self.temperature, dtype=dtype)
        return (q.to(dtype), k.to(dtype), T), options


def example_block_statistics(device):
    """Arguments of a backend for a typical call."""
    q, T = torch.zeros(1, 4, 8, device=device), torch.ones((), device=device)
    options = dict(normalize=True, positive_at=torch.arange(4, device=device), excluded_at=None)
    return (q, q, T, None), {**options, "columns": True, "key_sums": False, "ranks": False}


def example_block_gradients(device):
    """Arguments of a backend for a typical call."""
    (q, _, T, _), options = example_block_statistics(device)
    of_rows = torch.ones(1, 4, 3, device=device)
    options = {name: options[name] for name in ("normalize", "positive_at", "excluded_at")}
    return (q, q, T, of_rows, of_rows), {**options, "wants": (True, True)}


CASES = [
    Case("own block", 5, 12, 7, positive=3),
    Case("another rank's keys", 6, 4, 8, positive=None),
    Case("a view of its own", 8, 8, 16, positive=4, excluded=0),
    Case("batches", 3, 9, 5, B=4, positive=2),
    Case("several chunks", 180, 30000, 4, positive=100),
    Case("sharp", 9, 9, 16, temperature=1e-3),
    Case("as they come", 9, 20, 6, normalize=False, temperature=3.0),
    Case("one of each", 1, 1, 3),
]
