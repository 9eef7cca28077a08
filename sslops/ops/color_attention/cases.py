"""Inputs of the two ops and what they cost: for tests, benchmarks and sslops.backends()."""

from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Case:
    """One call of color_attention, or with `classes` of color_attention_loss.

    `grid` stands for Nt target cells; there are `frames` reference frames of as many cells, or,
    without a grid, Nr reference cells.
    """

    name: str
    Nt: int = 0
    Nr: int = 0
    D: int = 16
    C: int = 3
    B: int = 1
    grid: tuple[int, int] | None = None
    frames: int = 1
    classes: int | None = None
    ties: bool = False  # small whole numbers: equal scores in every dtype
    options: dict = field(default_factory=dict)

    @property
    def op(self):
        return "color_attention" if self.classes is None else "color_attention_loss"

    @property
    def cells(self):
        """(Nt, Nr)."""
        if self.grid is None:
            return self.Nt, self.Nr
        cells = self.grid[0] * self.grid[1]
        return cells, self.frames * cells

    def inputs(self, device="cpu", dtype=torch.float32, seed=0):
        """The tensors that want gradients and the keyword arguments."""
        generator = torch.Generator().manual_seed(seed)
        Nt, Nr = self.cells
        shapes = [(self.B, Nt, self.D), (self.B, Nr, self.D)]
        if self.ties:
            tensors = [torch.randint(-1, 2, s, generator=generator).float() for s in shapes]
        else:
            # Scores of standard deviation 1: neither uniform nor one-hot attention.
            tensors = [torch.randn(s, generator=generator) / self.D**0.25 for s in shapes]
        options = dict(self.options)
        if self.classes is None:
            tensors.append(torch.randn(self.B, Nr, self.C, generator=generator))
            options["grid"] = self.grid
        else:
            for name, N in (("target_labels", Nt), ("reference_labels", Nr)):
                labels = torch.randint(self.classes, (self.B, N), generator=generator)
                options[name] = labels.to(device)
        return [t.to(device, dtype).requires_grad_() for t in tensors], options

    def small(self):
        """The same call at a size that the specification runs in no time."""
        grid = self.grid and tuple(min(n, 13) for n in self.grid)
        return replace(
            self, B=min(self.B, 2), Nt=min(self.Nt, 100), Nr=min(self.Nr, 300), grid=grid
        )

    @property
    def logits(self):
        """Number of scores: what FLOPs and exponentials are counted in."""
        return self.B * self.cells[0] * self.cells[1]

    def floor(self, element_bytes=4):
        """The least that forward and backward must do without a window or top-k."""
        Nt, Nr = self.cells
        copied = self.C if self.classes is None else 0
        return {
            # S twice, dTarget, dReference; A V, dA = dOut V', dV.
            "flops": 2 * self.logits * (4 * self.D + 3 * copied),
            "exps": 2 * self.logits,
            "bytes": 3 * self.B * ((Nt + Nr) * self.D + Nr * copied) * element_bytes,
        }


def example(device):
    """Arguments of a color_attention backend for a typical call."""
    cells = torch.zeros(1, 4, 8, device=device)
    return (cells, cells, cells[..., :3], 1.0), {"window": None, "topk": None}


def example_color_attention_loss(device):
    """Arguments of a color_attention_loss backend for a typical call."""
    cells = torch.zeros(1, 4, 8, device=device)
    labels = torch.zeros(1, 4, dtype=torch.int64, device=device)
    return (cells, cells, labels, labels, 1.0), {}


CASES = [
    Case("one cell", 1, 1, C=1),
    Case("one target cell", 1, 40, C=17),
    Case("one reference cell", 33, 1),
    Case("odd widths", 31, 65, D=63, C=17, B=2),
    Case("block edge", 64, 128, D=64, C=16),
    Case("past the block edge", 129, 257, D=64, C=64),
    Case("wide", 20, 70, D=200, C=3),
    Case("very wide", 17, 40, D=384, C=5),
    Case("widest", 5, 9, D=1024, C=2),
    Case("more rows than a strip", 300, 520, D=24, C=5),
    Case("cold", 40, 90, C=8, options={"temperature": 0.05}),
    Case("window", D=24, B=2, grid=(7, 11), frames=2, options={"radius": 2}),
    Case("window of one cell", grid=(5, 6), frames=3, C=1, options={"radius": 0}),
    Case("window, not in the first frame", grid=(9, 13), frames=3, C=17,
         options={"radius": (None, 3, 2)}),
    Case("window without any key", grid=(4, 5), frames=2, options={"radius": (-1, -1)}),
    Case("window of one frame of three", grid=(4, 5), frames=3, options={"radius": (-1, 1, -1)}),
    Case("window, more rows than a strip", D=8, grid=(17, 19), frames=2,
         options={"radius": (None, 2)}),
    Case("top 5", 40, 150, C=3, B=2, options={"topk": 5}),
    Case("top 1", 17, 70, C=17, options={"topk": 1}),
    Case("top 32", 20, 90, C=4, options={"topk": 32}),
    Case("top of all", 9, 12, options={"topk": 12}),
    Case("top 7 with ties", 65, 100, D=6, C=5, ties=True, options={"topk": 7}),
    Case("top 10 in a window", D=48, grid=(6, 7), frames=3, B=2,
         options={"radius": (None, 2, 2), "topk": 10, "temperature": 0.2}),
    Case("top 6 of fewer", grid=(6, 7), frames=2, options={"radius": (1, -1), "topk": 6}),
    Case("top 9, more rows than a strip", D=8, grid=(17, 19), options={"radius": 4, "topk": 9}),
    Case("top 3 without any key", grid=(3, 4), options={"radius": -1, "topk": 3}),
    Case("loss, one cell", 1, 1, classes=1),
    Case("loss, two classes", 33, 70, classes=2, B=2),
    Case("loss, 16 classes", 129, 200, D=64, classes=16),
    Case("loss, more classes than cells", 40, 50, D=63, classes=1000),
    Case("loss, more rows than a strip", 300, 520, D=24, classes=7),
    Case("loss, wide", 20, 65, D=130, classes=5),
    Case("loss, cold", 40, 90, classes=4, options={"temperature": 0.05}),
]  # fmt: skip

_TRAINING = dict(D=64, B=32, grid=(32, 32), frames=3)
# What benchmarks measure: the paper's training step, and labels carried along a video.
MEASURED = [
    Case("loss, 32 x 1024 x 3072", classes=16, **_TRAINING),
    Case("16 colours, 32 x 1024 x 3072", C=16, **_TRAINING),
    Case("propagation, window and top 10", C=8, D=128, grid=(30, 53), frames=5,
         options={"radius": (None, 12, 12, 12, 12), "topk": 10, "temperature": 0.07}),
]  # fmt: skip


def case_of(shape):
    """A case from "32x1024x3072x64x16" (B, Nt, Nr, D, C) or "loss-32x1024x3072x64x16", the last
    number then the classes."""
    labels = shape.startswith("loss-")
    B, Nt, Nr, D, last = map(int, shape.removeprefix("loss-").split("x"))
    options = dict(classes=last) if labels else dict(C=last)
    return Case(shape, Nt, Nr, D=D, B=B, **options)
