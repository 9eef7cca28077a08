"""What the CPU and the CUDA backend have in common: the functions of the op, on the kernels."""

import torch

from sslops.ops.masking import _kernels

ops = torch.ops.sslops


def random_masking(x, noise, generator, n_keep, num_prefix_tokens):
    seed, step, first_sample, device_step = 0, 0, 0, None
    if noise is None:
        seed, step, first_sample = generator.seed, generator.step, generator.first_sample
    if isinstance(step, torch.Tensor):
        step, device_step = 0, step
    return ops.random_masking(
        x, noise, seed, step, device_step, first_sample, n_keep, num_prefix_tokens
    )


def gather_tokens(x, ids_keep, num_prefix_tokens):
    return ops.select_rows(x, ids_keep, num_prefix_tokens, True)


def restore_tokens(x_kept, ids_restore, mask_token, pos_embed, num_prefix_tokens):
    return ops.restore_tokens(x_kept, ids_restore, mask_token, pos_embed, num_prefix_tokens)


def gather_patches(images, ids_keep, patch_size):
    return ops.gather_patches(images, ids_keep, patch_size)


def why_not_dtype(x, arguments):
    """None, or the dtype among the tensors that the kernels do not take."""
    for value in (x, *arguments):
        is_floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        if is_floating and value.dtype not in _kernels.DTYPES:
            return f"takes float32, float16 and bfloat16; got {value.dtype}"
    return None


def most_tokens(x, arguments):
    """The number of tokens of a sample that these arguments speak of."""
    ids, *_, last = arguments  # last: num_prefix_tokens, or the patch size of images
    if x.ndim == 4:
        return (x.shape[2] // last) * (x.shape[3] // last)
    return max(x.shape[1] - last, ids.shape[1] if isinstance(ids, torch.Tensor) else 0)
