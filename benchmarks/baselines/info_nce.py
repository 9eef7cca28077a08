"""What people run for InfoNCE today, and the bare matrix products as the floor."""

import torch
import torch.nn.functional as F

from benchmarks.measure import Variant

TEMPERATURE = 0.1


def eager(q, k, negatives=None):
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    if negatives is None:
        return F.cross_entropy(q @ k.T / TEMPERATURE, torch.arange(len(q), device=q.device))
    positive = (q * k).sum(-1, keepdim=True)
    logits = torch.cat([positive, q @ F.normalize(negatives, dim=-1).T], dim=-1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def eager_symmetric(q, k):
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).T / TEMPERATURE
    target = torch.arange(len(q), device=q.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def info_nce_pytorch():
    try:
        from info_nce import InfoNCE
    except ModuleNotFoundError:
        return Variant("info-nce-pytorch", absent="info-nce-pytorch is not installed")
    return Variant("info-nce-pytorch", InfoNCE(temperature=TEMPERATURE))


def open_clip():
    try:
        from open_clip.loss import ClipLoss
    except ModuleNotFoundError:
        return Variant("open_clip ClipLoss", absent="open_clip is not installed")
    loss = ClipLoss()

    def run(q, k):
        return loss(F.normalize(q, dim=-1), F.normalize(k, dim=-1), 1 / TEMPERATURE)

    return Variant("open_clip ClipLoss", run)


def linear_cross_entropy():
    if not hasattr(F, "linear_cross_entropy"):
        return Variant("F.linear_cross_entropy", absent=f"torch {torch.__version__} has none")
    options = torch.nn.LinearCrossEntropyOptions()

    def run(q, k):
        target = torch.arange(len(q), device=q.device)
        q, k = F.normalize(q, dim=-1) / TEMPERATURE, F.normalize(k, dim=-1)
        return F.linear_cross_entropy(q, k, target, options=options)

    return Variant("F.linear_cross_entropy", run)


def floor(case, device, dtype):
    """The products of forward and backward, with nothing between them."""
    q = F.normalize(torch.randn(case.N, case.D, device=device, dtype=dtype), dim=-1)
    M = case.N if case.negatives is None else case.M
    k = F.normalize(torch.randn(M, case.D, device=device, dtype=dtype), dim=-1)
    scores, dq, dk = q.new_empty(case.N, M), torch.empty_like(q), torch.empty_like(k)

    def products(*_):
        torch.mm(q, k.T, out=scores)
        torch.mm(scores, k, out=dq)
        if not case.frozen:
            torch.mm(scores.T, q, out=dk)

    return Variant("two bare products" if case.frozen else "three bare products", products)


def baselines(case, device, dtype):
    """The floor first, then the peers that compute this case."""
    if case.options.get("symmetric"):
        plain = eager_symmetric
        peers = [open_clip()]
    elif case.negatives is None:
        plain = eager
        peers = [info_nce_pytorch(), linear_cross_entropy()]
    else:
        plain = eager
        peers = [info_nce_pytorch()]
    return [
        floor(case, device, dtype),
        Variant("eager PyTorch", plain),
        Variant("torch.compile", torch.compile(plain)),
        *peers,
    ]
