"""KoLeo in Triton: the nearest neighbour from tiles of products, none of which is stored.

    B batches, N rows, M candidates, D width

A row's own length scales all of its products alike, so rows are multiplied as they come and only
the candidates' lengths are divided out.
"""

import torch
import triton
import triton.language as tl

from sslops import triton_launch as launch
from sslops.triton_helpers import INTERPRETED, dot
from sslops.unit_rows import at_least_float32

# ROWS, COLS, WIDTH of a step along D, warps, stages; tests/ops/test_compile_ahead.py compiles them.
TILES = {
    "half": (64, 64, 64, 8, 3),  # 4 warps spill
    "tf32": (64, 64, 32, 4, 3),
    "tf32x3": (32, 32, 32, 4, 2),
    "ieee": (32, 32, 32, 4, 2),
}
INTERPRETER_TILE = (64, 64, 64, 4, 1)


@triton.jit(do_not_specialize=["N", "M", "offset"])
def nearest_kernel(
    x_ptr, y_ptr, length_ptr, index_ptr, N, M, D, offset,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Index of the largest <x_i, y_j> / |y_j| over j != i + offset; the lower one of equals."""
    blocks = tl.cdiv(N, ROWS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    x_ptr += batch * N * D
    y_ptr += batch * M * D
    i = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    x_row = i.to(tl.int64)[:, None] * D
    best = tl.full([ROWS], -float("inf"), tl.float32)
    index = tl.zeros([ROWS], tl.int32)
    for first in range(0, M, COLS):
        j = first + tl.arange(0, COLS)
        y_row = j.to(tl.int64)[:, None] * D
        products = tl.zeros([ROWS, COLS], tl.float32)
        for start in range(0, D, WIDTH):
            d = start + tl.arange(0, WIDTH)[None, :]
            x = tl.load(x_ptr + x_row + d, mask=(i < N)[:, None] & (d < D), other=0.0)
            y = tl.load(y_ptr + y_row + d, mask=(j < M)[:, None] & (d < D), other=0.0)
            products = dot(x, tl.trans(y), products, PRECISION)
        products *= tl.load(length_ptr + batch * M + j, mask=j < M, other=0.0)[None, :]
        keep = (j < M)[None, :] & (j[None, :] != i[:, None] + offset) & (products == products)
        products = tl.where(keep, products, -float("inf"))
        of_tile, place = tl.max(products, 1, return_indices=True)
        is_nearer = of_tile > best
        best = tl.where(is_nearer, of_tile, best)
        index = tl.where(is_nearer, first + place, index)
    tl.store(index_ptr + batch * N + i, index.to(tl.int64), mask=i < N)


@torch.library.custom_op("sslops::koleo_triton", mutates_args=())
def nearest(x: torch.Tensor, y: torch.Tensor, offset: int) -> torch.Tensor:
    """Index of the candidate with the largest cosine, of every row but its own."""
    x, y = x.contiguous(), y.contiguous()
    (B, N, D), M = x.shape, y.shape[1]
    index = x.new_empty((B, N), dtype=torch.int64)
    kind = launch.product(x.dtype)
    rows, cols, width, warps, stages = INTERPRETER_TILE if INTERPRETED else TILES[kind]
    norm = torch.linalg.vector_norm(at_least_float32(y), dim=-1)
    length = torch.where(norm > 0, norm.reciprocal(), 0.0)
    with torch.cuda.device_of(x):
        nearest_kernel[(launch.ceil_div(N, rows) * B,)](  # a grid's second side ends at 65535
            x, y, length, index, N, M, D, offset, ROWS=rows, COLS=cols, WIDTH=width,
            PRECISION="ieee" if kind == "half" else kind, num_warps=warps, num_stages=stages,
            enable_fp_fusion=True,
        )  # fmt: skip
    return index


@nearest.register_fake
def _(x, y, offset):
    return x.new_empty(x.shape[:2], dtype=torch.int64)


def unsupported(features, candidates, offset):
    if features.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"Triton kernels take float32, float16 and bfloat16, not {features.dtype}"
    if candidates.shape[1] >= 2**31:
        return "2^31 candidates or more"
    return launch.why_not_device(features)


def koleo(features, candidates, offset):
    """See sslops.ops.koleo for the arguments of a backend."""
    return nearest(features, candidates, offset)
