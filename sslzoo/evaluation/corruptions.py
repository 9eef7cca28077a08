"""The corruptions of CIFAR-10-C, computed on batches of images: 19 kinds at 5 severities.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019; the constants are those of their CIFAR images. They count in pixels of
the view, whatever its size. Every random number is a function of (seed, image, kind, severity).
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from sslzoo.evaluation.corruption_fields import (
    clipped_zoom,
    from_hsv,
    grid_sample,
    liquid_edges,
    motion_blur,
    plasma,
    random_affine,
    to_hsv,
)

# Constants of severities 1 to 5, in the order of the arguments of the function of that name.
SEVERITIES = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (
        (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "speckle_noise": (0.06, 0.10, 0.12, 0.16, 0.20),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}  # fmt: skip
NAMES = tuple(SEVERITIES)
BENCHMARK, EXTRAS = NAMES[:15], NAMES[15:]
CIFAR_SIDE = 32  # pixels: what the elastic transform's constants are shares of


class Draws:
    """Random numbers of each image of a batch, from a generator of its own."""

    def __init__(self, seed, indices, kind, severity):
        number = NAMES.index(kind)
        self.generators = [np.random.default_rng((seed, int(i), number, severity))
                           for i in indices]  # fmt: skip

    def uniform(self, shape, low=0.0, high=1.0):
        return np.stack([g.uniform(low, high, shape) for g in self.generators])

    def normal(self, shape, mean=0.0, std=1.0):
        return np.stack([g.normal(mean, std, shape) for g in self.generators])

    def poisson(self, rates):
        return np.stack([g.poisson(rate) for g, rate in zip(self.generators, rates, strict=True)])

    def integers(self, shape, low, high):
        return np.stack([g.integers(low, high, shape) for g in self.generators])


def corrupt(images, kind, severity, *, indices=None, seed=0, frost=None):
    """Images as a corruption leaves them.

    Args:
        images: uint8 [N, C, S, S], C = 1 or 3; a grey image is corrupted as a colour one.
        kind: one of NAMES.
        severity: 1 to 5.
        indices: numbers of the images, for their random numbers; None counts from 0.
        frost: textures for "frost", uint8 [H, W, 3] each, no smaller than the images.

    Returns:
        uint8 [N, C, S, S].

    Example:
        >>> import torch
        >>> grey = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
        >>> corrupt(grey, "brightness", 1)[0, :, 0, 0].tolist()  # 100 + 0.05 x 255
        [112, 112, 112]
    """
    indices = range(len(images)) if indices is None else indices
    draws = Draws(seed, indices, kind, severity)
    x = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy().astype(np.float64) / 255
    constants = SEVERITIES[kind][severity - 1]
    constants = constants if isinstance(constants, tuple) else (constants,)
    if kind == "frost":
        constants = (*constants, frost)
    y = FUNCTIONS[kind](x, draws, *constants)
    y = (np.clip(y, 0, 1) * 255).astype(np.uint8)  # truncated, as the benchmark's files are
    if images.shape[1] == 1:
        y = np.rint(y.mean(-1, keepdims=True)).astype(np.uint8)
    return torch.from_numpy(y).permute(0, 3, 1, 2).contiguous()


def gaussian_noise(x, draws, std):
    return x + draws.normal(x.shape[1:], std=std)


def shot_noise(x, draws, photons):
    return draws.poisson(x * photons) / photons


def impulse_noise(x, draws, share):
    """Half of the hit values become white, half black; each channel by itself."""
    u = draws.uniform(x.shape[1:])
    return np.where(u < share / 2, 0.0, np.where(u < share, 1.0, x))


def speckle_noise(x, draws, std):
    return x + x * draws.normal(x.shape[1:], std=std)


def gaussian_blur(x, draws, sigma):
    return smooth(x, sigma)


def smooth(x, sigma):
    """Gaussian blur of the two middle dimensions of [N, H, W, ...]."""
    sigmas = (0, sigma, sigma) + (0,) * (x.ndim - 3)
    return ndimage.gaussian_filter(x, sigmas, mode="nearest", truncate=4)


def glass_blur(x, draws, sigma, reach, rounds):
    """Blur, swap each pixel with a near one, blur."""
    x = np.floor(smooth(x, sigma) * 255) / 255
    _, H, W, _ = x.shape
    every = np.arange(len(x))
    for _ in range(rounds):
        moves = draws.integers((H, W, 2), -reach, reach)
        for h in range(H - reach - 1, reach, -1):
            for w in range(W - reach - 1, reach, -1):
                there = every, h + moves[:, h, w, 0], w + moves[:, h, w, 1]
                near = x[there].copy()
                x[there] = x[:, h, w]
                x[:, h, w] = near
    return smooth(x, sigma)


def defocus_blur(x, draws, radius, alias):
    """Convolution with a disk whose edge is blurred by 3 x 3 pixels."""
    line = np.arange(-8, 9)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    tap = np.exp(-0.5 * (np.arange(-1, 2) / alias) ** 2)
    tap /= tap.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk / disk.sum(), tap, axis=axis, mode="mirror")
    return ndimage.correlate(x, disk[None, :, :, None], mode="mirror")


def zoom_blur(x, draws, most):
    factors = np.arange(1, most, 0.01)
    return (x + sum(clipped_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def blur_in_motion(x, draws, radius, sigma):
    return motion_blur(x, radius, sigma, draws.uniform((), -45, 45))


def snow(x, draws, mean, std, zoom, threshold, radius, sigma, mix):
    """Bright flakes that fell in one direction, and a whiter picture."""
    layer = clipped_zoom(draws.normal(x.shape[1:3], mean, std)[..., None], zoom)
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    layer = motion_blur(layer, radius, sigma, draws.uniform((), -135, -45))
    white = np.maximum(x, grey(x) * 1.5 + 0.5)
    return mix * x + (1 - mix) * white + layer + np.rot90(layer, 2, axes=(1, 2))


def grey(x):
    """Luminance [N, H, W, 1], ITU-R 601."""
    return x @ np.array([[0.299], [0.587], [0.114]])


def frost(x, draws, keep, amount, textures):
    """A part of a texture over the picture."""
    _, H, W, _ = x.shape
    u = draws.uniform(3)
    layers = []
    for which, top, left in u:
        texture = textures[int(which * len(textures))]
        top = int(top * (texture.shape[0] - H + 1))
        left = int(left * (texture.shape[1] - W + 1))
        layers.append(texture[top : top + H, left : left + W] / 255)
    return keep * x + amount * np.stack(layers)


def fog(x, draws, amount, decay):
    _, H, W, _ = x.shape
    highest = x.max((1, 2, 3), keepdims=True)
    cloud = plasma(max(H, W), decay, draws)[:, :H, :W, None]
    return (x + amount * cloud) * highest / (highest + amount)


def brightness(x, draws, more):
    hue, saturation, value = to_hsv(x)
    return from_hsv(hue, saturation, np.clip(value + more, 0, 1))


def saturate(x, draws, factor, more):
    hue, saturation, value = to_hsv(x)
    return from_hsv(hue, np.clip(saturation * factor + more, 0, 1), value)


def contrast(x, draws, factor):
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * factor + mean


def elastic_transform(x, draws, amplitude, sigma, affine):
    """A small affine distortion, then a smooth random displacement of each pixel."""
    _, H, W, _ = x.shape
    x = random_affine(x, draws, affine * CIFAR_SIDE)
    moves = [smooth(draws.uniform((H, W), -1, 1), sigma * CIFAR_SIDE) * amplitude * CIFAR_SIDE
             for _ in range(2)]  # fmt: skip
    rows, columns = np.mgrid[:H, :W]
    return grid_sample(x, rows + moves[0], columns + moves[1])


def pixelate(x, draws, factor):
    """Shrunk and enlarged again, each with a box filter."""
    H, W = x.shape[1:3]
    small = (max(1, int(W * factor)), max(1, int(H * factor)))
    return by_pillow(x, lambda image: image.resize(small, Image.Resampling.BOX)
                     .resize((W, H), Image.Resampling.BOX))  # fmt: skip


def jpeg_compression(x, draws, quality):
    def through_jpeg(image):
        buffer = io.BytesIO()
        image.save(buffer, "jpeg", quality=quality)
        return Image.open(buffer)

    return by_pillow(x, through_jpeg)


def by_pillow(x, function):
    """Each image through a function of Pillow images."""
    pixels = np.rint(x * 255).astype(np.uint8)
    return np.stack([np.asarray(function(Image.fromarray(p))) for p in pixels]) / 255


def spatter(x, draws, mean, std, sigma, threshold, strength, is_mud):
    """Drops of water, or of mud, on the lens."""
    layer = smooth(draws.normal(x.shape[1:3], mean, std), sigma)
    layer = np.where(layer < threshold, 0, layer)
    if is_mud:
        cover = smooth((layer > threshold).astype(np.float64), strength)[..., None]
        cover = np.where(cover < 0.8, 0, cover)
        return x * (1 - cover) + np.array([63, 42, 20]) / 255 * cover
    drops = layer * np.stack([liquid_edges(one) for one in layer])
    highest = drops.max((1, 2), keepdims=True)
    drops = drops / np.where(highest > 0, highest, 1) * strength
    return x + drops[..., None] * np.array([175, 238, 238]) / 255


def load_frost(folder):
    """Textures of a folder, uint8 [H, W, 3] each, at a fifth of their size as for CIFAR-10-C."""
    textures = []
    for path in sorted(Path(folder).glob("frost*.*")):
        with Image.open(path) as image:
            textures.append(np.asarray(image.convert("RGB").reduce(5)))
    return textures


FUNCTIONS = {
    "gaussian_noise": gaussian_noise, "shot_noise": shot_noise, "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur, "glass_blur": glass_blur, "motion_blur": blur_in_motion,
    "zoom_blur": zoom_blur, "snow": snow, "frost": frost, "fog": fog, "brightness": brightness,
    "contrast": contrast, "elastic_transform": elastic_transform, "pixelate": pixelate,
    "jpeg_compression": jpeg_compression, "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur, "spatter": spatter, "saturate": saturate,
}  # fmt: skip
