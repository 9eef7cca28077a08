"""Sinkhorn-Knopp in Triton: one read of the logits per half-iteration. See README.md.

    B rows, K prototypes; a chunk is BLOCK prototypes, a split some of the rows

In units of log 2, z = logit * log2(e) / temperature. Only the scalings travel between kernels: the
prototypes' a [splits, K] and the rows' shift and sum [2, B, chunks], both still in parts that the
next kernel adds up.
"""

import math

import torch
import triton
import triton.language as tl

from sslops import triton_launch as launch
from sslops.ops.sinkhorn_knopp.reference import log_add_over_ranks
from sslops.triton_helpers import INTERPRETED, LOG2_E, inverse_temperature

MOST_SPLITS = 8  # a program adds up that many parts of its prototypes
WARPS = 4
COLUMN_ROWS, COLUMN_BLOCK = 8, 256  # logits that a program of the prototypes' pass holds
ROW_BLOCK = 1024


@triton.jit
def _logits(logit_ptr, temperature, row, k, keep, K):
    z = tl.load(logit_ptr + row.to(tl.int64) * K + k, mask=keep, other=0.0).to(tl.float32)
    return z * (LOG2_E * inverse_temperature(temperature))


@triton.jit
def _row_totals(part_ptr, row, is_row, B, chunks, CHUNKS: tl.constexpr):
    """Shift and logarithm of the sum of whole rows, from their parts [2, B, chunks]."""
    c = tl.arange(0, CHUNKS)[None, :]
    keep = is_row[:, None] & (c < chunks)
    place = part_ptr + row[:, None] * chunks + c
    tops = tl.load(place, mask=keep, other=-float("inf"))
    sums = tl.load(place + B * chunks, mask=keep, other=0.0)
    top = tl.where(is_row, tl.max(tops, 1), 0.0)
    total = tl.sum(tl.where(keep, sums * tl.exp2(tops - top[:, None]), 0.0), 1)
    return top, tl.log2(tl.where(is_row, total, 1.0))


@triton.jit
def _row_total(part_ptr, row, B, chunks, CHUNKS: tl.constexpr):
    """The same of one row. A tile [1, CHUNKS] would put 8 KiB on every thread's stack."""
    c = tl.arange(0, CHUNKS)
    place = part_ptr + row * chunks + c
    tops = tl.load(place, mask=c < chunks, other=-float("inf"))
    sums = tl.load(place + B * chunks, mask=c < chunks, other=0.0)
    top = tl.max(tops, 0)
    return top, tl.log2(tl.sum(sums * tl.exp2(tops - top), 0))


@triton.jit
def _of_prototypes(part_ptr, k, K, SPLITS: tl.constexpr, SLOTS: tl.constexpr):
    """a_k from the parts of the splits [splits, K]."""
    split = tl.arange(0, SLOTS)[:, None]
    keep = (split < SPLITS) & (k < K)[None, :]
    parts = tl.load(part_ptr + split * K + k[None, :], mask=keep, other=-float("inf"))
    top = tl.max(parts, 0)
    top = tl.where(k < K, top, 0.0)
    total = tl.sum(tl.where(keep, tl.exp2(parts - top[None, :]), 0.0), 0)
    return top + tl.log2(tl.where(k < K, total, 1.0))


@triton.jit(do_not_specialize=["B", "rows_of_split"])
def prototypes_kernel(
    logit_ptr, temperature, row_part_ptr, part_ptr, B, K, rows_of_split, chunks,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """log sum_b 2^(z_bk + f_b) over the rows of a split, f_b = - log sum_k 2^(z_bk - a_k)."""
    split = tl.program_id(1)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    end = tl.minimum((split + 1) * rows_of_split, B)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(split * rows_of_split, end, ROWS):
        row = start + tl.arange(0, ROWS)
        is_row = row < end
        keep = is_row[:, None] & (k < K)[None, :]
        z = _logits(logit_ptr, temperature, row[:, None], k[None, :], keep, K)
        if not FIRST:
            shift, log_sum = _row_totals(row_part_ptr, row, is_row, B, chunks, CHUNKS)
            z -= shift[:, None]
            z -= log_sum[:, None]
        z = tl.where(is_row[:, None], z, -float("inf"))
        new = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp2(top - new) + tl.sum(tl.exp2(z - new[None, :]), 0)
        top = new
    tl.store(part_ptr + split * K + k, top + tl.log2(total), mask=k < K)


@triton.jit(do_not_specialize=["B"])
def rows_kernel(
    logit_ptr, temperature, part_ptr, row_part_ptr, B, K,
    SPLITS: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Largest of z_bk - a_k and sum of exponentials of a chunk of one row."""
    row, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    k = chunk * BLOCK + tl.arange(0, BLOCK)
    x = _logits(logit_ptr, temperature, row, k, k < K, K)
    x -= _of_prototypes(part_ptr, k, K, SPLITS, SLOTS)
    x = tl.where(k < K, x, -float("inf"))
    top = tl.max(x, 0)
    tl.store(row_part_ptr + row * chunks + chunk, top)
    tl.store(row_part_ptr + (B + row) * chunks + chunk, tl.sum(tl.exp2(x - top), 0))


@triton.jit(do_not_specialize=["B"])
def write_kernel(
    logit_ptr, temperature, part_ptr, row_part_ptr, out_ptr, B, K,
    SPLITS: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """softmax_k(z_bk - a_k) of a chunk of one row."""
    row, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    k = chunk * BLOCK + tl.arange(0, BLOCK)
    x = _logits(logit_ptr, temperature, row, k, k < K, K)
    x -= _of_prototypes(part_ptr, k, K, SPLITS, SLOTS)
    shift, log_sum = _row_total(row_part_ptr, row, B, chunks, CHUNKS)
    tl.store(out_ptr + row.to(tl.int64) * K + k, tl.exp2(x - shift - log_sum), mask=k < K)


def splits_of(B, K, device):
    """How many programs share the rows of one block of prototypes, and the rows of each."""
    blocks = launch.ceil_div(K, COLUMN_BLOCK)
    wanted = launch.ceil_div(4 * launch.processors(device), blocks)
    most = launch.ceil_div(B, COLUMN_ROWS)
    rows = launch.ceil_div(B, max(1, min(wanted, most, MOST_SPLITS)))
    return launch.ceil_div(B, rows), rows


class Passes:
    """The launches over one batch of logits."""

    def __init__(self, logits, temperature):
        B, K = logits.shape
        self.logits, self.temperature = logits.contiguous(), temperature
        self.splits, self.rows_of_split = splits_of(B, K, logits.device)
        self.block = min(launch.power_of_two(K), 1 << 14 if INTERPRETED else ROW_BLOCK)
        self.chunks = launch.ceil_div(K, self.block)
        new = logits.new_empty
        self.row_parts = new((2, B, self.chunks), dtype=torch.float32)
        self.common = dict(num_warps=WARPS, enable_fp_fusion=True)

    def prototypes(self, is_first):
        """The parts [splits, K] of the prototypes' scalings."""
        B, K = self.logits.shape
        parts = self.logits.new_empty((self.splits, K), dtype=torch.float32)
        rows, block = (32, 1 << 12) if INTERPRETED else (COLUMN_ROWS, COLUMN_BLOCK)
        block = min(block, launch.power_of_two(K))
        prototypes_kernel[(launch.ceil_div(K, block), self.splits)](
            self.logits, self.temperature, self.row_parts, parts, B, K, self.rows_of_split,
            self.chunks, ROWS=rows, BLOCK=block, CHUNKS=launch.power_of_two(self.chunks),
            FIRST=is_first, **self.common,
        )  # fmt: skip
        return parts

    def over_rows(self, kernel, parts, *out, **options):
        B, K = self.logits.shape
        kernel[(B, self.chunks)](
            self.logits, self.temperature, parts, self.row_parts, *out, B, K,
            SPLITS=len(parts), SLOTS=launch.power_of_two(len(parts)), BLOCK=self.block,
            **options, **self.common,
        )  # fmt: skip

    def write(self, parts):
        out = torch.empty_like(self.logits, dtype=torch.float32)
        self.over_rows(write_kernel, parts, out, CHUNKS=launch.power_of_two(self.chunks))
        return out


def run(logits, temperature, iterations, group):
    B, K = logits.shape
    with torch.cuda.device_of(logits):
        passes = Passes(logits, temperature) if B else None
        for i in range(iterations):
            parts = passes.prototypes(i == 0) if B else logits.new_full((1, K), -math.inf).float()
            if group is not None:
                # The helper's logarithms are natural ones.
                log_2 = math.log(2)
                local = (parts * log_2).logsumexp(0)
                parts = (log_add_over_ranks(local, group) / log_2)[None]
            if B:
                passes.over_rows(rows_kernel, parts)
        return passes.write(parts) if B else logits.new_empty((0, K), dtype=torch.float32)


@torch.library.custom_op(
    "sslops::sinkhorn_knopp_triton",
    mutates_args=(),
    schema="(Tensor logits, Tensor? temperature_tensor, float temperature, int iterations)"
    " -> Tensor",
)
def _alone(logits, temperature_tensor, temperature, iterations):
    T = temperature if temperature_tensor is None else temperature_tensor
    return run(logits, T, iterations, None)


@_alone.register_fake
def _(logits, temperature_tensor, temperature, iterations):
    return logits.new_empty(logits.shape, dtype=torch.float32)


def unsupported(logits, temperature, **options):
    if logits.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"Triton kernels take float32, float16 and bfloat16, not {logits.dtype}"
    if len(logits) >= 2**20:
        return "2^20 rows or more"
    return launch.why_not_device(logits)


def sinkhorn_knopp(logits, temperature, *, iterations, group):
    """See sslops.ops.sinkhorn_knopp for the arguments of a backend."""
    if group is not None:
        return run(logits, temperature, iterations, group)
    is_tensor = isinstance(temperature, torch.Tensor)
    T = (temperature, 0.0) if is_tensor else (None, temperature)
    return _alone(logits, *T, iterations)
