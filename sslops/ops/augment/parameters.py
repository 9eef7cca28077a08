"""The parameters of views: drawn by a counter-based generator, and packed into one table."""

import math

import torch

from sslops import arguments
from sslops.counter_generator import philox

CROP_ATTEMPTS = 10
# Purpose -> the blocks of four numbers that it takes; the order is that of their counters.
BLOCKS = {"crop": CROP_ATTEMPTS // 2, "place": 1, "choices": 1, "affine": 1, "colours": 3,
          "blur": 1, "posterize": 1, "erase": CROP_ATTEMPTS // 2 + 1}  # fmt: skip
STREAM = 0x41554700  # of the view numbered 0; masks of the same seed draw from low streams

# Name of a step -> the values that leave a view as it is; the columns of the table in this order.
NEUTRAL = {
    "crop": (0.0, 0.0, 1.0, 1.0),  # top, left, height, width; always given or the whole image
    "flip": (0.0,),
    "affine": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "posterize": (8.0,),
    "factors": (1.0, 1.0, 1.0, 0.0),
    "order": (0.0, 1.0, 2.0, 3.0),
    "grayscale": (0.0,),
    "blur_sigma": (0.0,),
    "solarize": (0.0,),
    "erase": (0.0, 0.0, 0.0, 0.0),
}
WIDTH = sum(map(len, NEUTRAL.values()))


def table_of(parameters, images):
    """All parameters of a batch as float32 [B, 27] on the images' device; absent ones neutral."""
    B, _, H, W = images.shape
    columns = []
    for name, neutral in NEUTRAL.items():
        value = parameters.get(name)
        if value is None:
            neutral = (0.0, 0.0, float(H), float(W)) if name == "crop" else neutral
            value = _rows(images, neutral)
        else:
            value = _checked(name, value, B, len(neutral)).to(images.device, non_blocking=True)
        columns.append(value.reshape(B, len(NEUTRAL[name])).float())
    return torch.cat(columns, 1)


def _rows(like, values):
    """The same values for every sample, made on the device: a copy would have to wait for it."""
    columns = [like.new_full((like.shape[0],), v, dtype=torch.float32) for v in values]
    return torch.stack(columns, 1)


def _checked(name, value, batch, width):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"parameters[{name!r}] must be a tensor; got {arguments.describe(value)}")
    shape = {1: (batch,), 6: (batch, 2, 3)}.get(width, (batch, width))
    if value.shape != shape:
        raise ValueError(
            f"parameters[{name!r}] must have shape {shape}; got {arguments.describe(value)}"
        )
    return value


def split(table):
    """{name: float columns of the table}: [B] for one column, else [B, columns]."""
    parts = torch.split(table, [len(neutral) for neutral in NEUTRAL.values()], dim=1)
    return {name: part[:, 0] if part.shape[1] == 1 else part
            for name, part in zip(NEUTRAL, parts, strict=True)}  # fmt: skip


def sample_parameters(spec, seed, epoch, index, view=0, *, height, width):
    """Random parameters of view number `view` of some samples in an epoch.

    They are a function of (seed, epoch, sample, view) alone, by Philox4x32-10: neither the batch
    nor the device nor the number of processes matters. Their distributions are torchvision's.

    Args:
        spec: ViewSpec.
        seed: int, 0 <= seed < 2**63.
        epoch: int, or a 0-d int64 tensor (read by the kernels, so a CUDA graph follows it).
        index: int64 [B], the samples' numbers, 0 <= index < 2**32; the draws are on its device.
        view: int, 0 to 255.
        height, width: of the images in pixels: numbers, or tensors [B].

    Returns:
        Dictionary of tensors on the device of `index`, without those that `spec` turns off:
            crop [B, 4]: top, left, height, width in whole pixels, float32.
            flip, grayscale, solarize [B]: bool.
            affine [B, 2, 3]: from a pixel of the view to its source; 1 is half a side.
            posterize [B]: int64, the bits to keep, 8 changes nothing.
            factors [B, 4]: brightness, contrast, saturation; hue shift. 1, 1, 1, 0 change nothing.
            order [B, 4]: int64, which of these four comes first, second, third and last.
            blur_sigma [B]: in pixels of the view, 0 is no blur.
            erase [B, 4]: top, left, height, width in pixels of the view; zeros erase nothing.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or range.

    Example:
        >>> import torch, sslops
        >>> spec = sslops.ViewSpec(size=32)
        >>> both = sslops.sample_parameters(spec, 0, 3, torch.tensor([7, 8]), height=32, width=32)
        >>> alone = sslops.sample_parameters(spec, 0, 3, torch.tensor([8]), height=32, width=32)
        >>> bool((both["crop"][1] == alone["crop"][0]).all())
        True
    """
    _check(seed, index, view)
    draw = _uniforms(spec, seed, epoch, index, view)
    height, width = (_sides(side, index) for side in (height, width))
    drawn = {"crop": _crop(spec, draw, height, width), **_yes_or_no(spec, draw)}
    if spec.is_affine:
        drawn["affine"] = _affine(spec, draw)
    if spec.is_jittered:
        drawn.update(_colours(spec, draw))
    if spec.blur:
        u = draw["blur"]
        sigma = _between(u[:, 1], *spec.blur_sigma)
        drawn["blur_sigma"] = torch.where(u[:, 0] < spec.blur, sigma, 0.0)
    if spec.posterize:
        chosen = draw["posterize"][:, 0] < spec.posterize
        drawn["posterize"] = torch.where(chosen, spec.posterize_bits, 8)
    if spec.erase:
        drawn["erase"] = _erase(spec, draw)
    return drawn


def _sides(side, index):
    if isinstance(side, torch.Tensor):
        return side.to(index.device, torch.float32).expand(len(index))
    return torch.full(index.shape, side, dtype=torch.float32, device=index.device)


def _check(seed, index, view):
    if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.ndim != 1:
        raise TypeError(f"index must be an int64 tensor [B]; got {arguments.describe(index)}")
    for name, value, most in (("seed", seed, 2**63), ("view", view, 256)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int; got {arguments.describe(value)}")
        if not 0 <= value < most:
            raise ValueError(f"{name} must be in [0, {most}); got {value}")


def _uniforms(spec, seed, epoch, index, view):
    """{purpose: numbers [B, n] in [0, 1), multiples of 2**-24} of the steps that `spec` takes."""
    is_used = {"crop": not spec.crop_padding, "place": True, "choices": True,
               "affine": spec.is_affine, "colours": spec.is_jittered, "blur": spec.blur,
               "posterize": spec.posterize, "erase": spec.erase}  # fmt: skip
    # Every purpose has counters of its own, so turning one on leaves the draws of the others as
    # they are; all come from one call, since a call is many small operations.
    counts = {purpose: BLOCKS[purpose] for purpose in is_used if is_used[purpose]}
    first = [64 * list(BLOCKS).index(purpose) for purpose in counts]
    block = torch.cat([torch.arange(f, f + n, device=index.device)
                       for f, n in zip(first, counts.values(), strict=True)])  # fmt: skip
    words = philox(seed, (block[None, :], index[:, None], epoch, STREAM + view))
    numbers = (torch.stack(words, dim=-1) >> 8).float() * 2.0**-24
    pieces = numbers.split(list(counts.values()), dim=1)
    return {purpose: u.flatten(1) for purpose, u in zip(counts, pieces, strict=True)}


def _between(u, low, high):
    return low + (high - low) * u


def _yes_or_no(spec, draw):
    u = draw["choices"]
    names = "flip", "grayscale", "solarize"
    return {name: u[:, i] < getattr(spec, name)
            for i, name in enumerate(names) if getattr(spec, name)}  # fmt: skip


def _crop(spec, draw, height, width):
    """As torchvision's RandomResizedCrop (ten attempts, else the centre), or a shifted image."""
    place = draw["place"]
    if spec.crop_padding:
        shift = (place[:, :2] * (2 * spec.crop_padding + 1)).floor() - spec.crop_padding
        return torch.cat([shift, height[:, None], width[:, None]], 1)
    u = draw["crop"]
    area = (height * width)[:, None] * _between(u[:, :CROP_ATTEMPTS], *spec.crop_scale)
    ratio = _between(u[:, CROP_ATTEMPTS:], *map(math.log, spec.crop_ratio)).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    w, h = _first(w, fits), _first(h, fits)
    top = (place[:, 0] * (height - h + 1)).floor()
    left = (place[:, 1] * (width - w + 1)).floor()
    centre = _centre_crop(spec, height, width)
    box = torch.stack([top, left, h, w], 1)
    return torch.where(fits.any(1, keepdim=True), box, centre)


def _first(values, is_good):
    """The first good one of each row; of rows without, any."""
    return values.gather(1, is_good.int().argmax(1, keepdim=True))[:, 0]


def _centre_crop(spec, height, width):
    nearest = (width / height).clamp(*spec.crop_ratio)
    w = torch.minimum(width, height * nearest).round()
    h = torch.minimum(height, width / nearest).round()
    return torch.stack([((height - h) / 2).floor(), ((width - w) / 2).floor(), h, w], 1)


def _affine(spec, draw):
    u = 2 * draw["affine"] - 1
    angle, shear = (u[:, i] * math.radians(x) for i, x in ((0, spec.rotate), (1, spec.shear)))
    # torchvision shifts by whole pixels.
    shift = (u[:, 2:4] * spec.translate * spec.size).round() * (2 / spec.size)
    return affine_matrix(angle, shear, shift)


def affine_matrix(angle, shear, shift):
    """What undoes torchvision's affine: a horizontal shear, then a rotation, then a shift.

    Args:
        angle, shear: [B] in radians.
        shift: [B, 2], in x and y; 1 is half a side.

    Returns:
        [B, 2, 3]: the source of a pixel, as torch.nn.functional.affine_grid takes it.
    """
    cos, sin, tan = angle.cos(), angle.sin(), shear.tan()
    rows = torch.stack([cos - sin * tan, sin + cos * tan, -sin, cos], 1).reshape(-1, 2, 2)
    return torch.cat([rows, -(rows @ shift[:, :, None])], 2)


def _colours(spec, draw):
    u = draw["colours"]
    bounds = [(max(0.0, 1 - s), 1 + s) for s in (spec.brightness, spec.contrast, spec.saturation)]
    bounds.append((-spec.hue, spec.hue))
    factors = torch.stack([_between(u[:, i], *bound) for i, bound in enumerate(bounds)], 1)
    factors = torch.where(u[:, 8:9] < spec.jitter, factors, _rows(u, NEUTRAL["factors"]))
    return {"factors": factors, "order": u[:, 4:8].argsort(dim=1, stable=True)}


def _erase(spec, draw):
    """As torchvision's RandomErasing: the first of ten rectangles smaller than the view."""
    u = draw["erase"]
    S, attempts = spec.size, u[:, 3 : 3 + 2 * CROP_ATTEMPTS]
    area = S * S * _between(attempts[:, :CROP_ATTEMPTS], *spec.erase_scale)
    ratio = _between(attempts[:, CROP_ATTEMPTS:], *map(math.log, spec.erase_ratio)).exp()
    h, w = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (h < S) & (w < S)
    h, w = _first(h, fits), _first(w, fits)
    top, left = (u[:, 1] * (S - h + 1)).floor(), (u[:, 2] * (S - w + 1)).floor()
    is_erased = (u[:, 0] < spec.erase) & fits.any(1)
    return torch.where(is_erased[:, None], torch.stack([top, left, h, w], 1), 0.0)
