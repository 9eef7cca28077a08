"""The DINO loss: students match the sharpened softmax of a teacher, over views or rows.

What a backend of this op receives, already checked:

    dino_loss(student, teacher, center, weights, *, student_temperature, teacher_temperature,
              skip_same_view) -> loss [S, N]

    student               [S, N, K] logits of S views of N rows; the only input with a gradient
    teacher               [T, N, K] logits, or probabilities if teacher_temperature is None
    center                None or [K], subtracted from the teacher's logits
    weights               None or [S, N]; a row of weight 0 is not read
    student_temperature   float, or a 0-d tensor on the same device
    teacher_temperature   the same, or None
    skip_same_view        student view s does not look at teacher view s

    loss_sn = weight_sn sum_t CE(P_tn, softmax(student_sn / student_temperature))
"""

import torch

from sslops import arguments, distributed, registry
from sslops.unit_rows import at_least_float32

__all__ = ["dino_loss", "updated_center"]

_backends = registry.load("dino_loss", "cpu", "triton", "chunked", "reference")


def dino_loss(
    student,
    teacher,
    *,
    student_temperature=0.1,
    teacher_temperature=None,
    center=None,
    weights=None,
    skip_same_view=True,
    reduction="mean",
    group=None,
    backend=None,
):
    """Cross-entropy of every student view against every teacher view but the same one.

    With P = teacher, or `((teacher - center) / teacher_temperature).softmax(-1)`, it equals,
    without a product per pair and without storing a probability,

        log_p = (student / student_temperature).log_softmax(-1)
        pairs = [(t, s) for t in range(T) for s in range(S) if t != s]
        torch.stack([-(P[t] * log_p[s]).sum(-1).mean() for t, s in pairs]).mean()

    Two dimensions are rows without views, row i against row i: iBOT's loss of masked patches,
    with `weights` one over the number of masked patches of the row's crop and reduction="sum".

    Args:
        student: [S, N, K], logits of S views of N images, or [N, K]; float16, bfloat16, float32
            or float64. Only they receive a gradient.
        teacher: [T, N, K] or [N, K], in the order of the student's first T views: logits if there
            is a `teacher_temperature`, else probabilities, such as sslops.sinkhorn_knopp makes.
        student_temperature: float > 0, or a 0-d tensor without gradient.
        teacher_temperature: the same, or None.
        center: [K], subtracted from the teacher's logits before the division. It is only read:
            sslops.updated_center makes the next one, after the loss.
        weights: None, or factors of the rows that broadcast to [S, N] (or [N]), of any floating
            dtype. Weight 0 leaves a row out: it is not read and its gradient is zero.
        skip_same_view: whether student view s skips teacher view s; rows without views skip none.
        reduction: "mean" over the pairs of views and the N rows, a row of weight 0 counted too;
            "sum" of both; or "none": [S, N] (or [N]), each the sum over its teacher views.
        group: None, or a torch.distributed process group: the mean is that over all ranks' rows.
        backend: force "cpu", "triton", "chunked" or "reference"; None takes the first that can run.

    Returns:
        The loss: float32 (float64 for float64 students). N = 0 gives nan for "mean", 0 for "sum".

        With `group` and reduction="mean", the loss of a rank is scaled such that the average over
        ranks (as DDP averages gradients) is the mean over all ranks' rows, uneven batches
        included; with even batches it is the plain mean over the rank's own rows.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or device.
        RuntimeError: the forced backend cannot run here.

    Source:
        Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021,
        eq. 3 and algorithm 1; Zhou et al., iBOT, ICLR 2022, eq. 2; Oquab et al., DINOv2, 2024.

    Example:
        >>> import torch, sslops
        >>> teacher = torch.zeros(2, 1, 4)
        >>> student = torch.zeros(3, 1, 4, requires_grad=True)
        >>> loss = sslops.dino_loss(student, teacher, teacher_temperature=0.04)
        >>> print(f"{loss.item():.4f}")  # log 4
        1.3863
    """
    arguments.check_choice("reduction", reduction, ("mean", "sum", "none"))
    _check_logits(student, teacher)
    center = _check_center(center, teacher, teacher_temperature)
    shape = student.shape[:-1]
    weights = _check_weights(weights, student)
    temperatures = dict(
        student_temperature=_check_temperature("student_temperature", student_temperature, student),
        teacher_temperature=None
        if teacher_temperature is None
        else _check_temperature("teacher_temperature", teacher_temperature, student),
    )
    if student.ndim == 2:
        student, teacher, skip_same_view = student[None], teacher[None], False
        weights = None if weights is None else weights[None]
    S, T = len(student), len(teacher)
    pairs = S * T - (min(S, T) if skip_same_view else 0)
    if not pairs:
        raise ValueError(f"skip_same_view leaves no pair of {S} student and {T} teacher views")

    with torch.autocast(student.device.type, enabled=False):
        rows = _backends(backend, student, teacher.detach(), center, weights, **temperatures,
                         skip_same_view=skip_same_view)  # fmt: skip
    if reduction == "none":
        return rows.reshape(shape)
    return rows.sum() if reduction == "sum" else _mean(rows, pairs, group)


def _mean(rows, pairs, group):
    """The mean over pairs and rows; with a group, the rank's share of that over all ranks."""
    N = rows.shape[1]
    if group is None:
        return rows.sum() / (pairs * N) if N else rows.sum() * torch.nan
    all_rows = distributed.sum_over_ranks(torch.full((), N, device=rows.device), group)
    return rows.sum() * (distributed.rank_and_size(group)[1] / (pairs * all_rows))


@torch.no_grad()
def updated_center(center, teacher_logits, momentum=0.9, *, group=None):
    """The centre after a batch: `momentum * center + (1 - momentum) * batch mean`.

    Args:
        center: [K], float32; it is not changed.
        teacher_logits: [..., K], the raw teacher logits of this batch, before any temperature.
        momentum: 0 to 1; the paper has 0.9.
        group: None, or a torch.distributed process group: the mean is that over all ranks' rows,
            however many each has.

    Returns:
        [K], the dtype of `center`: what the next step's loss subtracts. Without rows on any rank
        it is the centre itself.

    Raises:
        ValueError: the shapes do not fit.

    Source:
        Caron et al., DINO, ICCV 2021, eq. 4.

    Example:
        >>> import torch, sslops
        >>> sslops.updated_center(torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([0.2000, 0.3000])
    """
    if center.ndim != 1 or teacher_logits.shape[-1:] != center.shape:
        raise ValueError(
            f"center must be [K] for teacher_logits [..., K]; got {arguments.describe(center)} for "
            f"{arguments.describe(teacher_logits)}"
        )
    rows = teacher_logits.reshape(-1, len(center))
    dtype = at_least_float32(rows[:0]).dtype
    # Sum and count travel together, so that ranks may have different numbers of rows.
    total = torch.cat([rows.sum(0, dtype=dtype), rows.new_full((1,), len(rows), dtype=dtype)])
    if group is not None:
        total = distributed.sum_over_ranks(total, group)
    mean = (total[:-1] / total[-1].clamp(min=1)).to(center.dtype)
    return torch.where(total[-1] > 0, torch.lerp(mean, center, momentum), center)


def _check_logits(student, teacher):
    arguments.check_rows("student", student)
    arguments.check_rows("teacher", teacher)
    if student.ndim > 3:
        raise ValueError(
            f"student must be [views, N, K] or [N, K]; got {arguments.describe(student)}"
        )
    lead = 1 if student.ndim == 3 else 0
    if teacher.ndim != student.ndim or teacher.shape[lead:] != student.shape[lead:]:
        expected = "[views, N, K]" if lead else "[N, K]"
        raise ValueError(
            f"teacher must be {expected} like student {tuple(student.shape)}; "
            f"got {arguments.describe(teacher)}"
        )
    if teacher.device != student.device:
        raise ValueError(
            f"teacher must be on the device of student ({student.device}); "
            f"got {arguments.describe(teacher)}"
        )
    if not student.shape[-1] or (lead and not len(student) * len(teacher)):
        raise ValueError(
            f"student and teacher need at least one view and one prototype; got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def _check_center(center, teacher, teacher_temperature):
    """The centre without gradient."""
    if center is None:
        return None
    if teacher_temperature is None:
        raise ValueError("center needs a teacher_temperature (else the teacher is probabilities)")
    K = teacher.shape[-1]
    if not isinstance(center, torch.Tensor) or center.shape != (K,):
        raise ValueError(f"center must be [K] = ({K},); got {arguments.describe(center)}")
    if center.device != teacher.device:
        raise ValueError(
            f"center must be on the device of teacher ({teacher.device}); "
            f"got {arguments.describe(center)}"
        )
    return center.detach()


def _check_weights(weights, student):
    """The weights of all rows, without gradient."""
    if weights is None:
        return None
    arguments.check_rows("weights", weights, min_ndim=0)
    shape = student.shape[:-1]
    if weights.device != student.device:
        raise ValueError(
            f"weights must be on the device of student ({student.device}); "
            f"got {arguments.describe(weights)}"
        )
    fits = weights.ndim <= len(shape) and all(
        a in (1, b) for a, b in zip(weights.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"weights must broadcast to the rows of student {tuple(shape)}; "
            f"got {arguments.describe(weights)}"
        )
    return weights.detach().expand(shape)


def _check_temperature(name, value, like):
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise ValueError(f"{name} must not require a gradient: the paper's are scheduled")
    try:
        return arguments.check_temperature(value, like)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("temperature", name, 1)) from None
