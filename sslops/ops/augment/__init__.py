"""Random views of a batch of images, every sample with parameters of its own.

What a backend of this op receives, already checked:

    augment(images, table, steps, size, mean, std, dtype, interpolation, grayscale_first,
            blur_kernel) -> [B, C, size, size] of dtype, contiguous

    images           uint8 [B, C, H, W], C = 1 or 3, any strides
    table            float32 [B, 27], the parameters side by side (parameters.py), on the device
    steps            names of the parameters that were given, with blanks between: the others are
                     neutral in every row, so a backend may leave their steps out
    mean, std        lists of C floats
    interpolation    "bilinear" or "bicubic", antialiased
    blur_kernel      odd, less than 2 size

Order: crop and resize, flip, affine, posterise, colour jitter, grey, blur, solarise, normalise,
erase; with grayscale_first grey comes before the jitter. Nothing has a gradient.
"""

import torch

from sslops import arguments, registry
from sslops.ops.augment.parameters import NEUTRAL, sample_parameters, table_of
from sslops.ops.augment.spec import IMAGENET_MEAN, IMAGENET_STD, ViewSpec

__all__ = ["ViewSpec", "augment", "sample_parameters"]

_backends = registry.load("augment", "cpu", "triton", "chunked", "reference")
DTYPES = torch.float32, torch.bfloat16, torch.float16, torch.float64


def augment(
    images,
    parameters,
    size,
    *,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    dtype=torch.float32,
    interpolation="bilinear",
    grayscale_first=False,
    blur_kernel=0,
    backend=None,
):
    """Normalised views of a batch of images, each cropped and coloured by its own parameters.

    With a crop and a flip alone a view equals, in torchvision's functions,

        normalize(hflip(resized_crop(image / 255, *crop, size, antialias=True)), mean, std)

    Args:
        images: uint8 [B, C, H, W], C = 1 or 3.
        parameters: dictionary of tensors as `sample_parameters` draws them, on any device; what
            is absent is not done. Crops may reach beyond the image, where all is black.
        size: side of the views in pixels.
        mean, std: C values each, in units of the range 0 to 1.
        dtype: of the views: float32, bfloat16, float16 or float64.
        interpolation: "bilinear" or "bicubic".
        grayscale_first: grey before the colour jitter instead of after it.
        blur_kernel: width of the Gaussian blur in pixels, odd; 0 takes size / 10 made odd.
        backend: force "cpu", "triton", "chunked" or "reference"; None takes the first that can run.

    Returns:
        [B, C, size, size] of `dtype` on the device of `images`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or range.
        RuntimeError: the forced backend cannot run here.

    Source:
        Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
        Representations", 2020, appendix A; Grill et al., BYOL, 2020, appendix B (solarisation).

    Example:
        >>> import torch, sslops
        >>> images = torch.full((2, 3, 8, 8), 102, dtype=torch.uint8)
        >>> parameters = {"crop": torch.tensor([[0, 0, 8, 8], [2, 2, 4, 4]])}
        >>> views = sslops.augment(images, parameters, 4, mean=(0.4,) * 3, std=(1.0,) * 3)
        >>> print(tuple(views.shape), f"{views.abs().max():.4f}")
        (2, 3, 4, 4) 0.0000
    """
    _check_images(images)
    mean, std = _statistics("mean", mean, images), _statistics("std", std, images)
    arguments.check_choice("interpolation", interpolation, ("bilinear", "bicubic"))
    arguments.check_choice("dtype", dtype, DTYPES)
    _check_size(size, blur_kernel)
    unknown = sorted(set(parameters) - set(NEUTRAL))
    if unknown:
        raise ValueError(f"parameters may hold {', '.join(NEUTRAL)}; got {', '.join(unknown)}")
    steps = " ".join(name for name in NEUTRAL if name in parameters)
    table = table_of(parameters, images)
    kernel = blur_kernel or size // 10 | 1
    return _backends(backend, images, table, steps, size, mean, std, dtype, interpolation,
                     grayscale_first, kernel)  # fmt: skip


def _check_images(images):
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        raise TypeError(f"images must be a uint8 tensor; got {arguments.describe(images)}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(
            f"images must be [B, C, H, W] with C = 1 or 3; got {arguments.describe(images)}"
        )


def _statistics(name, values, images):
    values = [float(v) for v in values]
    if len(values) != images.shape[1] or (name == "std" and not min(values) > 0):
        above = " above 0" * (name == "std")
        raise ValueError(f"{name} must have {images.shape[1]} values{above}; got {values}")
    return values


def _check_size(size, blur_kernel):
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"size must be an int; got {arguments.describe(size)}")
    if not 1 <= size < 2**14:
        raise ValueError(f"size must be in [1, 2**14); got {size}")
    if blur_kernel and not (blur_kernel % 2 == 1 and 0 < blur_kernel < 2 * size):
        raise ValueError(f"blur_kernel must be odd and below 2 size, or 0; got {blur_kernel}")
