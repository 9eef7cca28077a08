"""The DINO loss in Triton: a student logit is read once forward, once backward. See README.md.

    S student views, T teacher views, N images, K prototypes; a chunk is BLOCK prototypes

Logits are used in units of log 2: z = logit * log2(e) / temperature.
"""

import torch
import triton
import triton.language as tl

from sslops import triton_launch as launch
from sslops.ops.dino_loss import operators
from sslops.triton_helpers import INTERPRETED, LN_2, LOG2_E, inverse_temperature

MOST_TEACHER_VIEWS = 8  # all of their probabilities of a chunk are in registers together
CHUNK = 4096  # prototypes and teacher views of a program: 32 values a thread
WARPS = 4


@triton.jit
def _teacher_logits(teacher_ptr, center_ptr, temperature, row, k, keep, K, CENTERED: tl.constexpr):
    g = tl.load(teacher_ptr + row.to(tl.int64) * K + k, mask=keep, other=0.0).to(tl.float32)
    if CENTERED:
        g -= tl.load(center_ptr + k, mask=k < K, other=0.0)
    return g * (LOG2_E * inverse_temperature(temperature))


@triton.jit
def teacher_parts_kernel(
    teacher_ptr, center_ptr, temperature, part_ptr, rows, K,
    BLOCK: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """Largest logit and sum of exponentials of a chunk of a teacher row: [2, rows, chunks]."""
    row, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    k = chunk * BLOCK + tl.arange(0, BLOCK)
    z = _teacher_logits(teacher_ptr, center_ptr, temperature, row, k, k < K, K, CENTERED)
    z = tl.where(k < K, z, -float("inf"))
    top = tl.max(z, 0)
    place = row * chunks + chunk
    tl.store(part_ptr + place, top)
    tl.store(part_ptr + rows * chunks + place, tl.sum(tl.exp2(z - top), 0))


@triton.jit
def _combine(part_ptr, row, rows, chunks, is_row, CHUNKS: tl.constexpr):
    """Shift and logarithm of whole rows [slots] from the parts of their chunks."""
    c = tl.arange(0, CHUNKS)[None, :]
    keep = is_row[:, None] & (c < chunks)
    place = row[:, None] * chunks + c
    tops = tl.load(part_ptr + place, mask=keep, other=-float("inf"))
    sums = tl.load(part_ptr + rows * chunks + place, mask=keep, other=0.0)
    top = tl.where(is_row, tl.max(tops, 1), 0.0)
    total = tl.sum(tl.where(keep, sums * tl.exp2(tops - top[:, None]), 0.0), 1)
    return top, tl.log2(tl.where(is_row, total, 1.0))


@triton.jit
def _targets(
    teacher_ptr, center_ptr, temperature, top, log_sum, n, k, N, K,
    T: tl.constexpr, SLOTS: tl.constexpr, LOGITS: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """Probabilities of all teacher views of an image, [SLOTS, BLOCK]; zeros beyond T and K."""
    t = tl.arange(0, SLOTS)[:, None]
    keep = (t < T) & (k[None, :] < K)
    if LOGITS:
        z = _teacher_logits(teacher_ptr, center_ptr, temperature, t * N + n, k[None, :], keep, K,
                            CENTERED)  # fmt: skip
        P = tl.where(keep, tl.exp2(z - top[:, None] - log_sum[:, None]), 0.0)
    else:
        row = (t * N + n).to(tl.int64)
        P = tl.load(teacher_ptr + row * K + k[None, :], mask=keep, other=0.0).to(tl.float32)
    return P


@triton.jit
def _sum_of_others(P, s, SLOTS: tl.constexpr, SKIP: tl.constexpr):
    """The target of student view s [BLOCK]: the sum over the other views, never a difference."""
    if SKIP:
        P = tl.where((tl.arange(0, SLOTS) == s)[:, None], 0.0, P)
    return tl.sum(P, 0)


@triton.jit
def _weight(weight_ptr, row, WEIGHTED: tl.constexpr):
    if WEIGHTED:
        w = tl.load(weight_ptr + row)
    else:
        w = 1.0
    return w


@triton.jit
def _is_selected(weight_ptr, n, S, N, WEIGHTED: tl.constexpr):
    """Whether any student view of an image has a weight."""
    found = 1
    if WEIGHTED:
        found = 0
        for s in range(S):
            found = tl.where(tl.load(weight_ptr + s * N + n) != 0, 1, found)
    return found


@triton.jit(do_not_specialize=["S", "N"])
def student_parts_kernel(
    student_ptr, teacher_ptr, center_ptr, weight_ptr, student_temperature, teacher_temperature,
    teacher_part_ptr, teacher_stats_ptr, part_ptr, S, N, K,
    T: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
    SKIP: tl.constexpr, LOGITS: tl.constexpr, CENTERED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """A chunk of all views of one image: parts [4, S * N, chunks] of every student row, namely its
    largest logit m, sum of e^{z - m}, of target (m - z) and of the target."""
    n, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    k = chunk * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, SLOTS)
    if _is_selected(weight_ptr, n, S, N, WEIGHTED):
        top, log_sum = tl.zeros([SLOTS], tl.float32), tl.zeros([SLOTS], tl.float32)
        if LOGITS:
            top, log_sum = _combine(teacher_part_ptr, t * N + n, T * N, chunks, t < T, CHUNKS)
            if chunk == 0:
                tl.store(teacher_stats_ptr + t * N + n, top, mask=t < T)
                tl.store(teacher_stats_ptr + (T + t) * N + n, log_sum, mask=t < T)
        P = _targets(teacher_ptr, center_ptr, teacher_temperature, top, log_sum, n, k, N, K,
                     T, SLOTS, LOGITS, CENTERED)  # fmt: skip
        masses = tl.sum(P, 1)
        scale = LOG2_E * inverse_temperature(student_temperature)
        size = S.to(tl.int64) * N * chunks
        for s in range(S):
            row = (s * N + n).to(tl.int64)
            if _weight(weight_ptr, row, WEIGHTED) != 0:
                z = tl.load(student_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32) * scale
                z = tl.where(k < K, z, -float("inf"))
                m = tl.max(z, 0)
                below = tl.where(k < K, z - m, 0.0)
                e = tl.where(k < K, tl.exp2(below), 0.0)
                Q = _sum_of_others(P, s, SLOTS, SKIP)
                mass = tl.sum(tl.where((t == s) & SKIP, 0.0, masses), 0)
                place = part_ptr + row * chunks + chunk
                tl.store(place, m)
                tl.store(place + size, tl.sum(e, 0))
                tl.store(place + 2 * size, -tl.sum(Q * below, 0))
                tl.store(place + 3 * size, mass)


@triton.jit(do_not_specialize=["rows", "chunks"])
def finish_rows_kernel(
    part_ptr, weight_ptr, loss_ptr, stats_ptr, rows, chunks,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Losses and stats of student rows from the parts of their chunks."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    w = (
        tl.load(weight_ptr + row, mask=is_row, other=0.0)
        if WEIGHTED
        else tl.where(is_row, 1.0, 0.0)
    )
    chosen = w != 0
    top, log_sum = _combine(part_ptr, row, rows, chunks, chosen, CHUNKS)
    c = tl.arange(0, CHUNKS)[None, :]
    keep = chosen[:, None] & (c < chunks)
    place = part_ptr + row.to(tl.int64)[:, None] * chunks + c
    size = rows.to(tl.int64) * chunks
    tops = tl.load(place, mask=keep, other=0.0)
    apart = tl.load(place + 2 * size, mask=keep, other=0.0)
    mass = tl.load(place + 3 * size, mask=keep, other=0.0)
    # From the chunk's largest logit to that of the row.
    apart += tl.where(keep, mass * (top[:, None] - tops), 0.0)
    mass = tl.sum(mass, 1)
    loss = (mass * log_sum + tl.sum(apart, 1)) * LN_2
    tl.store(loss_ptr + row, tl.where(chosen, w * loss, 0.0), mask=is_row)
    tl.store(stats_ptr + row, top, mask=is_row)
    tl.store(stats_ptr + rows + row, log_sum, mask=is_row)
    tl.store(stats_ptr + 2 * rows + row, mass, mask=is_row)


@triton.jit(do_not_specialize=["S", "N"])
def gradient_kernel(
    student_ptr, teacher_ptr, center_ptr, weight_ptr, student_temperature, teacher_temperature,
    stats_ptr, teacher_stats_ptr, upstream_ptr, gradient_ptr, S, N, K,
    T: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
    SKIP: tl.constexpr, LOGITS: tl.constexpr, CENTERED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """upstream w / T (mass softmax(z) - target), written once; zeros for rows of weight 0."""
    n, chunk = tl.program_id(0), tl.program_id(1)
    k = chunk * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, SLOTS)
    P = tl.zeros([SLOTS, BLOCK], tl.float32)
    if _is_selected(weight_ptr, n, S, N, WEIGHTED):
        top = tl.load(teacher_stats_ptr + t * N + n, mask=t < T, other=0.0)
        log_sum = tl.load(teacher_stats_ptr + (T + t) * N + n, mask=t < T, other=0.0)
        P = _targets(teacher_ptr, center_ptr, teacher_temperature, top, log_sum, n, k, N, K,
                     T, SLOTS, LOGITS, CENTERED)  # fmt: skip
    inverse = inverse_temperature(student_temperature)
    rows = S * N
    for s in range(S):
        row = (s * N + n).to(tl.int64)
        w = _weight(weight_ptr, row, WEIGHTED)
        G = tl.zeros([BLOCK], tl.float32)
        if w != 0:
            z = tl.load(student_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
            z = z * (LOG2_E * inverse) - tl.load(stats_ptr + row)
            p = tl.exp2(z - tl.load(stats_ptr + rows + row))
            Q = _sum_of_others(P, s, SLOTS, SKIP)
            factor = tl.load(upstream_ptr + row) * w * inverse
            G = factor * (tl.load(stats_ptr + 2 * rows + row) * p - Q)
        G = G.to(gradient_ptr.dtype.element_ty)
        tl.store(gradient_ptr + row * K + k, G, mask=k < K)


def options_of(student, teacher, center, weights, temperatures, skip):
    """What both kernels know at compile time, and the number of chunks."""
    T, K = len(teacher), student.shape[2]
    slots = launch.power_of_two(T)
    block = min(CHUNK // slots, launch.power_of_two(K))
    if INTERPRETED:  # its time goes by instructions, not by numbers
        block = min(launch.power_of_two(K), CHUNK)
    options = dict(
        T=T, SLOTS=slots, BLOCK=block, SKIP=skip, LOGITS=temperatures[1] is not None,
        CENTERED=center is not None, WEIGHTED=weights is not None, num_warps=WARPS,
        enable_fp_fusion=True,
    )  # fmt: skip
    return options, launch.ceil_div(K, block)


def forward(student, teacher, center, weights, temperatures, skip):
    loss, stats, teacher_stats = outputs = operators.output_space(student, teacher)
    S, N, K = student.shape
    options, chunks = options_of(student, teacher, center, weights, temperatures, skip)
    teacher_temperature = 1.0 if temperatures[1] is None else temperatures[1]
    teacher_parts = stats.new_empty(2, len(teacher) * N, chunks)
    parts = stats.new_empty(4, S * N, chunks)
    center_or, weights_or = (stats if x is None else x for x in (center, weights))
    if not N:
        return outputs
    with torch.cuda.device_of(student):
        if options["LOGITS"]:
            teacher_parts_kernel[(len(teacher) * N, chunks)](
                teacher, center_or, teacher_temperature, teacher_parts, len(teacher) * N, K,
                BLOCK=options["BLOCK"], CENTERED=options["CENTERED"], num_warps=WARPS,
                enable_fp_fusion=True,
            )  # fmt: skip
        student_parts_kernel[(N, chunks)](
            student, teacher, center_or, weights_or, temperatures[0], teacher_temperature,
            teacher_parts, teacher_stats, parts, S, N, K,
            CHUNKS=launch.power_of_two(chunks), **options,
        )  # fmt: skip
        rows = max(1, 256 // launch.power_of_two(chunks))
        finish_rows_kernel[(launch.ceil_div(S * N, rows),)](
            parts, weights_or, loss, stats, S * N, chunks, ROWS=rows,
            CHUNKS=launch.power_of_two(chunks), WEIGHTED=weights is not None, num_warps=1,
            enable_fp_fusion=True,
        )  # fmt: skip
    return outputs


def backward(upstream, stats, teacher_stats, student, teacher, center, weights, temperatures, skip):
    gradient = torch.empty_like(student)
    S, N, K = student.shape
    options, chunks = options_of(student, teacher, center, weights, temperatures, skip)
    teacher_temperature = 1.0 if temperatures[1] is None else temperatures[1]
    center_or, weights_or = (stats if x is None else x for x in (center, weights))
    if N:
        with torch.cuda.device_of(student):
            gradient_kernel[(N, chunks)](
                student, teacher, center_or, weights_or, temperatures[0], teacher_temperature,
                stats, teacher_stats, upstream, gradient, S, N, K, **options,
            )  # fmt: skip
    return gradient


def unsupported(student, teacher, *args, **kwargs):
    known = (torch.float32, torch.float16, torch.bfloat16)
    for tensor in (student, teacher):
        if tensor.dtype not in known:
            return f"Triton kernels take float32, float16 and bfloat16, not {tensor.dtype}"
    if len(teacher) > MOST_TEACHER_VIEWS:
        return f"more than {MOST_TEACHER_VIEWS} teacher views"
    if student.shape[0] * student.shape[1] >= 2**24:
        return "2^24 rows or more"
    return launch.why_not_device(student)


dino_loss = operators.define("triton", forward, backward)
