"""Blocks of logits in plain PyTorch: the specification. Runs in float64; stores the block."""

from typing import NamedTuple

import torch

from sslops.unit_rows import at_least_float32, unit_rows

# B batch, N queries, M keys of the block, D width


class BlockStatistics(NamedTuple):
    """What a block adds to the softmaxes of its rows and columns; none carries a gradient."""

    rows: torch.Tensor  # [B, N, 2]: largest logit, sum of exponentials relative to it; with
    # key_sums [B, N, 2 + D]: the sums of keys that the same exponentials weigh
    columns: torch.Tensor | None  # [B, M, 2], the same of the columns
    positive: torch.Tensor  # [B, N]: the positives' logits
    rank: torch.Tensor | None  # [B, N], int64: candidates of this block above the positive


def merged(a, b):
    """Statistics of two blocks as one: sums come to the larger of the two maxima."""
    top = torch.maximum(a[..., :1], b[..., :1])
    shift = torch.where(top == -torch.inf, 0.0, top)  # neither block has a candidate
    sums = (x[..., 1:] * (x[..., :1] - shift).exp() for x in (a, b))
    return torch.cat([top, sum(sums)], -1)


def unsupported(*args, **kwargs):
    return None


def _prepare(query, keys, temperature, normalize, excluded_at):
    prepare = unit_rows if normalize else at_least_float32
    q_BND, k_BMD = prepare(query), prepare(keys)
    logits = q_BND @ k_BMD.mT / temperature
    i = torch.arange(logits.shape[1], device=logits.device)
    if excluded_at is not None:
        logits[:, i, excluded_at] = -torch.inf
    return q_BND, k_BMD, logits, i


def block_statistics(
    query, keys, temperature, positive, *, normalize, positive_at, excluded_at, columns, key_sums,
    ranks,
):  # fmt: skip
    """See sslops.ops.logit_blocks for the arguments of a backend."""
    _, k_BMD, z_BNM, i = _prepare(query, keys, temperature, normalize, excluded_at)
    if positive is None:
        positive = z_BNM[:, i, positive_at]
    rows, of_columns = (_statistics(z) for z in (z_BNM, z_BNM.mT))
    if key_sums:
        rows = torch.cat([rows, (z_BNM - rows[..., :1]).exp() @ k_BMD], -1)
    rank = (z_BNM > positive[..., None]).sum(-1) if ranks else None
    return BlockStatistics(rows, of_columns if columns else None, positive, rank)


def _statistics(z):
    top = z.amax(-1, keepdim=True)
    shift = torch.where(top == -torch.inf, 0.0, top)  # every candidate is excluded
    return torch.cat([top, (z - shift).exp().sum(-1, keepdim=True)], -1)


def block_gradients(
    query, keys, temperature, rows, columns, *, normalize, positive_at, excluded_at, wants
):
    """See sslops.ops.logit_blocks for the arguments of a backend.

    G_ij = g_i (P_ij - [j = i+]) + h_j (Q_ij - [j = i+]), P the rows' softmax and Q the columns'
    """
    q_BND, k_BMD, z_BNM, i = _prepare(query, keys, temperature, normalize, excluded_at)
    G_BNM = torch.zeros_like(z_BNM)
    for G, z, statistics in ((G_BNM, z_BNM, rows), (G_BNM.mT, z_BNM.mT, columns)):
        if statistics is not None:
            top, total, upstream = statistics.split(1, -1)
            P = (z - top).exp() / total
            if positive_at is not None:
                P_rows = P if statistics is rows else P.mT
                P_rows[:, i, positive_at] -= 1.0
            G += upstream * P
    G_BNM = G_BNM / temperature
    return G_BNM @ k_BMD if wants[0] else None, G_BNM.mT @ q_BND if wants[1] else None
