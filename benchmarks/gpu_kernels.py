"""The small Triton kernels of ceilings.py and engines.py."""

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def exp_kernel(x_ptr, y_ptr, n, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """STEPS exponentials of every element, each of the last: nothing but the exponential unit."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    for _ in range(STEPS):
        x = tl.exp2(-x)
    tl.store(y_ptr + i, x, mask=i < n)


@triton.jit
def exp_product_kernel(
    a_ptr, b_ptr, e_ptr, M, N, scale,
    D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr, EXP: tl.constexpr,
):  # fmt: skip
    """E = exp2(scale (a b' - 1)) in the dtype of e, the exponential in the product's epilogue."""
    row_blocks, col_blocks = tl.cdiv(M, ROWS), tl.cdiv(N, COLS)
    block = tl.program_id(0)
    first = block // (GROUP * col_blocks) * GROUP  # bands of blocks whose operands stay in L2
    height = tl.minimum(row_blocks - first, GROUP)
    i = (first + block % height) * ROWS + tl.arange(0, ROWS)
    j = block % (GROUP * col_blocks) // height * COLS + tl.arange(0, COLS)
    d = tl.arange(0, DEPTH)
    acc = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, D, DEPTH):
        a = tl.load(a_ptr + (i % M)[:, None].to(tl.int64) * D + start + d[None, :])
        b = tl.load(b_ptr + (j % N)[:, None].to(tl.int64) * D + start + d[None, :])
        if _INTERPRETED:  # it has no product of bfloat16
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, tl.trans(b), acc)
    if EXP:
        acc = tl.exp2((acc - 1.0) * scale)
    keep = (i < M)[:, None] & (j < N)[None, :]
    place = e_ptr + i[:, None].to(tl.int64) * N + j[None, :]
    tl.store(place, acc.to(e_ptr.dtype.element_ty), mask=keep)
