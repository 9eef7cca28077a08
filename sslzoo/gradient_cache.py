"""Accumulation that is honest for contrastive losses: the gradient of the whole large batch.

A mean of the losses of small batches is not the loss of their union, in which every sample has more
negatives. Two passes give that one with the memory of a small batch (Gao, Zhang, Han, Callan,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021):

1. embed the small batches without gradient; take the loss of all embeddings z, and dL/dz
2. embed each again, from the same random numbers, and go backward from sum(z * dL/dz)

which by the chain rule is dL/dw. Batch norm sees small batches, as several processes without its
synchronisation do; equal to the large batch is what has none.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch import nn


class Embedder(nn.Module):
    """The part of a method that has parameters, as a module of its own that DDP can wrap.

    Args:
        method: has `embed(views, step)`, a dict of tensors [N, ...], of which those with gradient
            are what it learns by; and `contrast(embeddings, step)`, without parameters, which
            gives what forward gives. forward is the one after the other.
    """

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, views, step):
        return self.method.embed(views, step)


def two_passes(embedder, contrast, batches, step, *, backward, seed, no_sync=nullcontext):
    """The outputs of a method on the union of some batches, with its gradient in the parameters.

    Args:
        embedder: an Embedder, or what wraps it.
        contrast: the method's.
        batches: list of the views of each batch.
        step: of the optimizer.
        backward: called with a 0-d tensor; goes backward from it.
        seed: called with the number of a batch before it is embedded: seeds random numbers.
        no_sync: the context of all but the last backward pass.
    """
    parts = []
    with torch.no_grad(), statistics_kept(embedder):
        for number, views in enumerate(batches):
            seed(number)
            parts.append(embedder(views, step))
    leaves = {name: torch.cat([part[name] for part in parts]).requires_grad_() for name in parts[0]}
    outputs = contrast(leaves, step)
    names = list(leaves)
    gradients = torch.autograd.grad(outputs["loss"], list(leaves.values()), allow_unused=True)
    rows = [[len(part[name]) for part in parts] for name in names]
    shares = [None if g is None else g.split(n) for g, n in zip(gradients, rows, strict=True)]
    for number, views in enumerate(batches):
        seed(number)
        with nullcontext() if number == len(batches) - 1 else no_sync():
            z = embedder(views, step)
            backward(sum((z[name] * share[number]).sum() for name, share in
                         zip(names, shares, strict=True)
                         if share is not None and z[name].requires_grad))  # fmt: skip
    return {name: value.detach() for name, value in outputs.items()}


@contextmanager
def statistics_kept(module):
    """Inside, batch norm does not move its running statistics: each batch counts once."""
    layers = [m for m in module.modules() if getattr(m, "track_running_stats", False)]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
