"""Colour attention on the CPU: a strip of target cells at a time, its scores by torch's matrix
product, everything between the products in csrc/cpu/color_attention.cpp."""

from typing import NamedTuple

import torch

import sslops._C as _C
from sslops.ops.color_attention import autograd

# B batch, Nt target cells, Nr reference cells, D width, C value width, F frames, H x W grid

# Scores of a strip: 2 MiB, so that a strip is still in the cache when the next product reads it.
SCORES_PER_STRIP = 1 << 19
MOST_ROWS = 256


def unsupported(target, reference, *args, **kwargs):
    tensors = [a for a in (target, reference, *args) if isinstance(a, torch.Tensor)]
    if any(t.device.type != "cpu" for t in tensors):
        return "the tensors are not on the CPU"
    if target.dtype == torch.float64:
        return "float64 is not compiled"
    if any(t.numel() == 0 for t in tensors):
        return "an input is empty"
    return None


class Strip(NamedTuple):
    """Consecutive target cells, and the reference cells that any of them may look at."""

    rows: slice
    parts: list  # (slice of the reference cells, slice of the strip's columns)
    columns: int
    bands: torch.Tensor  # int64 [F, 3]: radius, first and last grid row of every frame


def strips(Nt, Nr, window):
    """Cut the target cells into strips; without a window every strip has all reference cells."""
    if not window:
        bands = torch.empty(0, 3, dtype=torch.int64)
        whole = [(slice(0, Nr), slice(0, Nr))]
        return [Strip(rows, whole, Nr, bands) for rows in _row_slices(Nt, Nr)]
    H, W, *radii = window
    widest = sum(min(H, 2 * max(r, 0) + 1) for r in radii) * W
    return [_windowed_strip(rows, H, W, radii) for rows in _row_slices(Nt, widest)]


def _row_slices(Nt, columns):
    n = max(8, min(MOST_ROWS, SCORES_PER_STRIP // columns))
    return [slice(i, min(i + n, Nt)) for i in range(0, Nt, n)]


def _windowed_strip(rows, H, W, radii):
    top, bottom = rows.start // W, (rows.stop - 1) // W
    bands, parts, columns = [], [], 0
    for frame, radius in enumerate(radii):
        seen = max(0, top - radius), min(H, bottom + radius + 1)
        first, last = seen if radius >= 0 else (0, 0)
        bands.append((radius, first, last))
        count = (last - first) * W
        if count:
            start = (frame * H + first) * W
            parts.append((slice(start, start + count), slice(columns, columns + count)))
            columns += count
    return Strip(rows, parts, columns, torch.tensor(bands))


class Buffer:
    """Memory for one strip of scores after the other."""

    def __init__(self, all_strips):
        self.memory = torch.empty(
            max((s.rows.stop - s.rows.start) * s.columns for s in all_strips), dtype=torch.float32
        )

    def product(self, strip, rows, columns):
        """rows @ columns.T for the strip's reference cells."""
        n = len(rows)
        scores = self.memory[: n * strip.columns].view(n, strip.columns)
        for cells, place in strip.parts:
            torch.mm(rows, columns[cells].T, out=scores[:, place])
        return scores


def fields(strip, scores, window):
    """The struct Strip of color_attention.h."""
    H, W = window[:2] if window else (0, 0)
    return (scores.data_ptr(), *scores.shape, strip.rows.start, H, W, len(strip.bands),
            strip.bands.data_ptr(), torch.get_num_threads())  # fmt: skip


def weighted_sum(strip, weights, cells, out):
    """out = weights @ cells, over the strip's reference cells."""
    out.zero_()
    for part, place in strip.parts:
        out.addmm_(weights[:, place], cells[part])


def add_transposed(strip, weights, rows, out):
    """out += weights.T @ rows, at the strip's reference cells."""
    for part, place in strip.parts:
        out[part].addmm_(weights[:, place].T, rows)


def prepare(temperature, target, *others):
    """float32 and contiguous; the target over the temperature, so that products are scores."""
    return (target.float() / temperature).contiguous(), *(x.float().contiguous() for x in others)


def attention(target, reference, values, temperature, window):
    f, g, v = prepare(temperature, target, reference, values)
    B, Nt, _ = f.shape
    top, total = torch.empty(2, B, Nt).unbind()
    out = torch.empty(B, Nt, v.shape[2])
    all_strips = strips(Nt, g.shape[1], window)
    buffer = Buffer(all_strips)
    for b in range(B):
        for strip in all_strips:
            rows = strip.rows
            scores = buffer.product(strip, f[b, rows], g[b])
            _C.color_softmax(fields(strip, scores, window), top[b, rows].data_ptr(),
                             total[b, rows].data_ptr())  # fmt: skip
            weighted_sum(strip, scores, v[b], out[b, rows])
    return out.div_(total[..., None]), torch.stack([top, total.log2()])


def attention_backward(grad, target, reference, values, temperature, out, lse, window):
    f, g, v = prepare(temperature, target, reference, values)
    by_f, by_g, by_v = torch.empty_like(f), torch.zeros_like(g), torch.zeros_like(v)
    delta = (grad * out).sum(-1)
    all_strips = strips(f.shape[1], g.shape[1], window)
    buffer, buffer_A = Buffer(all_strips), Buffer(all_strips)
    for b in range(len(f)):
        for strip in all_strips:
            rows = strip.rows
            scores = buffer.product(strip, f[b, rows], g[b])
            weights = buffer_A.product(strip, grad[b, rows], v[b])
            _C.color_softmax_backward(
                fields(strip, scores, window), weights.data_ptr(), lse[0, b, rows].data_ptr(),
                lse[1, b, rows].data_ptr(), delta[b, rows].data_ptr(),
            )  # fmt: skip
            weighted_sum(strip, scores, g[b], by_f[b, rows])
            add_transposed(strip, scores, f[b, rows], by_g[b])
            add_transposed(strip, weights, grad[b, rows], by_v[b])
    return by_f.div_(temperature), by_g, by_v


def match(target, reference, target_labels, reference_labels, temperature):
    f, g = prepare(temperature, target, reference)
    labels, candidates = as_int32(target_labels, reference_labels)
    B, Nt, _ = f.shape
    top, right, wrong = torch.empty(3, B, Nt).unbind()
    all_strips = strips(Nt, g.shape[1], [])
    buffer = Buffer(all_strips)
    for b in range(B):
        for strip in all_strips:
            rows = strip.rows
            scores = buffer.product(strip, f[b, rows], g[b])
            arrays = (labels[b, rows], candidates[b], top[b, rows], right[b, rows], wrong[b, rows])
            _C.color_match(fields(strip, scores, []), *(a.data_ptr() for a in arrays))
    total = right + wrong
    right, wrong = right / total, wrong / total
    lse = torch.stack([top, total.log2()])
    return autograd.loss_of_masses(right, wrong), lse, right, wrong


def match_backward(
    grad, target, reference, target_labels, reference_labels, temperature, lse, right, wrong
):
    f, g = prepare(temperature, target, reference)
    labels, candidates = as_int32(target_labels, reference_labels)
    by_f, by_g = torch.empty_like(f), torch.zeros_like(g)
    weights = autograd.match_weights(grad, right, wrong)
    all_strips = strips(f.shape[1], g.shape[1], [])
    buffer = Buffer(all_strips)
    for b in range(len(f)):
        for strip in all_strips:
            rows = strip.rows
            scores = buffer.product(strip, f[b, rows], g[b])
            arrays = [x[b, rows] for x in (lse[0], lse[1], *weights)]
            arrays = labels[b, rows], candidates[b], *arrays
            _C.color_match_backward(fields(strip, scores, []), *(a.data_ptr() for a in arrays))
            weighted_sum(strip, scores, g[b], by_f[b, rows])
            add_transposed(strip, scores, f[b, rows], by_g[b])
    return by_f.div_(temperature), by_g


def as_int32(target_labels, reference_labels):
    """The labels, or numbers for them that agree exactly where they agree, in int32."""
    labels = target_labels, reference_labels
    limits = torch.iinfo(torch.int32)
    if any(x.min() < limits.min or x.max() > limits.max for x in labels):
        numbers = torch.cat([x.flatten() for x in labels]).unique(return_inverse=True)[1]
        numbers = numbers.split([x.numel() for x in labels])
        labels = [n.view_as(x) for n, x in zip(numbers, labels, strict=True)]
    return [x.int().contiguous() for x in labels]


def top(target, reference, window, k):
    f, g = target.float().contiguous(), reference.float().contiguous()
    B, Nt, _ = f.shape
    index = torch.empty(B, Nt, k, dtype=torch.int32)
    all_strips = strips(Nt, g.shape[1], window)
    buffer = Buffer(all_strips)
    for b in range(B):
        for strip in all_strips:
            scores = buffer.product(strip, f[b, strip.rows], g[b])
            _C.color_top(fields(strip, scores, window), k, index[b, strip.rows].data_ptr())
    return index


def gather(target, reference, values, temperature, index):
    tensors = prepare(temperature, target, reference, values)
    out = torch.empty(*index.shape[:2], values.shape[2])
    weights = torch.empty(index.shape)
    _C.color_gather(gather_fields(*tensors, index), weights.data_ptr(), out.data_ptr())
    return out, weights


def gather_backward(grad, target, reference, values, temperature, index, out, weights):
    tensors = prepare(temperature, target, reference, values)
    by_f, by_g, by_v = (torch.empty_like(t) for t in tensors)
    scratch = torch.empty_like(weights)
    arrays = (grad, weights, out, scratch, by_f, by_g, by_v)
    _C.color_gather_backward(gather_fields(*tensors, index), *(a.data_ptr() for a in arrays))
    return by_f.div_(temperature), by_g, by_v


def gather_fields(f, g, v, index):
    """The struct Gather of color_attention.h."""
    B, Nt, k = index.shape
    return (f.data_ptr(), g.data_ptr(), v.data_ptr(), index.data_ptr(), B, Nt, g.shape[1],
            f.shape[2], v.shape[2], k, torch.get_num_threads())  # fmt: skip


color_attention, color_attention_loss = autograd.define("cpu", autograd.Kernels(
    attention, attention_backward, match, match_backward, top, gather, gather_backward
))  # fmt: skip
