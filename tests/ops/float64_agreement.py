"""dino_loss, sinkhorn_knopp and koleo against their specifications in float64.

As in agreement.py: the error may be twice that of plain PyTorch in the same dtype (the
specification for float32, the code people write for half precision), plus the roundings that no
order of operations avoids.
"""

import torch
import torch.nn.functional as F

import sslops

EPSILON = torch.finfo(torch.float32).eps / 2


def largest(x):
    return x.abs().max().item() if x.numel() else 0.0


def in_double(value):
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().double() if is_float else value


def value_and_gradient(function, tensor, upstream):
    """In float64 on the CPU."""
    leaf = tensor.detach().clone().requires_grad_()
    out = function(leaf)
    (gradient,) = torch.autograd.grad(out, leaf, upstream.to(out))
    return [x.detach().double().cpu() for x in (out, gradient)]


def assert_below(name, error, allowed):
    error = (error - allowed).max().item() if error.numel() else -1.0
    assert error <= 0, f"{name}: error {error:.3g} above what is allowed"


def plain_dino(student, teacher, *, student_temperature=0.1, teacher_temperature=None, center=None,
               weights=None, skip_same_view=True, reduction="none"):  # fmt: skip
    """As people write it: a loop over pairs, everything in the dtype of the inputs."""
    if student.ndim == 2:
        student, teacher, skip_same_view = student[None], teacher[None], False
    P = teacher.to(student.dtype)
    if teacher_temperature is not None:
        P = P if center is None else P - center.to(P.dtype)
        P = F.softmax(P / teacher_temperature, dim=-1)
    rows = []
    for s, logits in enumerate(student):
        log_p = F.log_softmax(logits / student_temperature, dim=-1)
        pairs = [-(p * log_p).sum(-1) for t, p in enumerate(P) if t != s or not skip_same_view]
        rows.append(sum(pairs, torch.zeros_like(log_p[:, 0])))
    rows = torch.stack(rows)
    return rows if weights is None else rows * weights.to(rows.dtype)


def dino_scales(student, teacher, options):
    """Largest student logit, how far teacher logits move a probability, targets and softmax."""
    student_temperature = float(options.get("student_temperature", 0.1))
    student = student if student.ndim == 3 else student[None]
    teacher = teacher if teacher.ndim == 3 else teacher[None]
    z, moved = student / student_temperature, 2.0
    temperature = options.get("teacher_temperature")
    if temperature is not None:
        center = options.get("center")
        teacher = teacher if center is None else teacher - center
        moved += 3 * largest(teacher) / float(temperature)
        teacher = (teacher / float(temperature)).softmax(-1)
    return largest(z), moved, len(teacher) * (z.softmax(-1) + teacher.amax(0)), student_temperature


def assert_dino_agrees(student, teacher, options, backend, layout=lambda x: x):
    """Row losses and gradients; `layout` changes the strides of what the backend receives."""
    upstream = torch.rand(
        student.shape[:-1], generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    options = {**options, "reduction": "none"}
    doubles = {name: in_double(value) for name, value in options.items()}

    def run(tensor, teacher, options, backend, layout=lambda x: x):
        return value_and_gradient(
            lambda x: sslops.dino_loss(layout(x), layout(teacher), **options, backend=backend),
            tensor, upstream,
        )  # fmt: skip

    ours = run(student, teacher, options, backend, layout)
    exact = run(student.double(), in_double(teacher), doubles, "reference")
    if student.dtype in (torch.float32, torch.float64):
        plain = run(student, teacher, options, "reference")
    else:
        plain = value_and_gradient(
            lambda x: plain_dino(x, teacher, **options).reshape(x.shape[:-1]), student, upstream
        )
    doubles.pop("reduction")
    largest_logit, moved, sizes, temperature = dino_scales(
        in_double(student), in_double(teacher), doubles
    )
    u = EPSILON if student.dtype != torch.float64 else 4 * torch.finfo(torch.float64).eps
    weights = in_double(options.get("weights"))
    factor = upstream if weights is None else upstream * weights.cpu().expand(upstream.shape)
    plain_errors = [2 * largest(e - p) for e, p in zip(exact, plain, strict=True)]
    loss_error = plain_errors[0] + u * ((moved + 4) * exact[0].abs() + 6 * largest_logit)
    assert_below("loss", (ours[0] - exact[0]).abs(), loss_error)
    sizes = (sizes.cpu().reshape(student.shape) * factor[..., None]).abs() / temperature
    gradient_error = plain_errors[1] + u * (3 * largest_logit + moved + 8) * sizes
    if student.dtype in (torch.float16, torch.bfloat16):
        dtype = torch.finfo(student.dtype)
        gradient_error += dtype.eps / 2 * exact[1].abs() + dtype.smallest_normal
    assert_below("gradient", (ours[1] - exact[1]).abs(), gradient_error)
