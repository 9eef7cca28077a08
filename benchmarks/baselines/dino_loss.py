"""What people run for DINO's and iBOT's cross-entropy today, and the bare copies as the floor."""

from dataclasses import replace

import torch

import sslops
from benchmarks.measure import Variant, peer

STUDENT, TEACHER = 0.1, 0.05


def inputs(case, device, dtype, seed=0):
    """Student and teacher logits, and the centre [K] or the weights of the rows [N]."""
    student, teacher, options = case.inputs(device, dtype, seed)
    return [student, teacher, options["weights"] if case.weighted else options["center"]]


def small(case):
    return replace(case, N=min(case.N, 8), K=min(case.K, 500))


def ours(op, backend, case):
    def loss(student, teacher, extra):
        last = {"weights": extra} if case.weighted else {"center": extra}
        return sslops.dino_loss(
            student, teacher, student_temperature=STUDENT, teacher_temperature=TEACHER,
            backend=backend, **last,
        )  # fmt: skip

    return Variant("sslops", loss)


def crops(student, teacher, center):
    """The loss of facebookresearch/dino, written afresh: a product for every pair of views."""
    targets = ((teacher - center) / TEACHER).softmax(-1)
    total, pairs = 0, 0
    for t, target in enumerate(targets):
        for s, logits in enumerate(student):
            if s != t:
                total = total - (target * (logits / STUDENT).log_softmax(-1)).sum(-1).mean()
                pairs += 1
    return total / pairs


def patches(student, teacher, weights):
    """The loss of the masked patches, as in facebookresearch/dinov2, written afresh."""
    targets = (teacher / TEACHER).softmax(-1)
    losses = -(targets * (student / STUDENT).log_softmax(-1)).sum(-1)
    return (losses * weights).mean()


def lightly(case):
    def make():
        from lightly.loss import DINOLoss

        criterion = DINOLoss(case.K, teacher_temp=TEACHER, student_temp=STUDENT)

        def loss(student, teacher, center):
            criterion.center = center[None, None]
            return criterion(list(teacher), list(student), teacher_temp=TEACHER)

        return loss

    if case.weighted:
        return Variant("lightly DINOLoss", absent="it has no loss of masked patches")
    return peer("lightly DINOLoss (moves its centre too)", make)


def floor(case, device, dtype):
    """The student's logits read and their gradient written."""
    gradient = torch.empty(max(case.S, 1), case.N, case.K, device=device, dtype=dtype)

    def copy(student, *_):
        gradient.view_as(student).copy_(student.detach())

    return Variant("bare copy", copy)


def baselines(case, device, dtype):
    """The floor first, then the published code, then the peers."""
    eager = patches if case.weighted else crops
    return [
        floor(case, device, dtype),
        Variant("eager PyTorch", eager, needs_bytes=12 * case.logits),
        Variant("torch.compile", torch.compile(eager), needs_bytes=8 * case.logits),
        lightly(case),
    ]
