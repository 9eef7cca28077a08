"""Checks of arguments that several ops share. Each message names the argument, what was expected
and what came."""

import math
import reprlib

import torch


def describe(value):
    """What came, in words: shape, dtype and device of a tensor, else the value itself."""
    if isinstance(value, torch.Tensor):
        return f"shape {tuple(value.shape)}, {value.dtype}, {value.device}"
    return f"{type(value).__name__} {' '.join(reprlib.repr(value).split())}"


def check_rows(name, value, min_ndim=2):
    """A floating-point tensor [..., N, D]."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {describe(value)}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype; got {describe(value)}")
    if value.ndim < min_ndim:
        raise ValueError(f"{name} must have at least {min_ndim} dimensions; got {describe(value)}")


def check_same_kind(name, value, like_name, like):
    """Same dtype and device as another argument."""
    if value.dtype != like.dtype:
        raise TypeError(
            f"{name} must have the dtype of {like_name} ({like.dtype}); got {describe(value)}"
        )
    if value.device != like.device:
        raise ValueError(
            f"{name} must be on the device of {like_name} ({like.device}); got {describe(value)}"
        )


def check_choice(name, value, choices):
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_temperature(value, like):
    """A positive finite float, or a 0-d floating tensor, which is returned on the device of `like`.

    The value of a tensor is not read: that would wait for the device.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or not value.dtype.is_floating_point:
            raise ValueError(
                f"temperature must be a float or a 0-d floating-point tensor; got {describe(value)}"
            )
        return value.reshape(()).to(like.device)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"temperature must be a float or a 0-d floating-point tensor; got {describe(value)}"
        )
    if not 0 < value < math.inf:
        raise ValueError(f"temperature must be positive and finite; got {value!r}")
    return float(value)
