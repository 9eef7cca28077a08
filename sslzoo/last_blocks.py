"""A transformer's last blocks side by side, as DINO and DINOv2 probe them.

The name `last4` stands for the class tokens of the last four blocks, each after the encoder's own
norm, one after the other; `last4+mean` adds the mean of the last block's patch tokens.
"""

import re

import torch

NAME = re.compile(r"last([1-9]\d*)(\+mean)?")


def blocks_of(model, name):
    """Names of the blocks that a name such as last4 takes; [] where it is another layer's.

    Raises:
        ValueError: the encoder has no class token, or fewer blocks.

    Example:
        >>> from sslzoo import backbones
        >>> blocks_of(backbones.build("vit_micro_p4", image_size=32), "last2+mean")
        ['blocks.2', 'blocks.3']
    """
    found = NAME.fullmatch(name)
    if not found:
        return []
    if not getattr(model, "has_class_token", False) or not hasattr(model, "norm"):
        raise ValueError(f"{name} is of transformers with a class token; "
                         f"{type(model).__name__} is none")  # fmt: skip
    count, known = int(found[1]), len(model.blocks)
    if count > known:
        raise ValueError(f"{name} asks for {count} blocks; the encoder has {known}")
    return [f"blocks.{i}" for i in range(known - count, known)]


def join(model, name, blocks):
    """Features [B, n d], or [B, (n + 1) d] with the mean, from the blocks' tokens [B, L, d]."""
    tokens = [model.norm(block) for block in blocks]
    parts = [block[:, 0] for block in tokens]
    if name.endswith("+mean"):
        parts.append(tokens[-1][:, model.num_prefix_tokens :].mean(1))
    return torch.cat(parts, 1)
