"""Random views in Triton: an image is read where the view needs it, a view is written once.

    B samples, C channels, S side of the views; a tile is BLOCK pixels of one view

A view of one tile takes one launch. Larger ones take another before it for the mean grey that
contrast needs, and two after it where a sample is blurred. Nothing waits for the device: values of
the table that make no sense give some picture, never a read outside the image.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from sslops import triton_launch as launch
from sslops.triton_helpers import INTERPRETED  # noqa: F401  (the registry asks for it)

LARGEST_BLOCK = 1024
WARPS = 8  # of 1024 pixels: with 4 a thread holds 209 registers
BLURRED_AT_ONCE = 2**23  # values: what the passes of the blur hand over stays in the L2 cache
DTYPES = torch.float32, torch.bfloat16, torch.float16

# Columns of the table, as in csrc/cpu/augment.h.
FLIP, AFFINE, POSTERIZE, FACTORS, ORDER, GRAYSCALE, BLUR_SIGMA, SOLARIZE, ERASE, COLUMNS = (
    tl.constexpr(i) for i in (4, 5, 11, 12, 16, 20, 21, 22, 23, 27)
)
CONTRAST, SATURATION, HUE = (tl.constexpr(i) for i in (1, 2, 3))
LARGEST_CROP = tl.constexpr(2.0**15)


@triton.jit
def _filter(x, CUBIC: tl.constexpr):
    x = tl.abs(x)
    if CUBIC:  # Keys's cubic, a = -1/2
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = tl.where(x < 1, near, tl.where(x < 2, far, 0.0))
    else:
        weight = tl.maximum(1 - x, 0.0)
    return weight


@triton.jit
def _line(i, length, S, CUBIC: tl.constexpr):
    """Where the taps of pixels i begin and end in a line of `length` resized to S; their middle."""
    scale = length / S
    wide = tl.maximum(scale, 1.0)
    reach = 2 * wide if CUBIC else wide
    middle = scale * (i + 0.5)
    low = tl.maximum(tl.floor(middle - reach + 0.5), 0.0)
    high = tl.minimum(tl.floor(middle + reach + 0.5), length)
    return low, high, middle, wide, (2 * reach).to(tl.int32) + 2


@triton.jit
def _weights(place, high, middle, wide, CUBIC: tl.constexpr):
    return tl.where(place < high, _filter((place - middle + 0.5) / wide, CUBIC), 0.0)


@triton.jit
def _crop(
    image_ptr, row_ptr, y, x, keep, H, W, S, stride_c, stride_h, stride_w,
    C: tl.constexpr, CUBIC: tl.constexpr,
):  # fmt: skip
    """The three channels of pixels (y, x) of the crop resized and flipped; 0 where not keep."""
    top, left = tl.load(row_ptr).to(tl.int32), tl.load(row_ptr + 1).to(tl.int32)
    h = tl.minimum(tl.maximum(tl.load(row_ptr + 2), 1.0), LARGEST_CROP)
    w = tl.minimum(tl.maximum(tl.load(row_ptr + 3), 1.0), LARGEST_CROP)
    x = tl.where(tl.load(row_ptr + FLIP) > 0, S - 1 - x, x)
    first_y, end_y, middle_y, wide_y, rows = _line(y, h, S, CUBIC)
    first_x, end_x, middle_x, wide_x, columns = _line(x, w, S, CUBIC)
    r = tl.zeros(y.shape, tl.float32)
    g, b, total = r, r, r
    for i in range(rows):
        weight_y = _weights(first_y + i, end_y, middle_y, wide_y, CUBIC)
        from_y = top + first_y.to(tl.int32) + i
        in_row = keep & (weight_y != 0) & (from_y >= 0) & (from_y < H)
        for j in range(columns):
            weight = weight_y * _weights(first_x + j, end_x, middle_x, wide_x, CUBIC)
            from_x = left + first_x.to(tl.int32) + j
            inside = in_row & (weight != 0) & (from_x >= 0) & (from_x < W)
            pixel = image_ptr + from_y * stride_h + from_x * stride_w
            total += weight  # also of the black pixels beyond the border
            r += weight * tl.load(pixel, mask=inside, other=0).to(tl.float32)
            if C == 3:
                g += weight * tl.load(pixel + stride_c, mask=inside, other=0).to(tl.float32)
                b += weight * tl.load(pixel + 2 * stride_c, mask=inside, other=0).to(tl.float32)
    scale = tl.where(keep, 1 / (255 * tl.where(total == 0, 1.0, total)), 0.0)
    return _unit(r * scale), _unit(g * scale), _unit(b * scale)


@triton.jit
def _unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _geometry(
    image_ptr, row_ptr, y, x, keep, H, W, S, stride_c, stride_h, stride_w,
    C: tl.constexpr, CUBIC: tl.constexpr, MOVED: tl.constexpr,
):  # fmt: skip
    """The crop, or what the affine map takes from it: bilinear, black beyond its border."""
    if MOVED:
        a_ptr = row_ptr + AFFINE
        u, v, half = x - (S - 1) / 2, y - (S - 1) / 2, S / 2
        to_x = tl.load(a_ptr) * u + tl.load(a_ptr + 1) * v + tl.load(a_ptr + 2) * half
        to_y = tl.load(a_ptr + 3) * u + tl.load(a_ptr + 4) * v + tl.load(a_ptr + 5) * half
        # Beyond the border all is black; far beyond it numbers would leave the integers.
        to_x = tl.minimum(tl.maximum(to_x + (S - 1) / 2, -2.0), S + 1.0)
        to_y = tl.minimum(tl.maximum(to_y + (S - 1) / 2, -2.0), S + 1.0)
        left, top = tl.floor(to_x), tl.floor(to_y)
        r = tl.zeros(x.shape, tl.float32)
        g, b = r, r
        for corner in range(4):
            at_y, at_x = top.to(tl.int32) + corner // 2, left.to(tl.int32) + corner % 2
            weight = (1 - tl.abs(to_y - at_y)) * (1 - tl.abs(to_x - at_x))
            inside = keep & (at_y >= 0) & (at_y < S) & (at_x >= 0) & (at_x < S)
            r1, g1, b1 = _crop(image_ptr, row_ptr, at_y, at_x, inside, H, W, S, stride_c,
                               stride_h, stride_w, C, CUBIC)  # fmt: skip
            r, g, b = r + weight * r1, g + weight * g1, b + weight * b1
    else:
        r, g, b = _crop(image_ptr, row_ptr, y, x, keep, H, W, S, stride_c, stride_h, stride_w, C,
                        CUBIC)  # fmt: skip
    return r, g, b


@triton.jit
def _posterize(x, bits):
    """Keep the first bits of each grey level, which is rounded to even as torch.round does."""
    step = tl.exp2(8 - tl.minimum(tl.maximum(bits, 1.0), 8.0))
    level = tl.floor(255 * x + 0.5)
    is_odd_tie = (level == 255 * x + 0.5) & (level != 2 * tl.floor(level / 2))
    level = tl.where(is_odd_tie, level - 1, level)
    return tl.where(step > 1, tl.floor(level / step) * step / 255, x)


@triton.jit
def _grey(r, g, b, C: tl.constexpr):
    if C == 3:
        grey = 0.2989 * r + 0.587 * g + 0.114 * b
    else:
        grey = r
    return grey


@triton.jit
def _grayscale(r, g, b, row_ptr, C: tl.constexpr):
    is_grey = tl.load(row_ptr + GRAYSCALE) > 0
    grey = _grey(r, g, b, C)
    return tl.where(is_grey, grey, r), tl.where(is_grey, grey, g), tl.where(is_grey, grey, b)


@triton.jit
def _hue_of(n, turned, value, chroma):
    k = n + turned
    k -= 6 * tl.floor(k / 6)
    return value - chroma * _unit(tl.minimum(k, 4 - k))


@triton.jit
def _turn_hue(r, g, b, shift):
    """See reference.turn_hue."""
    value = tl.maximum(r, tl.maximum(g, b))
    chroma = value - tl.minimum(r, tl.minimum(g, b))
    d = tl.where(chroma == 0, 1.0, chroma)
    hue = tl.where(value == r, (g - b) / d,
                   tl.where(value == g, (b - r) / d + 2, (r - g) / d + 4))  # fmt: skip
    turned = hue + 6 * shift
    return (_hue_of(5, turned, value, chroma), _hue_of(3, turned, value, chroma),
            _hue_of(1, turned, value, chroma))  # fmt: skip


@triton.jit
def _jitter(r, g, b, keep, row_ptr, mean, area, C: tl.constexpr, WHOLE: tl.constexpr):
    """All four turns, and the sum of this tile's greys when contrast's came.

    `mean` is the view's mean grey at that turn; WHOLE: this tile is the view and knows it.
    """
    greys = 0.0
    for turn in tl.static_range(4):
        operation = tl.load(row_ptr + ORDER + turn).to(tl.int32)
        operation = tl.minimum(tl.maximum(operation, 0), 3)
        f = tl.load(row_ptr + FACTORS + operation)
        grey = _grey(r, g, b, C)
        is_hue = operation == HUE
        if operation == CONTRAST:
            greys = tl.sum(tl.where(keep, grey, 0.0), 0)
            if WHOLE:
                mean = greys / area
        if is_hue & (f != 0) & (C == 3):
            r, g, b = _turn_hue(r, g, b, f)
        else:
            f = tl.where(is_hue, 1.0, f)
            base = tl.where(operation == SATURATION, grey, 0.0)
            base = (1 - f) * tl.where(operation == CONTRAST, mean, base)
            r, g, b = _unit(f * r + base), _unit(f * g + base), _unit(f * b + base)
    return r, g, b, greys


@triton.jit
def _mean_grey(grey_ptr, area, TILES: tl.constexpr, SLOTS: tl.constexpr):
    """Mean of a whole view from the sums of its tiles, in one order, whoever adds them."""
    tile = tl.arange(0, SLOTS)
    greys = tl.load(grey_ptr + tile, mask=tile < TILES, other=0.0)
    return tl.sum(greys, 0) / area


@triton.jit
def _finish(x, c, y, column, row_ptr, mean0, mean1, mean2, scale0, scale1, scale2):
    """Solarise, normalise, erase."""
    x = tl.where(tl.load(row_ptr + SOLARIZE) > 0, tl.where(x >= 128 / 255, 1 - x, x), x)
    mean = tl.where(c == 0, mean0, tl.where(c == 1, mean1, mean2))
    x = (x - mean) * tl.where(c == 0, scale0, tl.where(c == 1, scale1, scale2))
    box_ptr = row_ptr + ERASE
    top, left = tl.load(box_ptr), tl.load(box_ptr + 1)
    is_erased = (y >= top) & (y < top + tl.load(box_ptr + 2))
    is_erased &= (column >= left) & (column < left + tl.load(box_ptr + 3))
    return tl.where(is_erased, 0.0, x)


@triton.jit(do_not_specialize=["first"])
def view_kernel(
    image_ptr, table_ptr, grey_ptr, sharp_ptr, view_ptr, first, H, W, S,
    stride_b, stride_c, stride_h, stride_w, mean0, mean1, mean2, scale0, scale1, scale2,
    C: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, SLOTS: tl.constexpr,
    CUBIC: tl.constexpr, MOVED: tl.constexpr, JITTERED: tl.constexpr, GREY_FIRST: tl.constexpr,
    MEASURE: tl.constexpr, BLURRED: tl.constexpr,
):  # fmt: skip
    """A tile of a view; to sharp_ptr, not finished, if it is to be blurred.

    MEASURE: only the sum of its greys at the turn of contrast.
    """
    sample = (tl.program_id(0) // TILES).to(tl.int64)
    tile = tl.program_id(0) % TILES
    image_ptr += (first + sample) * stride_b
    row_ptr = table_ptr + (first + sample) * COLUMNS
    p = tile * BLOCK + tl.arange(0, BLOCK)
    y, x, keep = p // S, p % S, p < S * S
    r, g, b = _geometry(image_ptr, row_ptr, y, x, keep, H, W, S, stride_c, stride_h, stride_w, C,
                        CUBIC, MOVED)  # fmt: skip
    bits = tl.load(row_ptr + POSTERIZE)
    r, g, b = _posterize(r, bits), _posterize(g, bits), _posterize(b, bits)
    if GREY_FIRST:
        r, g, b = _grayscale(r, g, b, row_ptr, C)
    if JITTERED:
        area = S * S
        mean = 0.0
        if TILES > 1 and not MEASURE:
            mean = _mean_grey(grey_ptr + sample * TILES, area, TILES, SLOTS)
        r, g, b, greys = _jitter(r, g, b, keep, row_ptr, mean, area, C, TILES == 1)
        if MEASURE:
            tl.store(grey_ptr + sample * TILES + tile, greys)
    if not MEASURE:
        if not GREY_FIRST:
            r, g, b = _grayscale(r, g, b, row_ptr, C)
        is_sharp = keep
        if BLURRED:
            is_sharp = tl.where(tl.load(row_ptr + BLUR_SIGMA) > 0, False, keep)
        for c in tl.static_range(C):
            v = r if c == 0 else (g if c == 1 else b)
            place = (sample * C + c) * S * S + p
            done = _finish(v, c, y, x, row_ptr, mean0, mean1, mean2, scale0, scale1, scale2)
            out = view_ptr + first * C * S * S + place
            tl.store(out, done.to(view_ptr.dtype.element_ty), mask=is_sharp)
            if BLURRED:
                tl.store(sharp_ptr + place, v, mask=keep & ~is_sharp)


@triton.jit(do_not_specialize=["first", "radius"])
def blur_pass_kernel(
    in_ptr, table_ptr, view_ptr, first, S, radius, mean0, mean1, mean2, scale0, scale1, scale2,
    C: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """One direction of the blur of a tile of one channel: along the rows, then (LAST) the columns,
    where the view is finished and goes to its place in the batch."""
    plane = (tl.program_id(0) // TILES).to(tl.int64)
    sample, c = plane // C, plane % C
    row_ptr = table_ptr + (first + sample) * COLUMNS
    sigma = tl.load(row_ptr + BLUR_SIGMA)
    if sigma > 0:
        p = (tl.program_id(0) % TILES) * BLOCK + tl.arange(0, BLOCK)
        y, x, keep = p // S, p % S, p < S * S
        in_ptr += plane * S * S
        radius = tl.minimum(radius, (6.5 * tl.minimum(sigma, 1e6)).to(tl.int32) + 1)
        blurred = tl.zeros([BLOCK], tl.float32)
        total = 0.0
        for d in range(-radius, radius + 1):
            weight = tl.exp(-0.5 * (d / sigma) * (d / sigma))
            i = tl.abs((y if LAST else x) + d)
            i = tl.where(i < S, i, 2 * (S - 1) - i)  # mirrored at the border
            source = i * S + x if LAST else y * S + i
            blurred += weight * tl.load(in_ptr + source, mask=keep, other=0.0)
            total += weight
        blurred /= total
        if LAST:
            view_ptr += first * C * S * S
            blurred = _finish(blurred, c, y, x, row_ptr, mean0, mean1, mean2, scale0, scale1,
                              scale2)  # fmt: skip
        out = view_ptr + plane * S * S + p
        tl.store(out, blurred.to(view_ptr.dtype.element_ty), mask=keep)


@torch.library.custom_op("sslops::augment_triton", mutates_args=())
def _augment(
    images: torch.Tensor, table: torch.Tensor, steps: str, size: int, mean: Sequence[float],
    std: Sequence[float], dtype: torch.dtype, cubic: bool, grayscale_first: bool, blur_kernel: int,
) -> torch.Tensor:  # fmt: skip
    B, C, H, W = images.shape
    steps, table = steps.split(), table.contiguous()
    out = images.new_empty((B, C, size, size), dtype=dtype)
    block = min(LARGEST_BLOCK, max(128, launch.power_of_two(size * size)))
    tiles = launch.ceil_div(size * size, block)
    is_jittered, is_blurred = "factors" in steps, "blur_sigma" in steps
    padding = [0.0] * (3 - C)
    statistics = *mean, *padding, *(1 / s for s in std), *padding
    shape = dict(C=C, BLOCK=block, TILES=tiles, num_warps=WARPS, enable_fp_fusion=True)
    view = dict(**shape, SLOTS=launch.power_of_two(tiles), CUBIC=cubic, MOVED="affine" in steps,
                JITTERED=is_jittered, GREY_FIRST=grayscale_first)  # fmt: skip
    at_once = max(1, BLURRED_AT_ONCE // (C * size * size)) if is_blurred else max(B, 1)
    greys = table.new_empty(min(at_once, B) * tiles)
    sharp, half = (table.new_empty((min(at_once, B), C, size, size) if is_blurred else 0)
                   for _ in range(2))  # fmt: skip
    with torch.cuda.device_of(images):
        for first in range(0, B, at_once):
            n = min(at_once, B - first)
            for measure in (True, False) if is_jittered and tiles > 1 else (False,):
                view_kernel[(n * tiles,)](
                    images, table, greys, sharp, out, first, H, W, size, *images.stride(),
                    *statistics, MEASURE=measure, BLURRED=is_blurred, **view,
                )  # fmt: skip
            if is_blurred:
                for source, target, last in ((sharp, half, False), (half, out, True)):
                    blur_pass_kernel[(n * C * tiles,)](
                        source, table, target, first, size, blur_kernel // 2, *statistics,
                        LAST=last, **shape,
                    )  # fmt: skip
    return out


@_augment.register_fake
def _(images, table, steps, size, mean, std, dtype, cubic, grayscale_first, blur_kernel):
    return images.new_empty((*images.shape[:2], size, size), dtype=dtype)


def unsupported(images, table, steps, size, mean, std, dtype, *options):
    if dtype not in DTYPES:
        return f"it computes in float32; got {dtype}"
    return launch.why_not_device(images)


def augment(
    images, table, steps, size, mean, std, dtype, interpolation, grayscale_first, blur_kernel
):
    """See sslops.ops.augment for the arguments of a backend."""
    return _augment(images, table, steps, size, mean, std, dtype, interpolation == "bicubic",
                    grayscale_first, blur_kernel)  # fmt: skip
