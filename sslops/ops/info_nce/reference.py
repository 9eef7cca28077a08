"""InfoNCE in plain PyTorch: the specification. Runs in float64; stores the N x M logits."""

from typing import NamedTuple

import torch

from sslops.unit_rows import at_least_float32, unit_rows


class InfoNCERows(NamedTuple):
    """What every backend returns, each [B, N]; only `loss` carries a gradient."""

    loss: torch.Tensor
    lse: torch.Tensor  # log-sum-exp of the row's logits, positive included
    positive_logit: torch.Tensor
    positive_rank: torch.Tensor | None  # int64: candidates with a larger logit; None if not asked


def unsupported(*args, **kwargs):
    return None


def info_nce(
    query, positive_key, negative_keys, temperature, *, symmetric, normalize,
    positive_offset, exclude_offset, return_stats, uniform,
):  # fmt: skip
    """See sslops.ops.info_nce for the arguments of a backend.

    loss_i = log sum_j exp(s_ij) - s_i+,   s_ij = <q_i, k_j> / temperature      (CPC, eq. 4)
    """
    # B batch, N queries, M keys, D width
    prepare = unit_rows if normalize else at_least_float32
    q_BND, k_BMD = prepare(query), prepare(positive_key)
    rows = torch.arange(q_BND.shape[1], device=query.device)
    if negative_keys is None:
        logits = q_BND @ k_BMD.mT / temperature  # [B, N, M]
        positive = logits[:, rows, rows + positive_offset]
        if exclude_offset is not None:
            is_excluded = torch.arange(k_BMD.shape[1], device=query.device) == (
                rows[:, None] + exclude_offset
            )
            logits = logits.masked_fill(is_excluded, -torch.inf)
    else:
        if not negative_keys.requires_grad:  # a queue: it may be written to before backward
            negative_keys = negative_keys.clone()
        positive = (q_BND * k_BMD).sum(-1) / temperature
        negative = q_BND @ prepare(negative_keys).mT / temperature
        logits = torch.cat([positive[..., None], negative], dim=-1)  # [B, N, 1 + M]

    # Relative to the positive, so that a loss near 0 keeps its digits beside logits of 1e4.
    loss = (logits - positive[..., None]).logsumexp(-1)
    if symmetric:
        loss = (loss + (logits - positive[:, None, :]).logsumexp(-2)) / 2
    with torch.no_grad():
        lse = logits.logsumexp(-1)
        rank = (logits > positive[..., None]).sum(-1) if return_stats else None
    return InfoNCERows(loss, lse, positive.detach(), rank)
