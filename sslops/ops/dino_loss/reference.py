"""The DINO loss in plain PyTorch: the specification. Runs in float64; stores all probabilities."""

import torch

from sslops.unit_rows import at_least_float32


def unsupported(*args, **kwargs):
    return None


def dino_loss(
    student, teacher, center, weights, *, student_temperature, teacher_temperature,
    skip_same_view,
):  # fmt: skip
    """See sslops.ops.dino_loss for the arguments of a backend.

    loss_sn = - w_sn sum_{t != s} sum_k P_tnk log p_snk    (DINO, eq. 3; iBOT, eq. 2)
    P_t = softmax((g_t - C) / tau_t), p_s = softmax(g_s / tau_s)
    """
    # S student views, T teacher views, N rows, K prototypes
    z_SNK, P_TNK = at_least_float32(student), at_least_float32(teacher.detach())
    if weights is not None:
        weights = weights.to(z_SNK.dtype)
        # What is not selected must not be seen: 0 times the gradient of a nan is nan.
        z_SNK = torch.where(weights[..., None] != 0, z_SNK, 0.0)
    if teacher_temperature is not None:
        if center is not None:
            P_TNK = P_TNK - center.to(P_TNK.dtype)
        P_TNK = (P_TNK / teacher_temperature).softmax(-1)
    log_p_SNK = (z_SNK / student_temperature).log_softmax(-1)

    losses = []
    for s in range(len(log_p_SNK)):
        views = [t for t in range(len(P_TNK)) if t != s or not skip_same_view]
        # The cross-entropy is linear in its target, so the targets are added first.
        target_NK = P_TNK[views].sum(0)
        losses.append(-(target_NK * log_p_SNK[s]).sum(-1))
    loss_SN = torch.stack(losses)
    return loss_SN if weights is None else torch.where(weights != 0, weights * loss_SN, 0.0)
