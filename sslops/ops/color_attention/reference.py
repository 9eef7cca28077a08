"""Colour attention in plain PyTorch: the specification. Runs in float64, stores the scores."""

from typing import NamedTuple

import torch

from sslops.unit_rows import at_least_float32

# Keeps the loss finite where no reference cell has the target's label: -log(1e-8) = 18.42.
EPSILON = 1e-8


class Window(NamedTuple):
    """Which reference cells a target cell may look at: a square around its own position."""

    height: int
    width: int
    radii: tuple[int, ...]  # one per reference frame, in cells; negative: no cell of the frame


def unsupported(*args, **kwargs):
    return None


def color_attention(target, reference, values, temperature, *, window, topk):
    """See sslops.ops.color_attention for the arguments of a backend.

    A_ij = exp(<f_i, g_j> / T) / sum_k exp(<f_i, g_k> / T),   out_i = sum_j A_ij v_j
    """
    rows = torch.arange(target.shape[1], device=target.device)
    return attend(target, reference, values, temperature, rows, window, topk)


def attend(target, reference, values, temperature, rows, window, topk):
    """The specification for some rows of the target frame: `target` is [B, len(rows), D]."""
    target, reference = at_least_float32(target), at_least_float32(reference)
    scores = target @ reference.mT / temperature  # [B, rows, Nr]
    keep = candidates(rows, reference.shape[1], window).expand_as(scores)
    if topk is not None:
        keep = keep & is_largest(scores.detach().masked_fill(~keep, -torch.inf), topk)
    # The lowest number instead of -inf: a row without any candidate gets zeros, not nan.
    scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).masked_fill(~keep, 0)
    return weights @ values.to(weights.dtype)


def color_attention_loss(target, reference, target_labels, reference_labels, temperature):
    """See sslops.ops.color_attention for the arguments of a backend.

    p_i = sum_j A_ij [c_j = y_i],   loss_i = -log(p_i + 1e-8)
    """
    scores = at_least_float32(target) @ at_least_float32(reference).mT / temperature
    is_match = target_labels[:, :, None] == reference_labels[:, None, :]
    p = scores.softmax(-1).masked_fill(~is_match, 0).sum(-1)
    return -torch.log(p + EPSILON)


def candidates(rows, Nr, window):
    """Which of the Nr reference cells each target cell of `rows` may look at, bool [rows, Nr]."""
    if window is None:
        return torch.ones(len(rows), Nr, dtype=torch.bool, device=rows.device)
    H, W, radii = window
    cells = torch.arange(H * W, device=rows.device)
    dy = rows[:, None] // W - cells // W
    dx = rows[:, None] % W - cells % W
    distance = torch.maximum(dy.abs(), dx.abs())  # Chebyshev
    return torch.cat([distance <= radius for radius in radii], dim=-1)


def is_largest(scores, k):
    """Where the k largest scores of each row are, bool; ties go to the lower index."""
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)
