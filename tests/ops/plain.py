"""The losses as people write them: plain PyTorch, everything in the dtype of the inputs."""

import torch
import torch.nn.functional as F


def info_nce(
    query, positive_key, negative_keys=None, temperature=0.1, reduction="mean",
    negative_mode="unpaired", *, symmetric=False, normalize=True,
):  # fmt: skip
    shape = query.shape[:-1]
    if normalize:
        query, positive_key = F.normalize(query, dim=-1), F.normalize(positive_key, dim=-1)
    if negative_keys is None:
        logits = query @ positive_key.mT / temperature
        labels = torch.arange(query.shape[-2], device=query.device)
    else:
        negative_keys = F.normalize(negative_keys, dim=-1) if normalize else negative_keys
        if negative_mode == "paired":
            query, positive_key = query[..., None, :], positive_key[..., None, :]
        positive = (query * positive_key).sum(-1, keepdim=True)
        logits = torch.cat([positive, query @ negative_keys.mT], dim=-1) / temperature
        labels = torch.zeros(logits.shape[-2], dtype=torch.long, device=query.device)
    rows = labels.expand(logits.shape[:-1]).flatten()
    loss = F.cross_entropy(logits.flatten(0, -2), rows, reduction=reduction)
    if symmetric:
        other = F.cross_entropy(logits.mT.flatten(0, -2), rows, reduction=reduction)
        loss = (loss + other) / 2
    return loss.view(shape) if reduction == "none" else loss


def nt_xent(z0, z1, temperature=0.5, *, reduction="mean", normalize=True):
    z = torch.cat([z0, z1])
    z = F.normalize(z, dim=-1) if normalize else z
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    labels = torch.arange(len(z), device=z.device).roll(len(z0))
    return F.cross_entropy(logits, labels, reduction=reduction)


PLAIN = {"info_nce": info_nce, "nt_xent": nt_xent}
