"""CIE LAB (D65, 2-degree observer) from and to sRGB, on tensors of any device, with gradient.

L is from 0 to 100; over all 8-bit colours a is from -86.18 to 98.23 and b from -107.86 to 94.48.
This is not the LAB of 8-bit image libraries, which stretch L to 255 and shift a and b by 128.
"""

import torch

XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
RGB_FROM_XYZ = torch.tensor(XYZ_FROM_RGB, dtype=torch.float64).inverse().tolist()
WHITE = (0.95047, 1.0, 1.08883)


def rgb_to_lab(rgb):
    """sRGB images, channels in the order R, G, B and values from 0 to 1, as CIE LAB.

    Give images as they are: not normalised by a mean, not BGR, after all photometric augmentation.

    Args:
        rgb: [..., 3, H, W], floating, 0 to 1.

    Returns:
        [..., 3, H, W]: L (0 to 100), a, b.

    Raises:
        ValueError: there are not three channels.

    Example:
        >>> import torch
        >>> red = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
        >>> [round(value, 2) for value in rgb_to_lab(red).flatten().tolist()]
        [53.24, 80.09, 67.2]
    """
    if rgb.ndim < 3 or rgb.shape[-3] != 3:
        raise ValueError(f"LAB needs RGB images [..., 3, H, W]; got shape {tuple(rgb.shape)}")
    # Each branch of torch.where gets a safe input, so that no gradient is NaN.
    curve = ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, curve)
    x, y, z = (t / white for t, white in zip(mix(XYZ_FROM_RGB, linear), WHITE, strict=True))
    x, y, z = (
        torch.where(t > 0.008856, t.clamp(min=0.008856) ** (1 / 3), 7.787 * t + 16 / 116)
        for t in (x, y, z)
    )
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def lab_to_rgb(lab):
    """The inverse of rgb_to_lab; colours that sRGB does not have are clipped to 0 to 1.

    Args:
        lab: [..., 3, H, W], floating.

    Returns:
        [..., 3, H, W], 0 to 1.

    Example:
        >>> import torch
        >>> rgb = torch.rand(3, 4, 4, dtype=torch.float64)
        >>> torch.allclose(lab_to_rgb(rgb_to_lab(rgb)), rgb, atol=1e-3)
        True
    """
    lightness, a, b = lab.unbind(-3)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], -3)
    xyz = torch.where(f > 0.008856 ** (1 / 3), f**3, (f - 16 / 116) / 7.787)
    xyz = xyz * torch.tensor(WHITE, dtype=lab.dtype, device=lab.device)[:, None, None]
    linear = torch.stack(mix(RGB_FROM_XYZ, xyz), -3)
    curve = 1.055 * linear.clamp(min=0.04045 / 12.92) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.04045 / 12.92, 12.92 * linear, curve).clamp(0, 1)


def mix(matrix, channels):
    """Weighted sums of three channels; no matrix product, which autocast would round to bf16."""
    r, g, b = channels.unbind(-3)
    return [row[0] * r + row[1] * g + row[2] * b for row in matrix]
