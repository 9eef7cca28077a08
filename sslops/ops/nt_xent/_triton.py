"""NT-Xent in Triton by symmetry: nothing of size 2N x 2N is stored. See README.md.

R = 2N rows: first views, then second views; D width (WIDTH: its power of two)
"""

import functools

import torch
import triton
import triton.language as tl

from sslops import triton_launch as launch
from sslops.ops.info_nce._triton import finish_rows, softmax_rows
from sslops.ops.info_nce.reference import InfoNCERows
from sslops.triton_helpers import (
    LOG2_E,
    dot,
    inverse_temperature,
    load_rows,
    load_units,
)


@triton.jit
def _is_candidate(i, first, R, BLOCK: tl.constexpr):
    """[rows, cols]: columns first, first + 1, ... that are neither row i nor its other view."""
    column = tl.arange(0, BLOCK)[None, :]
    place = (i - first)[:, None]
    keep = (i < R)[:, None] & (column < R - first) & (column != place)
    return keep & (column != place + R // 2) & (column != place - R // 2)


@triton.jit(do_not_specialize=["R"])
def triangle_sums_kernel(
    z_ptr, unit_ptr, temperature, part_ptr, R,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PRECISION: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Sums over negatives of E_ij = e^{z_ij - 1/T}, every unordered pair of rows visited once.

    Block a meets the blocks a, a + 1, ... on a circle, up to half way around. A tile adds to its
    rows here, and leaves its column sums in the slot of its distance; the last SPLITS slots take
    the row sums. Every element of a slot has one writer.
    """
    blocks = tl.cdiv(R, ROWS)
    a = tl.program_id(0) % blocks
    split = tl.program_id(0) // blocks
    half = blocks // 2
    count = half + 1 - tl.where((blocks % 2 == 0) & (a >= half), 1, 0)
    i = a * ROWS + tl.arange(0, ROWS)
    shift = LOG2_E * inverse_temperature(temperature)
    z = load_rows(z_ptr, i, i < R, D, WIDTH, True)
    scale = shift * load_units(unit_ptr, i, i < R, True)

    # Masks: the block itself, the ragged last block, and distances that hold positive pairs.
    last = blocks - 1 - a
    far = tl.where(last == 0, 1, tl.maximum(half - 1, 1))
    far = tl.minimum(far, count)
    ragged = tl.where((last >= 1) & (last < far), 1, 0)
    total = tl.zeros([ROWS], tl.float32)
    for MASKED in tl.static_range(2):
        steps = 1 + ragged + count - far if MASKED else far - 1 - ragged
        for step in range(steps * split // SPLITS, steps * (split + 1) // SPLITS):
            if MASKED:
                distance = tl.where(step > ragged, far + step - 1 - ragged, step * last)
            else:
                distance = 1 + step + tl.where((ragged == 1) & (1 + step >= last), 1, 0)
            first = (a + distance) % blocks * COLS
            j = first + tl.arange(0, COLS)
            y = load_rows(z_ptr, j, j < R, D, WIDTH, MASKED)
            unit = load_units(unit_ptr, j, j < R, True)
            t = dot(z, tl.trans(y), None, PRECISION) * unit[None, :]
            e = tl.exp2(t * scale[:, None] - shift)
            if MASKED:
                e = tl.where(_is_candidate(i, first, R, COLS), e, 0.0)
            total += tl.sum(e, 1)
            slot = part_ptr + (distance - 1).to(tl.int64) * R
            tl.store(slot + j, tl.sum(e, 0), mask=(j < R) & (distance > 0))
    tl.store(part_ptr + (half + split).to(tl.int64) * R + i, total, mask=i < R)


@triton.jit(do_not_specialize=["R", "slots"])
def finish_triangle_kernel(
    z_ptr, unit_ptr, temperature, part_ptr, loss_ptr, lse_ptr, positive_ptr, stats_ptr, R, slots,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the slots of a row, in their order, and its positive."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = i < R
    match = tl.where(i < R // 2, i + R // 2, i - R // 2)
    blocks = tl.cdiv(R, BLOCK)
    half = blocks // 2
    # With an even number of blocks the distance half way around has one writer per pair.
    absent = tl.where((blocks % 2 == 0) & (i // BLOCK < half), half - 1, slots)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, slots, COLS):
        slot = first + tl.arange(0, COLS)[:, None]
        keep = (slot < slots) & (slot != absent[None, :]) & is_row[None, :]
        part = tl.load(part_ptr + slot.to(tl.int64) * R + i[None, :], mask=keep, other=0.0)
        total += tl.sum(part, 0)
    z = load_rows(z_ptr, i, is_row, D, WIDTH, True).to(tl.float32)
    y = load_rows(z_ptr, match, is_row, D, WIDTH, True).to(tl.float32)
    shift = LOG2_E * inverse_temperature(temperature)
    scale = shift * load_units(unit_ptr, i, is_row, True)
    positive = tl.sum(z * y, 1) * load_units(unit_ptr, match, is_row, True)
    finish_rows(total, positive, positive, total, scale, shift, i, is_row, R,
                loss_ptr, lse_ptr, positive_ptr, positive_ptr, stats_ptr, True, False)  # fmt: skip


def count_slots(R, block, splits):
    """Vectors of [R] partial sums that the triangle needs."""
    return launch.ceil_div(R, block) // 2 + splits


def triangle_rows(z, temperature, splits):
    """Launch both kernels over launch.Rows; returns loss, lse, positive logit and stats [3, R]."""
    _, R, D = z.x.shape
    new = functools.partial(z.x.new_empty, dtype=torch.float32)
    outputs = new(R), new(R), new(R), new(3, R)
    options = launch.launch_options("triangle", z.x)
    block = options["ROWS"]
    slots = count_slots(R, block, splits)
    parts = new(slots, R)
    triangle_sums_kernel[(launch.ceil_div(R, block) * splits,)](
        z.x, z.unit, temperature, parts, R, SPLITS=splits, **options
    )
    size = launch.width(D)
    rows = max(1, 4096 // size)
    finish_triangle_kernel[(launch.ceil_div(R, rows),)](
        z.x, z.unit, temperature, parts, *outputs, R, slots, D=D, WIDTH=size, ROWS=rows, COLS=16,
        BLOCK=block, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return outputs


def _rows(z, temperature, normalize, return_stats):
    """Losses and what the backward pass needs, by the triangle where it applies."""
    R, D = z.x.shape[1:]
    block = launch.launch_options("triangle", z.x)["ROWS"]
    blocks = launch.ceil_div(R, block)
    splits = max(1, min(2 * launch.processors(z.x.device) // blocks, blocks // 8))
    # The partial sums may take as much room as four float32 copies of z, no more.
    fits = count_slots(R, block, splits) <= 4 * D
    fixed = launch.is_fixed(temperature, normalize)
    if fixed and fits and not return_stats:
        loss, lse, logit, stats = triangle_rows(z, temperature, splits)
        return loss, lse, logit, z.x.new_empty(0, dtype=torch.int64), stats
    return softmax_rows(z, z, z, temperature, normalize=normalize, fixed=fixed, offset=R // 2,
                        exclude=0, rank=return_stats)[:5]  # fmt: skip


@torch.library.custom_op(
    "sslops::nt_xent_triton",
    mutates_args=(),
    schema="""(Tensor z, Tensor? temperature_tensor, float temperature, bool normalize,
        bool return_stats) -> (Tensor loss, Tensor lse, Tensor positive_logit, Tensor rank,
        Tensor stats, Tensor norms)""",
)
def _forward(z, temperature_tensor, temperature, normalize, return_stats):
    T = temperature if temperature_tensor is None else temperature_tensor
    with torch.cuda.device_of(z):
        (rows,), norms = launch.prepare_rows([z[None]], normalize)
        if not len(z):
            empty = (z.new_empty(0, dtype=torch.float32) for _ in range(3))
            rank = z.new_empty(0, dtype=torch.int64)
            return *empty, rank, z.new_empty((3, 0), dtype=torch.float32), norms
        return *_rows(rows, T, normalize, return_stats), norms


@_forward.register_fake
def _(z, temperature_tensor, temperature, normalize, return_stats):
    R = z.shape[0]
    new = functools.partial(z.new_empty, dtype=torch.float32)
    rank = z.new_empty(R if return_stats else 0, dtype=torch.int64)
    norms = new(launch.norms_shape([z[None]], normalize))
    return new((R,)), new((R,)), new((R,)), rank, new((3, R)), norms


@torch.library.custom_op(
    "sslops::nt_xent_triton_backward",
    mutates_args=(),
    schema="""(Tensor upstream, Tensor stats, Tensor norms, Tensor z, Tensor? temperature_tensor,
        float temperature, bool normalize, bool[] needs) -> (Tensor z_gradient,
        Tensor temperature_gradient)""",
)
def _backward(upstream, stats, norms, z, temperature_tensor, temperature, normalize, needs):
    T = temperature if temperature_tensor is None else temperature_tensor
    R = len(z)
    with torch.cuda.device_of(z):
        (rows,), _ = launch.prepare_rows([z[None]], normalize, norms)
        common = dict(upstream=upstream[None], temperature=T, normalize=normalize, offset=R // 2)
        sums = launch.pair_sums(rows, rows, stats, stats, own=True, second=0,
                                fixed=launch.is_fixed(T, normalize), **common)  # fmt: skip
        dz, _, along = launch.finish_gradients(
            rows, rows, sums, stats, stats, other=True, needs=(needs[0], False), along=needs[1],
            **common,
        )  # fmt: skip
        # z_ij is quadratic in z: T dL/dT = - 1/2 sum_i <z_i, dL/dz_i>.
        dT = (-along.sum() / (2 * T)).to(T.dtype) if needs[1] else z.new_empty(0)
    return dz[0] if needs[0] else dz, dT


@_backward.register_fake
def _(upstream, stats, norms, z, temperature_tensor, temperature, normalize, needs):
    return launch.fake_gradients((z, temperature_tensor), needs)


def _setup_context(ctx, inputs, output):
    z, temperature_tensor, ctx.temperature, ctx.normalize, _ = inputs
    *_, stats, norms = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(stats, norms, z, temperature_tensor)


def _gradients(ctx, upstream, *_):
    needs = list(ctx.needs_input_grad[:2])
    gradients = _backward(upstream, *ctx.saved_tensors, ctx.temperature, ctx.normalize, needs)
    dz, dT = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return dz, dT, None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)
launch.refuse_second_derivative("nt_xent", _backward)


def unsupported(z, temperature, **options):
    """See sslops.registry."""
    return launch.why_not("nt_xent", z[None])


def nt_xent(z, temperature, *, normalize, return_stats):
    """See sslops.ops.nt_xent for the arguments of a backend."""
    T = temperature if isinstance(temperature, torch.Tensor) else None
    loss, lse, logit, rank, *_ = _forward(z, T, 1.0 if T is not None else temperature, normalize,
                                          return_stats)  # fmt: skip
    return InfoNCERows(loss, lse, logit, rank if return_stats else None)
