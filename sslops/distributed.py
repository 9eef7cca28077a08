"""Gather and scatter with gradient: the one file of the ops that knows torch.distributed.

Convention, for every loss: what a rank returns is scaled such that the *average* over ranks is the
one-process loss on the concatenated batch. DDP averages gradients, so every parameter then has the
gradient of the one-process loss.
"""

import math

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


class _GatherRows(torch.autograd.Function):
    """Concatenate [B, n_r, D] over ranks along the rows; the backward sums over ranks."""

    @staticmethod
    def forward(ctx, rows, sizes, group):
        ctx.sizes, ctx.group = sizes, group
        # Collectives want equal sizes, so shorter blocks travel padded to the longest.
        padded = rows.new_zeros(rows.shape[0], max(sizes), rows.shape[2])
        padded[:, : rows.shape[1]] = rows
        blocks = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(blocks, padded, group=group)
        return torch.cat([b[:, :n] for b, n in zip(blocks, sizes, strict=True)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        # Every rank's loss depends on this rank's rows: sum, do not just slice.
        dist.all_reduce(gradient, group=ctx.group)
        rank = dist.get_rank(ctx.group)
        start = sum(ctx.sizes[:rank])
        return gradient[:, start : start + ctx.sizes[rank]], None, None


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
    if sizes is None:
        size = torch.tensor([rows.shape[1]], device=rows.device)
        sizes = [torch.empty_like(size) for _ in range(dist.get_world_size(group))]
        dist.all_gather(sizes, size, group=group)
        sizes = torch.cat(sizes).tolist()
    return _GatherRows.apply(rows, sizes, group), sum(sizes[: dist.get_rank(group)])


def mean_scale(all_rows, group):
    """What turns the sum over a rank's rows into its share of the mean over all ranks' rows.

    The average of the shares over ranks is that mean, whatever the numbers of rows, none included.
    """
    return dist.get_world_size(group) / all_rows if all_rows else math.nan


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
