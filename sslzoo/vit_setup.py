"""How MoCo v3 starts a vision transformer: fixed positions and the weights of its official code."""

import math

import torch
from torch import nn

from sslzoo.positions import sincos_positions


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
    grid = vit.patch_embed.grid_size
    vit.pos_embed.copy_(sincos_positions(*grid, vit.embed_dim, row_first=True))
    vit.pos_embed.requires_grad_(False)
