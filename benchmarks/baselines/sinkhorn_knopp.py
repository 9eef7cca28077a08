"""What people run for Sinkhorn-Knopp targets today, and the bare copy as the floor."""

from dataclasses import replace

import torch

import sslops
from benchmarks.measure import Variant, peer


def inputs(case, device, dtype, seed=0):
    return [case.inputs(device, dtype, seed)[0]]


def small(case):
    return replace(case, B=min(case.B, 16), K=min(case.K, 500))


def ours(op, backend, case):
    return Variant(
        "sslops",
        lambda x: sslops.sinkhorn_knopp(x, case.temperature, case.iterations, backend=backend),
    )


def published(case):
    """The lines of dinov2 for one process, written afresh."""

    def run(logits):
        Q = (logits.float() / case.temperature).exp().t()
        K, B = Q.shape
        Q /= Q.sum()
        for _ in range(case.iterations):
            Q /= Q.sum(1, keepdim=True) * K
            Q /= Q.sum(0, keepdim=True) * B
        return (Q * B).t()

    return run


def lightly(case):
    def make():
        from lightly.loss.swav_loss import sinkhorn

        return lambda x: sinkhorn(x, iterations=case.iterations, epsilon=case.temperature)

    return peer("lightly sinkhorn", make)


def floor(case, device, dtype):
    """The logits read and the result written, once."""
    out = torch.empty(case.B, case.K, device=device)

    def copy(x):
        out.copy_(x)

    return Variant("bare copy", copy)


def baselines(case, device, dtype):
    """The floor first, then the published code, then the peers."""
    return [
        floor(case, device, dtype),
        Variant("eager PyTorch", published(case)),
        Variant("torch.compile", torch.compile(published(case))),
        lightly(case),
    ]
