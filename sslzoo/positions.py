"""Positions of patches as fixed sines and cosines, and position tables at another resolution."""

import torch
import torch.nn.functional as F


def sincos_positions(rows, columns, width, *, class_token=True, row_first=False):
    """A table of fixed positions of a grid: half of the width tells the column, half the row.

    Each half is [sin(t w_k), cos(t w_k)] with w_k = 10000^(-k / (width / 4)). Patches go row by
    row; the class token in front of them has position 0.

    Args:
        rows, columns: patches along the sides of the image.
        width: of a token, a multiple of 4.
        class_token: whether a row of zeros comes first.
        row_first: the first half tells the row, as in MoCo v3; in MAE it tells the column.

    Returns:
        float32 [1, class_token + rows * columns, width].

    Source:
        The official code of MAE and of MoCo v3; in float64 until the end, as there.

    Example:
        >>> sincos_positions(2, 2, 4)[0].round(decimals=2)  # sin x, cos x, sin y, cos y
        tensor([[0.0000, 0.0000, 0.0000, 0.0000],
                [0.0000, 1.0000, 0.0000, 1.0000],
                [0.8400, 0.5400, 0.0000, 1.0000],
                [0.0000, 1.0000, 0.8400, 0.5400],
                [0.8400, 0.5400, 0.8400, 0.5400]])
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4; got {width}")
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = (y, x) if row_first else (x, y)
    angles = [place.reshape(-1, 1) * omega for place in places]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1)
    if class_token:
        table = torch.cat([torch.zeros(1, width, dtype=torch.float64), table])
    return table[None].float()


def resize_positions(table, side, *, num_prefix_tokens=1):
    """A position table [1, prefix + s * s, D] for side x side patches, by bicubic interpolation."""
    prefix, grid = table.split([num_prefix_tokens, table.shape[1] - num_prefix_tokens], 1)
    old = round(grid.shape[1] ** 0.5)
    if old == side:
        return table
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([prefix, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
