"""Sinkhorn-Knopp in plain PyTorch: the specification. Runs in float64, over any ranks."""

import torch

from sslops import distributed
from sslops.unit_rows import at_least_float32


def unsupported(*args, **kwargs):
    return None


def sinkhorn_knopp(logits, temperature, *, iterations, group):
    """See sslops.ops.sinkhorn_knopp for the arguments of a backend.

    Q = exp(z), z = logits / temperature; then, again and again, every prototype's share of the
    mass becomes 1 / K and every row's 1 / B. Scalings of rows and columns are all that changes,
    so they alone are kept, as logarithms: log Q_bk = z_bk + f_b - a_k. What cancels is left out:
    the first division by the sum, 1 / K, 1 / B, and the multiplication by B at the end.
    """
    # B rows of this rank, K prototypes
    z_BK = at_least_float32(logits) / temperature
    f_B1 = z_BK.new_zeros(len(z_BK), 1)
    for _ in range(iterations):
        a_K = sum_over_rows(z_BK + f_B1, group)
        f_B1 = -(z_BK - a_K).logsumexp(1, keepdim=True)
    return (z_BK - a_K).softmax(1)


def sum_over_rows(x_BK, group):
    """log sum_b exp(x_bk) over the rows of all ranks, of which some may have none."""
    local = x_BK.logsumexp(0)
    return local if group is None else log_add_over_ranks(local, group)


def log_add_over_ranks(x, group):
    """The logarithm of the sum of exponentials over ranks, relative to the largest."""
    top = distributed.max_over_ranks(x, group)
    top = torch.where(top == -torch.inf, 0.0, top)  # no rank has a row
    return top + distributed.sum_over_ranks((x - top).exp(), group).log()
