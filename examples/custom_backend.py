"""A backend of your own for an op of sslops, in one file, without editing the package.

    python examples/custom_backend.py

The backend runs `info_nce` by torch's own `F.linear_cross_entropy` (torch 2.13 or newer). It is two
functions: one called like the op, with the arguments that `sslops/ops/info_nce/__init__.py`
documents, and `unsupported`, which says when the other cannot run. Registered, it is tried before
the backends of the package, or forced by `backend="torch"` or SSLOPS_BACKEND=torch. What is not
its case goes to the next backend.
"""

import sys
import time

import torch
import torch.nn.functional as F

import sslops
from sslops import registry
from sslops.ops.info_nce import InfoNCERows
from sslops.unit_rows import at_least_float32, unit_rows


def unsupported(
    query, positive_key, negative_keys, temperature, *, symmetric, normalize, positive_offset,
    exclude_offset, return_stats, uniform,
):  # fmt: skip
    """None, or in words why this backend cannot run these arguments."""
    if not hasattr(F, "linear_cross_entropy"):
        return f"needs torch 2.13; this is {torch.__version__}"
    if negative_keys is not None or symmetric or exclude_offset is not None:
        return "compares queries with the batch's own keys, in one direction"
    if return_stats:
        return "counts no ranks"
    return None if len(query) == 1 else "takes one batch, no leading sizes"


def info_nce(
    query, positive_key, negative_keys, temperature, *, symmetric, normalize, positive_offset,
    exclude_offset, return_stats, uniform,
):  # fmt: skip
    """The row losses of one batch: cross-entropy of a linear layer whose weights are the keys."""
    prepare = unit_rows if normalize else at_least_float32
    q, k = prepare(query[0]) / temperature, prepare(positive_key[0])
    own = torch.arange(len(q), device=q.device) + positive_offset
    loss = F.linear_cross_entropy(q, k, own, reduction="none")
    positive = (q * k[own]).sum(-1).detach()
    return InfoNCERows(loss[None], (loss.detach() + positive)[None], positive[None], None)


def run(backend, dtype, N=512, D=64):
    """The loss, the gradient of the queries and the milliseconds of both, by a named backend."""
    torch.manual_seed(0)
    q, k = torch.randn(2, N, D).to(dtype)
    q.requires_grad_()
    start = time.perf_counter()
    loss = sslops.info_nce(q, k, temperature=0.2, backend=backend)
    loss.backward()
    return loss.item(), q.grad, 1000 * (time.perf_counter() - start)


def main():
    registry.register("info_nce", "torch", sys.modules[__name__])
    sslops.backends("cpu")
    loss, gradient, _ = run("torch", torch.float64)
    expected, expected_gradient, _ = run("reference", torch.float64)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    print(f"\nsame loss as the specification, {loss:.6f}, and same gradient, in float64")
    for backend in ("torch", "cpu", "reference"):
        if registry.OPS["info_nce"].missing.get(backend) is None:
            print(f"{backend}: {min(run(backend, torch.float32)[2] for _ in range(5)):.2f} ms")


if __name__ == "__main__":
    main()
