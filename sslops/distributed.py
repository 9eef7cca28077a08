"""Gather and scatter with gradient: the one file of the ops that knows torch.distributed.

Convention, for every loss: what a rank returns is scaled such that the *average* over ranks is the
one-process loss on the concatenated batch. DDP averages gradients, so every parameter then has the
gradient of the one-process loss.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

# Beyond these bytes of gathered rows and their gradients, rows go round in a ring instead.
RING_BYTES = 4 * 2**30


class _GatherRows(torch.autograd.Function):
    """Concatenate [B, n_r, D] over ranks along the rows; the backward sums over ranks."""

    @staticmethod
    def forward(ctx, rows, sizes, group):
        ctx.route = Gather(sizes, group)
        return ctx.route.spread(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        # Every rank's loss depends on this rank's rows: sum, do not just slice.
        total = ctx.route.collect(torch.add)
        total.add(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        return total.result.to(gradient.dtype), None, None


class Gather(NamedTuple):
    """How rows meet the keys of all ranks: every rank gets all of them at once."""

    sizes: list[int]  # every rank's number of rows
    group: object

    def spread(self, rows):
        """All ranks' [B, n, C] in rank order."""
        # Collectives want equal sizes, so shorter blocks travel padded to the longest.
        padded = rows.new_zeros(rows.shape[0], max(self.sizes), rows.shape[2])
        padded[:, : rows.shape[1]] = rows
        blocks = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(blocks, padded, group=self.group)
        return torch.cat([b[:, :n] for b, n in zip(blocks, self.sizes, strict=True)], dim=1)

    def visit(self, everything, *beside):
        """Yield, once, the index of this rank's first row and the rows of all ranks.

        Args:
            everything: what `spread` returned.
            beside: [B, n, C], what accompanies this rank's rows.
        """
        first = sum(self.sizes[: dist.get_rank(self.group)])
        yield first, [everything, *map(self.spread, beside)]

    def collect(self, merge):
        """An accumulator: add(part) once for every visit, then `result` is this rank's total."""
        return _ToOwners(self, merge)


class _ToOwners:
    """Every rank's part for all rows, [B, sum of n, C], merged where the rows are at home.

    A reduce-scatter in the form that gloo and NCCL both have for uneven rows: pieces travel in the
    dtype they have, and their owner merges them in rank order, in the same order on every run.
    """

    def __init__(self, route, merge):
        self.route, self.merge, self.result = route, merge, None

    def add(self, part, dtype=None):
        sizes, group = self.route.sizes, self.route.group
        ranks, own = len(sizes), sizes[dist.get_rank(group)]
        part = part.transpose(0, 1).contiguous()  # rows first: they are what is split
        pieces = part.new_empty(ranks * own, *part.shape[1:])
        dist.all_to_all_single(pieces, part, [own] * ranks, sizes, group=group)
        for piece in pieces.unflatten(0, (ranks, own)).transpose(1, 2):
            piece = piece.to(dtype or piece.dtype)
            self.result = piece if self.result is None else self.merge(self.result, piece)


class Ring(NamedTuple):
    """How rows meet the keys of all ranks where N x D does not fit: one rank's at a time.

    In every step a rank passes what it holds on to the next one, while it computes with it.
    """

    sizes: list[int]
    group: object

    def spread(self, rows):
        return rows

    def visit(self, *tensors):
        """Yield for every rank in turn, this one first, its tensors [B, n, C], and the index of
        this rank's first row among them: 0, and from then on None."""
        for step in range(len(self.sizes)):
            coming, transfers = tensors, []
            if step + 1 < len(self.sizes):
                coming, transfers = self.pass_on(tensors, step)
            yield None if step else 0, tensors
            for transfer in transfers:
                transfer.wait()
            tensors = coming

    def collect(self, merge):
        """An accumulator: add(part) once for every visit, then `result` is this rank's total."""
        return _Travelling(self, merge)

    def pass_on(self, tensors, step):
        """Start to send what belongs to rank - step; returns what will come, and the transfers."""
        rank, ranks = rank_and_size(self.group)
        to, source = (dist.get_global_rank(self.group, (rank + d) % ranks) for d in (1, -1))
        n = self.sizes[(rank - step - 1) % ranks]
        tensors = [t.contiguous() for t in tensors]
        coming = [t.new_empty(t.shape[0], n, *t.shape[2:]) for t in tensors]
        sends = [dist.P2POp(dist.isend, t, to, self.group) for t in tensors if t.numel()]
        receives = [dist.P2POp(dist.irecv, t, source, self.group) for t in coming if t.numel()]
        both = sends + receives
        return coming, dist.batch_isend_irecv(both) if both else []


class _Travelling:
    """Totals that travel with the rows they belong to, and are at home after the last step."""

    def __init__(self, route, merge):
        self.route, self.merge, self.result, self.step = route, merge, None, 0

    def add(self, part):
        total = part if self.result is None else self.merge(self.result, part)
        if len(self.route.sizes) > 1:
            (total,), transfers = self.route.pass_on([total], self.step)
            for transfer in transfers:
                transfer.wait()
        self.result, self.step = total, self.step + 1


def route(rows, group, exchange):
    """How the rows [B, n, D] of all ranks shall meet: a Gather, or a Ring.

    Args:
        exchange: "gather", "ring", or "auto": a ring where all rows in their dtype and their
            float32 gradients would take more than RING_BYTES on every rank.
    """
    sizes = row_counts(rows, group)
    one_row = rows.shape[0] * rows.shape[2] * (rows.element_size() + 4)
    if exchange == "auto":
        exchange = "ring" if sum(sizes) * one_row > RING_BYTES else "gather"
    return (Ring if exchange == "ring" else Gather)(sizes, group)


def row_counts(rows, group):
    """Every rank's number of rows, of [B, n, D]. It waits for the device."""
    size = torch.tensor([rows.shape[1]], device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, size, group=group)
    return torch.cat(sizes).tolist()


def rank_and_size(group):
    """This process's rank in the group, and the number of its ranks."""
    return dist.get_rank(group), dist.get_world_size(group)


def gather_rows(rows, group, sizes=None):
    """All ranks' rows in rank order, with gradient.

    Args:
        rows: [B, n, D]; n may differ between ranks, B and D may not.
        group: a torch.distributed process group.
        sizes: every rank's n, if known; None exchanges them, which waits for the device.

    Returns:
        ([B, sum of n, D], the index of this rank's first row). The gradient of a row is the sum of
        the gradients that all ranks' losses send to it.
    """
    sizes = row_counts(rows, group) if sizes is None else sizes
    return _GatherRows.apply(rows, sizes, group), sum(sizes[: dist.get_rank(group)])


def mean_scale(rows, group):
    """What turns the sum over a rank's rows into its share of the mean over all ranks' rows.

    The average of the shares over ranks is that mean, whatever the numbers of rows, none included.
    """
    total = sum_over_ranks(torch.full((), rows.numel(), device=rows.device), group)
    return dist.get_world_size(group) / total.to(rows.dtype)


def is_available():
    """Whether this torch was built with torch.distributed."""
    return dist.is_available()


def default_group(rank=None, world_size=None):
    """The default process group, or None where this process is alone.

    Raises:
        ValueError: rank or world_size, where given, are not those of the default group.
    """
    initialized = dist.is_available() and dist.is_initialized()
    size, own = (dist.get_world_size(), dist.get_rank()) if initialized else (1, 0)
    for name, given, actual in (("rank", rank, own), ("world_size", world_size, size)):
        if given is not None and given != actual:
            raise ValueError(
                f"{name} must be that of the default process group, {actual}; got {given!r}"
            )
    return dist.group.WORLD if size > 1 else None


def mean_over_ranks(value, group):
    """The mean of a tensor over the ranks of a group, without gradient."""
    return sum_over_ranks(value, group) / dist.get_world_size(group)


def sum_over_ranks(value, group):
    """The sum of a tensor over the ranks of a group, without gradient; nothing waits for it."""
    value = value.clone()
    dist.all_reduce(value, group=group)
    return value


def max_over_ranks(value, group):
    """The largest entries of a tensor over the ranks of a group, without gradient."""
    value = value.clone()
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group)
    return value
