"""Pictures of copied colours and of attention between the frames of a clip."""

import torch
import torch.nn.functional as F

from sslzoo.lab import lab_to_rgb, rgb_to_lab
from sslzoo.pictures import grid, to_uint8

RED = (1.0, 0.0, 0.0)


def color_picture(references, targets, copied):
    """Reference, grey target, target with the copied colours, and target.

    Args:
        references, targets: RGB [B, 3, S, S] from 0 to 1.
        copied: a and b of each cell, [B, 2, h, w].
    """
    lightness = rgb_to_lab(targets)[:, :1]
    ab = F.interpolate(copied.to(targets), targets.shape[-2:], mode="bilinear")
    colored = lab_to_rgb(torch.cat([lightness, ab], 1))
    return grid([to_uint8(x) for x in (references, lightness / 100, colored, targets)],
                samples_per_row=2)  # fmt: skip


def attention_picture(clips, attention, cell):
    """The target with a red point, and on each reference how much that point looks at it.

    Args:
        clips: RGB [B, R + 1, 3, S, S] from 0 to 1; the target is last.
        attention: of one target cell, [B, R, h, w].
        cell: its number, row by row.
    """
    (h, w), size = attention.shape[-2:], clips.shape[-2:]
    point = torch.zeros(h * w, device=clips.device)
    point[cell] = 1
    point = F.interpolate(point.reshape(1, 1, h, w), size, mode="nearest")
    red = torch.tensor(RED, device=clips.device)[:, None, None]
    columns = [torch.where(point > 0, red, clips[:, -1])]
    heat = attention / attention.amax((1, 2, 3), keepdim=True)
    heat = F.interpolate(heat, size, mode="nearest")
    for number in range(heat.shape[1]):
        weight = heat[:, number, None]
        columns.append(weight * red + (1 - weight) * 0.6 * clips[:, number])
    return grid([to_uint8(x) for x in columns], samples_per_row=1)
