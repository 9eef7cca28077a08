"""Logits a block at a time: the parts of contrastive losses whose keys lie on several ranks.

A block is N queries against M keys, z_ij = <q_i, k_j> / temperature. Two functions make a loss of
its blocks (the derivation is in README.md); what a backend of this folder receives:

    block_statistics(query, keys, temperature, positive, *, normalize, positive_at, excluded_at,
                     columns, key_sums, ranks) -> BlockStatistics

    query        [B, N, D], N >= 1, without gradient
    keys         [B, M, D], M >= 1, of the same dtype and device
    temperature  0-d tensor, float32 (float64 for float64 queries)
    positive     None, or [B, N]: the logits of the rows' positives, known from another block
    normalize    scale rows to unit length first (sslops.unit_rows)
    positive_at  None, or [N] int64: which key of this block is the row's positive
    excluded_at  None, or [N] int64: which key of this block is no candidate of the row
    columns      whether statistics of the columns are wanted
    key_sums     whether sums of keys, weighted by the exponentials of the rows, are wanted
    ranks        whether candidates above the positive shall be counted

    block_gradients(query, keys, temperature, rows, columns, *, normalize, positive_at,
                    excluded_at, wants) -> (dq, dk)

    rows, columns  None, or [B, N, 3] and [B, M, 3]: of each softmax, over all blocks, the largest
                   logit, the sum of exponentials relative to it, and the upstream gradient
    wants          which of dq and dk to compute: the gradients of the rows of unit length, in the
                   dtype of the temperature; None for the other
"""

from sslops import registry
from sslops.ops.logit_blocks.reference import BlockStatistics, merged

__all__ = ["BlockStatistics", "block_gradients", "block_statistics", "merged"]

_statistics = registry.load(
    "logit_blocks", "cpu", "chunked", "reference", function="block_statistics"
)
_gradients = registry.load(
    "logit_blocks", "cpu", "chunked", "reference", function="block_gradients"
)


def block_statistics(backend, query, keys, temperature, positive=None, *, normalize,
                     positive_at=None, excluded_at=None, columns=False, key_sums=False,
                     ranks=False):  # fmt: skip
    """Statistics of a block, which may have no rows or no columns: what merges with anything."""
    (B, N, D), M = query.shape, keys.shape[1]
    if N and M:
        return _statistics(backend, query, keys, temperature, positive, normalize=normalize,
                           positive_at=positive_at, excluded_at=excluded_at, columns=columns,
                           key_sums=key_sums, ranks=ranks)  # fmt: skip
    new = temperature.new_zeros
    nothing = [new(B, n, 2 + extra) for n, extra in ((N, D if key_sums else 0), (M, 0))]
    for x in nothing:
        x[..., 0] = -float("inf")
    positive = new(B, N) if positive is None else positive
    return BlockStatistics(nothing[0], nothing[1] if columns else None, positive,
                           new(B, N).long() if ranks else None)  # fmt: skip


def block_gradients(backend, query, keys, temperature, rows, columns, *, normalize,
                    positive_at=None, excluded_at=None, wants=(True, True)):  # fmt: skip
    """Gradients of a block, which may have no rows or no columns."""
    if query.shape[1] and keys.shape[1]:
        places = dict(positive_at=positive_at, excluded_at=excluded_at)
        return _gradients(backend, query, keys, temperature, rows, columns, normalize=normalize,
                          wants=wants, **places)  # fmt: skip
    return tuple(
        temperature.new_zeros(x.shape) if wanted else None
        for x, wanted in zip((query, keys), wants, strict=True)
    )
