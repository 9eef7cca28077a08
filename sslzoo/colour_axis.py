"""The green-magenta axis, along which chromatic aberration shows, and images without it."""

import torch


def projection():
    """P = I - a aᵀ / aᵀa with a = (-1, 2, -1): what is left of red, green and blue, [3, 3].

    Example:
        >>> [round(x, 4) for x in projection()[0].tolist()]
        [0.8333, 0.3333, -0.1667]
    """
    a = torch.tensor([-1.0, 2.0, -1.0])
    return torch.eye(3) - torch.outer(a, a) / a.dot(a)


def project(pixels):
    """Images [..., 3, H, W] without their green-magenta part; others have none and stay."""
    if pixels.shape[-3] != 3:
        return pixels
    axis = projection().to(pixels, non_blocking=True)
    return torch.einsum("dc,...chw->...dhw", axis, pixels)
