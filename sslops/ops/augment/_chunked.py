"""Random views with batched PyTorch on any device: no loop over samples and no wait for the host.

Cropping, resizing and flipping are two products with matrices of taps, one pair for each sample.
"""

import torch
import torch.nn.functional as F

from sslops.ops.augment.parameters import split
from sslops.ops.augment.reference import CONTRAST, GREY, HUE, SATURATION

VALUES_AT_ONCE = 2**25  # of views, so that no intermediate grows with the batch


def unsupported(images, table, steps, size, mean, std, dtype, *options):
    if images.device.type == "cpu" and dtype == torch.float64:
        return "it computes in float32 and float64 was asked for"
    return None


def augment(
    images, table, steps, size, mean, std, dtype, interpolation, grayscale_first, blur_kernel
):
    """See sslops.ops.augment for the arguments of a backend."""
    at_once = max(1, VALUES_AT_ONCE // (images.shape[1] * max(size, *images.shape[2:]) ** 2))
    pieces = zip(images.split(at_once), table.split(at_once), strict=True)
    options = steps.split(), size, mean, std, interpolation, grayscale_first, blur_kernel
    return torch.cat([_views(x, split(rows), *options).to(dtype) for x, rows in pieces])


def _views(images, p, steps, size, mean, std, interpolation, grayscale_first, blur_kernel):
    x = _crop(images, p["crop"], p["flip"], size, interpolation)
    if "affine" in steps:
        x = _affine(x, p["affine"])
    if "posterize" in steps:
        step = torch.exp2(8 - p["posterize"])[:, None, None, None]
        x = torch.where(step > 1, ((x * 255).round() / step).floor() * step / 255, x)
    if grayscale_first:
        x = _grayscale(x, p, steps)
    if "factors" in steps:
        x = _jitter(x, p["factors"], p["order"])
    if not grayscale_first:
        x = _grayscale(x, p, steps)
    if "blur_sigma" in steps:
        x = _blur(x, p["blur_sigma"], blur_kernel)
    if "solarize" in steps:
        x = torch.where(_picked(p["solarize"]) & (x >= 128 / 255), 1 - x, x)
    mean, std = (x.new_tensor(v)[:, None, None] for v in (mean, std))
    x = (x - mean) / std
    return torch.where(_inside(p["erase"], size), 0, x) if "erase" in steps else x


def _picked(column):
    return (column > 0)[:, None, None, None]


def _crop(images, crop, flip, size, interpolation):
    top, left, h, w = crop.unbind(1)
    H, W = images.shape[-2:]
    rows = taps(top, h, size, H, interpolation)  # [B, S, H]
    columns = taps(left, w, size, W, interpolation)
    columns = torch.where((flip > 0)[:, None, None], columns.flip(1), columns)
    x = rows[:, None] @ (images.float() / 255) @ columns[:, None].mT
    return x.clamp_(0, 1)


def taps(first, length, size, side, interpolation):
    """[B, size, side]: the weights of an image's pixels in each pixel of its resized crop."""
    scale = (length / size)[:, None, None]
    wide = scale.clamp(min=1)  # antialiasing: the filter grows with what is left out
    centre = scale * (torch.arange(size, device=first.device)[:, None] + 0.5)
    # Pixels of the crop beyond the image are black, but their weights count.
    pixel = torch.arange(-side, 2 * side, device=first.device) - first[:, None, None]
    reach = (1.0 if interpolation == "bilinear" else 2.0) * wide
    low = (centre - reach + 0.5).floor().clamp(min=0)
    high = torch.minimum((centre + reach + 0.5).floor(), length[:, None, None])
    weights = _filter((pixel - centre + 0.5) / wide, interpolation)
    weights = torch.where((pixel >= low) & (pixel < high), weights, 0)
    visible = weights[..., side : 2 * side]
    return visible / weights.sum(-1, keepdim=True).clamp(min=1e-6)


def _filter(x, interpolation):
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1  # Keys's cubic, a = -1/2
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _affine(x, theta):
    theta = theta.reshape(-1, 2, 3)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
    same = (theta == torch.eye(2, 3, device=x.device)).flatten(1).all(1)
    return torch.where(_picked(same), x, moved)


def _grey(x):
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)


def _grayscale(x, p, steps):
    return torch.where(_picked(p["grayscale"]), _grey(x), x) if "grayscale" in steps else x


def _jitter(x, factors, order):
    """Each turn is one formula for the whole batch, f x + (1 - f) base, or a turn of the hue."""
    for operation in order.unbind(1):
        f = factors.gather(1, operation.long()[:, None])[:, :, None, None]
        contrast, saturation, hue = (
            (operation == i)[:, None, None, None] for i in (CONTRAST, SATURATION, HUE)
        )
        grey = _grey(x)
        base = grey * saturation + grey.mean((1, 2, 3), keepdim=True) * contrast
        blended = (f * x + (1 - f) * base).clamp(0, 1)
        if x.shape[1] == 3:
            turned = torch.where(f == 0, x, _turn_hue(x, f[:, 0]))
        else:
            turned = x
        x = torch.where(hue, turned, blended)
    return x


def _turn_hue(x, shift):
    """See reference.turn_hue; shift is [B, 1, 1]."""
    r, g, b = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    d = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(value == r, (g - b) / d,
                      torch.where(value == g, (b - r) / d + 2, (r - g) / d + 4))  # fmt: skip
    k = (torch.stack([n + hue for n in (5, 3, 1)], 1) + 6 * shift[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def _blur(x, sigma, kernel):
    B, C, H, W = x.shape
    distance = torch.arange(kernel, device=x.device) - kernel // 2
    taps_BK = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)[:, None]) ** 2)
    taps_BK = (taps_BK / taps_BK.sum(1, keepdim=True)).repeat_interleave(C, 0)
    planes = F.pad(x, [kernel // 2] * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, taps_BK[:, None, None, :], groups=B * C)
    planes = F.conv2d(planes, taps_BK[:, None, :, None], groups=B * C)
    return torch.where(_picked(sigma), planes.reshape(B, C, H, W), x)


def _inside(box, size):
    """[B, 1, S, S]: the pixels of a rectangle."""
    line = torch.arange(size, device=box.device)
    top, left, h, w = (v[:, None] for v in box.unbind(1))
    rows, columns = (line >= top) & (line < top + h), (line >= left) & (line < left + w)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
