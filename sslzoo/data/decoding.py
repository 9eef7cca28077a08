"""Image files of every colour mode to uint8 RGB."""

import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps

from sslzoo.data.image_data import DataError

# What Pillow raises on damaged files, by format.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
          Image.DecompressionBombError)  # fmt: skip


def decode(file, where):
    """Decode an image file to uint8 [3, H, W], upright by its EXIF orientation.

    Args:
        file: path or binary file object.
        where: how an error names this image.
    """
    try:
        with Image.open(file) as image:
            image.load()
            rgb = to_rgb(ImageOps.exif_transpose(image))
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{where} is not a readable image ({reason})") from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def to_rgb(image):
    """RGB of any mode: transparency over white, deep greys scaled to 8 bits."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(deep_grey_to_uint8(np.asarray(image), image.mode))
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if has_alpha:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def deep_grey_to_uint8(grey, mode):
    """8-bit greys of 16-bit, 32-bit (which holds 16) or floating-point ones."""
    grey = grey.astype(np.float64)
    if mode == "F":
        grey = grey * 255 if grey.max() <= 1 else grey
    elif mode.startswith("I;16") or grey.max() > 255:
        grey = grey / 257
    return np.rint(np.clip(np.nan_to_num(grey), 0, 255)).astype(np.uint8)
