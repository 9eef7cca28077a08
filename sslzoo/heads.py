"""Heads that a method puts on its backbone and throws away afterwards."""

from itertools import pairwise

from torch import nn


def projection_head(widths, *, batch_norm=True):
    """Linear layers with ReLU between them, as SimCLR's official code builds its projector.

    Hidden layers: linear, batch norm, ReLU. Last layer: linear without bias, batch norm that
    scales but does not shift. Linear weights start from N(0, 0.01). A hidden layer has a bias of
    its own only without batch norm, whose shift would make it redundant.

    Args:
        widths: features from input to output, such as (512, 512, 128); two numbers give one layer.
        batch_norm: whether every linear layer is followed by batch norm.

    Returns:
        nn.Sequential, [N, widths[0]] to [N, widths[-1]].
    """
    layers = []
    for depth, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        last = depth == len(widths) - 1
        linear = nn.Linear(inputs, outputs, bias=not (last or batch_norm))
        nn.init.normal_(linear.weight, std=0.01)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        layers.append(linear)
        if batch_norm:
            layers.append(nn.BatchNorm1d(outputs))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    if batch_norm:
        layers[-1].bias = None
    return nn.Sequential(*layers)


def mlp_head(widths, *, last_norm=True):
    """Linear layers without bias, each with batch norm, and ReLU between them, as in MoCo v3.

    Args:
        widths: features from input to output, such as (384, 4096, 4096, 256).
        last_norm: whether the last layer too is followed by batch norm, one without scale and
            shift.

    Returns:
        nn.Sequential, [N, widths[0]] to [N, widths[-1]].
    """
    layers = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs),
                   nn.ReLU(inplace=True)]  # fmt: skip
    layers.append(nn.Linear(*widths[-2:], bias=False))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)
