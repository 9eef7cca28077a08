"""The custom operators of a backend that computes its own gradient: what the backends share.

A backend gives two functions over contiguous tensors,

    forward(student, teacher, center, weights, temperatures, skip) -> loss, stats, teacher_stats
    backward(upstream, stats, teacher_stats, student, teacher, center, weights, temperatures, skip)
        -> the gradient of student

with temperatures = (student's, teacher's or None), each a float or a 0-d tensor, and

    loss [S, N]
    stats [3, S, N]          of the student's rows: the largest logit, the logarithm of the sum of
                             exponentials relative to it (base e or 2, as the backend likes), and
                             the sum of the target. The first two stay apart: beside a logit of 1e4
                             their sum would lose the logarithm's digits.
    teacher_stats [2, T, N]  the first two of the teacher's rows
"""

import torch

_ARGUMENTS = """Tensor student, Tensor teacher, Tensor? center, Tensor? weights,
    Tensor? student_tensor, float student_float, Tensor? teacher_tensor, float teacher_float,
    bool skip"""


def define(backend, forward, backward):
    """Register the operators of a backend and return its dino_loss."""
    forward_op, backward_op = _operators(backend, forward, backward)

    def save(ctx, inputs, output):
        *tensors, ctx.student_float, teacher_tensor, ctx.teacher_float, ctx.skip = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:], *tensors, teacher_tensor)

    def differentiate(ctx, upstream, *_):
        *tensors, teacher_tensor = ctx.saved_tensors
        gradient = backward_op(
            upstream, *tensors, ctx.student_float, teacher_tensor, ctx.teacher_float, ctx.skip
        )
        return gradient, *[None] * 8

    def refuse(ctx, *gradients):
        raise RuntimeError(
            "dino_loss: this backend has no double backward; backend='reference' supports it"
        )

    forward_op.register_autograd(differentiate, setup_context=save)
    backward_op.register_autograd(refuse)

    def dino_loss(
        student, teacher, center, weights, *, student_temperature, teacher_temperature,
        skip_same_view,
    ):  # fmt: skip
        """See sslops.ops.dino_loss for the arguments of a backend."""
        temperatures = (*_parts(student_temperature), *_parts(teacher_temperature))
        return forward_op(student, teacher, center, weights, *temperatures, skip_same_view)[0]

    return dino_loss


def _parts(temperature):
    """(tensor or None, float): what a schema can tell apart. 0 stands for no temperature."""
    if isinstance(temperature, torch.Tensor):
        return temperature.float(), 0.0
    return None, 0.0 if temperature is None else temperature


def _whole(tensor, number):
    return tensor if tensor is not None else (number or None)


def _operators(backend, forward, backward):
    name = f"sslops::dino_loss_{backend}"

    @torch.library.custom_op(
        name, mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
    )
    def forward_op(student, teacher, center, weights, s_tensor, s_float, t_tensor, t_float, skip):
        tensors = _prepare(student, teacher, center, weights)
        temperatures = _whole(s_tensor, s_float), _whole(t_tensor, t_float)
        return forward(*tensors, temperatures, skip)

    @torch.library.custom_op(
        f"{name}_backward",
        mutates_args=(),
        schema=f"(Tensor upstream, Tensor stats, Tensor teacher_stats, {_ARGUMENTS}) -> Tensor",
    )
    def backward_op(
        upstream, stats, teacher_stats, student, teacher, center, weights, s_tensor, s_float,
        t_tensor, t_float, skip,
    ):  # fmt: skip
        tensors = _prepare(student, teacher, center, weights)
        temperatures = _whole(s_tensor, s_float), _whole(t_tensor, t_float)
        return backward(upstream.contiguous(), stats, teacher_stats, *tensors, temperatures, skip)

    @forward_op.register_fake
    def _(student, teacher, *_):
        return output_space(student, teacher)

    @backward_op.register_fake
    def _(upstream, stats, teacher_stats, student, *_):
        return student.new_empty(student.shape)

    return forward_op, backward_op


def output_space(student, teacher):
    """Space for loss, stats and teacher_stats; the stats of rows that are left out stay zero."""
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    S, N, _ = student.shape
    return (
        student.new_empty((S, N), dtype=dtype),
        student.new_zeros((3, S, N), dtype=dtype),
        student.new_zeros((2, len(teacher), N), dtype=dtype),
    )


def _prepare(student, teacher, center, weights):
    """Contiguous tensors; centre and weights in the dtype of the loss."""
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    return (
        student.contiguous(),
        teacher.contiguous(),
        None if center is None else center.to(dtype).contiguous(),
        None if weights is None else weights.to(dtype).contiguous(),
    )
