"""What people run for NT-Xent today, and the bare matrix products as the floor."""

import torch
import torch.nn.functional as F

from benchmarks.measure import Variant, peer

TEMPERATURE = 0.5


def eager(z0, z1):
    z = F.normalize(torch.cat([z0, z1]))
    n = len(z0)
    logits = (z @ z.T / TEMPERATURE).masked_fill(
        torch.eye(2 * n, dtype=torch.bool, device=z.device), -torch.inf
    )
    return F.cross_entropy(logits, partners(n, z.device))


def partners(n, device):
    return (torch.arange(2 * n, device=device) + n) % (2 * n)


def part(case, rows, z0, z1):
    """The share of some of the 2N rows in the loss."""
    z = F.normalize(torch.cat([z0, z1]))
    i = torch.arange(len(z), device=z.device)
    logits = (z[rows] @ z.T / TEMPERATURE).masked_fill(i[rows, None] == i, -torch.inf)
    target = partners(len(z0), z.device)[rows]
    return F.cross_entropy(logits, target, reduction="sum") / len(z)


def lightly(case):
    def make():
        from lightly.loss import NTXentLoss

        return NTXentLoss(temperature=TEMPERATURE)

    return peer("lightly NTXentLoss", make, needs_bytes=12 * case.logits)


def metric_learning(case):
    def make():
        from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

        return SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))

    return peer("pytorch-metric-learning", make, needs_bytes=24 * (2 * case.N) ** 3)


def attention(case, device):
    """Flash attention of all rows to themselves, V = K: all products, but no loss."""
    name = "SDPA with V = K (no loss)"
    if device == "cuda" and case.D > 256:
        return Variant(name, absent="flash attention takes D of at most 256")

    def run(z0, z1):
        z = torch.cat([z0, z1])[None, None]
        return F.scaled_dot_product_attention(z, z, z, scale=1 / TEMPERATURE)

    return Variant(name, run, same_loss=False)


def floor(case, device, dtype):
    """The three products of forward and backward, with nothing between them."""
    R, D = 2 * case.N, case.D
    z = F.normalize(torch.randn(R, D, device=device, dtype=dtype))
    state = []  # made at the first run: the matrix of scores may not fit

    def products(*_):
        if not state:
            state.extend([z.new_empty(R, R), z.new_empty(R, D)])
        scores, out = state
        torch.mm(z, z.T, out=scores)
        torch.mm(scores, z, out=out)
        torch.mm(scores.T, z, out=out)

    return Variant("three bare products", products, needs_bytes=dtype.itemsize * case.logits)


def baselines(case, device, dtype):
    """The floor first, then eager code, then the peers."""
    return [
        floor(case, device, dtype),
        Variant("eager PyTorch", eager, needs_bytes=12 * case.logits),
        Variant("torch.compile", torch.compile(eager), needs_bytes=8 * case.logits),
        lightly(case),
        metric_learning(case),
        attention(case, device),
    ]
