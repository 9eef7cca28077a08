"""Heads that a method puts on its backbone and throws away afterwards."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def projection_head(widths, *, batch_norm=True, std=0.0):
    """Linear layers with ReLU between them, as SimCLR's official code builds its projector.

    Hidden layers: linear, batch norm, ReLU. Last layer: linear without bias, batch norm that
    scales but does not shift. A hidden layer has a bias of its own only without batch norm, whose
    shift would make it redundant.

    Args:
        widths: features from input to output, such as (512, 512, 128); two numbers give one layer.
        batch_norm: whether every linear layer is followed by batch norm.
        std: linear weights start from N(0, std²), biases from 0; 0: both as torch draws them.

    Returns:
        nn.Sequential, [N, widths[0]] to [N, widths[-1]].
    """
    layers = []
    for depth, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        last = depth == len(widths) - 1
        linear = nn.Linear(inputs, outputs, bias=not (last or batch_norm))
        if std:
            nn.init.normal_(linear.weight, std=std)
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


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows have a direction and a length: W = g v / |v|.

    As torch.nn.utils.weight_norm, whose names of the parameters it keeps (weight_g [outputs, 1],
    weight_v [outputs, inputs]), as published DINO weights do; unlike it, it can be copied.

    Args:
        inputs, outputs: widths.
        train_length: whether g, which starts at 1, is trained.
    """

    def __init__(self, inputs, outputs, *, train_length=True):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=train_length)
        self.weight_v = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    def forward(self, x):
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=-1))


class DINOHead(nn.Module):
    """DINO's head: an MLP to a narrow layer, unit length, and weight-normalised prototypes.

    Its logits are cosines as long as the prototypes' lengths are 1. Linear weights start from a
    truncated N(0, 0.02), biases from 0.

    Args:
        features: width of the input.
        prototypes: K, width of the output.
        hidden: width of the hidden layers.
        bottleneck: width of the narrow layer.
        layers: linear layers of the MLP, the narrow one included.
        batch_norm: after every hidden linear layer.
        train_length: whether the prototypes' lengths are trained (`norm_last_layer=False`).

    Source:
        Caron et al., DINO, ICCV 2021, appendix C; keys `mlp.0.weight`, `last_layer.weight_g`, ...
        are those of the official weights.
    """

    def __init__(self, features, prototypes, *, hidden=2048, bottleneck=256, layers=3,
                 batch_norm=False, train_length=False):  # fmt: skip
        super().__init__()
        widths = (features, *(hidden,) * (layers - 1), bottleneck)
        self.mlp = nn.Sequential()
        for depth, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            linear = nn.Linear(inputs, outputs)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.mlp.append(linear)
            if depth < layers:
                self.mlp.extend([nn.BatchNorm1d(outputs), nn.GELU()] if batch_norm else [nn.GELU()])
        self.last_layer = WeightNormLinear(bottleneck, prototypes, train_length=train_length)

    def forward(self, x):
        # 1e-6 in float16, where 1e-12 is 0: a zero row must not become nan.
        x = self.mlp(x)
        return self.last_layer(F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.half else 1e-12))
