"""How MoCo v3 starts a vision transformer: fixed positions and the weights of its official code."""

import math

import torch
from torch import nn


def is_vit(backbone):
    """Whether a backbone is a vision transformer in timm's layout."""
    return all(hasattr(backbone, name) for name in ("patch_embed", "pos_embed", "blocks"))


@torch.no_grad()
def start_vit(vit, *, frozen_patch_embed):
    """Weights and positions of facebookresearch/moco-v3, in place.

    Linear layers: Xavier uniform with bias 0, query, key and value each as a matrix of its own.
    Patch embedding: uniform within sqrt(6 / (values of a patch + width)). Class token: N(0, 1e-6).
    Positions: `sincos_positions`, not trained.

    Args:
        vit: timm's VisionTransformer with a class token.
        frozen_patch_embed: also keep the patch embedding from being trained.
    """
    for name, layer in vit.named_modules():
        if isinstance(layer, nn.Linear):
            parts = 3 if name.endswith("qkv") else 1
            bound = math.sqrt(6 / (layer.out_features // parts + layer.in_features))
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    patches = vit.patch_embed.proj
    bound = math.sqrt(6 / (patches.weight[0].numel() + patches.out_channels))
    nn.init.uniform_(patches.weight, -bound, bound)
    nn.init.zeros_(patches.bias)
    nn.init.normal_(vit.cls_token, std=1e-6)
    vit.patch_embed.requires_grad_(not frozen_patch_embed)
    table = sincos_positions(*vit.patch_embed.grid_size, vit.embed_dim)
    prefix = vit.pos_embed.shape[1] - len(table)
    vit.pos_embed.copy_(torch.cat([table.new_zeros(prefix, vit.embed_dim), table])[None])
    vit.pos_embed.requires_grad_(False)


def sincos_positions(rows, columns, width, base=10000.0):
    """Sines and cosines of row and column: [rows * columns, width], in the layout of MoCo v3.

    A quarter each: sin and cos of the row, sin and cos of the column, at frequencies
    base ** (-i / (width / 4)). MAE's table begins with the column instead.

    Example:
        >>> table = sincos_positions(2, 3, 4)  # row 1, column 2
        >>> [round(x, 3) for x in table[5].tolist()]  # sin 1, cos 1, sin 2, cos 2
        [0.841, 0.54, 0.909, -0.416]
    """
    if width % 4:
        raise ValueError(f"width must be a multiple of 4; got {width}")
    frequency = base ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (row, column)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], 1).float()
