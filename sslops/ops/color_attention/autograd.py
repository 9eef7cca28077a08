"""The custom operators of a backend: what their kernels compute, their shapes and their gradients.

A backend hands in plain functions; both the CPU and Triton share everything else.

    attention(target, reference, values, temperature, window) -> out, lse
    attention_backward(grad, target, reference, values, temperature, out, lse, window)
        -> grad_target, grad_reference, grad_values
    top(target, reference, window, k) -> index
    gather(target, reference, values, temperature, index) -> out, weights
    gather_backward(grad, target, reference, values, temperature, index, out, weights)
        -> grad_target, grad_reference, grad_values
    match(target, reference, target_labels, reference_labels, temperature)
        -> loss, lse, right, wrong
    match_backward(grad, target, reference, target_labels, reference_labels, temperature,
                   lse, right, wrong) -> grad_target, grad_reference

    window   list of ints: empty, or H, W and the radius of every frame
    index    int32 [B, Nt, k], the kept reference cells of each target cell, then -1 for none
    weights  [B, Nt, k], their softmax
    lse      [2, B, Nt]: a row's largest score, and the log2 of its sum of exp(score - largest);
             apart, because their sum loses digits beside large scores
    right, wrong   [B, Nt], attention mass on cells with the target's label and on the others; both,
             because 1 - p loses the digits of the smaller one

The rest of what is returned is float32 and contiguous, the temperature a 0-d float32 tensor.
"""

from typing import NamedTuple

import torch
from torch.library import custom_op

from sslops.ops.color_attention.reference import EPSILON

INPUTS = "Tensor target, Tensor reference, Tensor values, Tensor temperature"
LABELLED = (
    "Tensor target, Tensor reference, Tensor target_labels, Tensor reference_labels, "
    "Tensor temperature"
)


class Kernels(NamedTuple):
    """The functions of a backend."""

    attention: object
    attention_backward: object
    match: object
    match_backward: object
    top: object
    gather: object
    gather_backward: object


def define(backend, kernels):
    """Register the operators sslops::color_*_<backend> and return the functions that call them."""
    attention = _attention(backend, kernels)
    top = _operator(backend, "color_top", kernels.top, _fake_top,
                    "(Tensor target, Tensor reference, int[] window, int k) -> Tensor")  # fmt: skip
    gather = _gather(backend, kernels)
    match = _match(backend, kernels)

    def color_attention(target, reference, values, temperature, *, window, topk):
        temperature = as_tensor(temperature, target)
        window = [] if window is None else [window.height, window.width, *window.radii]
        if topk is None:
            return attention(target, reference, values, temperature, window)[0]
        # Which cells are kept has no gradient; the weights and values of those kept have.
        index = top(target.detach(), reference.detach(), window, topk)
        return gather(target, reference, values, temperature, index)[0]

    def color_attention_loss(target, reference, target_labels, reference_labels, temperature):
        temperature = as_tensor(temperature, target)
        return match(target, reference, target_labels, reference_labels, temperature)[0]

    return color_attention, color_attention_loss


def as_tensor(temperature, like):
    """The temperature as a 0-d float32 tensor, filled on the device: no copy, no wait."""
    if isinstance(temperature, torch.Tensor):
        return temperature.float()
    return torch.full((), temperature, dtype=torch.float32, device=like.device)


def loss_of_masses(right, wrong):
    """-log(p + 1e-8) with the digits of a small loss: p = 1 - wrong near 1."""
    near_one = -torch.log1p(EPSILON - wrong)
    return torch.where(right > 0.5, near_one, -torch.log(right + EPSILON))


def match_weights(grad, right, wrong):
    """dS_ij = A_ij (p_i - [c_j = y_i]) / (p_i + 1e-8), upstream gradient included: the factor of
    A_ij for cells of the right label, and for the others."""
    grad = grad / (right + EPSILON)
    return -grad * wrong, grad * right


def _attention(backend, kernels):
    def fake(target, reference, values, temperature, window):
        B, Nt, _ = target.shape
        return _float32(target, B, Nt, values.shape[2]), _float32(target, 2, B, Nt)

    def fake_backward(grad, target, reference, values, temperature, out, lse, window):
        return _gradients_of(target, reference, values)

    forward = _operator(backend, "color_attention", kernels.attention, fake,
                        f"({INPUTS}, int[] window) -> (Tensor, Tensor)")  # fmt: skip
    backward = _operator(
        backend, "color_attention_backward", kernels.attention_backward, fake_backward,
        f"(Tensor grad, {INPUTS}, Tensor out, Tensor lse, int[] window) "
        "-> (Tensor, Tensor, Tensor)",
    )  # fmt: skip

    def setup_context(ctx, inputs, output):
        *tensors, ctx.window = inputs
        ctx.save_for_backward(*tensors, *output)

    def gradients(ctx, grad, _):
        tensors = ctx.saved_tensors
        found = backward(grad.contiguous(), *tensors, ctx.window)
        return *_as_inputs(tensors[:3], tensors[3], found), None

    forward.register_autograd(gradients, setup_context=setup_context)
    _forbid_double_backward(backward, "color_attention", backend)
    return forward


def _gather(backend, kernels):
    def fake(target, reference, values, temperature, index):
        B, Nt, k = index.shape
        return _float32(target, B, Nt, values.shape[2]), _float32(target, B, Nt, k)

    def fake_backward(grad, target, reference, values, temperature, index, out, weights):
        return _gradients_of(target, reference, values)

    forward = _operator(backend, "color_gather", kernels.gather, fake,
                        f"({INPUTS}, Tensor index) -> (Tensor, Tensor)")  # fmt: skip
    backward = _operator(
        backend, "color_gather_backward", kernels.gather_backward, fake_backward,
        f"(Tensor grad, {INPUTS}, Tensor index, Tensor out, Tensor weights) "
        "-> (Tensor, Tensor, Tensor)",
    )  # fmt: skip

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, *output)

    def gradients(ctx, grad, _):
        tensors = ctx.saved_tensors
        found = backward(grad.contiguous(), *tensors)
        return *_as_inputs(tensors[:3], tensors[3], found), None

    forward.register_autograd(gradients, setup_context=setup_context)
    _forbid_double_backward(backward, "color_attention", backend)
    return forward


def _match(backend, kernels):
    def fake(target, reference, target_labels, reference_labels, temperature):
        shape = target_labels.shape
        rows = [_float32(target, *shape) for _ in range(3)]
        return rows[0], _float32(target, 2, *shape), rows[1], rows[2]

    def fake_backward(
        grad, target, reference, target_labels, reference_labels, temperature, lse, right, wrong
    ):
        return _gradients_of(target, reference)

    forward = _operator(backend, "color_match", kernels.match, fake,
                        f"({LABELLED}) -> (Tensor, Tensor, Tensor, Tensor)")  # fmt: skip
    backward = _operator(
        backend, "color_match_backward", kernels.match_backward, fake_backward,
        f"(Tensor grad, {LABELLED}, Tensor lse, Tensor right, Tensor wrong) -> (Tensor, Tensor)",
    )  # fmt: skip

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, *output[1:])

    def gradients(ctx, grad, *_):
        tensors = ctx.saved_tensors
        found = backward(grad.contiguous(), *tensors)
        *by_inputs, by_temperature = _as_inputs(tensors[:2], tensors[4], found)
        return *by_inputs, None, None, by_temperature

    forward.register_autograd(gradients, setup_context=setup_context)
    _forbid_double_backward(backward, "color_attention_loss", backend)
    return forward


def _as_inputs(tensors, temperature, gradients):
    """Gradients in the dtypes of the inputs, and that of the temperature, which comes for free:
    S = <f, g> / T, so T dL/dT = -sum_i <f_i, dL/df_i>."""
    by_temperature = -(tensors[0].float() * gradients[0]).sum() / temperature
    return *(g.to(t.dtype) for g, t in zip(gradients, tensors, strict=True)), by_temperature


def _operator(backend, name, function, fake, schema):
    op = custom_op(f"sslops::{name}_{backend}", function, mutates_args=(), schema=schema)
    op.register_fake(fake)
    return op


def _forbid_double_backward(operator, name, backend):
    def refuse(ctx, *gradients):
        raise RuntimeError(
            f"{name}: double backward is not supported by the {backend} backend; "
            "use backend='reference'"
        )

    operator.register_autograd(refuse)


def _fake_top(target, reference, window, k):
    return target.new_empty(*target.shape[:2], k, dtype=torch.int32)


def _float32(like, *shape):
    return like.new_empty(shape, dtype=torch.float32)


def _gradients_of(*tensors):
    return tuple(_float32(t, *t.shape) for t in tensors)
