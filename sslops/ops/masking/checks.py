"""Checks of the arguments of the masking functions; none of them reads a tensor's values."""

import torch

from sslops.arguments import check_rows, describe
from sslops.counter_generator import CounterGenerator


def check_count(name, value, least=0):
    """An int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int; got {describe(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


def check_tokens(name, x, num_prefix_tokens):
    """A floating tensor [B, num_prefix_tokens + L, D]."""
    check_rows(name, x)
    check_count("num_prefix_tokens", num_prefix_tokens)
    if x.ndim != 3 or x.shape[1] < num_prefix_tokens:
        raise ValueError(
            f"{name} must be [B, num_prefix_tokens + L, D] with num_prefix_tokens = "
            f"{num_prefix_tokens}; got {describe(x)}"
        )


def check_kept(x_kept, num_prefix_tokens, length):
    """No more kept tokens than places."""
    if x_kept.shape[1] > num_prefix_tokens + length:
        raise ValueError(
            f"x_kept must have at most num_prefix_tokens + L = {num_prefix_tokens + length} "
            f"tokens; got {describe(x_kept)}"
        )


def check_ids(name, ids, batch, device):
    """An int64 tensor [B, n]. Its values are looked at by the kernel."""
    if not isinstance(ids, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {describe(ids)}")
    if ids.dtype != torch.int64:
        raise TypeError(f"{name} must have dtype torch.int64; got {describe(ids)}")
    if ids.ndim != 2 or ids.shape[0] != batch:
        raise ValueError(f"{name} must be [B, n] with B = {batch}; got {describe(ids)}")
    if ids.device != device:
        raise ValueError(f"{name} must be on {device}, as the tokens are; got {describe(ids)}")


def check_like(name, value, x, shapes):
    """A floating tensor on the device of x with one of the shapes."""
    check_rows(name, value, min_ndim=1)
    if value.device != x.device:
        raise ValueError(f"{name} must be on {x.device}, as the tokens are; got {describe(value)}")
    if tuple(value.shape) not in shapes:
        expected = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"{name} must have shape {expected}; got {describe(value)}")


def check_images(images, patch_size):
    """A floating tensor [B, C, H, W] that patches tile."""
    check_rows("images", images)
    if images.ndim != 4:
        raise ValueError(f"images must be [B, C, H, W]; got {describe(images)}")
    check_count("patch_size", patch_size, least=1)
    H, W = images.shape[2:]
    if H % patch_size or W % patch_size:
        raise ValueError(f"patch_size must divide H = {H} and W = {W}; got {patch_size}")


def count_kept(length, mask_ratio):
    """int(L (1 - r)), mae's count, its rounding included."""
    if isinstance(mask_ratio, bool) or not isinstance(mask_ratio, (int, float)):
        raise TypeError(f"mask_ratio must be a float; got {describe(mask_ratio)}")
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must be in [0, 1); got {mask_ratio!r}")
    return int(length * (1 - mask_ratio))


def device_of(device, noise, generator):
    """The device where a mask is wanted."""
    if device is not None:
        return torch.device(device)
    if isinstance(noise, torch.Tensor):
        return noise.device
    step = getattr(generator, "step", None)
    if isinstance(step, torch.Tensor):
        return step.device
    return getattr(generator, "device", torch.device("cpu"))


def check_generator(generator, device):
    """None, a torch.Generator on the device, or a CounterGenerator."""
    if isinstance(generator, CounterGenerator):
        step = generator.step
        if isinstance(step, torch.Tensor) and step.device != device:
            raise ValueError(f"generator.step must be on {device}; got {describe(step)}")
    elif generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                "generator must be a torch.Generator or a sslops.CounterGenerator; "
                f"got {describe(generator)}"
            )
        if generator.device != device:
            raise ValueError(f"generator must be on {device}; got one on {generator.device}")


def draw(noise, generator, batch, length, device):
    """(noise, None) or (None, CounterGenerator): the latter's numbers are drawn by the kernel."""
    if noise is None:
        check_generator(generator, device)
        if isinstance(generator, CounterGenerator):
            return None, generator
        return torch.rand(batch, length, device=device, generator=generator), None
    if generator is not None:
        raise ValueError("give noise or generator, not both")
    check_rows("noise", noise)
    if noise.dtype == torch.float64:  # rounding it would make ties that are none
        raise TypeError(f"noise must be float32, float16 or bfloat16; got {describe(noise)}")
    if noise.shape != (batch, length) or noise.device != device:
        raise ValueError(f"noise must be {(batch, length)} on {device}; got {describe(noise)}")
    return noise.float(), None
