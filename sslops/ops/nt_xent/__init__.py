"""NT-Xent: InfoNCE in which both views of every image are queries and candidates at once.

What a backend of this op receives, already checked:

    nt_xent(z, temperature, *, normalize, return_stats) -> InfoNCERows (each [2N])

    z             [2N, D]: the N first views, then the N second views
    temperature   float, or a 0-d tensor on the same device that may require grad
    normalize     scale rows to unit length first (sslops.unit_rows)
    return_stats  whether positive_rank is wanted
"""

import torch

from sslops import arguments, distributed, registry
from sslops.ops import info_nce as info_nce_op
from sslops.ops.info_nce.reference import InfoNCERows
from sslops.ops.logit_blocks import across_ranks

_backends = registry.load("nt_xent", "cpu", "triton", "chunked", "reference")


def nt_xent(
    z0,
    z1,
    temperature=0.5,
    *,
    reduction="mean",
    normalize=True,
    group=None,
    exchange="auto",
    return_stats=False,
    backend=None,
):
    """Normalised temperature-scaled cross-entropy over the 2N views of N images.

    It equals, with `z = F.normalize(torch.cat([z0, z1]))` and without ever storing the 2N x 2N
    logits,

        logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
        F.cross_entropy(logits, (torch.arange(2 * N) + N) % (2 * N))

    Args:
        z0: [N, D], the first view of every image; float16, bfloat16, float32 or float64.
        z1: [N, D], the second view; dtype and device of `z0`.
        temperature: float > 0, or a 0-d tensor, which may require grad.
        reduction: "mean", "sum" or "none".
        normalize: scale every row to unit length first.
        group: None (this process only), or a torch.distributed process group whose other ranks'
            views are negatives too; gradients flow back to the rank that a view came from.
        exchange: how the ranks' views meet, with `group`: "gather" (all at once), "ring" (one
            rank's at a time, O(N D / ranks) memory; backend "chunked" or "reference"), or "auto":
            a ring beyond sslops.distributed.RING_BYTES.
        return_stats: also return an InfoNCEStats over the 2N rows, first views first.
        backend: force "cpu", "triton", "chunked" or "reference"; None takes the first that can run.

    Returns:
        The loss: float32 (float64 for float64 inputs), 0-d or, for reduction="none", [2N].
        With return_stats: (loss, InfoNCEStats). N = 0 gives nan for "mean" and 0 for "sum".
        The mean is the paper's; google-research/simclr returns twice this value.

        With `group` and reduction="mean", the loss of a rank is scaled such that the average over
        ranks (as DDP averages gradients) is the mean over all ranks' rows, uneven batches
        included; with even batches it is the plain mean over the rank's own rows.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or device.
        RuntimeError: the forced backend cannot run here.

    Source:
        Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
        Representations", ICML 2020, eq. 1 and algorithm 1.

    Example:
        >>> import torch, sslops
        >>> z = torch.eye(8)
        >>> loss = sslops.nt_xent(z, z, temperature=1.0)
        >>> print(f"{loss.item():.4f}")  # log(e + 14) - 1
        1.8165
    """
    arguments.check_choice("reduction", reduction, ("mean", "sum", "none"))
    for name, value in (("z0", z0), ("z1", z1)):
        arguments.check_rows(name, value)
        if value.ndim != 2:
            raise ValueError(f"{name} must be [N, D]; got {arguments.describe(value)}")
    arguments.check_same_kind("z1", z1, "z0", z0)
    if z0.shape != z1.shape:
        raise ValueError(
            f"z1 must have the shape of z0 {tuple(z0.shape)}; got {arguments.describe(z1)}"
        )
    temperature = arguments.check_temperature(temperature, z0)

    arguments.check_choice("exchange", exchange, ("auto", "gather", "ring"))
    options = dict(normalize=normalize, return_stats=return_stats)
    with torch.autocast(z0.device.type, enabled=False):
        z = torch.cat([z0, z1])
        if group is None:
            rows, scale = _backends(backend, z, temperature, **options), None
        else:
            rows = _across_ranks(backend, z, temperature, group, exchange, reduction != "none",
                                 options)  # fmt: skip
            scale = distributed.mean_scale(rows.loss, group)

    loss = info_nce_op.reduce_rows(rows.loss, reduction, scale)
    return (loss, info_nce_op.InfoNCEStats(*rows[1:])) if return_stats else loss


def _across_ranks(backend, z, temperature, group, exchange, uniform, options):
    """Row losses against the views of all ranks."""
    route = distributed.route(z[None], group, exchange)
    if isinstance(route, distributed.Ring):
        backend = backend or registry.FORCED_BACKEND
        across_ranks.check_backend("nt_xent", backend)
        options = across_ranks.Options(backend, **options)
        rows = across_ranks.in_batch_rows(z[None], None, temperature, route, options)
        return InfoNCERows(*(None if x is None else x[0] for x in rows))
    N = len(z) // 2
    keys, first = distributed.gather_rows(z[None], group, route.sizes)
    # Each half is an InfoNCE without its own view.
    halves = [
        info_nce_op._backends(
            backend, half[None], keys, None, temperature, symmetric=False, uniform=uniform,
            positive_offset=first + positive, exclude_offset=first + own, **options,
        )
        for half, own, positive in ((z[:N], 0, N), (z[N:], N, 0))
    ]  # fmt: skip
    return InfoNCERows(
        *(None if a is None else torch.cat([a[0], b[0]]) for a, b in zip(*halves, strict=True))
    )
