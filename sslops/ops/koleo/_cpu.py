"""KoLeo on the CPU: csrc/cpu/koleo.cpp, half the products of the matrix and none of them stored."""

import torch

import sslops._C as _C
from sslops import cpu_helpers
from sslops.cpu_helpers import address
from sslops.unit_rows import SMALLEST_NORM


def unsupported(features, candidates, offset):
    if features.shape[-1] == 0:
        return "rows of width 0"
    return cpu_helpers.why_not_cpu(features)


def norms(x):
    """The length of every row; inf where unit_rows gives zeros."""
    norm = torch.linalg.vector_norm(x, dim=-1)
    return torch.where(norm <= SMALLEST_NORM, torch.inf, norm)


@torch.library.custom_op("sslops::koleo_cpu", mutates_args=(), device_types="cpu")
def nearest(features: torch.Tensor, candidates: torch.Tensor, offset: int) -> torch.Tensor:
    """Index of the candidate with the largest cosine, of every row but its own."""
    (B, N, D), M = features.shape, candidates.shape[1]
    alike = features.data_ptr() == candidates.data_ptr() and N == M and offset == 0
    alike = alike and features.stride() == candidates.stride()
    x = features.float().contiguous()
    y = None if alike else candidates.float().contiguous()
    x_norm, y_norm = norms(x), None if alike else norms(y)
    threads = cpu_helpers.threads_for(N, M, D * B)
    # A round of the triangle has half as many pairs as there are blocks: two for every thread.
    block = cpu_helpers.block_rows(N, 4 * threads)
    index = torch.empty((B, N), dtype=torch.int64)
    _C.koleo_nearest(address(x), address(x_norm), address(y), address(y_norm), B, N, M, D, offset,
                     block, threads, address(index))  # fmt: skip
    return index


def koleo(features, candidates, offset):
    """See sslops.ops.koleo for the arguments of a backend."""
    return nearest(features, candidates, offset)


@nearest.register_fake
def _(features, candidates, offset):
    return features.new_empty(features.shape[:2], dtype=torch.int64)
