"""InfoNCE in Triton: nothing of size N x M is stored. The derivation is in README.md.

    B batch, N queries, M keys, D width (WIDTH: its power of two)

What the forward pass leaves of each row for the backward pass (`stats`): `top`, the shift of the
row's exponentials before the scale; `inverse`, 1 / sum of the exponentials; `share`, the part of
that sum which is not the positive's: 1 - P_i+.
"""

import functools

import torch
import triton
import triton.language as tl

from sslops import triton_launch as launch
from sslops.ops.info_nce.reference import InfoNCERows
from sslops.triton_helpers import (
    LN_2,
    LOG2_E,
    dot,
    inverse_temperature,
    is_candidate,
    load_rows,
    load_units,
    masked_tile,
    plain_tile,
    plan_tiles,
    store_rows,
)


@triton.jit
def _load_queries(
    q_ptr, p_ptr, q_unit_ptr, p_unit_ptr, shift, i, N, match, P,
    D: tl.constexpr, WIDTH: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows, their scale, and their positives' products from a tile like any: ties stay ties."""
    q = load_rows(q_ptr, i, i < N, D, WIDTH, True)
    p = load_rows(p_ptr, match, match < P, D, WIDTH, True)
    scale = shift * load_units(q_unit_ptr, i, i < N, NORMALIZE)
    t = dot(q, tl.trans(p), None, PRECISION)
    column = tl.arange(0, i.shape[0])
    positive = tl.sum(tl.where(column[:, None] == column[None, :], t, 0.0), 1)
    return q, scale, positive * load_units(p_unit_ptr, match, match < P, NORMALIZE)


@triton.jit
def finish_rows(
    total, top, positive, rank, scale, shift, out, is_row, rows,
    loss_ptr, lse_ptr, positive_ptr, rank_ptr, stats_ptr,
    FIXED: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Loss and statistics from the sums over the negatives, which the positive joins here."""
    # log2 of (the shift / the positive's exponential)
    gap = shift - positive * scale if FIXED else (top - positive) * scale
    everything = total + tl.exp2(-gap)
    # near: exactly 0 without negatives, precise for small losses; far: does not overflow.
    near = tl.log2(1.0 + total * tl.exp2(gap))
    far = gap + tl.log2(everything)
    loss = tl.where(gap < 90, near, far) * LN_2
    logit = positive * scale * LN_2
    tl.store(loss_ptr + out, loss, mask=is_row)
    tl.store(lse_ptr + out, logit + loss, mask=is_row)
    tl.store(positive_ptr + out, logit, mask=is_row)
    tl.store(stats_ptr + out, top, mask=is_row)
    tl.store(stats_ptr + rows + out, 1.0 / everything, mask=is_row)
    tl.store(stats_ptr + 2 * rows + out, total / everything, mask=is_row)
    if RANK:
        tl.store(rank_ptr + out, rank.to(tl.int64), mask=is_row)


@triton.jit(do_not_specialize=["B", "N", "M", "offset", "exclude"])
def softmax_rows_kernel(
    q_ptr, p_ptr, k_ptr, q_unit_ptr, p_unit_ptr, k_unit_ptr, temperature,
    loss_ptr, lse_ptr, positive_ptr, rank_ptr, stats_ptr, sums_ptr, key_sum_ptr,
    B, N, M, offset, exclude,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    SPLITS: tl.constexpr, PRECISION: tl.constexpr, NORMALIZE: tl.constexpr, FIXED: tl.constexpr,
    HEADROOM: tl.constexpr, APART: tl.constexpr, SYMMETRIC: tl.constexpr, EXCLUDE: tl.constexpr,
    RANK: tl.constexpr, KEY_SUM: tl.constexpr,
):  # fmt: skip
    """Flash attention with V = K: loss_i, and sum_j e_ij k_j, which is its gradient (README)."""
    blocks = tl.cdiv(N, ROWS)
    block = tl.program_id(0) % blocks
    split = tl.program_id(0) // blocks % SPLITS
    batch = (tl.program_id(0) // (blocks * SPLITS)).to(tl.int64)
    i = block * ROWS + tl.arange(0, ROWS)
    rows = (B * (2 if SYMMETRIC else 1)).to(tl.int64) * N
    out = batch * N + i
    if SYMMETRIC:  # noqa: SIM102 (for the compiler); the second half: keys ask for their query
        if batch >= B:
            batch -= B
            q_ptr, p_ptr, k_ptr = k_ptr, q_ptr, q_ptr
            q_unit_ptr, p_unit_ptr, k_unit_ptr = k_unit_ptr, q_unit_ptr, q_unit_ptr
    P = N if APART else M
    match = i if APART else (i + offset) % M
    shift = LOG2_E * inverse_temperature(temperature)
    q, scale, positive = _load_queries(
        q_ptr + batch * N * D, p_ptr + batch * P * D, q_unit_ptr + batch * N,
        p_unit_ptr + batch * P, shift, i, N, match, P, D, WIDTH, NORMALIZE, PRECISION)  # fmt: skip
    k_ptr += batch * M * D
    k_unit_ptr += batch * M

    first = 0 if APART else (block * ROWS + offset) % M
    a, b, c, tail, tiles = plan_tiles(M, (exclude - offset + M) % M, ROWS, COLS, not APART, EXCLUDE)
    top = positive
    total = tl.zeros([ROWS], tl.float32)
    rank = tl.zeros([ROWS], tl.int32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for MASKED in tl.static_range(2):
        steps = a + c - b + tiles - tail if MASKED else tail - c + b - a
        for step in range(steps * split // SPLITS, steps * (split + 1) // SPLITS):
            tile = masked_tile(step, a, b, c, tail) if MASKED else plain_tile(step, a, b, c)
            r = tile * COLS + tl.arange(0, COLS)
            j = tl.where(first + r >= M, first + r - M, first + r)
            k = load_rows(k_ptr, j, r < M, D, WIDTH, MASKED)
            unit = load_units(k_unit_ptr, j, r < M, NORMALIZE)
            t = dot(q, tl.trans(k), None, PRECISION) * unit[None, :]
            if MASKED:
                keep = is_candidate(
                    i < N, tile * COLS, first, M, match, i + exclude, COLS, not APART, EXCLUDE
                )
                t = tl.where(keep, t, -float("inf"))
            if RANK:
                rank += tl.sum((t > positive[:, None]).to(tl.int32), 1)
            if FIXED:
                e = tl.exp2(t * scale[:, None] - shift)
            else:
                # The difference comes before the scale: equal logits stay equal at any size.
                new_top = tl.maximum(top, tl.max(t, 1))
                e = tl.exp2((t - new_top[:, None]) * scale[:, None] + HEADROOM)
                shrink = tl.exp2((top - new_top) * scale)
                top = new_top
                total *= shrink
                acc *= shrink[:, None]
            if MASKED:  # again: a zero row has scale 0, and 0 times infinity is no number
                e = tl.where(keep, e, 0.0)
            total += tl.sum(e, 1)
            if KEY_SUM:
                acc = dot((e * unit[None, :]).to(k.dtype), k, acc, PRECISION)

    total *= 0.5**HEADROOM
    if KEY_SUM:
        acc *= 0.5**HEADROOM
        store_rows(key_sum_ptr + split * rows * D, out, i < N, acc, D, WIDTH)
    if SPLITS == 1:
        finish_rows(total, top, positive, rank, scale, shift, out, i < N, rows, loss_ptr,
                     lse_ptr, positive_ptr, rank_ptr, stats_ptr, FIXED, RANK)  # fmt: skip
    else:
        _store(sums_ptr + split * 5 * rows + out, rows, i < N, total, top, rank, positive, scale)


@triton.jit
def _store(sums_ptr, rows, is_row, total, top, rank, positive, scale):
    tl.store(sums_ptr, total, mask=is_row)
    tl.store(sums_ptr + rows, top, mask=is_row)
    tl.store(sums_ptr + 2 * rows, rank.to(tl.float32), mask=is_row)
    tl.store(sums_ptr + 3 * rows, positive, mask=is_row)
    tl.store(sums_ptr + 4 * rows, scale, mask=is_row)


@triton.jit
def combine_splits_kernel(
    temperature, sums_ptr, part_ptr, key_sum_ptr, loss_ptr, lse_ptr, positive_ptr, rank_ptr,
    stats_ptr, D: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, SLOTS: tl.constexpr,
    FIXED: tl.constexpr, RANK: tl.constexpr, KEY_SUM: tl.constexpr,
):  # fmt: skip
    """Bring the parts of one row to one shift and add them, always in the same order."""
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    out = row + tl.arange(0, 1)
    s = tl.arange(0, SLOTS)
    is_part = s < SPLITS
    parts = sums_ptr + s * 5 * rows + row
    shift = LOG2_E * inverse_temperature(temperature)
    positive = tl.load(sums_ptr + 3 * rows + out)
    scale = tl.load(sums_ptr + 4 * rows + out)
    tops = tl.load(parts + rows, mask=is_part, other=-float("inf"))
    top = tl.max(tops, 0) + tl.zeros([1], tl.float32)
    weight = tl.where(is_part, 1.0 if FIXED else tl.exp2((tops - top) * scale), 0.0)
    total = tl.sum(tl.load(parts, mask=is_part, other=0.0) * weight, 0) + tl.zeros([1], tl.float32)
    ranks = tl.load(parts + 2 * rows, mask=is_part, other=0.0).to(tl.int32)
    rank = tl.sum(ranks, 0) + tl.zeros([1], tl.int32)
    finish_rows(total, top, positive, rank, scale, shift, out, out < rows, rows, loss_ptr,
                 lse_ptr, positive_ptr, rank_ptr, stats_ptr, FIXED, RANK)  # fmt: skip
    if KEY_SUM:
        part = load_rows(part_ptr + row * D, s * rows, is_part, D, WIDTH, True)
        key_sum = tl.sum(part * weight[:, None], 0)[None, :]
        store_rows(key_sum_ptr, out, out < rows, key_sum, D, WIDTH)


def softmax_rows(
    q, p, k, temperature, *, normalize, fixed, offset=0, exclude=None, symmetric=False,
    rank=False, key_sum=False, splits=None,
):  # fmt: skip
    """Launch the forward pass over launch.Rows (p is k: the positives are among the keys).

    Returns loss, lse, positive logit, rank [rows], stats [3, rows] and key sums [rows, D]; rows is
    B * N, or 2 * B * N if symmetric: the keys' rows follow the queries'.
    """
    B, N, D = q.x.shape
    M = k.x.shape[1]
    rows = B * N * (2 if symmetric else 1)
    new = functools.partial(q.x.new_empty, dtype=torch.float32)
    loss, lse, logit, stats = new(rows), new(rows), new(rows), new(3, rows)
    ranks = q.x.new_empty(rows if rank else 0, dtype=torch.int64)
    sums = new(rows, D) if key_sum else new(0)
    if not rows:
        return loss, lse, logit, ranks, stats, sums
    options = launch.launch_options("rows", q.x)
    blocks = launch.ceil_div(N, options["ROWS"]) * (rows // N)
    if splits is None:
        splits = launch.choose_splits(blocks, M // options["COLS"], q.x.device)
    parts, part_sums = loss, sums
    if splits > 1:
        parts, part_sums = new(splits, 5, rows), new(splits, *sums.shape)
    headroom = 14 if q.x.dtype == torch.float16 and key_sum else 0
    flags = dict(FIXED=fixed, RANK=rank, KEY_SUM=key_sum, SPLITS=splits)
    outputs = (loss, lse, logit, ranks, stats)
    softmax_rows_kernel[(blocks * splits,)](
        q.x, p.x, k.x, q.unit, p.unit, k.unit, temperature, *outputs, parts, part_sums,
        B, N, M, offset, exclude or 0, APART=p is not k, SYMMETRIC=symmetric,
        EXCLUDE=exclude is not None, NORMALIZE=normalize, HEADROOM=headroom, **flags, **options,
    )  # fmt: skip
    if splits > 1:
        combine_splits_kernel[(rows,)](
            temperature, parts, part_sums, sums, *outputs, D=D, WIDTH=options["WIDTH"],
            SLOTS=launch.power_of_two(splits), num_warps=8, enable_fp_fusion=True, **flags,
        )  # fmt: skip
    return *outputs, sums


def _is_fixed(temperature, normalize, symmetric, dtype):
    """The shift may be fixed; but in float16, exponentials that weigh keys would vanish."""
    return launch.is_fixed(temperature, normalize) and (symmetric or dtype != torch.float16)


@torch.library.custom_op(
    "sslops::info_nce_triton",
    mutates_args=(),
    schema="""(Tensor query, Tensor positive_key, Tensor? negative_keys, Tensor? temperature_tensor,
        float temperature, bool symmetric, bool normalize, int positive_offset,
        int? exclude_offset, bool return_stats, bool needs_query) -> (Tensor loss, Tensor lse,
        Tensor positive_logit, Tensor rank, Tensor stats, Tensor key_sum, Tensor norms)""",
)
def _forward(
    query, positive_key, negative_keys, temperature_tensor, temperature, symmetric, normalize,
    positive_offset, exclude_offset, return_stats, needs_query,
):  # fmt: skip
    shape = query.shape[:2]
    rows = shape.numel()
    T = temperature if temperature_tensor is None else temperature_tensor
    tensors = _present(query, positive_key, negative_keys)
    with torch.cuda.device_of(query):
        inputs, norms = launch.prepare_rows(tensors, normalize)
        loss, lse, logit, rank, stats, key_sum = softmax_rows(
            inputs[0], inputs[1], inputs[-1], T, normalize=normalize,
            fixed=_is_fixed(T, normalize, symmetric, query.dtype), offset=positive_offset,
            exclude=exclude_offset, symmetric=symmetric, rank=return_stats,
            key_sum=needs_query and not symmetric,
        )  # fmt: skip
        if symmetric:
            loss = loss.view(2, rows).mean(0)
    lse, logit = lse[:rows].view(shape), logit[:rows].view(shape)
    rank = rank[:rows].view(shape) if return_stats else rank
    return loss.view(shape), lse, logit, rank, stats, key_sum, norms


def _present(*tensors):
    return [t for t in tensors if t is not None]


@_forward.register_fake
def _(query, positive_key, negative_keys, temperature_tensor, temperature, symmetric, normalize,
      positive_offset, exclude_offset, return_stats, needs_query):  # fmt: skip
    B, N, D = query.shape
    new = functools.partial(query.new_empty, dtype=torch.float32)
    rank = query.new_empty((B, N) if return_stats else (0,), dtype=torch.int64)
    key_sum = new((B * N, D) if needs_query and not symmetric else (0,))
    norms = launch.norms_shape(_present(query, positive_key, negative_keys), normalize)
    stats = new((3, B * N * (2 if symmetric else 1)))
    return new((B, N)), new((B, N)), new((B, N)), rank, stats, key_sum, new(norms)


@torch.library.custom_op(
    "sslops::info_nce_triton_backward",
    mutates_args=(),
    schema="""(Tensor upstream, Tensor stats, Tensor key_sum, Tensor norms, Tensor query,
        Tensor positive_key, Tensor? negative_keys, Tensor? temperature_tensor, float temperature,
        bool symmetric, bool normalize, int positive_offset, int? exclude_offset,
        bool[] needs) -> (Tensor query_gradient, Tensor positive_key_gradient,
        Tensor negative_keys_gradient, Tensor temperature_gradient)""",
)
def _backward(
    upstream, stats, key_sum, norms, query, positive_key, negative_keys, temperature_tensor,
    temperature, symmetric, normalize, positive_offset, exclude_offset, needs,
):  # fmt: skip
    T = temperature if temperature_tensor is None else temperature_tensor
    fixed = _is_fixed(T, normalize, symmetric, query.dtype)
    tensors = _present(query, positive_key, negative_keys)
    with torch.cuda.device_of(query):
        inputs, _ = launch.prepare_rows(tensors, normalize, norms)
        common = dict(upstream=upstream, temperature=T, normalize=normalize)
        if symmetric:
            dq, dp, along = _two_sided(*inputs, stats, needs, fixed, common)
            dk = query.new_empty(0)
        else:
            q, p, *negatives = inputs
            dq, dp, dk, along = _one_sided(
                q, p, negatives[0] if negatives else None, stats, key_sum, needs, fixed,
                positive_offset, exclude_offset, common,
            )  # fmt: skip
        # z = <q, k> / T is linear in q, so T dL/dT = - sum_i <q_i, dL/dq_i>: no pass of its own.
        dT = (-along.sum() / T).to(T.dtype) if needs[3] else query.new_empty(0)
    return dq, dp, dk, dT


def _two_sided(q, k, stats, needs, fixed, common):
    """Both softmaxes from one recomputed tile: gradients of queries and keys."""
    stats = stats.tensor_split(2, 1)
    sides = (needs[0] or needs[3], needs[1])
    sums = launch.pair_sums(q, k, *stats, fixed=fixed, own=True, symmetric=True, sides=sides,
                            offset=0, **common)  # fmt: skip
    return launch.finish_gradients(q, k, sums, *stats, other=True, needs=needs[:2], along=needs[3],
                                   factor=0.5, **common)  # fmt: skip


def _one_sided(q, p, negatives, stats, key_sum, needs, fixed, offset, exclude, common):
    """Queries from the forward pass' key sums; one pass over queries for the keys."""
    p_sum, dk = None, q.x.new_empty(0)
    if needs[2]:
        k_sum, _ = launch.pair_sums(negatives, q, stats, stats, fixed=fixed, **common)
        dk, _, _ = launch.finish_gradients(negatives, q, (k_sum, None), stats, stats, own=False,
                                           needs=(True, False), **common)  # fmt: skip
    elif needs[1] and negatives is None:
        second = None if exclude is None else -exclude
        p_sum, _ = launch.pair_sums(p, q, stats, stats, fixed=fixed, offset=-offset,
                                    second=second, **common)  # fmt: skip
    dq, dp, along = launch.finish_gradients(
        q, p, (key_sum, p_sum), stats, stats, forward=True, needs=needs[:2], along=needs[3],
        offset=offset, **common,
    )  # fmt: skip
    return dq, dp, dk, along


@_backward.register_fake
def _(upstream, stats, key_sum, norms, query, positive_key, negative_keys, temperature_tensor,
      temperature, symmetric, normalize, positive_offset, exclude_offset, needs):  # fmt: skip
    inputs = (query, positive_key, negative_keys, temperature_tensor)
    return launch.fake_gradients(inputs, needs)


def _setup_context(ctx, inputs, output):
    ctx.options = inputs[4:]
    *_, stats, key_sum, norms = output
    ctx.mark_non_differentiable(*output[1:])
    query, positive_key, negative_keys, temperature_tensor = inputs[:4]
    if negative_keys is not None and not ctx.needs_input_grad[2]:
        # A queue: it may be written to before backward, which needs to know only that it was there.
        negative_keys = negative_keys.new_empty(query.shape[0], 0, query.shape[2])
    ctx.save_for_backward(
        stats, key_sum, norms, query, positive_key, negative_keys, temperature_tensor
    )


def _gradients(ctx, upstream, *_):
    temperature, symmetric, normalize, positive_offset, exclude_offset, *_ = ctx.options
    needs = list(ctx.needs_input_grad[:4])
    gradients = _backward(upstream, *ctx.saved_tensors, temperature, symmetric, normalize,
                          positive_offset, exclude_offset, needs)  # fmt: skip
    wanted = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return *wanted, *(None for _ in ctx.options)


_forward.register_autograd(_gradients, setup_context=_setup_context)
launch.refuse_second_derivative("info_nce", _backward)


def unsupported(query, positive_key, negative_keys, temperature, **options):
    """See sslops.registry."""
    if negative_keys is not None and query.shape[1] == 1 and query.shape[0] > 1:
        return "paired negatives are one matrix-vector product per row: no tiles to share"
    return launch.why_not("info_nce", *_present(query, positive_key, negative_keys))


def info_nce(
    query, positive_key, negative_keys, temperature, *, symmetric, normalize,
    positive_offset, exclude_offset, return_stats, uniform,
):  # fmt: skip
    """See sslops.ops.info_nce for the arguments of a backend."""
    T = temperature if isinstance(temperature, torch.Tensor) else None
    needs_query = torch.is_grad_enabled() and (
        query.requires_grad or (T is not None and T.requires_grad)
    )
    loss, lse, logit, rank, *_ = _forward(
        query, positive_key, negative_keys, T, 1.0 if T is not None else temperature, symmetric,
        normalize, positive_offset, exclude_offset, return_stats, needs_query,
    )  # fmt: skip
    return InfoNCERows(loss, lse, logit, rank if return_stats else None)
