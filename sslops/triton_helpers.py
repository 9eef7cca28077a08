"""Pieces of Triton that the contrastive losses share; sslops/triton_launch.py launches them.

    B batch, N queries, M keys, D width (WIDTH: its power of two)

A kernel never sees a normalised copy of the rows. The logit of rows x, y is

    s_xy = <x, y> * unit_x * unit_y / T

with unit = 1 / |x|: products of half-precision rows are exact in float32, normalised rows would
not be. float16 alone gets a copy scaled by a power of two (see row_norms_kernel).
"""

import triton
import triton.language as tl

# Read by Triton at import, like the decorators below.
INTERPRETED = triton.knobs.runtime.interpret

_INTERPRETED = tl.constexpr(INTERPRETED)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
SMALLEST_NORM = tl.constexpr(1e-12)  # sslops.unit_rows


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc (None: 0) + a @ b in float32; the interpreter has no product of bfloat16."""
    if _INTERPRETED:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        product = tl.dot(a, b, acc, input_precision=PRECISION)
    return product


@triton.jit
def inverse_temperature(temperature):
    """1 / T of a number or of a 0-d tensor, which only the device reads."""
    if _INTERPRETED:  # passes a number as a plain float
        if isinstance(temperature, float):
            T = temperature
        else:
            T = tl.load(temperature).to(tl.float32)
    elif temperature.dtype.is_ptr():
        T = tl.load(temperature).to(tl.float32)
    else:
        T = temperature
    return 1.0 / T


@triton.jit
def load_rows(x_ptr, index, is_row, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """[rows, WIDTH]; zeros past D and, if MASKED, where not is_row."""
    d = tl.arange(0, WIDTH)
    pointers = x_ptr + index[:, None] * D + d[None, :]
    if MASKED and D < WIDTH:
        x = tl.load(pointers, mask=is_row[:, None] & (d < D)[None, :], other=0.0)
    elif MASKED:
        x = tl.load(pointers, mask=is_row[:, None], other=0.0)
    elif D < WIDTH:
        x = tl.load(pointers, mask=(d < D)[None, :], other=0.0)
    else:
        x = tl.load(pointers)
    return x


@triton.jit
def store_rows(x_ptr, index, is_row, x, D: tl.constexpr, WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)
    mask = is_row[:, None] & (d < D)[None, :]
    tl.store(x_ptr + index[:, None] * D + d[None, :], x.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_units(unit_ptr, index, is_row, NORMALIZE: tl.constexpr):
    """1 / |row|, or 1 where rows stay as they are."""
    if NORMALIZE:
        unit = tl.load(unit_ptr + index, mask=is_row, other=0.0)
    else:
        unit = tl.full(index.shape, 1.0, tl.float32)
    return unit


@triton.jit
def plan_tiles(C, second, ROWS: tl.constexpr, COLS: tl.constexpr,
               HAS_FIRST: tl.constexpr, HAS_SECOND: tl.constexpr):  # fmt: skip
    """Which tiles of COLS among C candidates need a mask, for a block of ROWS rows.

    Candidates are visited in a circle that starts at the block's first special pair, so that the
    first special pairs lie in [0, ROWS) and the second ones in [second, second + ROWS), whose part
    beyond C falls into [0, ROWS) again. The last tile may be ragged.

    Returns the bounds of the masked tiles [0, a), [b, c), [tail, tiles).
    """
    tiles = tl.cdiv(C, COLS)
    a = 0
    if HAS_FIRST:
        a = tl.minimum(tl.cdiv(ROWS, COLS), tiles)
    b = a
    c = a
    if HAS_SECOND:
        b = tl.maximum(second // COLS, a)
        c = tl.maximum(tl.minimum(tl.cdiv(second + ROWS, COLS), tiles), b)
    tail = tl.maximum(C // COLS, c)
    return a, b, c, tail, tiles


@triton.jit
def _is_other(column, pair, first, C):
    """[rows, cols]: not row's `pair`, where column 0 shows candidate `first` (modulo C)."""
    place = tl.where((pair >= 0) & (pair < C), pair - first, -(2**30))[:, None]
    return (column != place) & (column != place + C)


@triton.jit
def is_candidate(
    is_row, place, first, C, first_pair, second_pair,
    COLS: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_SECOND: tl.constexpr,
):  # fmt: skip
    """[rows, cols]: real rows and columns that are none of the special pairs.

    The tile shows the candidates at places `place`, `place` + 1, ... of the circle from `first`.
    Places are compared, not candidates: an index per column would cost registers.
    """
    column = tl.arange(0, COLS)[None, :]
    keep = is_row[:, None] & (column < C - place)
    if HAS_FIRST:
        keep &= _is_other(column, first_pair, first + place, C)
    if HAS_SECOND:
        keep &= _is_other(column, second_pair, first + place, C)
    return keep


@triton.jit
def masked_tile(step, a, b, c, tail):
    """The step-th tile of [0, a), [b, c), [tail, tiles)."""
    tile = step + tl.where(step >= a, b - a, 0)
    return tile + tl.where(tile >= c, tail - c, 0)


@triton.jit
def plain_tile(step, a, b, c):
    """The step-th tile of [a, b), [c, tail)."""
    tile = a + step
    return tile + tl.where(tile >= b, c - b, 0)


@triton.jit(do_not_specialize=["X", "Y", "Z", "y_first", "z_first"])
def row_norms_kernel(
    x_ptr, y_ptr, z_ptr, x_copy_ptr, y_copy_ptr, z_copy_ptr, unit_ptr, inverse_ptr,
    X, Y, Z, y_first, z_first,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    """1 / |row| of up to three tensors in one launch; 0 for a zero row.

    COPY, for float16: rows are copied times the power of two nearest to 1 / |row|, exactly, so
    that neither they nor unit_ptr (1 / |copied row|) leave the range of float16.
    """
    block = tl.program_id(0)
    rows, first = X, 0
    if block >= tl.cdiv(X, ROWS):
        block -= tl.cdiv(X, ROWS)
        rows, first, x_ptr, x_copy_ptr = Y, y_first, y_ptr, y_copy_ptr
        if block >= tl.cdiv(Y, ROWS):
            block -= tl.cdiv(Y, ROWS)
            rows, first, x_ptr, x_copy_ptr = Z, z_first, z_ptr, z_copy_ptr
    i = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = i < rows
    x = load_rows(x_ptr, i, is_row, D, WIDTH, True).to(tl.float32)
    norm = tl.sqrt_rn(tl.sum(x * x, 1))
    is_zero = norm <= SMALLEST_NORM
    inverse = tl.where(is_zero, 0.0, tl.div_rn(1.0, tl.where(is_zero, 1.0, norm)))
    is_slot = i < tl.cdiv(rows, 16) * 16  # the padding between tensors becomes zero
    tl.store(inverse_ptr + first + i, inverse, mask=is_slot)
    if COPY:
        power = tl.exp2(tl.floor(tl.log2(tl.where(inverse > 0, inverse, 1.0))))
        tl.store(unit_ptr + first + i, tl.div_rn(inverse, power), mask=is_slot)
        store_rows(x_copy_ptr, i, is_row, x * power[:, None], D, WIDTH)


@triton.jit
def _pair_weights(
    t, x_scale, y_scale, x_unit, y_unit, x_top, y_top, x_weight, y_weight, shift,
    OWN: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """unit_j (x_weight_i e^{z_ij - top_i} if OWN, + y_weight_j e^{z_ij - top_j})."""
    y_weight *= y_unit
    if FIXED:  # one exponential serves both sides
        e = tl.exp2(t * y_unit[None, :] * x_scale[:, None] - shift)
        if OWN:
            weight = e * (x_weight[:, None] * y_unit[None, :] + y_weight[None, :])
        else:
            weight = e * y_weight[None, :]
    else:
        e = tl.exp2((t * x_unit[:, None] - y_top[None, :]) * y_scale[None, :])
        weight = e * y_weight[None, :]
        if OWN:
            e = tl.exp2((t * y_unit[None, :] - x_top[:, None]) * x_scale[:, None])
            weight += e * x_weight[:, None] * y_unit[None, :]
    return weight


@triton.jit
def _load_weights(stats_ptr, stats_rows, upstream_ptr, row_stride, index, is_row, loudness):
    """top, and upstream gradient / sum of exponentials."""
    top = tl.load(stats_ptr + index, mask=is_row, other=0.0)
    inverse = tl.load(stats_ptr + stats_rows + index, mask=is_row, other=0.0)
    g = tl.load(upstream_ptr + index * row_stride, mask=is_row, other=0.0)
    return top, g * loudness * inverse


@triton.jit(
    do_not_specialize=[
        "B", "R", "C", "offset", "second", "stats_rows", "first_side", "batch_stride", "row_stride"
    ]
)  # fmt: skip
def pair_gradient_kernel(
    x_ptr, y_ptr, x_unit_ptr, y_unit_ptr, temperature, x_stats_ptr, y_stats_ptr,
    upstream_ptr, largest_ptr, x_sum_ptr, y_sum_ptr,
    B, R, C, offset, second, stats_rows, first_side, batch_stride, row_stride,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PRECISION: tl.constexpr, NORMALIZE: tl.constexpr, FIXED: tl.constexpr, OWN: tl.constexpr,
    SYMMETRIC: tl.constexpr, PAIRED: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """sum_j G_ij y_j over the negatives of a block of rows x; the tiles of G are recomputed.

    G_ij = g_j P_j(i), as x are candidates of y; OWN adds g_i P_i(j): x ask for y as well.
    """
    blocks = tl.cdiv(R, ROWS)
    block = tl.program_id(0) % blocks
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    if SYMMETRIC:
        batch += first_side * B
        if batch >= B:
            batch -= B
            x_ptr, y_ptr, x_sum_ptr = y_ptr, x_ptr, y_sum_ptr
            x_unit_ptr, y_unit_ptr = y_unit_ptr, x_unit_ptr
            x_stats_ptr, y_stats_ptr = y_stats_ptr, x_stats_ptr
    i = block * ROWS + tl.arange(0, ROWS)
    is_row = i < R
    # In float16 the largest upstream gradient becomes 2^12, so that weights do not underflow.
    loudness = 1.0
    if x_ptr.dtype.element_ty == tl.float16:
        largest = tl.load(largest_ptr)
        loudness = tl.where(largest > 0, 4096.0 / largest, 1.0)
    upstream_ptr += batch * batch_stride
    y_stats_ptr += batch * C
    y_ptr += batch * C * D
    y_unit_ptr += batch * C
    shift = LOG2_E * inverse_temperature(temperature)
    x = load_rows(x_ptr + batch * R * D, i, is_row, D, WIDTH, True)
    x_unit = load_units(x_unit_ptr + batch * R, i, is_row, NORMALIZE)
    x_top, x_weight = x_unit, x_unit
    if OWN:
        x_top, x_weight = _load_weights(x_stats_ptr + batch * R, stats_rows, upstream_ptr,
                                        row_stride, i, is_row, loudness)  # fmt: skip

    match = i + offset
    match = tl.where((R == C) & (match >= C), match - C, match)
    first = ((block * ROWS + offset) % C + C) % C if PAIRED else 0
    gap = ((second - offset) % C + C) % C
    a, b, c, tail, tiles = plan_tiles(C, gap, ROWS, COLS, PAIRED, SECOND)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for MASKED in tl.static_range(2):
        steps = a + c - b + tiles - tail if MASKED else tail - c + b - a
        for step in range(steps):
            tile = masked_tile(step, a, b, c, tail) if MASKED else plain_tile(step, a, b, c)
            r = tile * COLS + tl.arange(0, COLS)
            j = tl.where(first + r >= C, first + r - C, first + r)
            y = load_rows(y_ptr, j, r < C, D, WIDTH, MASKED)
            y_unit = load_units(y_unit_ptr, j, r < C, NORMALIZE)
            y_top, y_weight = _load_weights(y_stats_ptr, stats_rows, upstream_ptr, row_stride, j,
                                            r < C, loudness)  # fmt: skip
            t = dot(x, tl.trans(y), None, PRECISION)
            G = _pair_weights(t, shift * x_unit, shift * y_unit, x_unit, y_unit, x_top, y_top,
                              x_weight, y_weight, shift, OWN, FIXED)  # fmt: skip
            if MASKED:
                keep = is_candidate(
                    is_row, tile * COLS, first, C, match, i + second, COLS, PAIRED, SECOND
                )
                G = tl.where(keep, G, 0.0)
            acc = dot(G.to(y.dtype), y, acc, PRECISION)
    store_rows(x_sum_ptr + batch * R * D, i, is_row, acc / loudness, D, WIDTH)


@triton.jit
def _finish_side(
    block, x_ptr, y_ptr, x_unit_ptr, y_unit_ptr, inverse_ptr, s, x_stats_ptr, y_stats_ptr,
    stats_rows, upstream_ptr, batch_stride, row_stride, sum_ptr, dx_ptr, along_ptr, B, R, C, offset,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, NORMALIZE: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, FORWARD: tl.constexpr, SUM: tl.constexpr,
    STORE: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    """A block of rows of finish_gradient_kernel, seen from the side of x."""
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < B.to(tl.int64) * R
    batch, i = row // R, row % R
    x = load_rows(x_ptr, row, is_row, D, WIDTH, True).to(tl.float32)
    x *= load_units(x_unit_ptr, row, is_row, NORMALIZE)[:, None]
    g = tl.zeros([ROWS], tl.float32)
    if OWN:
        g += tl.load(upstream_ptr + batch * batch_stride + i * row_stride, mask=is_row, other=0.0)
    dx = tl.zeros([ROWS, WIDTH], tl.float32)
    if SUM:
        dx += load_rows(sum_ptr, row, is_row, D, WIDTH, True)
        if FORWARD:
            dx *= (g * tl.load(x_stats_ptr + stats_rows + row, mask=is_row, other=0.0))[:, None]
    if OWN or OTHER:
        m = i + offset
        m = tl.where((R == C) & (m >= C), m - C, m)
        partner, is_pair = batch * C + m, is_row & (m >= 0) & (m < C)
        # The weight of the positive is P - 1 = -share, without cancellation.
        weight = tl.zeros([ROWS], tl.float32)
        if OWN:
            weight += g * tl.load(x_stats_ptr + 2 * stats_rows + row, mask=is_row, other=0.0)
        if OTHER:
            share = tl.load(y_stats_ptr + 2 * stats_rows + partner, mask=is_pair, other=0.0)
            upstream_ptr += batch * batch_stride + m * row_stride
            weight += share * tl.load(upstream_ptr, mask=is_pair, other=0.0)
        weight *= load_units(y_unit_ptr, partner, is_pair, NORMALIZE)
        y = load_rows(y_ptr, partner, is_pair, D, WIDTH, True).to(tl.float32)
        dx -= y * weight[:, None]
    dx *= s
    along = tl.sum(x * dx, 1)
    if ALONG:
        tl.store(along_ptr + row, along, mask=is_row)
    if NORMALIZE:  # the part along the row goes, the rest is divided by the row's length
        length = tl.load(inverse_ptr + row, mask=is_row, other=0.0)
        dx = (dx - x * along[:, None]) * length[:, None]
    if STORE:
        store_rows(dx_ptr, row, is_row, dx, D, WIDTH)


@triton.jit(do_not_specialize=["B", "R", "C", "offset", "stats_rows", "batch_stride", "row_stride"])
def finish_gradient_kernel(
    x_ptr, y_ptr, x_unit_ptr, y_unit_ptr, x_inverse_ptr, y_inverse_ptr, temperature, factor,
    x_stats_ptr, y_stats_ptr, upstream_ptr, x_sum_ptr, y_sum_ptr, dx_ptr, dy_ptr, along_ptr,
    B, R, C, offset, stats_rows, batch_stride, row_stride,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, NORMALIZE: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, FORWARD: tl.constexpr, X: tl.constexpr,
    Y: tl.constexpr, Y_SUM: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    """Positives, temperature and normalisation, for rows x and then for their partners y.

    dx_i = factor / T (sum over negatives - (g_i share_i if OWN, + g_m share_m if OTHER) y_m)
    """
    s = factor * inverse_temperature(temperature)
    block = tl.program_id(0)
    x_blocks = tl.cdiv(B * R, ROWS) if X or ALONG else 0
    if block < x_blocks:
        _finish_side(
            block, x_ptr, y_ptr, x_unit_ptr, y_unit_ptr, x_inverse_ptr, s, x_stats_ptr, y_stats_ptr,
            stats_rows, upstream_ptr, batch_stride, row_stride, x_sum_ptr, dx_ptr, along_ptr,
            B, R, C, offset, D, WIDTH, ROWS, NORMALIZE, OWN, OTHER, FORWARD, True, X, ALONG,
        )  # fmt: skip
    elif Y:
        _finish_side(
            block - x_blocks, y_ptr, x_ptr, y_unit_ptr, x_unit_ptr, y_inverse_ptr, s, y_stats_ptr,
            x_stats_ptr, stats_rows, upstream_ptr, batch_stride, row_stride, y_sum_ptr, dy_ptr,
            along_ptr, B, C, R, -offset, D, WIDTH, ROWS, NORMALIZE, OTHER, OWN, False, Y_SUM,
            True, False,
        )  # fmt: skip
