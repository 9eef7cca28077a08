"""Masks and keypoints carried from the first frame of a video through all others by attention.

Each cell of a frame points at cells of frames before it, and takes their labels in the proportions
of the attention; labels stay soft until the end.
"""

from collections import deque
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

import sslops

# One call of the operation copies at most so many channels.
CHANNELS_AT_ONCE = 64
SIDE_MULTIPLE = 64
KEYPOINT_SIGMA = 0.5  # cells
KEYPOINT_CELLS = 3  # the best cells, whose weighted mean is a keypoint's place


@dataclass(frozen=True)
class Protocol:
    """How labels are carried on.

    Attributes:
        temperature: of the softmax over reference cells.
        last_frames: references are so many frames before the present one,
        keeps_first: and the first frame.
        topk: reference cells that a cell copies from; None is all.
        radius: of the window around a cell, in cells; None is none.
        limits_first: whether the window also holds in the first frame.
        normalize: embeddings of length 1.
        stretches: each channel is stretched to 0 to 1 before the best is taken.
    """

    temperature: float
    last_frames: int
    keeps_first: bool = True
    topk: int | None = None
    radius: int | None = None
    limits_first: bool = True
    normalize: bool = True
    stretches: bool = True


# paper: Vondrick et al., 2018. dino: facebookresearch/dino. crw: ajabri/videowalk.
PROTOCOLS = {
    "paper": Protocol(temperature=0.5, last_frames=3, keeps_first=False, normalize=False,
                      stretches=False),
    "dino": Protocol(temperature=0.1, last_frames=7, topk=5, radius=12),
    "crw": Protocol(temperature=0.05, last_frames=20, topk=10, radius=12, limits_first=False),
}  # fmt: skip


def propagate(features, labels, protocol):
    """Carry the labels of the first frame through a video.

    Args:
        features: iterable of [D, h, w], one for each frame in order.
        labels: [C, h, w] of the first frame; soft or one-hot.
        protocol: Protocol.

    Yields:
        [C, h, w] float32 for each frame; the first is `labels`.

    Example:
        >>> import torch
        >>> cells = 50 * torch.eye(4).reshape(4, 2, 2)  # every cell has an embedding of its own
        >>> labels = torch.tensor([[[1.0, 0], [0, 0]]])
        >>> moved = cells.flip(2)  # left and right change places
        >>> out = [*propagate([cells, moved], labels, PROTOCOLS["paper"])]
        >>> out[1].round()
        tensor([[[0., 1.],
                 [0., 0.]]])
    """
    labels = labels.float()
    first, recent = None, deque(maxlen=protocol.last_frames)
    for feature in features:
        f = rows(feature.float())
        if protocol.normalize:
            f = F.normalize(f, dim=-1)
        if first is None:
            first = (f, rows(labels).to(f.device))
            memory = first
        else:
            keeps = protocol.keeps_first and all(pair is not first for pair in recent)
            context = [first] * keeps + [*recent]
            is_limited = [pair is not first or protocol.limits_first for pair in context]
            memory = (f, attend(f, context, is_limited, feature.shape[1:], protocol))
        recent.append(memory)
        yield memory[1].mT.unflatten(-1, feature.shape[1:])


def rows(x):
    """[C, h, w] to a row for each cell, [h w, C]."""
    return x.flatten(1).mT.contiguous()


def attend(f, context, is_limited, grid, protocol):
    """Labels [h w, C] of a frame from pairs (embeddings, labels) of reference frames."""
    f_i = torch.cat([pair[0] for pair in context])
    values = torch.cat([pair[1] for pair in context])
    radius = None
    if protocol.radius is not None:
        radius = [protocol.radius if limited else None for limited in is_limited]
    options = dict(temperature=protocol.temperature, grid=tuple(grid), radius=radius,
                   topk=protocol.topk and min(protocol.topk, len(f_i)))  # fmt: skip
    parts = values.split(CHANNELS_AT_ONCE, dim=1)
    copied = [sslops.color_attention(f[None], f_i[None], v[None].contiguous(), **options)[0]
              for v in parts]  # fmt: skip
    return torch.cat(copied, 1)


def frame_size(height, width, short_side):
    """(height, width) of the network's input: the long side is cut to a multiple of 64.

    Example:
        >>> frame_size(480, 854, 480)
        (480, 832)
    """
    scale = short_side / min(height, width)
    long_side = max(int(max(height, width) * scale) // SIDE_MULTIPLE * SIDE_MULTIPLE, short_side)
    return (short_side, long_side) if height <= width else (long_side, short_side)


def resize(frame, size):
    """uint8 [3, H, W] to float from 0 to 1 of another size."""
    return tv.resize(frame, list(size), antialias=True).float() / 255


def mask_to_cells(mask, cells):
    """One-hot labels [1 + objects, h, w] of the nearest pixels of a mask, integer [H, W]."""
    small = F.interpolate(mask[None, None].float(), tuple(cells), mode="nearest-exact")
    return F.one_hot(small[0, 0].long(), int(mask.max()) + 1).permute(2, 0, 1).float()


def cells_to_mask(labels, size, protocol, input_size):
    """The best label of each pixel, uint8 [H, W], from soft labels [C, h, w]."""
    if labels.ndim != 3:
        raise ValueError(f"labels must be [C, h, w]; got {tuple(labels.shape)}")
    large = F.interpolate(labels[None], tuple(input_size), mode="bilinear")[0]
    if protocol.stretches:
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        large = (large - low) / (high - low).clamp(min=1e-12)
    best = large.argmax(0)
    return F.interpolate(best[None, None].float(), tuple(size), mode="nearest-exact")[0, 0].byte()


def keypoints_to_cells(keypoints, cells, size):
    """A small Gaussian for each visible joint, [K, h, w]; zeros for the others.

    Args:
        keypoints: [K, 3] x, y in pixels and whether it is visible.
        cells: (h, w).
        size: (height, width) of the frame in pixels.
    """
    h, w = cells
    x = (keypoints[:, 0] + 0.5) * w / size[1] - 0.5
    y = (keypoints[:, 1] + 0.5) * h / size[0] - 0.5
    # At least on a cell: a joint at the rim lies between the outer cells' centres and the rim.
    x, y = x.clamp(0, w - 1), y.clamp(0, h - 1)
    dx = torch.arange(w) - x[:, None]
    dy = torch.arange(h) - y[:, None]
    squares = dy[:, :, None] ** 2 + dx[:, None, :] ** 2
    maps = torch.exp(-squares / (2 * KEYPOINT_SIGMA**2))
    is_near = squares <= (3 * KEYPOINT_SIGMA) ** 2
    return maps * is_near * (keypoints[:, 2] > 0)[:, None, None]


def cells_to_keypoints(maps, size):
    """Places of joints from their maps: the weighted mean of the three best cells.

    Args:
        maps: [K, h, w].
        size: (height, width) of the frame in pixels.

    Returns:
        [K, 2] x and y in pixels; (-1, -1) where a map is zero everywhere.
    """
    _, h, w = maps.shape
    weight, cell = maps.flatten(1).topk(min(KEYPOINT_CELLS, h * w))
    total = weight.sum(1, keepdim=True)
    weight = weight / total.clamp(min=torch.finfo(weight.dtype).tiny)
    x = ((cell % w) * weight).sum(1)
    y = ((cell // w) * weight).sum(1)
    places = torch.stack([(x + 0.5) * size[1] / w - 0.5, (y + 0.5) * size[0] / h - 0.5], 1)
    return torch.where(total > 0, places, -1.0)
