"""The kernels of top-k attention, in the notation of _triton.py: find the k largest scores of each
target cell, attend to these alone, and carry the gradients back."""

import triton
import triton.language as tl

from sslops.ops.color_attention._triton_dense import (
    LOG2_E,
    is_near,
    load_rows,
    scores,
    store_rows,
    visible_cells,
)

# A candidate as one number: its score's order in the upper half, and in the lower half its cell,
# counted downwards (j ^ LAST), so that equal scores go to the lower index. Below all: empty places.
EMPTY = tl.constexpr(-(2**63))
LAST = tl.constexpr(2**31 - 1)
ABOVE_ALL = tl.constexpr(2**63 - 1)


@triton.jit
def sort_keys(t, j, keep):
    """Distinct int64 in the order of torch.sort: nan above all, 0 and -0 equal."""
    bits = tl.where(t == 0, 0.0, t).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ LAST, bits)
    order = tl.where(t == t, order, LAST)
    key = (order.to(tl.int64) << 32) | (j ^ LAST).to(tl.int64)[None, :]
    return tl.where(keep, key, EMPTY)


@triton.jit
def merge(best, key):
    """Put the keys larger than the smallest of `best` into its places, a row's largest first."""
    worst, most = tl.min(best, 1), tl.max(key, 1)
    while tl.max((most > worst).to(tl.int32), 0) > 0:
        take = (most > worst)[:, None]
        best = tl.where(take & (best == worst[:, None]), most[:, None], best)
        key = tl.where(key == most[:, None], EMPTY, key)
        worst, most = tl.min(best, 1), tl.max(key, 1)
    return best


@triton.jit
def top_kernel(
    f_ptr, g_ptr, radii_ptr, index_ptr, Nt, Nr, F, cells, H, W, k,
    D: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """index [B, Nt, k]: the k candidates of the largest scores; -1 after the last of fewer."""
    blocks = tl.cdiv(Nt, ROWS)
    first = tl.program_id(0) % blocks * ROWS
    b = (tl.program_id(0) // blocks).to(tl.int64)
    i = first + tl.arange(0, ROWS)
    is_row = i < Nt
    f_ptr += b * Nt * D
    g_ptr += b * Nr * D
    f = load_rows(f_ptr, i, is_row, 0, D, WIDTH)
    # Places fill up from the first; those beyond k never count as the smallest.
    place = tl.arange(0, K)
    start_keys = tl.where(place < k, EMPTY + place.to(tl.int64), ABOVE_ALL)
    best = tl.zeros([ROWS, K], tl.int64) + start_keys[None, :]

    for frame in range(F):
        radius, low, high = visible_cells(radii_ptr, frame, first, tl.minimum(ROWS, Nt - first),
                                          cells, H, W, WINDOW)  # fmt: skip
        for start in range(low, high, COLS):
            c = start + tl.arange(0, COLS)
            j = frame * cells + c
            t, _ = scores(f, f_ptr, i, is_row, g_ptr, j, c < high, D, WIDTH, PRECISION)
            keep = (c < high)[None, :] & is_row[:, None]
            if WINDOW:
                keep = keep & is_near(i, c, W, radius)
            best = merge(best, sort_keys(t, j, keep))

    cell = (best & LAST).to(tl.int32) ^ LAST
    cell = tl.where(best < EMPTY + K, -1, cell)
    row = (b * Nt + i)[:, None] * k + place[None, :]
    tl.store(index_ptr + row, cell, mask=is_row[:, None] & (place < k)[None, :])


@triton.jit
def gather_kernel(
    f_ptr, g_ptr, v_ptr, index_ptr, temperature_ptr, weights_ptr, out_ptr, rows, Nt, Nr, k,
    D: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, C_WIDTH: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """weights [rows, k]: softmax over a target cell's kept cells n; out_i = sum_n A_in v_n."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = i < rows
    batch = i // Nt * Nr
    place = tl.arange(0, K)
    t = tl.full([ROWS, K], -float("inf"), tl.float32)
    for n in range(k):
        cell = tl.load(index_ptr + i * k + n, mask=is_row, other=-1)
        keep = cell >= 0
        sum_n = tl.zeros([ROWS], tl.float32)
        for first in range(0, D, WIDTH):
            f = load_rows(f_ptr, i, keep, first, D, WIDTH).to(tl.float32)
            g = load_rows(g_ptr, batch + cell, keep, first, D, WIDTH).to(tl.float32)
            sum_n += tl.sum(f * g, 1)
        t = tl.where((place == n)[None, :] & keep[:, None], sum_n[:, None], t)

    top = tl.max(t, 1)
    top = tl.where(top == -float("inf"), 0.0, top)
    weight = tl.exp2((t - top[:, None]) * (LOG2_E / tl.load(temperature_ptr)))
    total = tl.sum(weight, 1)
    weight = weight / tl.where(total == 0, 1.0, total)[:, None]
    is_place = is_row[:, None] & (place < k)[None, :]
    tl.store(weights_ptr + i[:, None] * k + place[None, :], weight, mask=is_place)

    out = tl.zeros([ROWS, C_WIDTH], tl.float32)
    for n in range(k):
        cell = tl.load(index_ptr + i * k + n, mask=is_row, other=-1)
        v = load_rows(v_ptr, batch + cell, cell >= 0, 0, C, C_WIDTH).to(tl.float32)
        out += v * tl.sum(tl.where((place == n)[None, :], weight, 0.0), 1)[:, None]
    store_rows(out_ptr, i, is_row, out, 0, C, C_WIDTH)


@triton.jit
def gather_target_gradient_kernel(
    grad_ptr, g_ptr, v_ptr, index_ptr, temperature_ptr, weights_ptr, out_ptr, dS_ptr, df_ptr,
    rows, Nt, Nr, k,
    D: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, C_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """dS_in = A_in (<dout_i, v_n> - <dout_i, out_i>), df_i = sum_n dS_in g_n / T, WIDTH columns."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * WIDTH
    is_row = i < rows
    batch = i // Nt * Nr
    grad = load_rows(grad_ptr, i, is_row, 0, C, C_WIDTH)
    delta = tl.sum(grad * load_rows(out_ptr, i, is_row, 0, C, C_WIDTH), 1)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for n in range(k):
        cell = tl.load(index_ptr + i * k + n, mask=is_row, other=-1)
        keep = cell >= 0
        weight = tl.load(weights_ptr + i * k + n, mask=is_row, other=0.0)
        v = load_rows(v_ptr, batch + cell, keep, 0, C, C_WIDTH).to(tl.float32)
        dS = weight * (tl.sum(v * grad, 1) - delta)
        if first == 0:
            tl.store(dS_ptr + i * k + n, dS, mask=is_row)
        g = load_rows(g_ptr, batch + cell, keep, first, D, WIDTH).to(tl.float32)
        acc += g * dS[:, None]
    store_rows(df_ptr, i, is_row, acc / tl.load(temperature_ptr), first, D, WIDTH)


@triton.jit
def gather_reference_gradient_kernel(
    grad_ptr, f_ptr, temperature_ptr, weights_ptr, dS_ptr, order_ptr, start_ptr, dg_ptr, dv_ptr,
    rows, Nt, Nr, k,
    D: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, C_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """dg_j and dv_j: what the target cells that kept cell j send, added in their order.

    order [B, Nt k] lists the places of index by the cell they name; start [B, Nr + 1] says where
    the places of a cell begin.
    """
    j = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * WIDTH
    is_row = j < rows
    b = j // Nr
    start = tl.load(start_ptr + j + b, mask=is_row, other=0)
    count = tl.load(start_ptr + j + b + 1, mask=is_row, other=0) - start
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    acc_v = tl.zeros([ROWS, C_WIDTH], tl.float32)
    for n in range(tl.max(count, 0)):
        is_place = n < count
        place = tl.load(order_ptr + b * Nt * k + start + n, mask=is_place, other=0)
        place += b * Nt * k
        i = place // k
        dS = tl.load(dS_ptr + place, mask=is_place, other=0.0)
        acc += load_rows(f_ptr, i, is_place, first, D, WIDTH).to(tl.float32) * dS[:, None]
        if first == 0:
            weight = tl.load(weights_ptr + place, mask=is_place, other=0.0)
            acc_v += load_rows(grad_ptr, i, is_place, 0, C, C_WIDTH) * weight[:, None]
    store_rows(dg_ptr, j, is_row, acc / tl.load(temperature_ptr), first, D, WIDTH)
    if first == 0:
        store_rows(dv_ptr, j, is_row, acc_v, 0, C, C_WIDTH)
