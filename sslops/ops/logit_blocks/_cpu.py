"""Blocks of logits on the CPU: csrc/cpu/logit_blocks.cpp. Memory O((N + M) D) and a few tiles."""

import torch

import sslops._C as _C
from sslops import cpu_helpers
from sslops.cpu_helpers import address
from sslops.ops.logit_blocks.reference import BlockStatistics
from sslops.unit_rows import at_least_float32, unit_rows


def unsupported(query, keys, temperature, *args, key_sums=False, **kwargs):
    if key_sums:
        return "weighted sums of keys have no kernel here"
    return cpu_helpers.why_not_cpu(query)


def block_statistics(
    query, keys, temperature, positive, *, normalize, positive_at, excluded_at, columns, key_sums,
    ranks,
):  # fmt: skip
    """See sslops.ops.logit_blocks for the arguments of a backend."""
    q_BND, k_BMD, sizes = _operands(query, keys, normalize)
    B, N, M, D = sizes
    positive_key = None if positive is not None else k_BMD[:, positive_at].contiguous()
    positive = q_BND.new_empty(B, N) if positive is None else positive.contiguous()
    of_rows, of_columns = (q_BND.new_empty(B, n, 2) for n in (N, M))
    rank = q_BND.new_empty(B, N, dtype=torch.int64) if ranks else None
    _C.logit_block_statistics(
        *map(address, (q_BND, k_BMD, positive_key)), *sizes, address(excluded_at),
        1.0 / temperature.item(), cpu_helpers.threads_for(B * N, M, D),
        *map(address, (positive, of_rows, of_columns, rank)),
    )  # fmt: skip
    return BlockStatistics(of_rows, of_columns if columns else None, positive, rank)


def block_gradients(
    query, keys, temperature, rows, columns, *, normalize, positive_at, excluded_at, wants
):
    """See sslops.ops.logit_blocks for the arguments of a backend."""
    q_BND, k_BMD, sizes = _operands(query, keys, normalize)
    B, N, M, D = sizes
    rows, columns = (None if x is None else x.contiguous() for x in (rows, columns))
    dq, dk = q_BND.new_empty(q_BND.shape), k_BMD.new_empty(k_BMD.shape) if wants[1] else None
    _C.logit_block_gradients(
        *map(address, (q_BND, k_BMD)), *sizes, *map(address, (positive_at, excluded_at)),
        1.0 / temperature.item(), cpu_helpers.threads_for(B * N, M, D),
        *map(address, (rows, columns, dq, dk)),
    )  # fmt: skip
    return dq if wants[0] else None, dk


def _operands(query, keys, normalize):
    """Float32 rows, and B, N, M, D."""
    prepare = unit_rows if normalize else at_least_float32
    q_BND, k_BMD = prepare(query).contiguous(), prepare(keys).contiguous()
    return q_BND, k_BMD, (*q_BND.shape[:2], *k_BMD.shape[1:])
