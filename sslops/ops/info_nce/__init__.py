"""InfoNCE: tell each query's positive key from the other candidates.

What a backend of this op receives, already checked:

    info_nce(query, positive_key, negative_keys, temperature, *, symmetric, normalize,
             positive_offset, exclude_offset, return_stats, uniform) -> InfoNCERows

    query           [B, N, D]; all tensors share one floating dtype and one device
    positive_key    [B, M, D] if negative_keys is None: row i's positive is key i + positive_offset
                    and every other key is a negative; else [B, N, D]: row i's positive is key i
    negative_keys   None or [B, M, D]: negatives of every row of the same batch
    temperature     float, or a 0-d tensor on the same device that may require grad
    symmetric       mean of both directions; needs negative_keys None, M = N, offsets 0 and None
    normalize       scale rows to unit length first (sslops.unit_rows)
    exclude_offset  None, or: key i + exclude_offset is no candidate of row i (NT-Xent's own view)
    return_stats    whether positive_rank is wanted
    uniform         True: all rows will receive the same upstream gradient (reduction mean or sum),
                    so a backend may compute gradients in the forward pass and only scale them

Every row's loss is differentiable with respect to all tensors and the temperature. Negatives that
need no gradient may be overwritten between forward and backward (a KeyQueue): a backend does not
keep them for its backward pass, for which the gradients that the forward pass has suffice.
"""

from typing import NamedTuple

import torch

from sslops import arguments, distributed, registry
from sslops.ops.info_nce.reference import InfoNCERows
from sslops.ops.key_queue import KeyQueue
from sslops.ops.logit_blocks import across_ranks
from sslops.unit_rows import unit_rows

__all__ = ["InfoNCERows", "InfoNCEStats", "info_nce"]

_backends = registry.load("info_nce", "cpu", "triton", "chunked", "reference")


class InfoNCEStats(NamedTuple):
    """Diagnostics of a contrastive loss, one value per row, without gradient.

    Attributes:
        lse: log-sum-exp of the row's logits, float32.
        positive_logit: similarity to the positive divided by the temperature, float32.
        positive_rank: number of candidates more similar than the positive, int64.
            `(positive_rank == 0).float().mean()` is the contrastive accuracy.
    """

    lse: torch.Tensor
    positive_logit: torch.Tensor
    positive_rank: torch.Tensor


def info_nce(
    query,
    positive_key,
    negative_keys=None,
    temperature=0.1,
    reduction="mean",
    negative_mode="unpaired",
    *,
    symmetric=False,
    normalize=True,
    group=None,
    exchange="auto",
    return_stats=False,
    backend=None,
):
    """Contrastive loss of each query against its positive key and the other candidates.

    With `negative_keys=None` it equals, without ever storing the N x N logits,

        F.cross_entropy(F.normalize(q) @ F.normalize(k).T / temperature, torch.arange(N))

    Args:
        query: [..., N, D], float16, bfloat16, float32 or float64.
        positive_key: [..., N, D], the positive of each query; dtype and device of `query`.
        negative_keys: None (the other rows' keys are the negatives), [M, D] or [..., M, D] (the
            same negatives for all N rows), or [..., N, M, D] with negative_mode="paired"; or a
            KeyQueue of width D, whose dtype may be another. Its rows are not normalised again,
            and it may be written to between this call and backward, as MoCo does. A sharded one
            stays where it is: all ranks of its group must call together.
        temperature: float > 0, or a 0-d tensor, which may require grad.
        reduction: "mean", "sum" or "none".
        negative_mode: "unpaired" or "paired" (each query has negatives of its own).
        symmetric: the mean of both directions, query to key and key to query (CLIP). Only with
            negative_keys=None.
        normalize: scale every row to unit length first.
        group: None (this process only), or a torch.distributed process group, whose other ranks'
            keys are negatives too (negative_keys=None), or whose other ranks' negative_keys are;
            gradients flow back to the rank that a key came from. A KeyQueue and "paired" negatives
            are taken as they are.
        exchange: how the ranks' keys meet, with `group` and negative_keys=None: "gather" (all at
            once), "ring" (one rank's at a time, O(N D / ranks) memory; backend "chunked" or
            "reference"), or "auto": a ring beyond sslops.distributed.RING_BYTES.
        return_stats: also return an InfoNCEStats; its rows are those of `query`.
        backend: force "cpu", "triton", "chunked" or "reference"; None takes the first that can run.

    Returns:
        The loss: float32 (float64 for float64 inputs), 0-d or, for reduction="none", [..., N].
        With return_stats: (loss, InfoNCEStats). N = 0 gives nan for "mean" and 0 for "sum".

        With `group` and reduction="mean", the loss of a rank is scaled such that the average over
        ranks (as DDP averages gradients) is the mean over all ranks' rows, uneven batches
        included; with even batches it is the plain mean over the rank's own rows.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or device.
        RuntimeError: the forced backend cannot run here.

    Source:
        van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding",
        2018, eq. 4; the symmetric form: Radford et al., CLIP, 2021, figure 3.

    Example:
        >>> import torch, sslops
        >>> q = torch.eye(4, requires_grad=True)
        >>> loss = sslops.info_nce(q, torch.eye(4), temperature=1.0)
        >>> print(f"{loss.item():.4f}")  # log(e + 3) - 1
        0.7437
    """
    arguments.check_choice("reduction", reduction, ("mean", "sum", "none"))
    arguments.check_choice("negative_mode", negative_mode, ("unpaired", "paired"))
    arguments.check_choice("exchange", exchange, ("auto", "gather", "ring"))
    backend = backend or registry.FORCED_BACKEND
    # A queue's keys are the same on all ranks, paired negatives are of one query only.
    spread = group is not None and negative_mode == "unpaired"
    shards = None
    if isinstance(negative_keys, KeyQueue):
        shards = _group_of_shards(negative_keys, backend)
        query, positive_key, negative_keys, normalize = _from_queue(
            query, positive_key, negative_keys, negative_mode, normalize, shards
        )
        spread = False
    _check_tensors(query, positive_key, negative_keys, negative_mode)
    if symmetric and negative_keys is not None:
        raise ValueError("symmetric needs negative_keys=None (the other rows' keys)")
    temperature = arguments.check_temperature(temperature, query)

    shape = query.shape[:-1]
    q, k, negatives = _as_batches(query, positive_key, negative_keys, negative_mode)
    options = dict(normalize=normalize, return_stats=return_stats)
    uniform = reduction != "none"
    with torch.autocast(query.device.type, enabled=False):
        if shards is not None:
            blocks = across_ranks.Options(backend, **options)
            rows = across_ranks.queue_rows(q, k, negatives, temperature, shards, blocks)
        elif group is not None and negatives is None:
            rows = _across_ranks(backend, q, k, temperature, symmetric, group, exchange, uniform,
                                 options)  # fmt: skip
        else:
            if spread and negatives is not None:
                negatives, _ = distributed.gather_rows(negatives, group)
            rows = _backends(backend, q, k, negatives, temperature, symmetric=symmetric,
                             positive_offset=0, exclude_offset=None, uniform=uniform,
                             **options)  # fmt: skip
    scale = None if group is None else distributed.mean_scale(rows.loss, group)
    loss = reduce_rows(rows.loss.reshape(shape), reduction, scale)
    stats = InfoNCEStats(*(x.reshape(shape) for x in rows[1:])) if return_stats else None
    return (loss, stats) if return_stats else loss


def _group_of_shards(queue, backend):
    """The ranks among which a queue's shards stay where they are; None: the queue is gathered."""
    in_blocks = backend in (None, *across_ranks.QUEUE_BACKENDS)
    return queue.group if queue.sharded and in_blocks else None


def _from_queue(query, positive_key, queue, negative_mode, normalize, shards):
    """Rows and queue in one dtype, and whether they are still to be normalised."""
    _check_tensors(query, positive_key, None, negative_mode)
    if negative_mode == "paired":
        raise ValueError("a KeyQueue holds the same negatives for all rows: not 'paired' ones")
    if queue.dim != query.shape[-1]:
        raise ValueError(
            f"negative_keys, a KeyQueue of width {queue.dim}, must have the width of query; "
            f"got {arguments.describe(query)}"
        )
    dtype = torch.promote_types(query.dtype, queue.stored.dtype)
    if normalize and queue.normalize:
        query, positive_key, normalize = unit_rows(query), unit_rows(positive_key), False
    keys = queue.keys if shards is None else queue.stored
    return query.to(dtype), positive_key.to(dtype), keys.to(dtype), normalize


def reduce_rows(loss, reduction, scale):
    """The rows, their sum, or their mean: with a scale, that times their sum."""
    if reduction == "mean":
        return loss.mean() if scale is None else loss.sum() * scale
    return loss.sum() if reduction == "sum" else loss


def _as_batches(query, positive_key, negative_keys, negative_mode):
    """Bring all tensors to [B, rows, D] with the same B."""
    N, D = query.shape[-2:]
    B = query.shape[:-2].numel()
    if negative_keys is not None:
        M = negative_keys.shape[-2]
        if negative_mode == "paired":  # every row is a batch of one query
            B, N = B * N, 1
        elif negative_keys.ndim == 2:  # rows that share their negatives are one long batch
            B, N = 1, B * N
        negative_keys = negative_keys.reshape(B, M, D)
    return query.reshape(B, N, D), positive_key.reshape(B, N, D), negative_keys


def _across_ranks(backend, q, k, temperature, symmetric, group, exchange, uniform, options):
    """Row losses against the keys of all ranks."""
    route = distributed.route(k, group, exchange)
    if symmetric or isinstance(route, distributed.Ring):  # a rank computes its block of logits once
        across_ranks.check_backend("info_nce", backend)
        options = across_ranks.Options(backend, symmetric=symmetric, **options)
        return across_ranks.in_batch_rows(q, k, temperature, route, options)
    options = dict(symmetric=False, exclude_offset=None, uniform=uniform, **options)
    keys, first = distributed.gather_rows(k, group, route.sizes)
    return _backends(backend, q, keys, None, temperature, positive_offset=first, **options)


def _check_tensors(query, positive_key, negative_keys, negative_mode):
    arguments.check_rows("query", query)
    arguments.check_rows("positive_key", positive_key)
    arguments.check_same_kind("positive_key", positive_key, "query", query)
    if positive_key.shape != query.shape:
        raise ValueError(
            f"positive_key must have the shape of query {tuple(query.shape)}; "
            f"got {arguments.describe(positive_key)}"
        )
    if negative_keys is None:
        return
    arguments.check_rows("negative_keys", negative_keys)
    arguments.check_same_kind("negative_keys", negative_keys, "query", query)
    *lead, N, D = query.shape
    shape = tuple(negative_keys.shape)
    if negative_mode == "paired":
        expected = "[..., N, M, D] with the leading sizes of query"
        good = shape[:-2] == (*lead, N) and shape[-1] == D
    else:
        expected = "[M, D], or [..., M, D] with the leading sizes of query"
        good = shape[:-2] in ((), tuple(lead)) and shape[-1] == D
    if not good:
        raise ValueError(
            f"negative_keys must be {expected} for negative_mode={negative_mode!r} and query "
            f"{tuple(query.shape)}; got {arguments.describe(negative_keys)}"
        )
