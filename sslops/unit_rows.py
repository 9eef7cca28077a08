"""Rows of unit length: the normalisation in front of every contrastive loss."""

import torch

# A row shorter than this counts as a zero vector.
SMALLEST_NORM = 1e-12


def at_least_float32(x):
    """float64 stays, everything else becomes float32: losses never accumulate in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def unit_rows(x):
    """Scale the last dimension to unit length, in float32 (float64 for float64 inputs).

    Equals `F.normalize(x.float(), dim=-1)`, except that a zero vector gets gradient zero instead
    of 1e12 times the incoming gradient, which overflows in float16.

    Args:
        x: [..., D], any floating-point dtype.

    Returns:
        [..., D], float32 or float64.
    """
    x = at_least_float32(x)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    is_zero = norm <= SMALLEST_NORM
    return torch.where(is_zero, 0.0, x / torch.where(is_zero, 1.0, norm))


def unit_rows_backward(x, gradient):
    """The gradient of x, given that of unit_rows(x), in the dtype of `unit_rows(x)`."""
    x = at_least_float32(x)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    is_zero = norm <= SMALLEST_NORM
    norm = torch.where(is_zero, 1.0, norm)
    unit = x / norm
    along = (unit * gradient).sum(-1, keepdim=True)
    return torch.where(is_zero, 0.0, (gradient - unit * along) / norm)
