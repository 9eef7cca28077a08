"""Random views of images, each a pure function of (seed, epoch, sample, view number).

`draw_parameters` turns these four numbers into the parameters of a batch of views by a
counter-based generator; `apply_views` turns images and parameters into views, all samples of a
batch at once. No generator has a state, so neither the number of workers, nor the number of
processes, nor an interruption changes what is seen.

Order: crop, flip, rotation (one resampling), colour jitter, grayscale, blur, solarise, normalise.
Grayscale may come before the jitter, as in MoCo v1.
"""

import numpy as np
import torch

from sslops.ops.augment.spec import IMAGENET_MEAN, IMAGENET_STD, ViewSpec  # noqa: F401 shared
from sslzoo import pixels
from sslzoo.counter_random import Uniform, stream_keys

CROP_ATTEMPTS = 10


def whole_blur(size):
    """A blur kernel's width in pixels that cuts off nothing within 3 deviations of 2 pixels.

    The blur of MoCo and DINO is PIL's, which has no width; SimCLR's is a tenth of the view wide.
    """
    return min(13, 2 * size - 1)


def draw_parameters(spec, seed, epoch, indices, view, height, width):
    """Parameters of view number `view` of the samples `indices` in an epoch.

    Args:
        spec: ViewSpec.
        seed, epoch, view: integers.
        indices: [B] sample numbers.
        height, width: of the images in pixels; integers, or one value for each sample.

    Returns:
        Dictionary of CPU tensors, float32 unless stated:
            crop [B, 4]: top, left, height, width in pixels, whole numbers.
            flip [B], grayscale [B], solarize [B]: bool.
            affine [B, 4]: rotation in radians, shear tangent, x and y shift (1 is half the crop).
            factors [B, 4]: brightness, contrast, saturation; hue shift. 1, 1, 1, 0 change nothing.
            order [B, 4]: int64, which of these four comes first, second, third and last.
            blur_sigma [B]: 0 where there is no blur.

    Example:
        >>> from sslzoo.views import ViewSpec, draw_parameters
        >>> spec = ViewSpec(size=32)
        >>> both = draw_parameters(spec, 0, 3, [7, 8], 1, 32, 32)
        >>> alone = draw_parameters(spec, 0, 3, [8], 1, 32, 32)
        >>> bool((both["crop"][1] == alone["crop"][0]).all())
        True
    """
    if spec.posterize or spec.erase:
        raise ValueError("posterize and erase are steps of sslops.augment, not of these views")
    uniform = Uniform(stream_keys(seed, epoch, view, np.asarray(indices)))
    parameters = {
        "crop": draw_boxes(spec, uniform, height, width),
        "flip": uniform() < spec.flip,
        "affine": _affine(spec, uniform),
        **_colours(spec, uniform),
        "grayscale": uniform() < spec.grayscale,
    }
    is_blurred, sigma = uniform() < spec.blur, uniform(None, *spec.blur_sigma)
    parameters["blur_sigma"] = np.where(is_blurred, sigma, 0.0)
    parameters["solarize"] = uniform() < spec.solarize
    return {name: _tensor(value) for name, value in parameters.items()}


def _tensor(value):
    tensor = torch.from_numpy(value)
    return tensor.float() if tensor.is_floating_point() else tensor


def draw_boxes(spec, uniform, height, width):
    """Boxes of a padded or a resized crop, [B, 4]: top, left, height, width in pixels."""
    height, width = (
        np.broadcast_to(np.asarray(x, np.float64), len(uniform.keys))[:, None]
        for x in (height, width)
    )
    if spec.crop_padding:
        shift = np.floor(uniform(2) * (2 * spec.crop_padding + 1)) - spec.crop_padding
        return np.concatenate([shift, height, width], 1)
    return draw_resized_boxes(spec, uniform, height, width)


def draw_resized_boxes(spec, uniform, height, width):
    """As torchvision's RandomResizedCrop: ten attempts, else a centre crop.

    Args:
        height, width: float64 [B, 1], in pixels.
    """
    area = height * width * uniform(CROP_ATTEMPTS, *spec.crop_scale)
    low, high = np.log(spec.crop_ratio)
    ratio = np.exp(uniform(CROP_ATTEMPTS, low, high))
    w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)[:, None]
    w, h = np.take_along_axis(w, first, 1), np.take_along_axis(h, first, 1)
    place = uniform(2)
    top = np.floor(place[:, :1] * (height - h + 1))
    left = np.floor(place[:, 1:] * (width - w + 1))

    none_fits = ~fits.any(1, keepdims=True)
    nearest = np.clip(width / height, *spec.crop_ratio)
    w = np.where(none_fits, np.rint(np.minimum(width, height * nearest)), w)
    h = np.where(none_fits, np.rint(np.minimum(height, width / nearest)), h)
    top = np.where(none_fits, (height - h) // 2, top)
    left = np.where(none_fits, (width - w) // 2, left)
    return np.concatenate([top, left, h, w], 1)


def _affine(spec, uniform):
    angle = np.deg2rad(uniform(None, -spec.rotate, spec.rotate))
    shear = np.tan(np.deg2rad(uniform(None, -spec.shear, spec.shear)))
    shift = uniform(2, -2 * spec.translate, 2 * spec.translate)
    return np.stack([angle, shear, *shift.T], 1)


def _colours(spec, uniform):
    strength = np.array([spec.brightness, spec.contrast, spec.saturation])
    low = np.maximum(0, 1 - strength)
    factors = low + (1 + strength - low) * uniform(3)
    hue = uniform(1, -spec.hue, spec.hue)
    is_jittered = (uniform() < spec.jitter)[:, None]
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    return {
        "factors": np.where(is_jittered, np.concatenate([factors, hue], 1), neutral),
        "order": np.argsort(uniform(4), axis=1),
    }


def apply_views(images, spec, parameters):
    """The views of a batch of images with given parameters.

    Args:
        images: uint8 [B, C, H, W] with C = 1 or 3, on any device.
        spec: ViewSpec.
        parameters: from `draw_parameters` for these samples.

    Returns:
        float32 [B, C, size, size], normalised, on the device of `images`.
    """
    crop, flip, affine = (_move(parameters[n], images) for n in ("crop", "flip", "affine"))
    x = pixels.resample(images, crop, flip, affine, spec.size, spec.interpolation,
                        clamp=not spec.is_affine)  # fmt: skip
    return _photometric(x, spec, parameters)


def apply_cropped_views(crops, spec, parameters):
    """`apply_views` for images already cropped and resized: uint8 [B, C, size, size]."""
    flip, affine = (_move(parameters[name], crops) for name in ("flip", "affine"))
    if spec.is_affine:
        whole = torch.tensor([[0.0, 0, spec.size, spec.size]], device=crops.device)
        x = pixels.resample(crops, whole, flip, affine, spec.size, spec.interpolation, clamp=False)
    else:
        x = crops.float() / 255
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    return _photometric(x, spec, parameters)


def _photometric(x, spec, parameters):
    # Parameters that choose rows stay on the CPU: choosing there does not wait for the device.
    if spec.grayscale_first:
        x = _grayscale(x, spec, parameters)
    if spec.is_jittered:
        x = pixels.jitter(x, parameters["factors"], parameters["order"])
    if not spec.grayscale_first:
        x = _grayscale(x, spec, parameters)
    if spec.blur:
        x = pixels.blur(x, parameters["blur_sigma"], spec.blur_kernel or spec.size // 10 | 1)
    if spec.solarize:
        is_chosen = _move(parameters["solarize"], x)[:, None, None, None]
        x = torch.where(is_chosen & (x >= 128 / 255), 1 - x, x)
    return normalise(x, spec.mean, spec.std)


def _grayscale(x, spec, parameters):
    if not spec.grayscale:
        return x
    return torch.where(_move(parameters["grayscale"], x)[:, None, None, None], pixels.grey(x), x)


def _move(parameter, images):
    return parameter.to(images.device, non_blocking=True)


def normalise(x, mean, std):
    """(x - mean) / std for each channel of [B, C, H, W]."""
    mean, std = (
        torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (mean, std)
    )
    return (x - mean) / std


def evaluation_view(images, size, mean, std):
    """The fixed view for evaluation: resize the shorter side, crop the centre, normalise.

    As usual, views above 96 pixels show the central 7/8 (256 to 224); smaller ones everything.

    Args:
        images: uint8 [B, C, H, W].
        size: side of the view in pixels.

    Returns:
        float32 [B, C, size, size].
    """
    return normalise(pixels.centre_view(images, size).float() / 255, mean, std)
