"""A small MAE, and patches as the official code cuts them."""

import torch

from sslzoo import backbones
from sslzoo.methods.mae import MAE, Config

WIDTH, HEADS, DEPTH = 24, 2, 2


def encoder(image_size=16, patch_size=4, **options):
    sizes = dict(embed_dim=WIDTH, num_heads=HEADS, depth=DEPTH) | options
    return backbones.OWN["vit_tiny_p4"](image_size, 3, patch_size=patch_size, **sizes)


def method(image_size=16, patch_size=4, seed=0, encoder_options=None, **options):
    torch.manual_seed(seed)
    small = dict(decoder_width=16, decoder_depth=2, decoder_heads=2) | options
    return MAE(encoder(image_size, patch_size, **(encoder_options or {})), Config(**small))


def official_patchify(x, p):
    B, C, H, W = x.shape
    x = x.reshape(B, C, H // p, p, W // p, p)
    return torch.einsum("nchpwq->nhwpqc", x).reshape(B, (H // p) * (W // p), p * p * C)
