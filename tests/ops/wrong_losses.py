"""Losses that are wrong on several processes, as people have shipped them: test_verify.py."""

import torch
import torch.distributed as dist
import torch.nn.functional as F


def _gathered(x, group):
    """torch's own all_gather: no gradient comes back through it. Even batches or not."""
    sizes = [None] * dist.get_world_size(group)
    dist.all_gather_object(sizes, len(x), group=group)
    padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), x.shape[1])]).detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return [part[:n] for part, n in zip(parts, sizes, strict=True)]


def lost_gradients(z0, z1, group=None):
    """The right value; negatives on other ranks get no gradient (vissl #123)."""
    wide = torch.promote_types(z0.dtype, torch.float32)
    q, k = (F.normalize(z.to(wide), dim=-1) for z in (z0, z1))
    first, scale = 0, 1 / len(q)
    if group is not None:
        parts, rank = _gathered(k, group), dist.get_rank(group)
        parts[rank] = k
        first = sum(len(p) for p in parts[:rank])
        k = torch.cat(parts)
        scale = len(parts) / len(k)
    labels = torch.arange(len(q)) + first
    return F.cross_entropy(q @ k.T / 0.25, labels, reduction="sum") * scale


def local_mean(z0, z1, group=None):
    """Neither a group's negatives nor uneven batches count (lightning-bolts #179)."""
    wide = torch.promote_types(z0.dtype, torch.float32)
    q, k = (F.normalize(z.to(wide), dim=-1) for z in (z0, z1))
    return F.cross_entropy(q @ k.T / 0.25, torch.arange(len(q)))


def right(z0, z1, group=None):
    """A loss without negatives, its mean over all ranks' rows."""
    rows = (z0.to(torch.promote_types(z0.dtype, torch.float32)) - z1).square().sum(-1)
    total, ranks = torch.tensor(len(rows)), 1
    if group is not None:
        dist.all_reduce(total, group=group)
        ranks = dist.get_world_size(group)
    return rows.sum() * ranks / total
