"""Contrastive losses whose keys lie on several ranks, out of blocks of logits; see README.md.

Every rank computes the block of its own queries against all keys once. What belongs to a key that
is at home elsewhere (statistics of its column, its gradient) is merged at its home. Whether the
keys come all at once or one rank's at a time is the route's business (sslops.distributed).
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from sslops import distributed
from sslops.ops.info_nce.reference import InfoNCERows
from sslops.ops.logit_blocks import block_gradients, block_statistics, merged
from sslops.unit_rows import at_least_float32, unit_rows, unit_rows_backward

# B batch, N queries of this rank, D width

BACKENDS = ("cpu", "chunked", "reference")
# Those that also sum keys, for a queue in shards.
QUEUE_BACKENDS = ("chunked", "reference")


class Options(NamedTuple):
    """What the loss is, beside its tensors."""

    backend: str | None
    normalize: bool
    symmetric: bool = False
    return_stats: bool = False


def in_batch_rows(query, key, temperature, route, options):
    """InfoNCE of this rank's queries against the keys of all ranks, or NT-Xent.

    Args:
        query: [B, N, D].
        key: [B, N, D], the queries' positives; None for NT-Xent, whose candidates are the queries
            of all ranks: N / 2 first views, then their second views.
        temperature: float, or a 0-d tensor.
        route: how the ranks' rows meet, from distributed.route.

    Returns:
        InfoNCERows. Gradients sum what the losses of all ranks send to this rank's rows; that of
        the temperature is this rank's share, such that the shares' sum is the gradient.
    """
    T = as_tensor(temperature, query)
    loss, lse, positive, rank = _InBatch.apply(query, key, T, route, options)
    return InfoNCERows(loss, lse, positive, rank)


def check_backend(name, backend):
    """Blocks need a backend that has them."""
    if backend not in (None, *BACKENDS):
        raise RuntimeError(
            f"{name}: backend {backend!r} cannot run here: a ring, and the symmetric loss over "
            f"ranks, need {' or '.join(BACKENDS)}"
        )


def as_tensor(temperature, like):
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if isinstance(temperature, torch.Tensor):
        return temperature.to(dtype)
    return torch.full((), temperature, dtype=dtype, device=like.device)


def _places(start, N, self_contrast, device):
    """Where among a block's keys each row's positive lies, and its own view."""
    if start is None:
        return {}
    own = torch.arange(start, start + N, device=device)
    if self_contrast:
        return dict(positive_at=own.roll(N // 2), excluded_at=own)
    return dict(positive_at=own)


class _InBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, T, route, options):
        keys = query if key is None else key
        everything = route.spread(keys)
        at_home = route.collect(merged) if options.symmetric else None
        rows = positive = rank = None
        for start, (block,) in route.visit(everything):
            places = _places(start, query.shape[1], key is None, query.device)
            found = block_statistics(
                options.backend, query, block, T, positive, normalize=options.normalize,
                columns=options.symmetric, ranks=options.return_stats, **places,
            )  # fmt: skip
            positive = found.positive
            rows = found.rows if rows is None else merged(rows, found.rows)
            if options.return_stats:
                rank = found.rank if rank is None else rank + found.rank
            if at_home is not None:
                at_home.add(found.columns)
        loss = lse_minus(rows, positive)
        lse = positive + loss
        columns = at_home.result if at_home is not None else None
        if columns is not None:
            loss = (loss + lse_minus(columns, positive)) / 2
        ctx.save_for_backward(query, key, T, rows, columns, everything)
        ctx.route, ctx.options = route, options
        ctx.mark_non_differentiable(lse, positive, *([] if rank is None else [rank]))
        return loss, lse, positive, rank

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        query, key, *_ = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            dq, dk = _unit_gradients(ctx, upstream)
            return *_finish(ctx, query, key, dq, dk), None, None


def lse_minus(statistics, positive):
    """lse - positive: one by one, so that a loss near 0 keeps its digits beside large logits."""
    return statistics[..., 0] - positive + statistics[..., 1].log()


def _unit_gradients(ctx, upstream):
    """What all ranks' losses send to this rank's unit queries and keys."""
    query, key, T, rows, columns, everything = ctx.saved_tensors
    route, options = ctx.route, ctx.options
    if options.symmetric:
        upstream = upstream / 2
        columns = torch.cat([columns, upstream[..., None]], -1)
    rows = torch.cat([rows, upstream[..., None]], -1)
    if key is None:  # the logits are symmetric: the columns' softmaxes are those of their rows
        columns = rows
    wants = (ctx.needs_input_grad[0] or ctx.needs_input_grad[2], ctx.needs_input_grad[1])
    dq, dk_at_home = None, route.collect(torch.add) if wants[1] else None
    for start, (block, *others) in route.visit(everything, *([] if columns is None else [columns])):
        part, dk = block_gradients(
            options.backend, query, block, T, rows, *(others or [None]), wants=wants,
            normalize=options.normalize, **_places(start, query.shape[1], key is None, T.device),
        )  # fmt: skip
        dq = part if dq is None or part is None else dq.add_(part)
        if dk_at_home is not None:
            dk_at_home.add(dk)
    return dq, None if dk_at_home is None else dk_at_home.result


def _finish(ctx, query, key, dq, dk):
    """Gradients of the rows as they came, and of the temperature."""
    T, normalize = ctx.saved_tensors[2], ctx.options.normalize
    gradients = []
    for x, gradient, needed in ((query, dq, ctx.needs_input_grad[0]), (key, dk, True)):
        if gradient is not None and normalize:
            gradient = unit_rows_backward(x, gradient)
        gradients.append(gradient.to(x.dtype) if needed and gradient is not None else None)
    dT = None
    if ctx.needs_input_grad[2]:  # z = <q, k> / T, of which NT-Xent's pairs have two
        unit = unit_rows(query) if normalize else at_least_float32(query)
        dT = (unit * dq).sum() / ((-2 if key is None else -1) * T)
    return *gradients, dT


def queue_rows(query, positive_key, shard, temperature, group, options):
    """InfoNCE of this rank's queries against a queue whose shards lie on the ranks.

    The queries travel, not the queue: every rank compares those of all ranks with its own shard.
    Args and returns as for in_batch_rows; the shard [M, D] gets no gradient.
    """
    T = as_tensor(temperature, query)
    prepare = unit_rows if options.normalize else at_least_float32
    q, p = prepare(query), prepare(positive_key)
    loss, lse, positive, rank = _Queue.apply(q, p, shard, T, group, options)
    return InfoNCERows(loss, lse, positive, rank)


class _Queue(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, p, shard, T, group, options):
        route = distributed.Gather(distributed.row_counts(q, group), group)
        positive = (q * p).sum(-1) / T
        of_all = route.spread(positive[..., None])[..., 0]
        key_sums = any(ctx.needs_input_grad)
        found = block_statistics(
            options.backend, route.spread(q), shard.expand(len(q), -1, -1), T, of_all,
            normalize=False, key_sums=key_sums, ranks=options.return_stats,
        )  # fmt: skip
        rows = _at_home(route, merged, found.rows)
        # The positive joins as a block of one candidate.
        parts = [positive[..., None], torch.ones_like(positive)[..., None], *[p] * key_sums]
        rows = merged(rows, torch.cat(parts, -1))
        loss = lse_minus(rows, positive)
        lse, rank = positive + loss, None
        if options.return_stats:
            rank = _at_home(route, torch.add, found.rank[..., None])[..., 0]
        # The queue may be written to before backward, which needs only the mean of its keys.
        ctx.save_for_backward(q, p, T, loss, rows[..., 2:] / rows[..., 1:2])
        ctx.mark_non_differentiable(lse, positive, *([] if rank is None else [rank]))
        return loss, lse, positive, rank

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        q, p, T, loss, mean_key = ctx.saved_tensors
        upstream = upstream / T
        dq = upstream[..., None] * (mean_key - p)
        dp = (upstream * torch.expm1(-loss))[..., None] * q
        return dq, dp, None, -(q * dq).sum() / T, None, None


def _at_home(route, merge, part):
    total = route.collect(merge)
    total.add(part)
    return total.result
