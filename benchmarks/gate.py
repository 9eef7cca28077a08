"""Correctness before speed: no time is taken of an op that gives wrong values."""

import sys

import torch

from benchmarks import measure

# Largest error of the output and of a gradient, relative to the largest value.
ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
PIECE = 2**26  # logits of a piece of the rows, for the comparison at size


def values(loss, tensors):
    """The output and the gradients, in float64."""
    out = loss(*tensors)
    wanted = [t for t in tensors if t.requires_grad]
    upstream = measure.upstream_like(out.shape, torch.float32, out.device)
    upstream = None if upstream is None else upstream.to(out.dtype)
    gradients = torch.autograd.grad(out, wanted, upstream) if wanted else ()
    return [x.detach().double() for x in (out, *gradients)]


def check(peers, op, backend, ours, eager, case, device, dtype):
    """Stop unless the op agrees with the specification in float64 and, at size, with eager code.

    Eager code gets the same numbers in float32. With `part` it runs a piece of the rows at a time,
    and so at any size.
    """
    small = peers.small(case)
    tensors = peers.inputs(small, device, dtype)
    doubles = [as_leaf(t, torch.float64) for t in tensors]
    own, exact = (peers.ours(name, small).loss for name in (backend, "reference"))
    compare(values(own, tensors), values(exact, doubles), dtype, "float64, small")
    tensors = peers.inputs(case, device, dtype)
    wide = [as_leaf(t, torch.float32) for t in tensors]
    if peers.part is None:
        expected = values(eager.loss, wide)
    else:
        expected = in_parts(peers.part, case, wide)
    compare(values(ours.loss, tensors), expected, dtype, "eager, at size")


def as_leaf(x, dtype):
    """The same numbers in another dtype; whole numbers stay as they are."""
    x_ = x.detach().to(dtype) if x.is_floating_point() else x
    return x_.requires_grad_(x.requires_grad)


def in_parts(part, case, tensors):
    """The loss and its gradients, summed over pieces of the rows, in float64."""
    wanted = [t for t in tensors if t.requires_grad]
    total, sums = 0.0, [torch.zeros_like(t, dtype=torch.float64) for t in wanted]
    rows = case.rows
    step = max(1, PIECE * rows // case.logits)
    for start in range(0, rows, step):
        loss = part(case, slice(start, start + step), *tensors)
        total = total + loss.detach().double()
        for into, gradient in zip(sums, torch.autograd.grad(loss, wanted), strict=True):
            into += gradient
    return [total, *sums]


def compare(ours, expected, dtype, what):
    errors = [
        ((o - e).abs().max() / e.abs().max()).item() for o, e in zip(ours, expected, strict=True)
    ]
    print(f"correct against {what}: relative errors " + " ".join(f"{e:.1e}" for e in errors))
    if not all(e <= ALLOWED[dtype] for e in errors):  # max would pass over a NaN that is not first
        sys.exit(f"wrong: more than {ALLOWED[dtype]} away from {what}; no speed is measured")
