"""Colour attention in plain PyTorch, a few target cells at a time: on any device, any dtype.

The scores of a chunk are computed again in the backward pass, so the memory is O(N D), not Nt x Nr.
"""

import torch
from torch.utils.checkpoint import checkpoint

from sslops.ops.color_attention import reference as specification
from sslops.unit_rows import at_least_float32

# Scores held at a time: 16 MiB in float32, and a few times that with their gradients.
SCORES_PER_CHUNK = 1 << 22


def unsupported(*args, **kwargs):
    return None


def color_attention(target, reference, values, temperature, *, window, topk):
    """See sslops.ops.color_attention for the arguments of a backend."""
    # Cast once, so that the chunks' gradients add up in float32.
    target, reference = at_least_float32(target), at_least_float32(reference)
    values = values.to(target.dtype)
    rows = torch.arange(target.shape[1], device=target.device)

    def attend(target, rows):
        return specification.attend(target, reference, values, temperature, rows, window, topk)

    n = rows_per_chunk(reference)
    return _concatenate(attend, zip(target.split(n, 1), rows.split(n), strict=True))


def color_attention_loss(target, reference, target_labels, reference_labels, temperature):
    """See sslops.ops.color_attention for the arguments of a backend."""
    target, reference = at_least_float32(target), at_least_float32(reference)

    def loss(target, labels):
        return specification.color_attention_loss(
            target, reference, labels, reference_labels, temperature
        )

    n = rows_per_chunk(reference)
    return _concatenate(loss, zip(target.split(n, 1), target_labels.split(n, 1), strict=True))


def rows_per_chunk(reference):
    B, Nr, _ = reference.shape
    return max(1, SCORES_PER_CHUNK // max(1, B * Nr))


def _concatenate(function, chunks):
    results = [checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False)
               for chunk in chunks]  # fmt: skip
    return torch.cat(results, dim=1)
