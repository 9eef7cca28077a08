"""Blocks of logits in plain PyTorch, a chunk of rows at a time: on any device, O((N + M) D)."""

import torch

from sslops.ops.info_nce._chunked import (
    FLOAT16_SCALE,
    SMALLEST_CHUNK,
    add_product,
    bounded,
    chunk_logits,
    operand_dtype,
    product,
    slices,
)
from sslops.ops.logit_blocks.reference import BlockStatistics, merged
from sslops.unit_rows import at_least_float32, unit_rows

# B batch, N queries, M keys, D width; a chunk holds the logits [B, n, M] of n rows.


def unsupported(*args, **kwargs):
    return None


class _Block:
    """The rows as operands of products, and the logits of a chunk of them."""

    def __init__(self, query, keys, temperature, normalize, excluded_at):
        prepare = unit_rows if normalize else at_least_float32
        dtype = operand_dtype(query)
        self.q, self.k = prepare(query).to(dtype), prepare(keys).to(dtype)
        self.T, self.excluded_at = temperature, excluded_at

    def chunks(self):
        B, N, _ = self.q.shape
        step = max(SMALLEST_CHUNK, chunk_logits(self.q) // (B * self.k.shape[1]))
        for rows in slices(N, step):
            yield rows, torch.arange(rows.stop - rows.start, device=self.q.device)

    def logits(self, rows, i):
        z_BnM = product(self.q[:, rows], self.k.mT).div_(self.T)
        if self.excluded_at is not None:
            z_BnM[:, i, self.excluded_at[rows]] = -torch.inf
        return z_BnM

    def key_sums(self, e_BnM):
        if self.k.dtype != torch.float16:
            return product(e_BnM.to(self.k.dtype), self.k)
        return product(e_BnM.mul(FLOAT16_SCALE).half(), self.k).div_(FLOAT16_SCALE)


def block_statistics(
    query, keys, temperature, positive, *, normalize, positive_at, excluded_at, columns, key_sums,
    ranks,
):  # fmt: skip
    """See sslops.ops.logit_blocks for the arguments of a backend."""
    block = _Block(query, keys, temperature, normalize, excluded_at)
    found = []
    for rows, i in block.chunks():
        z_BnM = block.logits(rows, i)
        own = z_BnM[:, i, positive_at[rows]] if positive is None else positive[:, rows]
        rank = (z_BnM > own[..., None]).sum(-1) if ranks else None
        of_columns = _statistics(z_BnM, -2).mT if columns else None
        top, total = _statistics(z_BnM, -1, in_place=True).split(1, -1)
        sums = [block.key_sums(z_BnM)] if key_sums else []
        found.append((torch.cat([top, total, *sums], -1), of_columns, own, rank))
    of_rows, of_columns, positive, rank = zip(*found, strict=True)
    return BlockStatistics(
        torch.cat(of_rows, 1), _merge_all(of_columns) if columns else None,
        torch.cat(positive, 1), torch.cat(rank, 1) if ranks else None,
    )  # fmt: skip


def _statistics(z, dim, in_place=False):
    """The largest and the sum of exponentials along a dimension, which the two replace."""
    top = z.amax(dim, keepdim=True)
    shift = torch.where(top == -torch.inf, 0.0, top)  # every candidate is excluded
    e = z.sub_(shift) if in_place else z - shift
    return torch.cat([top, e.exp_().sum(dim, keepdim=True)], dim)


def _merge_all(statistics):
    total, *others = statistics
    for other in others:
        total = merged(total, other)
    return total


def block_gradients(
    query, keys, temperature, rows, columns, *, normalize, positive_at, excluded_at, wants
):
    """See sslops.ops.logit_blocks for the arguments of a backend."""
    block = _Block(query, keys, temperature, normalize, excluded_at)
    rows, columns, factor = _bounded(rows, columns, block.q.dtype)
    dq, dk = (
        torch.zeros_like(x, dtype=temperature.dtype) if wanted else None
        for x, wanted in zip((block.q, block.k), wants, strict=True)
    )
    for some, i in block.chunks():
        z_BnM = block.logits(some, i)
        at = None if positive_at is None else (i, positive_at[some])
        G = _weights(z_BnM, None if rows is None else rows[:, some], columns, at).to(block.q.dtype)
        if wants[0]:
            add_product(dq[:, some], G, block.k)
        if wants[1]:
            add_product(dk, G.mT, block.q[:, some])
    return tuple(None if x is None else x.mul_(factor / temperature) for x in (dq, dk))


def _bounded(rows, columns, dtype):
    """Upstream gradients that `dtype` can hold times a softmax, and the factor that undoes it."""
    sides = [x for x in (rows, columns) if x is not None]
    _, factor = bounded(torch.cat([x[..., 2] for x in sides], 1), dtype)
    rows, columns = (
        None if x is None else torch.cat([x[..., :2], x[..., 2:] / factor], -1)
        for x in (rows, columns)
    )
    return rows, columns, factor


def _weights(z_BnM, rows, columns, positive_at):
    """G of a chunk; overwrites its logits."""
    G_BnM = None
    if columns is not None:
        G_BnM = _softmax_gradient(z_BnM.clone() if rows is not None else z_BnM,
                                  columns[:, None].unbind(-1), positive_at)  # fmt: skip
    if rows is not None:
        own = _softmax_gradient(z_BnM, rows[:, :, None].unbind(-1), positive_at)
        G_BnM = own if G_BnM is None else G_BnM.add_(own)
    return G_BnM


def _softmax_gradient(z_BnM, statistics, positive_at):
    top, total, upstream = statistics
    z_BnM.sub_(top).exp_().div_(total)
    if positive_at is not None:
        z_BnM[:, positive_at[0], positive_at[1]] -= 1.0
    return z_BnM.mul_(upstream)
