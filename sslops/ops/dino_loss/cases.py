"""Inputs of dino_loss and what they cost: for tests, benchmarks and sslops.backends()."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Case:
    """One call: S student and T teacher views of N rows of K logits; S = 0: rows without views."""

    name: str
    S: int
    T: int
    N: int
    K: int
    options: dict = field(default_factory=dict)
    centered: bool = True
    weighted: bool = False
    probabilities: bool = False

    def inputs(self, device="cpu", dtype=torch.float32, seed=0):
        """The student, which wants a gradient, the teacher and the keyword arguments."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [(n, self.N, self.K) if self.S else (self.N, self.K) for n in (self.S, self.T)]
        student, teacher = (torch.randn(s, generator=generator) * 0.3 for s in shapes)
        options = {"teacher_temperature": 0.05, **self.options}
        if self.probabilities:
            options["teacher_temperature"] = None
            teacher = (teacher / 0.1).softmax(-1)
        elif self.centered:
            options["center"] = 0.1 * torch.randn(self.K, generator=generator)
        if self.weighted:  # a third of the rows is left out
            weights = torch.rand(shapes[0][:-1], generator=generator)
            options["weights"] = torch.where(weights < 1 / 3, 0.0, weights)
        options = {k: v.to(device) if isinstance(v, torch.Tensor) else v
                   for k, v in options.items()}  # fmt: skip
        student = student.to(device, dtype).requires_grad_()
        # Probabilities that come from Sinkhorn-Knopp are float32 beside logits of half precision.
        kind = torch.promote_types(dtype, torch.float32) if self.probabilities else dtype
        return student, teacher.to(device, kind), options

    @property
    def logits(self):
        return max(self.S, 1) * self.N * self.K

    @property
    def D(self):
        """Width of a row, as benchmarks call it."""
        return self.K

    def floor(self, element_bytes=4):
        """The least that forward and backward must do: students read twice and written once."""
        teacher = self.T * self.N * self.K
        return {
            "exps": 2 * (self.logits + teacher),
            "bytes": (3 * self.logits + 3 * teacher) * element_bytes,
        }


def example(device):
    """Arguments of a backend for a typical call."""
    logits = torch.zeros(2, 4, 8, device=device)
    options = dict(student_temperature=0.1, teacher_temperature=0.04, skip_same_view=True)
    return (logits, logits, None, None), options


CASES = [
    Case("one row, one prototype", 0, 1, 1, 1),
    Case("two views", 2, 2, 3, 8),
    Case("multi-crop", 6, 2, 5, 65),
    Case("ten crops", 10, 2, 2, 129, centered=False),
    Case("every pair", 3, 2, 4, 31, {"skip_same_view": False}),
    Case("one teacher view, skipped by one student", 3, 1, 4, 24),
    Case("three teacher views", 4, 3, 3, 100),
    Case("more teachers than students", 1, 3, 3, 40),
    Case("rows", 0, 1, 33, 64),
    Case("rows with weights", 0, 1, 17, 200, weighted=True),
    Case("views with weights", 4, 2, 6, 50, weighted=True),
    Case("probabilities", 5, 2, 4, 127, probabilities=True),
    Case("rows of probabilities", 0, 1, 9, 63, probabilities=True, weighted=True),
    Case("cold", 4, 2, 3, 80, {"student_temperature": 0.02, "teacher_temperature": 0.01}),
    Case("several chunks", 3, 2, 2, 9001),
]

# What benchmarks measure: 64 images of 10 crops, DINO's prototypes; iBOT's rows.
MEASURED = [
    Case("10 crops of 64 images", 10, 2, 64, 65536),
    Case("2048 masked patches", 0, 1, 2048, 8192, weighted=True),
]


def case_of(shape):
    """A case from "10x2x64x65536" (student views, teacher views, images, prototypes)."""
    return Case(shape, *map(int, shape.split("x")))
