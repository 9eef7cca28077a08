"""Parts of the corruptions: colour spaces, resampling, motion, clouds, edges of drops.

Images are float64 [N, H, W, C] in the range 0 to 1.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage


def to_hsv(x):
    """Hue in turns, saturation and value, each [N, H, W]."""
    r, g, b = np.moveaxis(x, -1, 0)
    value, low = x.max(-1), x.min(-1)
    chroma = value - low
    d = np.where(chroma == 0, 1, chroma)
    hue = np.where(value == r, (g - b) / d, np.where(value == g, (b - r) / d + 2, (r - g) / d + 4))
    return hue / 6 % 1, np.where(value == 0, 0, chroma / np.where(value == 0, 1, value)), value


def from_hsv(hue, saturation, value):
    """[N, H, W, 3] of hue in turns, saturation and value."""
    k = (np.array([5, 3, 1]) + 6 * hue[..., None]) % 6
    step = np.clip(np.minimum(k, 4 - k), 0, 1)
    return value[..., None] - (value * saturation)[..., None] * step


def grid_sample(x, rows, columns):
    """Bilinear values of [N, H, W, C] at rows and columns [N, H, W], mirrored at the borders."""
    _, H, W, _ = x.shape
    grid = np.stack([2 * columns / max(W - 1, 1) - 1, 2 * rows / max(H - 1, 1) - 1], -1)
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    sampled = F.grid_sample(images, torch.from_numpy(grid), mode="bilinear",
                            padding_mode="reflection", align_corners=True)  # fmt: skip
    return np.moveaxis(sampled.numpy(), 1, -1)


def clipped_zoom(x, factor):
    """The centre of the picture, enlarged to its size."""
    N, H, W, _ = x.shape
    rows, columns = ((np.arange(n) - (n - 1) / 2) / factor + (n - 1) / 2 for n in (H, W))
    shape = (N, H, W)
    return grid_sample(x, np.broadcast_to(rows[:, None], shape), np.broadcast_to(columns, shape))


def motion_blur(x, radius, sigma, angles):
    """A one-sided Gaussian smear of 2 radius + 1 pixels along an angle for each image, in degrees.

    The taps lie on whole pixels, as ImageMagick's do; beyond the border the last pixel repeats.
    """
    N, H, W, _ = x.shape
    taps = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    every, rows, columns = np.arange(N)[:, None, None], np.arange(H)[:, None], np.arange(W)
    out = np.zeros_like(x)
    for i, tap in enumerate(taps):
        down, right = (np.ceil(i * f(np.deg2rad(angles)) - 0.5).astype(int)[:, None, None]
                       for f in (np.sin, np.cos))  # fmt: skip
        out += tap * x[every, np.clip(rows + down, 0, H - 1), np.clip(columns + right, 0, W - 1)]
    return out


def random_affine(x, draws, most):
    """Three points of the picture move by up to `most` pixels; the rest follows."""
    _, H, W, _ = x.shape
    centre, third = np.array([H // 2, W // 2]), min(H, W) // 3
    points = centre + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + draws.uniform((3, 2), -most, most)
    # Where each pixel of the result comes from: moved -> points, as rows [y, x, 1] @ [3, 2].
    ones = np.ones((len(moved), 3, 1))
    matrix = np.linalg.solve(np.concatenate([moved, ones], -1),
                             np.broadcast_to(points, moved.shape).astype(float))  # fmt: skip
    rows, columns = np.mgrid[:H, :W]
    pixels = np.stack([rows, columns, np.ones_like(rows)], -1)[None]
    source = np.einsum("nhwi,nij->nhwj", np.broadcast_to(pixels, (len(x), H, W, 3)), matrix)
    return grid_sample(x, source[..., 0], source[..., 1])


def plasma(side, decay, draws):
    """Clouds by the diamond-square algorithm, 0 to 1: [N, S, S], S the next power of two.

    Every round halves the squares: their centres, then the middles of their sides, are the mean
    of their four neighbours plus noise, whose size falls by `decay`.
    """
    S = 1 << max(side - 1, 1).bit_length()
    cloud = np.zeros((len(draws.generators), S, S))
    step, wobble = S, 100.0
    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        below, right = np.roll(corners, -1, 1), np.roll(corners, -1, 2)
        total = corners + below + right + np.roll(below, -1, 2)
        cloud[:, half::step, half::step] = noisy_mean(total, wobble, draws)
        centres = cloud[:, half::step, half::step]
        for axis in (1, 2):  # the middles of the left and of the upper sides
            total = centres + np.roll(centres, 1, 3 - axis)
            total = total + corners + np.roll(corners, -1, axis)
            rows, columns = (half, 0) if axis == 1 else (0, half)
            cloud[:, rows::step, columns::step] = noisy_mean(total, wobble, draws)
        step, wobble = half, wobble / decay
    cloud -= cloud.min((1, 2), keepdims=True)
    return cloud / np.maximum(cloud.max((1, 2), keepdims=True), 1e-12)


def noisy_mean(total, wobble, draws):
    return total / 4 + wobble * draws.uniform(total.shape[1:], -wobble, wobble)


def liquid_edges(layer):
    """How light gathers in drops: the relief of the distance to their edges, 0 to 1, [H, W]."""
    inside = layer > 0
    edges = inside ^ ndimage.binary_erosion(inside, border_value=1)
    distance = np.full(layer.shape, 20.0)
    if edges.any():
        distance = np.minimum(ndimage.distance_transform_edt(~edges), 20)
    distance = equalised(np.rint(ndimage.uniform_filter(distance, 3, mode="mirror")).astype(int))
    relief = ndimage.correlate(distance, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]),
                               mode="mirror")  # fmt: skip
    return ndimage.uniform_filter(np.clip(relief, 0, 255) / 255, 3, mode="mirror")


def equalised(levels):
    """Whole numbers from 0 up, spread over 0 to 255 so that each is equally frequent."""
    below = np.cumsum(np.bincount(levels.ravel(), minlength=256))
    first = below[below > 0][0]
    scale = 255 / max(below[-1] - first, 1)
    return np.rint((below - first).clip(0) * scale)[levels]
