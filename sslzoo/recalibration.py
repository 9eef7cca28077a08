"""Batch-norm statistics taken anew on other images than the network was trained on."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(network, batches):
    """Replace the running statistics by their averages over some batches; nothing else changes.

    A network trained on tiles knows the statistics of tiles, and its features of whole images are
    meaningless until these are replaced.

    Args:
        network: nn.Module, changed in place and left in evaluation mode.
        batches: images [B, C, H, W], more than one value for each channel in a batch.

    Returns:
        The network.
    """
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    if norms:
        for x in batches:
            network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
