"""InfoNCE in Triton as torch sees it: two custom operators. The kernels: _triton_kernels.py."""

import functools

import torch

from sslops import triton_launch as launch
from sslops.ops.info_nce._triton_kernels import softmax_rows
from sslops.ops.info_nce.reference import InfoNCERows


def _is_fixed(dtype, temperature, normalize, symmetric):
    """Whether 1/T, the largest possible logit, may be the shift of all exponentials.

    e^{-2/T} must not vanish in float32 nor, where it weighs keys in the forward pass, in float16.
    """
    known = normalize and isinstance(temperature, float) and temperature >= 1 / 32
    return known and (symmetric or dtype != torch.float16)


@torch.library.custom_op(
    "sslops::info_nce_triton",
    mutates_args=(),
    schema="""(Tensor query, Tensor positive_key, Tensor? negative_keys, Tensor? temperature_tensor,
        float temperature, bool symmetric, bool normalize, int positive_offset,
        int? exclude_offset, bool return_stats, bool needs_query) -> (Tensor loss, Tensor lse,
        Tensor positive_logit, Tensor rank, Tensor stats, Tensor key_sum, Tensor norms)""",
)
def _forward(
    query, positive_key, negative_keys, temperature_tensor, temperature, symmetric, normalize,
    positive_offset, exclude_offset, return_stats, needs_query,
):  # fmt: skip
    shape = query.shape[:2]
    rows = shape.numel()
    T = temperature if temperature_tensor is None else temperature_tensor
    tensors = _present(query, positive_key, negative_keys)
    with torch.cuda.device_of(query):
        inputs, norms = launch.prepare_rows(tensors, normalize)
        loss, lse, logit, rank, stats, key_sum = softmax_rows(
            inputs[0], inputs[1], inputs[-1], T, normalize=normalize,
            fixed=_is_fixed(query.dtype, T, normalize, symmetric), offset=positive_offset,
            exclude=exclude_offset, symmetric=symmetric, rank=return_stats,
            key_sum=needs_query and not symmetric,
        )  # fmt: skip
        if symmetric:
            loss = loss.view(2, rows).mean(0)
    lse, logit = lse[:rows].view(shape), logit[:rows].view(shape)
    rank = rank[:rows].view(shape) if return_stats else rank
    return loss.view(shape), lse, logit, rank, stats, key_sum, norms


def _present(*tensors):
    return [t for t in tensors if t is not None]


@_forward.register_fake
def _(query, positive_key, negative_keys, temperature_tensor, temperature, symmetric, normalize,
      positive_offset, exclude_offset, return_stats, needs_query):  # fmt: skip
    B, N, D = query.shape
    new = functools.partial(query.new_empty, dtype=torch.float32)
    rank = query.new_empty((B, N) if return_stats else (0,), dtype=torch.int64)
    key_sum = new((B * N, D) if needs_query and not symmetric else (0,))
    norms = launch.norms_shape(_present(query, positive_key, negative_keys), normalize)
    stats = new((3, B * N * (2 if symmetric else 1)))
    return new((B, N)), new((B, N)), new((B, N)), rank, stats, key_sum, new(norms)


@torch.library.custom_op(
    "sslops::info_nce_triton_backward",
    mutates_args=(),
    schema="""(Tensor upstream, Tensor stats, Tensor key_sum, Tensor norms, Tensor query,
        Tensor positive_key, Tensor? negative_keys, Tensor? temperature_tensor, float temperature,
        bool symmetric, bool normalize, int positive_offset, int? exclude_offset,
        bool[] needs) -> (Tensor query_gradient, Tensor positive_key_gradient,
        Tensor negative_keys_gradient, Tensor temperature_gradient)""",
)
def _backward(
    upstream, stats, key_sum, norms, query, positive_key, negative_keys, temperature_tensor,
    temperature, symmetric, normalize, positive_offset, exclude_offset, needs,
):  # fmt: skip
    T = temperature if temperature_tensor is None else temperature_tensor
    fixed = _is_fixed(query.dtype, T, normalize, symmetric)
    tensors = _present(query, positive_key, negative_keys)
    with torch.cuda.device_of(query):
        inputs, _ = launch.prepare_rows(tensors, normalize, norms)
        common = dict(upstream=upstream, temperature=T, normalize=normalize)
        if symmetric:
            dq, dp, along = _two_sided(*inputs, stats, needs, fixed, common)
            dk = query.new_empty(0)
        else:
            q, p, *negatives = inputs
            dq, dp, dk, along = _one_sided(
                q, p, negatives[0] if negatives else None, stats, key_sum, needs, fixed,
                positive_offset, exclude_offset, common,
            )  # fmt: skip
        # z = <q, k> / T is linear in q, so T dL/dT = - sum_i <q_i, dL/dq_i>: no pass of its own.
        dT = (-along.sum() / T).to(T.dtype) if needs[3] else along
    return dq, dp, dk, dT


def _two_sided(q, k, stats, needs, fixed, common):
    """Both softmaxes from one recomputed tile: gradients of queries and keys."""
    stats = stats.tensor_split(2, 1)
    sides = (needs[0] or needs[3], needs[1])
    sums = launch.pair_sums(q, k, *stats, fixed=fixed, own=True, symmetric=True, sides=sides,
                            offset=0, **common)  # fmt: skip
    return launch.finish_gradients(q, k, sums, *stats, other=True, needs=needs[:2], along=needs[3],
                                   factor=0.5, **common)  # fmt: skip


def _one_sided(q, p, negatives, stats, key_sum, needs, fixed, offset, exclude, common):
    """Queries from the forward pass' key sums; one pass over queries for the keys."""
    p_sum, dk = None, q.x.new_empty(0)
    if needs[2]:
        k_sum, _ = launch.pair_sums(negatives, q, stats, stats, fixed=fixed, **common)
        dk, _, _ = launch.finish_gradients(negatives, q, (k_sum, None), stats, stats, own=False,
                                           needs=(True, False), **common)  # fmt: skip
    elif needs[1] and negatives is None:
        p_sum, _ = launch.pair_sums(p, q, stats, stats, fixed=fixed, offset=-offset,
                                    second=None if exclude is None else -exclude, **common)  # fmt: skip
    dq, dp, along = launch.finish_gradients(
        q, p, (key_sum, p_sum), stats, stats, forward=True, needs=needs[:2], along=needs[3],
        offset=offset, **common,
    )  # fmt: skip
    return dq, dp, dk, along


@_backward.register_fake
def _(upstream, stats, key_sum, norms, query, positive_key, negative_keys, temperature_tensor,
      temperature, symmetric, normalize, positive_offset, exclude_offset, needs):  # fmt: skip
    inputs = (query, positive_key, negative_keys, temperature_tensor)
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if need else query.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    )


def _setup_context(ctx, inputs, output):
    ctx.options = inputs[4:]
    *_, stats, key_sum, norms = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(stats, key_sum, norms, *inputs[:4])


def _gradients(ctx, upstream, *_):
    temperature, symmetric, normalize, positive_offset, exclude_offset, *_ = ctx.options
    needs = list(ctx.needs_input_grad[:4])
    gradients = _backward(upstream, *ctx.saved_tensors, temperature, symmetric, normalize,
                          positive_offset, exclude_offset, needs)  # fmt: skip
    wanted = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return *wanted, *(None for _ in ctx.options)


_forward.register_autograd(_gradients, setup_context=_setup_context)
launch.refuse_second_derivative(_backward)


def unsupported(query, positive_key, negative_keys, temperature, **options):
    """See sslops.registry."""
    if negative_keys is not None and query.shape[1] == 1 and query.shape[0] > 1:
        return "paired negatives are one matrix-vector product per row: no tiles to share"
    return launch.why_not(*_present(query, positive_key, negative_keys))


def info_nce(
    query, positive_key, negative_keys, temperature, *, symmetric, normalize,
    positive_offset, exclude_offset, return_stats, uniform,
):  # fmt: skip
    """See sslops.ops.info_nce for the arguments of a backend."""
    T = temperature if isinstance(temperature, torch.Tensor) else None
    needs_query = torch.is_grad_enabled() and (
        query.requires_grad or (T is not None and T.requires_grad)
    )
    loss, lse, logit, rank, *_ = _forward(
        query, positive_key, negative_keys, T, 1.0 if T is not None else temperature, symmetric,
        normalize, positive_offset, exclude_offset, return_stats, needs_query,
    )  # fmt: skip
    return InfoNCERows(loss, lse, logit, rank if return_stats else None)
