"""Random views in plain PyTorch, sample by sample: the specification, in float64.

Each step equals torchvision's functional transform of the same name on float images, except that
bicubic overshoots are cut off and posterising keeps bits of grey levels, as it does on bytes.
"""

import torch
import torch.nn.functional as F

from sslops.ops.augment.parameters import split

GREY = 0.2989, 0.587, 0.114  # ITU-R 601, with torchvision's digits
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def unsupported(*args, **kwargs):
    return None


def augment(
    images, table, steps, size, mean, std, dtype, interpolation, grayscale_first, blur_kernel
):
    """See sslops.ops.augment for the arguments of a backend."""
    rows = split(table.double())
    views = []
    for b, image in enumerate(images):
        p = {name: value[b] for name, value in rows.items()}
        x = geometry(image.double() / 255, p, size, interpolation)
        x = posterize(x, int(p["posterize"]))
        if grayscale_first:
            x = jitter(grayscale(x, p), p)
        else:
            x = grayscale(jitter(x, p), p)
        x = gaussian_blur(x, p["blur_sigma"], blur_kernel)
        if p["solarize"]:
            x = torch.where(x >= 128 / 255, 1 - x, x)
        views.append(erase(normalize(x, mean, std), p["erase"]).to(dtype))
    return (
        torch.stack(views) if views else images.new_empty(0, images.shape[1], size, size).to(dtype)
    )


def geometry(x, p, size, interpolation):
    """Crop (black beyond the border), antialiased resize, flip, affine map (black beyond it)."""
    top, left, h, w = (int(v) for v in p["crop"])
    H, W = x.shape[-2:]
    x = F.pad(x, (-left, left + w - W, -top, top + h - H))[None]
    x = F.interpolate(x, (size, size), mode=interpolation, antialias=True).clamp(0, 1)
    x = x.flip(-1) if p["flip"] else x
    theta = p["affine"].reshape(1, 2, 3)
    if not torch.equal(theta, torch.eye(2, 3, dtype=x.dtype, device=x.device)[None]):
        grid = F.affine_grid(theta, x.shape, align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
    return x[0]


def posterize(x, bits):
    """Keep the first bits of each of the 256 grey levels."""
    step = 2 ** (8 - bits)
    return x if bits == 8 else ((x * 255).round() / step).floor() * step / 255


def grey(x):
    """Luminance [1, S, S] of [C, S, S]."""
    if len(x) == 1:
        return x
    return sum(weight * channel for weight, channel in zip(GREY, x, strict=True))[None]


def grayscale(x, p):
    return grey(x).expand_as(x) if p["grayscale"] else x


def jitter(x, p):
    """Brightness, contrast, saturation and hue, in the sample's order."""
    for turn in p["order"].long().tolist():
        f = p["factors"][turn]
        if turn == HUE:
            x = turn_hue(x, f) if len(x) == 3 and f != 0 else x
            continue
        base = {BRIGHTNESS: 0.0, CONTRAST: grey(x).mean(), SATURATION: grey(x)}[turn]
        x = (f * x + (1 - f) * base).clamp(0, 1)
    return x


def turn_hue(x, shift):
    """Rotate the hue by `shift` turns: with V the largest channel and C what it is above the
    smallest, channel n (5, 3, 1 for R, G, B) = V - C clamp(min(k, 4 - k), 0, 1), k = n + 6 hue."""
    r, g, b = x
    value, chroma = x.amax(0), x.amax(0) - x.amin(0)
    d = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(value == r, (g - b) / d,
                      torch.where(value == g, (b - r) / d + 2, (r - g) / d + 4))  # fmt: skip
    k = torch.stack([n + hue + 6 * shift for n in (5, 3, 1)]) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(x, sigma, kernel):
    """Both directions with the same taps; the image is mirrored at its border."""
    if sigma <= 0:
        return x
    distance = torch.arange(kernel, device=x.device) - kernel // 2
    taps = torch.exp(-0.5 * (distance / sigma) ** 2)
    taps = taps / taps.sum()
    x = F.pad(x[:, None], [kernel // 2] * 4, mode="reflect")
    x = F.conv2d(x, taps.reshape(1, 1, 1, -1))
    return F.conv2d(x, taps.reshape(1, 1, -1, 1))[:, 0]


def normalize(x, mean, std):
    mean, std = (x.new_tensor(v)[:, None, None] for v in (mean, std))
    return (x - mean) / std


def erase(x, box):
    """0, which is the mean colour, in a rectangle."""
    top, left, h, w = (int(v) for v in box)
    x = x.clone()
    x[:, max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)] = 0
    return x
