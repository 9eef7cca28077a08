"""Masks of objects in frames: read, written and drawn.

A mask is uint8 [H, W], 0 for the background and 1, 2, ... for objects.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw

from sslzoo.data import DataError
from sslzoo.evaluation.tracking import boundary
from sslzoo.pictures import grid

VOID = 255  # of indexed masks: neither object nor background
OBJECT_COLORS = ((220, 50, 47), (38, 139, 210), (133, 153, 0), (211, 54, 130), (181, 137, 0),
                 (42, 161, 152), (108, 113, 196), (203, 75, 22))  # fmt: skip
WHITE = (255, 255, 255)
TILE_WIDTH = 320
SHEET_COLUMNS = 6  # of a sheet with a row for each sequence
DOT = 4  # radius of a joint in a picture, in pixels


def read_mask(path, size):
    """The mask of a frame.

    Args:
        path: an indexed, grey or bilevel PNG; 255 is void in an indexed one.
        size: (height, width) that it must have.
    """
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is no readable mask ({error})") from error
    if values.ndim != 2:
        raise DataError(f"{path} must be an indexed or grey PNG; its mode is {mode}")
    if values.shape != tuple(size):
        raise DataError(f"the mask {path} is {values.shape[1]} x {values.shape[0]} pixels; "
                         f"the video is {size[1]} x {size[0]}")  # fmt: skip
    (mask,) = number_objects(values[None], mode)
    if not mask.any():
        raise DataError(f"the mask {path} holds no object: all pixels are background")
    return mask


def number_objects(values, mode):
    """Masks uint8 [T, H, W] of one video: indices as they are, greys as 1, 2, ... as they rise.

    Args:
        values: what the pictures hold, integer or bool [T, H, W].
        mode: PIL's, "P" for indices.
    """
    values = torch.from_numpy(np.ascontiguousarray(values).astype(np.int64))
    if mode == "P":
        return values.masked_fill(values == VOID, 0).to(torch.uint8)
    levels = values.unique()
    levels = levels[levels > 0]
    if len(levels) > VOID:
        raise DataError(f"a grey mask has {len(levels)} different values; 255 objects are most")
    return (torch.searchsorted(levels, values, right=True) * (values > 0)).to(torch.uint8)


def save_mask(path, mask):
    """Write an indexed PNG."""
    image = Image.fromarray(mask.numpy())
    image.putpalette(palette().tobytes())  # a grey image becomes an indexed one
    image.save(path)


def palette():
    """256 colours, uint8 [256, 3]: black, then those of the objects again and again."""
    colors = [OBJECT_COLORS[i % len(OBJECT_COLORS)] for i in range(255)]
    return np.array([(0, 0, 0), *colors], np.uint8)


def overlay(frame, mask, truth=None):
    """A frame with its objects tinted, and the boundaries of the true ones white.

    Args:
        frame: uint8 [3, H, W].
        mask, truth: uint8 [H, W].

    Returns:
        uint8 [H, W, 3].
    """
    frame, mask = frame.permute(1, 2, 0).numpy(), mask.numpy()
    tinted = ((frame.astype(np.uint16) + palette()[mask]) // 2).astype(np.uint8)
    picture = np.where(mask[..., None] > 0, tinted, frame)
    if truth is not None:
        picture[boundary(truth.numpy())] = WHITE
    return picture


def draw_joints(picture, places, truth):
    """A picture with a coloured dot for each tracked joint and a line to where it truly is.

    Args:
        picture: uint8 [H, W, 3].
        places: [K, 2] x and y in pixels; (-1, -1) for a joint that was given up.
        truth: [K, 3] x, y and whether the joint is visible; others are not drawn.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for number, ((x, y), (true_x, true_y, is_visible)) in enumerate(
        zip(places, truth, strict=True)
    ):
        if not is_visible:
            continue
        draw.circle((true_x, true_y), DOT, outline=WHITE)
        if (x, y) != (-1, -1):
            draw.line((x, y, true_x, true_y), fill=WHITE)
            draw.circle((x, y), DOT, fill=OBJECT_COLORS[number % len(OBJECT_COLORS)])
    return np.array(image)


def joint_tiles(video, frames, tracked, truth):
    """A row of a sheet: tracked joints [A, K, 2] and true ones [A, K, 3] of some of the frames."""
    tiles = []
    for k in np.linspace(0, len(frames) - 1, SHEET_COLUMNS).round().astype(int):
        frame = video.frames([frames[k]])[0].permute(1, 2, 0).numpy()
        tiles.append(tile(draw_joints(frame, tracked[k], truth[k])))
    return tiles


def tile(picture):
    """A picture of a sheet, uint8 [3, h, TILE_WIDTH], from uint8 [H, W, 3]."""
    height = round(picture.shape[0] * TILE_WIDTH / picture.shape[1])
    small = Image.fromarray(picture).resize((TILE_WIDTH, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def save_sheet(path, tiles, columns):
    """Write a contact sheet of tiles, row by row; lower ones are centred."""
    height = max(x.shape[1] for x in tiles)
    frames = []
    for x in tiles:
        top = (height - x.shape[1]) // 2
        pad = (0, 0, top, height - x.shape[1] - top)
        frames.append(torch.nn.functional.pad(x, pad, value=255))
    sheet = grid([torch.stack(frames)], samples_per_row=columns)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
