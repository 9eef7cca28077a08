"""InfoNCE on the CPU: csrc/cpu/info_nce.cpp. Memory O((N + M) D) and one strip of scores.

One direction: the forward pass gives the loss and its gradient for the queries; where every row
will receive the same upstream gradient also that for the keys, so that backward only scales.
Symmetric: one pass for both log-sum-exps, a second for the gradients.
"""

import torch
from torch import Tensor

import sslops._C as _C
from sslops import cpu_helpers
from sslops.cpu_helpers import address, needs_grad
from sslops.ops.info_nce.reference import InfoNCERows
from sslops.unit_rows import SMALLEST_NORM, at_least_float32, unit_rows

# An offset at which no key meets its row.
NOWHERE = -(2**62)

# Bytes of exponentials that a strip of rows may keep until the gradient of the keys is done, and
# the rows of a strip that keeps none.
KEPT_BYTES, ROWS_KEEPING_NONE = 2**25, 256


def unsupported(query, positive_key, negative_keys, temperature, **options):
    B, N, _ = query.shape
    if negative_keys is not None and N == 1 and B > 1:
        return "paired negatives are a batched matrix-vector product: nothing to fuse"
    return cpu_helpers.why_not_cpu(query)


def info_nce(
    query, positive_key, negative_keys, temperature, *, symmetric, normalize,
    positive_offset, exclude_offset, return_stats, uniform,
):  # fmt: skip
    """See sslops.ops.info_nce for the arguments of a backend."""
    prepare = unit_rows if normalize else at_least_float32
    temperature = cpu_helpers.as_tensor(temperature, query)
    q_BND, positive_BND = prepare(query), prepare(positive_key)
    if symmetric:
        row_loss, column_loss, positive, _, _, rank = symmetric_forward(
            q_BND, positive_BND, temperature, normalize, return_stats
        )
        loss = (row_loss + column_loss) / 2
    else:
        in_batch = negative_keys is None
        k_BMD, norm = (positive_BND, None) if in_batch else _negatives(negative_keys, normalize)
        want_dk = uniform and needs_grad(k_BMD) and kept_rows(k_BMD.shape[1]) > 0
        loss, positive, _, rank, *_ = forward(
            q_BND, None if in_batch else positive_BND, k_BMD, norm, temperature, normalize,
            positive_offset if in_batch else NOWHERE,
            NOWHERE if exclude_offset is None else exclude_offset,
            return_stats, needs_grad(q_BND) or needs_grad(temperature), want_dk,
        )  # fmt: skip
        row_loss = loss
    positive_logit = (positive / temperature).detach()
    lse = row_loss.detach() + positive_logit
    return InfoNCERows(loss, lse, positive_logit, rank if return_stats else None)


def kept_rows(M):
    """Rows of a strip that keeps its exponentials; 0 where M is so large that they are too few."""
    rows = KEPT_BYTES // (5 * max(M, 256))  # a row takes 1088 bytes for 256 keys
    return min(rows // 64 * 64, 512)


def _negatives(negative_keys, normalize):
    """Float32 negatives, and their norms where the kernel shall divide by them.

    Without a gradient (a queue) normalised copies of all keys would cost more than the loss.
    """
    if not normalize:
        return at_least_float32(negative_keys), None
    if needs_grad(negative_keys):
        return unit_rows(negative_keys), None
    keys = at_least_float32(negative_keys)
    norm = torch.linalg.vector_norm(keys, dim=-1)
    return keys, torch.where(norm <= SMALLEST_NORM, torch.inf, norm)


@torch.library.custom_op("sslops::info_nce_cpu", mutates_args=(), device_types="cpu")
def forward(
    query: Tensor, positive_key: Tensor | None, keys: Tensor, key_norm: Tensor | None,
    temperature: Tensor, unit: bool, positive_offset: int, exclude_offset: int,
    want_rank: bool, want_dq: bool, want_dk: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """query [B, N, D], keys [B, M, D] -> loss and similarity to the positive [B, N], normaliser
    [B, 2, N], rank [B, N], and the gradients dq, dk for an upstream gradient of 1; what is not
    wanted comes as [0]."""
    (B, N, D), M = query.shape, keys.shape[1]
    query, keys = query.contiguous(), keys.contiguous()
    positive_key = None if positive_key is None else positive_key.contiguous()
    outputs = _outputs(query, keys, want_rank, want_dq, want_dk)
    scale, bounded = cpu_helpers.scale_and_bounded(temperature, unit)
    height = kept_rows(M) if want_dk else ROWS_KEEPING_NONE
    _C.info_nce_forward(
        address(query), address(positive_key), address(keys), address(key_norm), B, N, M, D,
        positive_offset, exclude_offset, scale, bounded, height,
        cpu_helpers.threads_for(B * N, M, D), *map(address, outputs),
    )  # fmt: skip
    return outputs


def _outputs(query, keys, want_rank, want_dq, want_dk):
    B, N, _ = query.shape
    return (
        query.new_empty(B, N),
        query.new_empty(B, N),
        query.new_empty(B, 2, N),
        query.new_empty((B, N) if want_rank else 0, dtype=torch.int64),
        query.new_empty(query.shape if want_dq else 0),
        query.new_empty(keys.shape if want_dk else 0),
    )


@forward.register_fake
def _(query, positive_key, keys, key_norm, temperature, unit, positive_offset, exclude_offset,
      want_rank, want_dq, want_dk):  # fmt: skip
    return _outputs(query, keys, want_rank, want_dq, want_dk)


@torch.library.custom_op("sslops::info_nce_cpu_backward", mutates_args=(), device_types="cpu")
def backward(
    upstream: Tensor, query: Tensor, keys: Tensor, temperature: Tensor, loss: Tensor,
    normaliser: Tensor, dq: Tensor, dk: Tensor, positive_offset: int, exclude_offset: int,
    want_dp: bool, want_dk: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """upstream [B, N], and what forward took and gave -> the gradients of query, positive_key, keys
    and temperature; what is not wanted comes as [0]."""
    (B, N, D), M = query.shape, keys.shape[1]
    query, keys, upstream = query.contiguous(), keys.contiguous(), upstream.contiguous()
    scale = 1.0 / temperature.item()
    dq = dq * upstream[..., None] if dq.numel() else query.new_zeros(query.shape)
    # s = <q, k> / T, so T dL/dT = -sum_i <q_i, dL/dq_i>.
    dt = -torch.linalg.vecdot(query, dq).double().sum() * scale
    at_positive = upstream * torch.expm1(-loss) * scale
    dp = query * at_positive[..., None] if want_dp else query.new_empty(0)
    if not want_dk:
        return dq, dp, query.new_empty(0), dt
    if dk.numel():  # every row has the same upstream gradient
        return dq, dp, dk * upstream.reshape(-1)[:1].sum(), dt
    dk = torch.empty_like(keys)
    _C.info_nce_backward_keys(
        address(query), address(keys), B, N, M, D, positive_offset, exclude_offset, scale,
        cpu_helpers.threads_for(B * N, M, D),
        *map(address, (loss, normaliser, upstream, dk)),
    )  # fmt: skip
    return dq, dp, dk, dt


@backward.register_fake
def _(upstream, query, keys, temperature, loss, normaliser, dq, dk, positive_offset,
      exclude_offset, want_dp, want_dk):  # fmt: skip
    return (
        query.new_empty(query.shape),
        query.new_empty(query.shape if want_dp else 0),
        query.new_empty(keys.shape if want_dk else 0),
        temperature.new_empty(()),
    )


def _save(ctx, inputs, output):
    query, _, keys, _, temperature, _, *ctx.offsets = inputs[:8]
    loss, _, normaliser, _, dq, dk = output
    if not ctx.needs_input_grad[2]:  # a queue: it may be written to before backward
        keys = keys.new_empty(keys.shape[0], 0, keys.shape[2])
    ctx.save_for_backward(query, keys, temperature, loss, normaliser, dq, dk)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, upstream, *_):
    gradients = [None] * 11
    if upstream is not None:
        want_dp, want_dk = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        dq, dp, dk, dt = backward(upstream, *ctx.saved_tensors, *ctx.offsets, want_dp, want_dk)
        gradients[:5] = dq, dp if want_dp else None, dk if want_dk else None, None, dt
    return tuple(gradients)


forward.register_autograd(_differentiate, setup_context=_save)
cpu_helpers.forbid_double_backward(backward, "info_nce")


@torch.library.custom_op("sslops::info_nce_symmetric_cpu", mutates_args=(), device_types="cpu")
def symmetric_forward(
    query: Tensor, keys: Tensor, temperature: Tensor, unit: bool, want_rank: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """query, keys [B, N, D] -> the loss of both directions, similarity to the positive [B, N],
    the normalisers of both [B, 2, N], rank [B, N] or [0]."""
    B, N, D = query.shape
    query, keys = query.contiguous(), keys.contiguous()
    outputs = _symmetric_outputs(query, want_rank)
    scale, bounded = cpu_helpers.scale_and_bounded(temperature, unit)
    threads = cpu_helpers.threads_for(B * N, N, D)
    _C.info_nce_symmetric_forward(
        address(query), address(keys), B, N, D, scale, bounded,
        cpu_helpers.block_rows(N, 2 * threads), threads, *map(address, outputs),
    )  # fmt: skip
    return outputs


def _symmetric_outputs(query, want_rank):
    B, N, _ = query.shape
    return (
        *(query.new_empty(B, N) for _ in range(3)),
        *(query.new_empty(B, 2, N) for _ in range(2)),
        query.new_empty((B, N) if want_rank else 0, dtype=torch.int64),
    )


@symmetric_forward.register_fake
def _(query, keys, temperature, unit, want_rank):
    return _symmetric_outputs(query, want_rank)


@torch.library.custom_op(
    "sslops::info_nce_symmetric_cpu_backward", mutates_args=(), device_types="cpu"
)
def symmetric_backward(
    row_upstream: Tensor, column_upstream: Tensor, query: Tensor, keys: Tensor,
    temperature: Tensor, row_loss: Tensor, column_loss: Tensor, row_normaliser: Tensor,
    column_normaliser: Tensor, unit: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The upstream gradients of both losses, each [B, N] -> those of query, keys, temperature."""
    B, N, D = query.shape
    query, keys = query.contiguous(), keys.contiguous()
    row_upstream, column_upstream = row_upstream.contiguous(), column_upstream.contiguous()
    dq, dk = torch.empty_like(query), torch.empty_like(keys)
    scale, bounded = cpu_helpers.scale_and_bounded(temperature, unit)
    tensors = (row_loss, column_loss, row_normaliser, column_normaliser, row_upstream,
               column_upstream, dq, dk)  # fmt: skip
    threads = cpu_helpers.threads_for(B * N, N, D)
    _C.info_nce_symmetric_backward(
        address(query), address(keys), B, N, D, scale, bounded,
        cpu_helpers.block_rows(N, 2 * threads), threads, *map(address, tensors),
    )  # fmt: skip
    return dq, dk, -torch.linalg.vecdot(query, dq).double().sum() * scale


@symmetric_backward.register_fake
def _(row_upstream, column_upstream, query, keys, temperature, row_loss, column_loss,
      row_normaliser, column_normaliser, unit):  # fmt: skip
    return query.new_empty(query.shape), query.new_empty(query.shape), temperature.new_empty(())


def _save_symmetric(ctx, inputs, output):
    query, keys, temperature, ctx.unit, _ = inputs
    row_loss, column_loss, _, *normalisers, _ = output
    ctx.save_for_backward(query, keys, temperature, row_loss, column_loss, *normalisers)


def _differentiate_symmetric(ctx, row_upstream, column_upstream, *_):
    upstream = row_upstream, column_upstream
    return *symmetric_backward(*upstream, *ctx.saved_tensors, ctx.unit), None, None


symmetric_forward.register_autograd(_differentiate_symmetric, setup_context=_save_symmetric)
cpu_helpers.forbid_double_backward(symmetric_backward, "info_nce")
