"""What people run for NT-Xent today, and the bare matrix products as the floor."""

import torch
import torch.nn.functional as F

from benchmarks.measure import Variant


def eager(z0, z1, temperature=0.5):
    z = F.normalize(torch.cat([z0, z1]))
    n = len(z0)
    logits = (z @ z.T / temperature).masked_fill(
        torch.eye(2 * n, dtype=torch.bool, device=z.device), -torch.inf
    )
    return F.cross_entropy(logits, (torch.arange(2 * n, device=z.device) + n) % (2 * n))


def lightly():
    try:
        from lightly.loss import NTXentLoss
    except ModuleNotFoundError:
        return Variant("lightly NTXentLoss", absent="lightly is not installed")
    return Variant("lightly NTXentLoss", NTXentLoss(temperature=0.5))


def floor(case, device, dtype):
    """The three products of forward and backward, with nothing between them."""
    R, D = 2 * case.N, case.D
    z = F.normalize(torch.randn(R, D, device=device, dtype=dtype))
    scores, out = z.new_empty(R, R), z.new_empty(R, D)

    def products(*_):
        torch.mm(z, z.T, out=scores)
        torch.mm(scores, z, out=out)
        torch.mm(scores.T, z, out=out)

    return Variant("three bare products", products)


def baselines(case, device, dtype):
    """The floor first, then the peers."""
    return [
        floor(case, device, dtype),
        Variant("eager PyTorch", eager),
        Variant("torch.compile", torch.compile(eager)),
        lightly(),
    ]
