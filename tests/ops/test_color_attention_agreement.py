"""Every case on every backend against the specification in float64, and what this check catches."""

import pytest
import torch
from backends import is_interpreted, slow_if
from color_agreement import assert_agrees

import sslops
from sslops import registry
from sslops.ops.color_attention import cases

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# The interpreter is slow: half precision on what differs between the kernels, no strips of rows,
# which the kernels of the CPU work in, and of the widths beyond a block the least.
HALVES = ("odd widths", "window", "top 5", "loss, two classes")


def is_slow(backend, case, dtype):
    is_left_out = dtype not in (torch.float32, torch.float64) and case.name not in HALVES
    is_large = "than a strip" in case.name or case.name in ("very wide", "widest")
    return is_interpreted(backend) and (is_left_out or is_large)


RUNS = [
    pytest.param(backend, case, dtype, marks=slow_if(is_slow(backend, case, dtype)),
                 id=f"{backend}-{case.name}-{str(dtype)[6:]}")
    for case in cases.CASES
    for backend in registry.OPS[case.op].backends if backend != "reference"
    for dtype in DTYPES
]  # fmt: skip


@pytest.mark.parametrize("backend, case, dtype", RUNS)
def test_backend_agrees_with_the_specification(backend, case, dtype, device):
    tensors, options = case.inputs(device, dtype)
    function = getattr(sslops, case.op)
    for reduction in (
        [{}] if case.classes is None else [{"reduction": "mean"}, {"reduction": "none"}]
    ):
        try:
            assert_agrees(function, tensors, {**options, **reduction}, backend)
        except RuntimeError as error:
            if "cannot run here" not in str(error):
                raise
            pytest.skip(str(error))


def scaled_gradient(x, factor):
    """x itself, its gradient times a factor."""
    return x * factor + (x - x * factor).detach()


def in_bfloat16(x):
    """x rounded, its gradient as it is."""
    return x + (x.bfloat16().to(x.dtype) - x).detach()


def without(x, cell):
    """The row of one cell without gradient."""
    return torch.cat([x[:, :cell], x[:, cell : cell + 1].detach(), x[:, cell + 1 :]], 1)


# Mistakes of the kinds that kernels make, as changes of (target, reference, the third argument).
MISTAKES = {
    "the last reference cell is never read": lambda f, g, v: (
        f, torch.cat([g[:, :-1], 0 * g[:, -1:] - 9], 1), v),
    "target gradients are 0.1 % too large": lambda f, g, v: (scaled_gradient(f, 1.001), g, v),
    "the gradient of one reference cell is lost": lambda f, g, v: (f, without(g, 5), v),
    "products are computed in bfloat16": lambda f, g, v: (in_bfloat16(f), g, v),
    "one target cell is off by 1e-4": lambda f, g, v: (
        f + 1e-4 * (torch.arange(f.shape[1]) == 7)[:, None], g, v),
}  # fmt: skip


@pytest.mark.parametrize("name", ["top 5", "loss, 16 classes", "past the block edge"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_agreement_catches(mistake, name, monkeypatch):
    case = next(case for case in cases.CASES if case.name == name)
    backends = registry.OPS[case.op].backends
    right, unsupported = backends["reference"]

    def wrong(f, g, v, *rest, **options):
        return right(*MISTAKES[mistake](f, g, v), *rest, **options)

    monkeypatch.setitem(backends, "wrong", (wrong, unsupported))
    tensors, options = case.inputs()
    with pytest.raises(AssertionError, match=r"error .* allowed"):
        assert_agrees(getattr(sslops, case.op), tensors, options, "wrong")
