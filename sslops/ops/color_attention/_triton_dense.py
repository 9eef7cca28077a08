"""The kernels of full attention, in the notation of _triton.py.

Every kernel is deterministic: a program owns the rows that it writes.
"""

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
_INTERPRETED = tl.constexpr(INTERPRETED)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc (None: 0) + a @ b in float32; the interpreter has no product of bfloat16."""
    if _INTERPRETED:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        product = tl.dot(a, b, acc, input_precision=PRECISION)
    return product


@triton.jit
def gradient_dot(weights, rows, acc, PRECISION: tl.constexpr):
    """acc + weights @ rows; weights far below 1 would be lost in float16, not in TF32."""
    if rows.dtype == tl.float16:
        acc = dot(weights, rows.to(tl.float32), acc, PRECISION)
    else:
        acc = dot(weights.to(rows.dtype), rows, acc, PRECISION)
    return acc


@triton.jit
def load_rows(x_ptr, row, is_row, first, D: tl.constexpr, WIDTH: tl.constexpr):
    """[rows, WIDTH]: columns first..first + WIDTH of x [., D]; zeros where there are none."""
    d = first + tl.arange(0, WIDTH)
    mask = is_row[:, None] & (d < D)[None, :]
    return tl.load(x_ptr + row[:, None] * D + d[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x_ptr, row, is_row, x, first, D: tl.constexpr, WIDTH: tl.constexpr):
    d = first + tl.arange(0, WIDTH)
    mask = is_row[:, None] & (d < D)[None, :]
    tl.store(x_ptr + row[:, None] * D + d[None, :], x, mask=mask)


@triton.jit
def scores(x, x_ptr, i, is_x, y_ptr, j, is_y, D: tl.constexpr, WIDTH: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """<x_i, y_j>, WIDTH columns at a time, x the first of them; and the first columns of y."""
    y = load_rows(y_ptr, j, is_y, 0, D, WIDTH)
    t = dot(x, tl.trans(y), None, PRECISION)
    for first in range(WIDTH, D, WIDTH):
        more = load_rows(y_ptr, j, is_y, first, D, WIDTH)
        t = dot(load_rows(x_ptr, i, is_x, first, D, WIDTH), tl.trans(more), t, PRECISION)
    return t, y


@triton.jit
def visible_cells(radii_ptr, frame, first, count, cells, H, W, WINDOW: tl.constexpr):
    """The radius, and the range of cells that `count` cells from `first` on may see or be seen by:
    whole rows of the grid."""
    radius = 0
    low, high = 0, cells
    if WINDOW:
        radius = tl.load(radii_ptr + frame)
        low = tl.maximum(first // W - radius, 0) * W
        high = tl.minimum((first + count - 1) // W + radius + 1, H) * W
        high = tl.where(radius < 0, 0, high)
    return radius, low, high


@triton.jit
def is_near(a, b, W, radius):
    """[a, b]: Chebyshev distance on the grid at most the radius."""
    dy = tl.abs((a // W)[:, None] - (b // W)[None, :])
    dx = tl.abs((a % W)[:, None] - (b % W)[None, :])
    return tl.maximum(dy, dx) <= radius


@triton.jit
def softmax_kernel(
    f_ptr, g_ptr, v_ptr, f_label_ptr, g_label_ptr, temperature_ptr, radii_ptr,
    out_ptr, right_ptr, wrong_ptr, lse_ptr, rows, Nt, Nr, F, cells, H, W,
    D: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, C_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, LABELS: tl.constexpr, WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out_i = sum_j A_ij v_j, or with LABELS the mass of A on right and on wrong cells."""
    blocks = tl.cdiv(Nt, ROWS)
    first = tl.program_id(0) % blocks * ROWS
    b = (tl.program_id(0) // blocks).to(tl.int64)
    i = first + tl.arange(0, ROWS)
    is_row = i < Nt
    scale = LOG2_E / tl.load(temperature_ptr)
    f_ptr += b * Nt * D
    g_ptr += b * Nr * D
    f = load_rows(f_ptr, i, is_row, 0, D, WIDTH)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)  # with LABELS: of the right cells
    wrong = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, C_WIDTH], tl.float32)
    if LABELS:
        label = tl.load(f_label_ptr + b * Nt + i, mask=is_row, other=0)

    for frame in range(F):
        radius, low, high = visible_cells(radii_ptr, frame, first, tl.minimum(ROWS, Nt - first),
                                          cells, H, W, WINDOW)  # fmt: skip
        for start in range(low, high, COLS):
            c = start + tl.arange(0, COLS)
            j = frame * cells + c
            t, _ = scores(f, f_ptr, i, is_row, g_ptr, j, c < high, D, WIDTH, PRECISION)
            keep = (c < high)[None, :]
            if WINDOW:
                keep = keep & is_near(i, c, W, radius)
            t = tl.where(keep, t, -float("inf"))
            # The difference comes before the scale: equal scores stay equal at any size.
            new_top = tl.maximum(top, tl.max(t, 1))
            finite = tl.where(new_top == -float("inf"), 0.0, new_top)
            e = tl.exp2((t - finite[:, None]) * scale)
            shrink = tl.exp2((top - finite) * scale)
            top = new_top
            total *= shrink
            if LABELS:
                other = tl.load(g_label_ptr + b * Nr + j, mask=c < high, other=0)
                same = label[:, None] == other[None, :]
                total += tl.sum(tl.where(same, e, 0.0), 1)
                wrong = wrong * shrink + tl.sum(tl.where(same, 0.0, e), 1)
            else:
                v = load_rows(v_ptr + b * Nr * C, j, c < high, 0, C, C_WIDTH).to(tl.float32)
                total += tl.sum(e, 1)
                acc = dot(e, v, acc * shrink[:, None], PRECISION)

    row = b * Nt + i
    everything = total + wrong
    everything = tl.where(everything == 0, 1.0, everything)
    tl.store(lse_ptr + row, tl.where(top == -float("inf"), 0.0, top), mask=is_row)
    tl.store(lse_ptr + rows + row, tl.log2(everything), mask=is_row)
    if LABELS:
        tl.store(right_ptr + row, total / everything, mask=is_row)
        tl.store(wrong_ptr + row, wrong / everything, mask=is_row)
    else:
        store_rows(out_ptr, row, is_row, acc / everything[:, None], 0, C, C_WIDTH)


@triton.jit
def load_row_state(lse_ptr, a_ptr, b_ptr, rows, row, is_row):
    """Largest score, log2 of the sum; delta twice, or the weights of right and wrong cells."""
    top = tl.load(lse_ptr + row, mask=is_row, other=0.0)
    log_sum = tl.load(lse_ptr + rows + row, mask=is_row, other=0.0)
    return (top, log_sum, tl.load(a_ptr + row, mask=is_row, other=0.0),
            tl.load(b_ptr + row, mask=is_row, other=0.0))  # fmt: skip


@triton.jit
def target_gradient_kernel(
    f_ptr, g_ptr, v_ptr, f_label_ptr, g_label_ptr, temperature_ptr, radii_ptr,
    grad_ptr, lse_ptr, a_ptr, b_ptr, df_ptr, rows, Nt, Nr, F, cells, H, W,
    D: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, C_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, LABELS: tl.constexpr, WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """df_i = sum_j dS_ij g_j / T for the target cells, WIDTH columns, that a program owns."""
    blocks = tl.cdiv(Nt, ROWS)
    first = tl.program_id(0) % blocks * ROWS
    b = (tl.program_id(0) // blocks).to(tl.int64)
    chunk = tl.program_id(1) * WIDTH
    i = first + tl.arange(0, ROWS)
    is_row = i < Nt
    inverse = 1.0 / tl.load(temperature_ptr)
    f_ptr += b * Nt * D
    g_ptr += b * Nr * D
    f = load_rows(f_ptr, i, is_row, 0, D, WIDTH)
    top, log_sum, right, wrong = load_row_state(lse_ptr, a_ptr, b_ptr, rows, b * Nt + i,
                                                is_row)  # fmt: skip
    if LABELS:
        label = tl.load(f_label_ptr + b * Nt + i, mask=is_row, other=0)
    else:
        grad = load_rows(grad_ptr + b * Nt * C, i, is_row, 0, C, C_WIDTH)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)

    for frame in range(F):
        radius, low, high = visible_cells(radii_ptr, frame, first, tl.minimum(ROWS, Nt - first),
                                          cells, H, W, WINDOW)  # fmt: skip
        for start in range(low, high, COLS):
            c = start + tl.arange(0, COLS)
            j = frame * cells + c
            t, g = scores(f, f_ptr, i, is_row, g_ptr, j, c < high, D, WIDTH, PRECISION)
            weight = tl.exp2((t - top[:, None]) * (inverse * LOG2_E) - log_sum[:, None])
            keep = (c < high)[None, :]
            if WINDOW:
                keep = keep & is_near(i, c, W, radius)
            weight = tl.where(keep, weight, 0.0)
            if LABELS:
                other = tl.load(g_label_ptr + b * Nr + j, mask=c < high, other=0)
                same = label[:, None] == other[None, :]
                dS = weight * tl.where(same, right[:, None], wrong[:, None])
            else:
                v = load_rows(v_ptr + b * Nr * C, j, c < high, 0, C, C_WIDTH).to(tl.float32)
                dS = weight * (dot(grad, tl.trans(v), None, PRECISION) - right[:, None])
            if D > WIDTH:
                g = load_rows(g_ptr, j, c < high, chunk, D, WIDTH)
            acc = gradient_dot(dS, g, acc, PRECISION)
    store_rows(df_ptr + b * Nt * D, i, is_row, acc * inverse, chunk, D, WIDTH)


@triton.jit
def reference_gradient_kernel(
    f_ptr, g_ptr, v_ptr, f_label_ptr, g_label_ptr, temperature_ptr, radii_ptr,
    grad_ptr, lse_ptr, a_ptr, b_ptr, dg_ptr, dv_ptr, rows, Nt, Nr, F, cells, H, W,
    D: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, C_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, LABELS: tl.constexpr, WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dg_j = sum_i dS_ij f_i / T and dv_j = sum_i A_ij dout_i for the cells of one frame."""
    blocks = tl.cdiv(cells, ROWS)
    first = tl.program_id(0) % blocks * ROWS
    frame = tl.program_id(0) // blocks % F
    b = (tl.program_id(0) // (blocks * F)).to(tl.int64)
    chunk = tl.program_id(1) * WIDTH
    c = first + tl.arange(0, ROWS)
    is_row = c < cells
    j = frame * cells + c
    inverse = 1.0 / tl.load(temperature_ptr)
    f_ptr += b * Nt * D
    g_ptr += b * Nr * D
    g = load_rows(g_ptr, j, is_row, 0, D, WIDTH)
    if LABELS:
        label = tl.load(g_label_ptr + b * Nr + j, mask=is_row, other=0)
    else:
        v = load_rows(v_ptr + b * Nr * C, j, is_row, 0, C, C_WIDTH).to(tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    acc_v = tl.zeros([ROWS, C_WIDTH], tl.float32)

    radius, low, high = visible_cells(radii_ptr, frame, first, tl.minimum(ROWS, cells - first), Nt,
                                      H, W, WINDOW)  # fmt: skip
    for start in range(low, high, COLS):
        i = start + tl.arange(0, COLS)
        t, f = scores(g, g_ptr, j, is_row, f_ptr, i, i < high, D, WIDTH, PRECISION)
        top, log_sum, right, wrong = load_row_state(lse_ptr, a_ptr, b_ptr, rows, b * Nt + i,
                                                    i < high)  # fmt: skip
        weight = tl.exp2((t - top[None, :]) * (inverse * LOG2_E) - log_sum[None, :])
        keep = (i < high)[None, :]
        if WINDOW:
            keep = keep & is_near(c, i, W, radius)
        weight = tl.where(keep, weight, 0.0)
        if LABELS:
            other = tl.load(f_label_ptr + b * Nt + i, mask=i < high, other=0)
            same = label[:, None] == other[None, :]
            dS = weight * tl.where(same, right[None, :], wrong[None, :])
        else:
            grad = load_rows(grad_ptr + b * Nt * C, i, i < high, 0, C, C_WIDTH)
            dS = weight * (dot(v, tl.trans(grad), None, PRECISION) - right[None, :])
            acc_v = dot(weight, grad, acc_v, PRECISION)
        if D > WIDTH:
            f = load_rows(f_ptr, i, i < high, chunk, D, WIDTH)
        acc = gradient_dot(dS, f, acc, PRECISION)
    store_rows(dg_ptr + b * Nr * D, j, is_row, acc * inverse, chunk, D, WIDTH)
    if not LABELS and chunk == 0:
        store_rows(dv_ptr + b * Nr * C, j, is_row, acc_v, 0, C, C_WIDTH)
