"""KoLeo in plain PyTorch, a few rows of products at a time: on any device, any dtype."""

import torch

from sslops.unit_rows import at_least_float32, unit_rows

PRODUCTS_PER_CHUNK = 1 << 20  # 4 MiB in float32: the maximum is taken while they are in the cache


def unsupported(*args, **kwargs):
    return None


@torch.library.custom_op("sslops::koleo_chunked", mutates_args=())
def nearest(features: torch.Tensor, candidates: torch.Tensor, offset: int) -> torch.Tensor:
    """Index of the candidate with the largest cosine, of every row but its own."""
    x_BND, y_BMD = at_least_float32(features), unit_rows(candidates)
    (B, N, _), M = x_BND.shape, y_BMD.shape[1]
    n = max(1, PRODUCTS_PER_CHUNK // M)
    found = features.new_empty((B, N), dtype=torch.int64)
    for b in range(B):
        for start in range(0, N, n):
            products = x_BND[b, start : start + n] @ y_BMD[b].T
            products.diagonal(offset + start).fill_(-torch.inf)
            products.masked_fill_(products.isnan(), -torch.inf)
            found[b, start : start + n] = products.argmax(1)
    return found


def koleo(features, candidates, offset):
    """See sslops.ops.koleo for the arguments of a backend."""
    return nearest(features, candidates, offset)


@nearest.register_fake
def _(features, candidates, offset):
    return features.new_empty(features.shape[:2], dtype=torch.int64)
