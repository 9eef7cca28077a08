"""What DINO and DINOv2 share: crops of two sizes, ViTs that take them, stochastic depth, meters."""

import math
from dataclasses import replace
from itertools import groupby

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import VisionTransformer
from torch import nn

from sslzoo import backbones
from sslzoo.views import ViewSpec, whole_blur

# timm's names say what they are; of ours, these are ViTs.
OWN_VITS = {name for name in backbones.OWN if name.startswith("vit_")}


def multi_crop_views(config, image_size, global_size=None):
    """Two global crops, blurred always and rarely, the second solarised; then the local ones.

    Args:
        config: has global_crop_scale, local_crop_scale, local_crops, local_size, flip, blur.
        image_size: side of the global crops, in pixels, unless global_size is given.
    """
    share = config.blur
    local_size, global_size = config.local_size or image_size // 2, global_size or image_size
    local = ViewSpec(
        size=local_size,
        crop_scale=config.local_crop_scale,
        flip=config.flip,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grayscale=0.2,
        blur=0.5 * share,
        blur_sigma=(0.1, 2.0),
        blur_kernel=whole_blur(local_size),
        interpolation="bicubic",
    )
    first = replace(local, size=global_size, crop_scale=config.global_crop_scale,
                    blur=1.0 * share, blur_kernel=whole_blur(global_size))  # fmt: skip
    second = replace(first, blur=0.1 * share, solarize=0.2)
    return [first, second, *[local] * config.local_crops]


def in_crop_order(encode, crops):
    """`encode` of all crops, one call for each run of crops of the same size: [crops x N, ...].

    The rows are in the order of the crops: all images of the first crop, then of the second.
    """
    runs = [list(run) for _, run in groupby(crops, key=lambda crop: crop.shape[-1])]
    return torch.cat([encode(torch.cat(run)) for run in runs])


def is_vit(name):
    """Whether a backbone of this name is a plain ViT."""
    return name in OWN_VITS or (name.startswith("vit_") and name not in backbones.OWN)


def has_class_token(backbone):
    """Whether this is a ViT of timm whose output is its class token."""
    return isinstance(backbone, VisionTransformer) and backbone.global_pool == "token"


def encode(backbone, x):
    """Features [B, d] of images of any size: the normalised class token of a ViT."""
    return vit_tokens(backbone, x)[:, 0] if has_class_token(backbone) else backbone(x)


def vit_tokens(vit, x, mask=None, mask_token=None):
    """All normalised tokens of a timm ViT, for images of any size: [B, prefix + L, D].

    Args:
        vit: timm's VisionTransformer with a class token.
        x: [B, C, H, W].
        mask: None, or bool [B, L]: patches that `mask_token` [1, D] stands in for. Positions are
            added afterwards.
    """
    x = vit.patch_embed.proj(x)
    h, w = x.shape[-2:]
    x = vit.patch_embed.norm(x.flatten(2).mT)
    if mask is not None:
        x = torch.where(mask[..., None], mask_token.to(x.dtype), x)
    prefix, patches = positions(vit, h, w)
    cls = vit.cls_token if prefix is None else vit.cls_token + prefix
    first = [cls] if vit.reg_token is None else [cls, vit.reg_token]
    # Registers come after the class token and have no position.
    x = torch.cat([*(t.expand(len(x), -1, -1).to(x.dtype) for t in first), x + patches], dim=1)
    return vit.norm(vit.blocks(vit.norm_pre(vit.pos_drop(x))))


def positions(vit, h, w):
    """The position of the class token (None without one) and those of an h x w grid, [1, L, D].

    Another grid than the ViT's own is interpolated as the official code does: bicubic on a target
    0.1 larger, against rounding; with registers antialiased and exact instead.
    """
    own = vit.pos_embed
    prefix, own = (None, own) if vit.no_embed_class else (own[:, :1], own[:, 1:])
    grid = vit.patch_embed.grid_size
    if (h, w) == tuple(grid):
        return prefix, own
    own = own.reshape(1, *grid, -1).permute(0, 3, 1, 2).float()
    if vit.reg_token is None:
        scale = (h + 0.1) / grid[0], (w + 0.1) / grid[1]
        own = F.interpolate(own, scale_factor=scale, mode="bicubic", antialias=False)
    else:
        own = F.interpolate(own, size=(h, w), mode="bicubic", antialias=True)
    return prefix, own.flatten(2).mT.to(vit.pos_embed.dtype)


class SubsetResidual(nn.Module):
    """Stochastic depth that saves its work: of a batch, a random subset goes through the branch.

    Drop-path computes every row and multiplies some by zero; this computes the kept ones alone,
    and scales them by B / kept (Oquab et al., DINOv2, section 5). The parameters and their names
    are those of the block that it takes over.

    Args:
        block: a timm ViT block.
        rate: share of the rows that skip each branch.
    """

    def __init__(self, block, rate):
        super().__init__()
        for name in ("norm1", "attn", "ls1", "norm2", "mlp", "ls2"):
            self.add_module(name, getattr(block, name))
        self.rate = rate

    def forward(self, x):
        x = self.add(x, lambda rows: self.ls1(self.attn(self.norm1(rows))))
        return self.add(x, lambda rows: self.ls2(self.mlp(self.norm2(rows))))

    def add(self, x, branch):
        B = len(x)
        kept = max(int(B * (1 - self.rate)), 1)
        if not self.training or kept == B:
            return x + branch(x)
        rows = torch.randperm(B, device=x.device)[:kept]
        return x.index_add(0, rows, branch(x[rows]).to(x.dtype), alpha=B / kept)


def set_drop_path(backbone, rates):
    """Give the blocks of a ViT these rates of stochastic depth; other backbones stay as they are.

    Rates above 0.1 skip rows of the batch (SubsetResidual), others multiply them by zero.
    """
    if not isinstance(backbone, VisionTransformer):
        return
    for i, rate in enumerate(rates(len(backbone.blocks))):
        block = backbone.blocks[i]
        if rate > 0.1:
            backbone.blocks[i] = SubsetResidual(block, rate)
        elif rate:
            block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)


def rising(rate):
    """Rates from 0 at the first block to `rate` at the last."""
    return lambda depth: [rate * i / max(depth - 1, 1) for i in range(depth)]


def uniform(rate):
    """The same rate for every block."""
    return lambda depth: [rate] * depth


@torch.no_grad()
def teacher_meters(P, suffix=""):
    """Has the teacher collapsed? From its probabilities [rows, K].

    teacher_entropy         mean entropy of a row, in nats; log K: the teacher tells nothing apart
    usage_entropy           entropy of the mean row; 0: all images get the same prototype
    *_share                 the same over log K
    used_prototypes         prototypes that are the largest of some row
    """
    K = P.shape[1]
    if not len(P):
        return {}
    each, mean = (torch.special.entr(p).sum(-1).mean() for p in (P, P.mean(0)))
    log_K = math.log(K) if K > 1 else 1.0
    used = torch.bincount(P.argmax(1), minlength=K) > 0
    found = {
        "teacher_entropy": each,
        "teacher_entropy_share": each / log_K,
        "usage_entropy": mean,
        "usage_entropy_share": mean / log_K,
        "used_prototypes": used.sum(),
    }
    return {name + suffix: value for name, value in found.items()}
