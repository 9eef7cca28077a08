"""Nearest images: recall at k and a picture of the neighbours."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sslzoo.data import DataError

CHUNK_BYTES = 2**28
RIGHT, WRONG, QUERY = (0, 150, 60), (210, 40, 40), (40, 90, 200)
FRAME = 3  # pixels around a picture


@torch.no_grad()
def nearest(queries, gallery, k, *, same_set=False):
    """Rows of the k nearest gallery samples by cosine, the nearest first: int64 [M, k].

    Args:
        queries: [M, d]; gallery: [N, d].
        same_set: both are the same samples in the same order; none finds itself.

    Raises:
        DataError: the gallery holds fewer samples than k.

    Example:
        >>> import torch
        >>> nearest(torch.eye(2), torch.tensor([[1.0, 0.1], [0.0, 1.0]]), 1).tolist()
        [[0], [1]]
    """
    N = len(gallery) - same_set
    if k > N:
        raise DataError(f"{k} neighbours were asked, but there are only {N} images to find")
    queries, gallery = (F.normalize(x.float(), dim=-1) for x in (queries, gallery))
    chunk = max(1, CHUNK_BYTES // (4 * len(gallery)))
    rows = []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ gallery.T
        if same_set:
            similarity.diagonal(start).fill_(-torch.inf)
        rows.append(similarity.topk(k, dim=1).indices)
    return torch.cat(rows)


def recall_at(rows, query_labels, gallery_labels, ks):
    """{k: share of queries with a sample of their class among the k nearest}."""
    hits = gallery_labels[rows] == query_labels[:, None]
    return {k: hits[:, :k].any(1).double().mean().item() for k in ks}


def draw_neighbours(path, queries, found, hits, tile=64):
    """A picture: a query in each line, then its neighbours, framed by whether the class is right.

    Args:
        queries: list of uint8 [C, H, W]; found: for each a list of neighbours, the nearest first.
        hits: for each a list of bools, or None without labels.
        tile: side of a picture in pixels.
    """
    lines = []
    for row, (query, neighbours) in enumerate(zip(queries, found, strict=True)):
        colours = [QUERY] * (1 + len(neighbours))
        if hits is not None:
            colours = [QUERY] + [RIGHT if hit else WRONG for hit in hits[row]]
        tiles = [framed(image, colour, tile)
                 for image, colour in zip([query, *neighbours], colours, strict=True)]  # fmt: skip
        lines.append(np.concatenate(tiles, 1))
    Image.fromarray(np.concatenate(lines)).save(path)


def framed(image, colour, tile):
    """uint8 [tile, tile, 3] of uint8 [C, H, W], with a frame and a white gap around it."""
    inner = tile - 2 * FRAME - 2
    out = np.full((tile, tile, 3), 255, np.uint8)
    out[1:-1, 1:-1] = colour
    out[FRAME + 1 : -FRAME - 1, FRAME + 1 : -FRAME - 1] = thumbnail(image, inner)
    return out


def thumbnail(image, side):
    """uint8 [side, side, 3] of uint8 [C, H, W]: the centre square, grey or colour."""
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    H, W, _ = pixels.shape
    S = min(H, W)
    top, left = (H - S) // 2, (W - S) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + S, left : left + S]))
    return np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))


def sprite(images, side, columns):
    """One picture uint8 [H, W, 3] of many thumbnails, line by line."""
    lines = -(-len(images) // columns)
    out = np.full((lines * side, columns * side, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        out[y * side : (y + 1) * side, x * side : (x + 1) * side] = thumbnail(image, side)
    return out
