"""Exact CIE LAB of sRGB images, on tensors."""

import torch

# sRGB to XYZ, for the white D65 at 2 degrees, and the XYZ of that white.
RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)


def rgb_to_lab(rgb):
    """CIE LAB of sRGB images; no value is rescaled or shifted.

    Args:
        rgb: float [..., 3, H, W] from 0 to 1, not normalised.

    Returns:
        Tensor like `rgb`: L from 0 to 100, a from -86.2 to 98.2, b from -107.9 to 94.5.

    Source:
        IEC 61966-2-1 (the curve of sRGB); CIE 15, 1976 (L, a, b).

    Example:
        >>> import torch
        >>> red = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
        >>> rgb_to_lab(red).flatten()
        tensor([53.2406, 80.0923, 67.2028])
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(RGB_TO_XYZ, dtype=rgb.dtype, device=rgb.device)
    white = torch.tensor(WHITE, dtype=rgb.dtype, device=rgb.device)
    t = torch.einsum("xc,...chw->...xhw", matrix / white[:, None], linear)
    # The clamp keeps the root's gradient finite where the line is taken.
    f = torch.where(t > 0.008856, t.clamp(min=0.008856) ** (1 / 3), 7.787 * t + 16 / 116)
    x, y, z = f.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)
