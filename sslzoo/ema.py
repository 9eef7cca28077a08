"""Exponential moving averages of a network: momentum encoders and teachers."""

import copy
from typing import Literal

import torch

from sslzoo import sharding


def frozen_copy(module):
    """A copy of `module` that takes no gradient: the network that will be the moving average."""
    copied = copy.deepcopy(module)
    return copied.requires_grad_(False)


@torch.no_grad()
def update_ema(target, source, momentum, buffers: Literal["none", "copy", "ema"] = "none"):
    """target <- momentum * target + (1 - momentum) * source, for all parameters at once.

    Args:
        target, source: modules of the same structure.
        momentum: 0 copies the source, 1 leaves the target as it is.
        buffers: batch-norm statistics and the like; "none" leaves them to the target's own forward
            passes, as the official code of MoCo, DINO and DINOv2 does; "copy" takes the source's;
            "ema" averages those of floating point and copies the others (counters).

    Raises:
        ValueError: the modules differ in their parameters or buffers, or `buffers` is unknown.

    Example:
        >>> from torch import nn
        >>> student = nn.Linear(1, 1, bias=False)
        >>> teacher = frozen_copy(student)
        >>> _ = nn.init.ones_(student.weight), nn.init.zeros_(teacher.weight)
        >>> update_ema(teacher, student, 0.75)
        >>> teacher.weight.item()
        0.25
    """
    if buffers not in ("none", "copy", "ema"):
        raise ValueError(f"buffers must be none, copy or ema; got {buffers!r}")
    averaged, new = _paired(target.named_parameters(), source.named_parameters())
    if buffers != "none":
        old_buffers, new_buffers = _paired(target.named_buffers(), source.named_buffers())
        for old, fresh in zip(old_buffers, new_buffers, strict=True):
            if buffers == "ema" and old.is_floating_point():
                averaged.append(old)
                new.append(fresh)
            else:
                old.copy_(fresh)
    if averaged:
        torch._foreach_lerp_(sharding.local(averaged), sharding.local(new), 1 - momentum)


def _paired(target, source):
    """Two lists of tensors, the same names in the same order."""
    target, source = dict(target), dict(source)
    if list(target) != list(source):
        odd = sorted(set(target) ^ set(source))
        raise ValueError(f"target and source differ in {odd[:3] or 'the order of their tensors'}")
    return list(target.values()), list(source.values())
