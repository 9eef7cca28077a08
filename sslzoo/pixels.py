"""Image operations on whole batches with a parameter for each sample; no loop over samples.

Images are float [B, C, H, W] in the range 0 to 1, C = 1 or 3. The colour operations equal those
of torchvision.transforms.v2.functional on float images.
"""

import math

import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# Views up to this size show the whole image in evaluation; larger ones the central 7/8.
WHOLE_IMAGE_SIZE = 96


def resample(images, crop, flip, affine, size, interpolation="bilinear", clamp=True):
    """Crop, resize, flip, rotate, shear and shift in one resampling: float [B, C, size, size].

    Images more than one and up to n times larger than the view are sampled n x n times as
    densely and averaged, so that shrinking does not alias.

    Args:
        images: uint8 [B, C, H, W].
        crop: [B, 4] top, left, height, width in pixels.
        flip: bool [B].
        affine: [B, 4] rotation in radians, shear tangent, x and y shift in halves of the crop.
        clamp: do not read beyond the crop, as resizing a cropped image does; meant for affine 0.
    """
    H, W = images.shape[-2:]
    dense = math.ceil(max(H, W) / size)
    top, left, h, w = (crop[:, i, None, None] for i in range(4))
    a, b = _view_coordinates(flip, affine, size * dense)
    x = left + (a + 1) * w / 2 - 0.5  # pixel centres are whole numbers
    y = top + (b + 1) * h / 2 - 0.5
    if clamp:
        x = x.maximum(left).minimum(left + w - 1)
        y = y.maximum(top).minimum(top + h - 1)
    grid = torch.stack([(2 * x + 1) / W - 1, (2 * y + 1) / H - 1], -1)
    views = F.grid_sample(images.float() / 255, grid, mode=interpolation, padding_mode="border",
                          align_corners=False)  # fmt: skip
    if dense > 1:
        views = F.avg_pool2d(views, dense)
    return views.clamp_(0, 1)  # bicubic overshoots


def _view_coordinates(flip, affine, size):
    """Where in the crop, from -1 to 1, each pixel of the view lies: x and y, [B, size, size]."""
    line = (2 * torch.arange(size, device=affine.device) + 1) / size - 1
    u = torch.where(flip, -1.0, 1.0)[:, None, None] * line
    v = line[:, None]
    angle, shear, shift_x, shift_y = (affine[:, i, None, None] for i in range(4))
    u = u + shear * v
    cos, sin = angle.cos(), angle.sin()
    return cos * u - sin * v + shift_x, sin * u + cos * v + shift_y


def crop_resize(image, box, size, interpolation="bilinear"):
    """One uint8 image [C, H, W], cropped and resized with antialiasing: uint8 [C, size, size]."""
    box = [int(x) for x in box]
    mode = tv.InterpolationMode(interpolation)
    return tv.resized_crop(image, *box, [size, size], interpolation=mode, antialias=True)


def centre_view(images, size, interpolation="bilinear"):
    """Resize the shorter side, crop the centre: uint8 [..., C, size, size]."""
    H, W = images.shape[-2:]
    side = size if size <= WHOLE_IMAGE_SIZE else round(size * 8 / 7)
    if min(H, W) != side:
        scale = side / min(H, W)
        shape = [max(side, round(H * scale)), max(side, round(W * scale))]
        mode = tv.InterpolationMode(interpolation)
        images = tv.resize(images, shape, interpolation=mode, antialias=True)
    return tv.center_crop(images, [size, size])


def grey(x):
    """Luminance [B, 1, H, W] with the weights of ITU-R 601; a grey image is its own."""
    if x.shape[1] == 1:
        return x
    weights = torch.tensor([0.2989, 0.587, 0.114], dtype=x.dtype, device=x.device)
    return (x * weights[:, None, None]).sum(1, keepdim=True)


def jitter(x, factors, order):
    """Brightness, contrast, saturation and hue in an order that differs from sample to sample.

    The first three are one formula, clamp(f x + (1 - f) base), with base 0, the mean grey, or the
    grey of each pixel; so each of the four turns is one pass over the batch.

    Args:
        x: [B, C, H, W].
        factors: [B, 4] brightness, contrast, saturation, and hue shift in turns.
        order: int64 [B, 4], a permutation of 0 to 3 for each sample.
    """
    for turn in range(4):
        operation = order[:, turn]
        factor = factors.gather(1, operation[:, None])[:, 0]
        is_hue = operation == HUE
        f, contrast, saturation = (
            v.to(x.device, non_blocking=True)[:, None, None, None]
            for v in (factor.masked_fill(is_hue, 1), operation == CONTRAST, operation == SATURATION)
        )
        grey_ = grey(x)
        base = grey_ * saturation + grey_.mean((1, 2, 3), keepdim=True) * contrast
        x = torch.addcmul((1 - f) * base, x, f).clamp_(0, 1)
        rows = (is_hue & (factor != 0)).nonzero()[:, 0]
        if x.shape[1] == 3 and len(rows):
            shift, rows = (v.to(x.device, non_blocking=True) for v in (factor[rows], rows))
            x[rows] = turn_hue(x[rows], shift)
    return x


def turn_hue(x, shift):
    """Rotate the hue of RGB images [B, 3, H, W] by `shift` [B] turns, in HSV space."""
    r, g, b = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    d = torch.where(chroma == 0, 1, chroma)
    sextant = torch.where(value == r, (g - b) / d, torch.where(value == g, (b - r) / d + 2,
                                                               (r - g) / d + 4))  # fmt: skip
    sextant = sextant + 6 * shift[:, None, None]
    # Channel = value - chroma max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6; n = 5, 3, 1.
    k = (sextant[:, None] + torch.tensor([5.0, 3.0, 1.0], device=x.device)[:, None, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def blur(x, sigma, kernel):
    """Gaussian blur with a standard deviation for each sample; none where sigma is 0.

    Args:
        x: [B, C, H, W].
        sigma: [B] in pixels.
        kernel: width in pixels, odd.
    """
    rows = (sigma > 0).nonzero()[:, 0]
    if len(rows) == 0:
        return x
    sigma, rows = (v.to(x.device, non_blocking=True) for v in (sigma[rows], rows))
    chosen = x[rows]
    B, C, H, W = chosen.shape
    radius = kernel // 2
    distance = torch.arange(-radius, radius + 1, device=x.device)
    taps = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(C, 0)  # [B C, kernel]
    planes = F.pad(chosen, [radius] * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, taps[:, None, None, :], groups=B * C)
    planes = F.conv2d(planes, taps[:, None, :, None], groups=B * C)
    return x.index_copy(0, rows, planes.reshape(B, C, H, W))
