"""Inputs of info_nce and what they cost: for tests, benchmarks and sslops.backends()."""

from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Case:
    """One call of info_nce. `negatives` is None, "unpaired", "batched" or "paired"."""

    name: str
    N: int
    D: int
    M: int = 0
    negatives: str | None = None
    lead: tuple[int, ...] = ()
    options: dict = field(default_factory=dict)
    frozen: bool = False  # the negatives want no gradient (a queue)

    def inputs(self, device="cpu", dtype=torch.float32, seed=0):
        """The tensors that want gradients and the keyword arguments; rows are not unit length."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [(*self.lead, self.N, self.D)] * 2
        if self.negatives is not None:
            own = {"unpaired": (), "batched": self.lead, "paired": (*self.lead, self.N)}
            shapes.append((*own[self.negatives], self.M, self.D))
        tensors = [torch.randn(s, generator=generator) for s in shapes]
        # Positives resemble their queries, as in training; else every loss is log(candidates).
        tensors[1] = tensors[0] + 1.5 * tensors[1]
        tensors = [t.to(device, dtype).requires_grad_() for t in tensors]
        if self.frozen:
            tensors[2].requires_grad_(False)
        mode = "paired" if self.negatives == "paired" else "unpaired"
        return tensors, {"negative_mode": mode, **self.options}

    def small(self):
        """The same call at a size that the specification runs in no time."""
        return replace(self, N=min(self.N, 300), M=min(self.M, 700))

    @property
    def rows(self):
        """Number of losses before their mean."""
        return torch.Size(self.lead).numel() * self.N

    @property
    def logits(self):
        """Number of scores: what FLOPs and exponentials are counted in."""
        return self.rows * (self.N if self.negatives is None else self.M)

    def floor(self, element_bytes=4):
        """The least that forward and backward must do, with nothing of size N x M stored."""
        rows = self.rows
        keys = rows if self.negatives is None else self.M
        products = 2 if self.frozen else 3  # S, dQ, dK
        keys_passes = 1 if self.frozen else 3  # a queue is read once: dQ is a sum of the same keys
        return {
            "flops": products * 2 * self.D * self.logits,
            "exps": self.logits,
            "bytes": (3 * rows + keys_passes * keys) * self.D * element_bytes,
        }


def example(device):
    """Arguments of a backend for a typical call."""
    q = torch.zeros(1, 4, 8, device=device)
    options = dict(symmetric=False, normalize=True, positive_offset=0, exclude_offset=None)
    return (q, q, None, 0.1), {**options, "return_stats": False, "uniform": True}


CASES = [
    Case("one pair", 1, 8),
    Case("two pairs", 2, 1),
    Case("in-batch", 31, 24),
    Case("in-batch, block edge", 129, 64),
    Case("in-batch, odd width", 64, 63),
    Case("symmetric", 127, 96, options={"symmetric": True, "temperature": 0.07}),
    Case("symmetric, leading dims", 33, 16, lead=(2, 2), options={"symmetric": True}),
    Case("no normalisation", 64, 32, options={"normalize": False, "temperature": 5.0}),
    Case("leading dims", 17, 32, lead=(3,)),
    Case("unpaired", 31, 64, 127, "unpaired", options={"temperature": 0.07}),
    Case("unpaired, more queries", 130, 128, 3, "unpaired"),
    Case("unpaired, one negative", 5, 24, 1, "unpaired"),
    Case("unpaired, leading dims", 9, 16, 40, "unpaired", lead=(2, 2)),
    Case("batched negatives", 9, 16, 40, "batched", lead=(3,)),
    Case("paired", 12, 16, 33, "paired"),
    Case("paired, leading dims", 4, 8, 5, "paired", lead=(2,)),
    Case("wide", 40, 200),
    Case("very wide", 33, 768, options={"temperature": 0.05}),
]

# What benchmarks measure.
MEASURED = [
    Case("in-batch", 8192, 128),
    Case("symmetric", 8192, 128, options={"symmetric": True}),
    Case("queue", 256, 128, 65536, "unpaired", frozen=True),
]


def case_of(shape):
    """A case from "8192x128" (in-batch) or "256x65536x128" (queries, queue, width)."""
    N, *M, D = map(int, shape.split("x"))
    return Case(shape, N, D, M[0], "unpaired", frozen=True) if M else Case(shape, N, D)
