"""Colour attention in Triton: flash attention with narrow values, or with labels instead of values.

    B batch, Nt target cells, Nr reference cells, D width, C value width, F frames of `cells` cells,
    H x W grid; i target cells, j reference cells, c cells of a frame

Kernels are deterministic: a program owns the rows that it writes. The derivation is in README.md.
"""

import itertools

import torch
import triton

from sslops import tuning
from sslops.ops.color_attention import _triton_dense as dense
from sslops.ops.color_attention import _triton_topk as topk
from sslops.ops.color_attention import autograd
from sslops.triton_launch import why_not_device

MOST_KEPT = 32  # the largest top-k: a program keeps that many cells of each of its rows

# Told that they may use all registers, ptxas does not spill to save some. Tiles are in
# sslops/tuning; tests/ops/test_color_attention_compile.py holds them to 99 KiB of shared memory.
MOST_REGISTERS = 255
GATHER = dict(ROWS=32, num_warps=4, maxnreg=MOST_REGISTERS)
INTERPRETER_ROWS = 64  # the interpreter's time goes by instructions, not by numbers


def unsupported(target, reference, *args, topk=None, window=None):
    tensors = [a for a in (target, reference, *args) if isinstance(a, torch.Tensor)]
    if target.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"{target.dtype} has no kernel"
    if topk is not None and topk > MOST_KEPT:
        return f"topk is above {MOST_KEPT}"
    if any(t.numel() == 0 for t in tensors):
        return "an input is empty"
    if max(t.shape[1:].numel() for t in tensors if t.ndim) >= 2**31:
        return "a batch entry has 2^31 elements or more"
    return why_not_device(target)


def product(dtype):
    """How rows of this dtype are multiplied, as torch.set_float32_matmul_precision says."""
    if dtype != torch.float32:
        return "half"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32x3"


def width_of(D):
    """The power of two that holds D, and the least that tensor cores take."""
    return max(16, triton.next_power_of_2(D))


def tile_options(f):
    """What all kernels with matrix products know at compile time, and their launch parameters."""
    D = f.shape[2]
    tiles = tuning.TABLES[tuning.table_of(f)]["color_attention"][product(f.dtype)]
    columns, rows, cols, warps, stages = tiles["wide" if D > 64 else "narrow"]
    if dense.INTERPRETED:
        rows, cols = INTERPRETER_ROWS, INTERPRETER_ROWS
    return dict(D=D, WIDTH=min(columns, width_of(D)), ROWS=rows, COLS=cols, num_warps=warps,
                num_stages=stages, maxnreg=MOST_REGISTERS)  # fmt: skip


def dense_options(f, v, window, backward=False, accumulators=1):
    """The same for full attention. Beside half-precision embeddings, values keep the digits of
    float32 and gradients need fewer."""
    kind, C = product(f.dtype), 1 if v is None else v.shape[2]
    tile = tile_options(f)
    if kind == "half" and v is not None and not dense.INTERPRETED:
        # Accumulators of values leave registers for fewer visited rows.
        tile["COLS"] = min(tile["COLS"], 64 // accumulators // (2 if C > 32 else 1))
    precision = ("tf32" if backward else "tf32x3") if kind == "half" else kind
    return dict(**tile, C=C, C_WIDTH=width_of(C), LABELS=v is None, WINDOW=bool(window),
                PRECISION=precision)  # fmt: skip


def gather_options(f, v):
    tile = {**GATHER, "ROWS": INTERPRETER_ROWS} if dense.INTERPRETED else GATHER
    D, C = f.shape[2], v.shape[2]
    return dict(**tile, D=D, WIDTH=min(128, width_of(D)), C=C, C_WIDTH=width_of(C))


def geometry(target, reference, window):
    """(Nt, Nr, F, cells, H, W) and the radii on the device, filled there: no copy, no wait."""
    Nt, Nr = target.shape[1], reference.shape[1]
    if not window:
        return (Nt, Nr, 1, Nr, 1, Nr), None
    H, W, *radii = window
    runs = [torch.full((len(list(run)),), radius, dtype=torch.int32, device=target.device)
            for radius, run in itertools.groupby(radii)]  # fmt: skip
    return (Nt, Nr, len(radii), H * W, H, W), torch.cat(runs)


def launch(kernel, grid, *args, like, **options):
    with torch.cuda.device_of(like):
        kernel[grid](*args, **options, enable_fp_fusion=True)


def rows_like(x, *shape):
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def softmax(f, g, temperature, window, *, v=None, labels=(None, None)):
    """The forward pass of both ops: (out, lse) with values, (right, wrong, lse) with labels."""
    B, Nt, _ = f.shape
    sizes, radii = geometry(f, g, window)
    lse = rows_like(f, 2, B, Nt)
    right, wrong = (None if v is not None else rows_like(f, B, Nt) for _ in range(2))
    out = None if v is None else rows_like(f, B, Nt, v.shape[2])
    options = dense_options(f, v, window)
    grid = (triton.cdiv(Nt, options["ROWS"]) * B,)
    launch(dense.softmax_kernel, grid, f, g, v, *labels, temperature, radii, out, right, wrong,
           lse, B * Nt, *sizes, like=f, **options)  # fmt: skip
    return (out, lse) if v is not None else (right, wrong, lse)


def gradients(f, g, temperature, window, lse, a, b, *, v=None, grad=None, labels=(None, None)):
    """The backward pass of both ops; a, b: delta twice, or the weights of right and wrong cells."""
    B, Nt, D = f.shape
    sizes, radii = geometry(f, g, window)
    by_f, by_g = rows_like(f, *f.shape), rows_like(g, *g.shape)
    by_v = None if v is None else rows_like(v, *v.shape)
    inputs = (f, g, v, *labels, temperature, radii, grad, lse, a, b)
    frames, cells = sizes[2:4]
    options = dense_options(f, v, window, backward=True)
    grid = (triton.cdiv(Nt, options["ROWS"]) * B, triton.cdiv(D, options["WIDTH"]))
    launch(dense.target_gradient_kernel, grid, *inputs, by_f, B * Nt, *sizes, like=f, **options)
    options = dense_options(f, v, window, backward=True, accumulators=2)
    grid = (triton.cdiv(cells, options["ROWS"]) * frames * B, grid[1])
    launch(dense.reference_gradient_kernel, grid, *inputs, by_g, by_v, B * Nt, *sizes, like=f,
           **options)  # fmt: skip
    return (by_f, by_g) if v is None else (by_f, by_g, by_v)


def attention(target, reference, values, temperature, window):
    f, g, v = (x.contiguous() for x in (target, reference, values))
    return softmax(f, g, temperature, window, v=v)


def attention_backward(grad, target, reference, values, temperature, out, lse, window):
    f, g, v = (x.contiguous() for x in (target, reference, values))
    delta = (grad * out).sum(-1)
    return gradients(f, g, temperature, window, lse, delta, delta, v=v, grad=grad)


def match(target, reference, target_labels, reference_labels, temperature):
    f, g, *labels = (x.contiguous() for x in (target, reference, target_labels, reference_labels))
    right, wrong, lse = softmax(f, g, temperature, [], labels=labels)
    return autograd.loss_of_masses(right, wrong), lse, right, wrong


def match_backward(
    grad, target, reference, target_labels, reference_labels, temperature, lse, right, wrong
):
    f, g, *labels = (x.contiguous() for x in (target, reference, target_labels, reference_labels))
    weights = autograd.match_weights(grad, right, wrong)
    return gradients(f, g, temperature, [], lse, *weights, labels=labels)


def top(target, reference, window, k):
    f, g = target.contiguous(), reference.contiguous()
    B, Nt, _ = f.shape
    sizes, radii = geometry(f, g, window)
    index = torch.empty(B, Nt, k, dtype=torch.int32, device=f.device)
    options = tile_options(f)
    kind = product(f.dtype)
    launch(topk.top_kernel, (triton.cdiv(Nt, options["ROWS"]) * B,), f, g, radii, index, *sizes, k,
           like=f, K=triton.next_power_of_2(k), WINDOW=bool(window),
           PRECISION="tf32x3" if kind == "half" else kind, **options)  # fmt: skip
    return index


def gather(target, reference, values, temperature, index):
    f, g, v = (x.contiguous() for x in (target, reference, values))
    B, Nt, k = index.shape
    weights, out = rows_like(f, B, Nt, k), rows_like(f, B, Nt, v.shape[2])
    options = dict(**gather_options(f, v), K=triton.next_power_of_2(k))
    launch(topk.gather_kernel, (triton.cdiv(B * Nt, options["ROWS"]),), f, g, v, index,
           temperature, weights, out, B * Nt, Nt, g.shape[1], k, like=f, **options)  # fmt: skip
    return out, weights


def gather_backward(grad, target, reference, values, temperature, index, out, weights):
    f, g, v = (x.contiguous() for x in (target, reference, values))
    (B, Nt, k), Nr = index.shape, g.shape[1]
    by_f, by_g, by_v = (rows_like(x, *x.shape) for x in (f, g, v))
    dS = torch.empty_like(weights)
    options = gather_options(f, v)
    chunks = triton.cdiv(f.shape[2], options["WIDTH"])
    launch(topk.gather_target_gradient_kernel, (triton.cdiv(B * Nt, options["ROWS"]), chunks),
           grad, g, v, index, temperature, weights, out, dS, by_f, B * Nt, Nt, Nr, k, like=f,
           **options)  # fmt: skip
    # The places of index by the cell they name; a stable sort keeps the order of the target cells.
    cells, order = index.reshape(B, -1).sort(dim=1, stable=True)
    bounds = torch.arange(Nr + 1, dtype=torch.int32, device=f.device).expand(B, -1).contiguous()
    start = torch.searchsorted(cells, bounds)
    launch(topk.gather_reference_gradient_kernel, (triton.cdiv(B * Nr, options["ROWS"]), chunks),
           grad, f, temperature, weights, dS, order, start, by_g, by_v, B * Nr, Nt, Nr, k, like=f,
           **options)  # fmt: skip
    return by_f, by_g, by_v


color_attention, color_attention_loss = autograd.define("triton", autograd.Kernels(
    attention, attention_backward, match, match_backward, top, gather, gather_backward
))  # fmt: skip
