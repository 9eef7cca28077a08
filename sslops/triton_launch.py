"""Launches of the Triton kernels that the contrastive losses share, and the tile sizes as data."""

from typing import NamedTuple

import torch

from sslops import tuning
from sslops.tracing import constant_when_traced
from sslops.triton_helpers import (
    INTERPRETED,
    finish_gradient_kernel,
    pair_gradient_kernel,
    row_norms_kernel,
)

WIDEST = 256  # the accumulators of wider rows do not fit the registers

# Tiles by table, kernel, kind of product and WIDTH; a width that is not listed spills registers and
# goes to another backend. tests/ops/test_compile_ahead.py compiles what is listed.
TILES = {name: table["tiles"] for name, table in tuning.TABLES.items()}
MOST_SPLITS = 64  # the kernel that combines them holds one row's parts in registers
# Before sm_90 the assembler spills some bytes to fit one more block; it may use all registers.
MOST_REGISTERS = {name: table["max_registers"] for name, table in tuning.TABLES.items()}
INTERPRETER_TILE = (128, 128)  # few steps: it spends its time per instruction, not per number


def width(D):
    """The power of two that holds D, and the least that tensor cores take."""
    return max(16, power_of_two(D))


def power_of_two(n):
    """The least power of two that is not below n >= 1."""
    return 1 << (n - 1).bit_length()


def ceil_div(a, b):
    return -(-a // b)


def processors(device):
    """Multiprocessors of a GPU; the interpreter stands for a GPU of one."""
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def choose_splits(row_blocks, key_tiles, device):
    """How many programs share the keys of one block of rows, so that few queries fill a GPU."""
    return max(1, min(processors(device) // row_blocks, key_tiles // 4, MOST_SPLITS))


def product(dtype):
    """How rows of this dtype are multiplied (a key of TILES)."""
    if dtype != torch.float32:
        return "half"
    return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[
        torch.get_float32_matmul_precision()
    ]


def is_fixed(temperature, normalize):
    """Whether 1/T, the largest possible logit, may be the shift of all exponentials of a loss.

    It spares the running maximum, and one exponential serves both sides of a pair. The smallest
    exponential, e^{-2/T}, must not vanish in float32; a tensor's T is not known here.
    """
    return normalize and isinstance(temperature, float) and temperature >= 1 / 32


def launch_options(kernel, x):
    """Keyword arguments of a tiled kernel ("rows" or "triangle") for rows like x [B, rows, D]."""
    kind, D = product(x.dtype), x.shape[-1]
    if INTERPRETED:
        rows, cols, warps, stages = *INTERPRETER_TILE, 4, 2
    else:
        rows, cols, warps, stages = TILES[tuning.table_of(x)][kernel][kind][width(D)]
    return dict(D=D, WIDTH=width(D), ROWS=rows, COLS=cols, num_warps=warps, num_stages=stages,
                PRECISION="ieee" if kind == "half" else kind, enable_fp_fusion=True,
                maxnreg=MOST_REGISTERS[tuning.table_of(x)])  # fmt: skip


def why_not(op, *tensors):
    """In words why the kernels of an op cannot run tensors [B, rows, D], or None."""
    x = tensors[0]
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"Triton kernels take float32, float16 and bfloat16, not {x.dtype}"
    if not 1 <= x.shape[-1] <= WIDEST:
        return f"the tiled kernels take a width D of 1 to {WIDEST}, not {x.shape[-1]}"
    if any(t.shape[-2] * t.shape[-1] >= 2**31 for t in tensors):
        return "more than 2^31 elements in one batch"
    reason = why_not_device(x)
    if reason or INTERPRETED:
        return reason
    most, rows = _tiled_up_to(op, x.dtype, x.device)
    if x.shape[-1] > most:
        return f"{rows} is tiled for a width D of at most {most} here, not {x.shape[-1]}"
    return None


# What asks torch about the device or its settings would break a compiled graph.
@constant_when_traced
def _tiled_up_to(op, dtype, device):
    """The largest width D that an op tiles on a device, and in words for which rows."""
    most = tuning.TABLES[tuning.table_on(device)]["tiled_up_to"][op][product(dtype)]
    if dtype != torch.float32:
        return most, "half precision"
    return most, f"float32 at matmul precision {torch.get_float32_matmul_precision()!r}"


@constant_when_traced
def _capability(device):
    return torch.cuda.get_device_properties(device).major


def why_not_device(x):
    """In words why no Triton kernel runs where x is, or None."""
    if INTERPRETED:
        return None
    if not x.is_cuda or torch.version.hip:
        return f"Triton kernels need an NVIDIA GPU (or TRITON_INTERPRET=1), not {x.device}"
    if _capability(x.device) < 8:
        return "Triton kernels need compute capability 8.0"
    return None


def norms_shape(tensors, normalize):
    """Shape of the norms that prepare_rows returns."""
    total = sum(_padded(t) for t in tensors)
    return (2 if tensors[0].dtype == torch.float16 else 1, total) if normalize else (0, 0)


def _padded(x):
    """Rows of x, rounded up so that the next tensor's norms stay aligned."""
    return (x.shape[0] * x.shape[1] + 15) // 16 * 16


class Rows(NamedTuple):
    """Rows as the kernels read them; without normalisation the lengths are not read."""

    x: torch.Tensor  # [B, rows, D], contiguous
    unit: torch.Tensor  # 1 / length of x
    inverse: torch.Tensor  # 1 / length of the rows that x was copied from


def prepare_rows(tensors, normalize, norms=None):
    """The Rows of up to three tensors, and the norms, which spare the backward pass this launch."""
    tensors = [t.contiguous() for t in tensors]
    if not normalize:
        return [Rows(x, x, x) for x in tensors], tensors[0].new_empty((0, 0), dtype=torch.float32)
    copy = tensors[0].dtype == torch.float16
    copies = [torch.empty_like(x) if copy else x for x in tensors]
    known = norms is not None
    if not known:
        # Zeros, because the padding is part of what a custom op returns.
        norms = tensors[0].new_zeros(norms_shape(tensors, normalize), dtype=torch.float32)
    firsts = [sum(_padded(x) for x in tensors[:i]) for i in range(len(tensors))]
    if copy or not known:
        _launch_norms(tensors, copies, norms, firsts, copy)
    return [
        Rows(x, norms[0, f:], norms[-1, f:]) for x, f in zip(copies, firsts, strict=True)
    ], norms


def _launch_norms(tensors, copies, norms, firsts, copy):
    D = tensors[0].shape[-1]
    missing = 3 - len(tensors)
    counts = [x.shape[0] * x.shape[1] for x in tensors] + [0] * missing
    rows = max(1, 4096 // width(D))
    blocks = sum(ceil_div(n, rows) for n in counts)
    if not blocks:
        return
    x, x_copy = tensors[:1] * missing, copies[:1] * missing
    row_norms_kernel[(blocks,)](
        *tensors, *x, *copies, *x_copy, norms[0], norms[-1], *counts, *(firsts + [0, 0])[1:3],
        D=D, WIDTH=width(D), ROWS=rows, COPY=copy, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def pair_sums(
    x, y, x_stats, y_stats, upstream, temperature, *, normalize, fixed, own=False,
    symmetric=False, sides=(True, True), offset=None, second=None,
):  # fmt: skip
    """Launch pair_gradient_kernel over Rows x against Rows y; returns their sums over negatives.

    Args:
        x_stats, y_stats: [3, rows] as softmax_rows leaves them (views of one tensor).
        upstream: [B, rows of y], the gradient of the loss of each row, any strides.
        own: x are queries as well, not only candidates of y.
        symmetric: also the sums of y, by the same kernel with x and y exchanged.
        sides: which of x and y to do, if symmetric.
        offset: x_i and y_{i + offset} are a positive pair (the sum wraps if x is as long as y).
        second: x_i and y_{i + second} are no pair at all.
    """
    B, R, _ = x.x.shape
    options = launch_options("rows", x.x)
    wanted = sides if symmetric else (True, False)
    x_sum, y_sum = (
        rows.x.new_empty(rows.x.shape if want else 0, dtype=torch.float32)
        for rows, want in zip((x, y), wanted, strict=True)
    )
    grid = sum(wanted) * B * ceil_div(R, options["ROWS"])
    if grid:
        pair_gradient_kernel[(grid,)](
            x.x, y.x, x.unit, y.unit, temperature, x_stats, y_stats, upstream,
            _largest(upstream, x.x.dtype), x_sum, y_sum, B, R, y.x.shape[1], offset or 0,
            second or 0, x_stats.stride(0), 0 if wanted[0] else 1, *upstream.stride(),
            NORMALIZE=normalize, FIXED=fixed, OWN=own, SYMMETRIC=symmetric,
            PAIRED=offset is not None, SECOND=second is not None, **options,
        )  # fmt: skip
    return x_sum, y_sum


def _largest(upstream, dtype):
    """The largest upstream gradient, which only float16 needs, as a 0-d tensor."""
    if dtype != torch.float16 or not upstream.numel():
        return upstream
    return torch.linalg.vector_norm(upstream, torch.inf)


def finish_gradients(
    x, y, sums, x_stats, y_stats, upstream, temperature, *, normalize, own=True, other=False,
    forward=False, needs=(True, True), along=False, offset=0, factor=1.0,
):  # fmt: skip
    """Launch finish_gradient_kernel: dx, dy and, for the temperature, along = <unit x, dx>.

    Args:
        sums: of x and y over their negatives, from pair_sums; y's may be None: no negatives.
        own, other: whether x, and whether y, are queries with a softmax of their own.
        forward: the sums of x are the key sums of the forward pass.
        needs: which of dx and dy to compute; the other is empty.
    """
    B, R, D = x.x.shape
    dx, dy = (torch.empty_like(rows.x) if need else rows.x.new_empty(0)
              for rows, need in zip((x, y), needs, strict=True))  # fmt: skip
    along_rows = x.x.new_empty(B * R if along else 0, dtype=torch.float32)
    size, (x_sum, y_sum) = width(D), sums
    block = max(1, 4096 // size)
    grid = ceil_div(B * R, block) * (needs[0] or along)
    grid += ceil_div(B * y.x.shape[1], block) * needs[1]
    if grid:
        finish_gradient_kernel[(grid,)](
            x.x, y.x, x.unit, y.unit, x.inverse, y.inverse, temperature, factor, x_stats, y_stats,
            upstream, x_sum, x_sum if y_sum is None else y_sum, dx, dy, along_rows,
            B, R, y.x.shape[1], offset, x_stats.stride(0), *upstream.stride(),
            D=D, WIDTH=size, ROWS=block, NORMALIZE=normalize, OWN=own, OTHER=other,
            FORWARD=forward, X=needs[0], Y=needs[1], Y_SUM=y_sum is not None, ALONG=along,
            num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
    return dx, dy, along_rows


def fake_gradients(inputs, needs):
    """What a backward operator returns, for torch.compile: nothing where not needed."""
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if need
        else inputs[0].new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    )  # fmt: skip


def refuse_second_derivative(name, backward):
    """Say in plain words that the custom operator `backward` of op `name` has no derivative."""

    def refuse(ctx, *gradients):
        raise NotImplementedError(
            f"{name}: this backend has no double backward; backend='reference' supports it"
        )

    backward.register_autograd(refuse)
