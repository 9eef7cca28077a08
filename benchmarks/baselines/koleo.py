"""What people run for the KoLeo regulariser today, and the bare product as the floor."""

from dataclasses import replace

import torch
import torch.nn.functional as F

import sslops
from benchmarks.measure import Variant, peer


def inputs(case, device, dtype, seed=0):
    return [case.inputs(device, dtype, seed)]


def small(case):
    return replace(case, N=min(case.N, 100))


def ours(op, backend, case):
    return Variant("sslops", lambda x: sslops.koleo(x, backend=backend))


def eager(x):
    """The published lines of dinov2, written afresh, for batches [..., N, D]."""
    x = F.normalize(x, dim=-1)
    with torch.no_grad():
        products = x @ x.mT
        products.diagonal(dim1=-2, dim2=-1).fill_(-2)
        nearest = products.argmax(-1)
    neighbours = x.gather(-2, nearest[..., None].expand_as(x))
    return -((x - neighbours).norm(dim=-1) + 1e-8).log().mean()


def lightly(case):
    def make():
        from lightly.loss import KoLeoLoss

        criterion = KoLeoLoss()
        return lambda x: sum(criterion(crop) for crop in x) / len(x) if case.lead else criterion(x)

    return peer("lightly KoLeoLoss", make)


def floor(case, device, dtype):
    """The products of all pairs, once."""
    scores = torch.empty(*case.lead, case.N, case.N, device=device, dtype=dtype)

    def product(x):
        x = x.detach()
        torch.matmul(x, x.mT, out=scores)

    return Variant("one bare product", product)


def baselines(case, device, dtype):
    """The floor first, then the published code, then the peers."""
    return [
        floor(case, device, dtype),
        Variant("eager PyTorch", eager),
        Variant("torch.compile", torch.compile(eager)),
        lightly(case),
    ]
