"""Contact sheets: tensors of images to one uint8 picture."""

import torch
import torch.nn.functional as F


def to_uint8(x, mean=0.0, std=1.0):
    """Normalised images [B, C, H, W] as uint8 [B, 3, H, W] on the CPU; grey ones become RGB.

    Args:
        x: images.
        mean, std: of the normalisation that is undone; a number, or one for each channel.
    """
    mean, std = (torch.as_tensor(v, dtype=torch.float32).reshape(-1, 1, 1) for v in (mean, std))
    x = (x.detach().float().cpu() * std + mean).clamp(0, 1)
    return (255 * x).round().to(torch.uint8).expand(-1, 3, -1, -1)


def grid(columns, *, samples_per_row=4, gap=2, least_side=64):
    """One picture in which each sample shows its image from every column, side by side.

    Args:
        columns: list of uint8 [B, 3, H, W], such as input, prediction and original.
        samples_per_row: samples beside each other.
        gap: white pixels between images.
        least_side: smaller images are enlarged by a whole factor to about this, in pixels.

    Returns:
        uint8 [3, height, width].

    Example:
        >>> import torch
        >>> black = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
        >>> grid([black, black], samples_per_row=2, least_side=8).shape  # 2 rows of 2 x 2 images
        torch.Size([3, 22, 42])
    """
    factor = max(1, least_side // columns[0].shape[-1])
    tiles = torch.stack(columns, 1)  # [B, columns, 3, H, W]
    tiles = tiles.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    missing = -len(tiles) % samples_per_row
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, 0, 0, missing), value=255)
    tiles = F.pad(tiles, (gap, 0, gap, 0), value=255)
    B, n, C, H, W = tiles.shape
    sheet = tiles.reshape(B // samples_per_row, samples_per_row * n, C, H, W)
    sheet = sheet.permute(2, 0, 3, 1, 4).reshape(C, -1, samples_per_row * n * W)
    return F.pad(sheet, (0, gap, 0, gap), value=255)
