"""The DINO loss in plain PyTorch, a few images at a time: on any device, any dtype."""

import torch

from sslops.ops.dino_loss import operators
from sslops.unit_rows import at_least_float32

# S student views, T teacher views, n images of a chunk, K prototypes

LOGITS_PER_CHUNK = 1 << 22  # 16 MiB in float32, a few of which are alive at a time


def unsupported(*args, **kwargs):
    return None


def chunks(student, teacher):
    """Slices of the images."""
    N = student.shape[1]
    n = max(1, LOGITS_PER_CHUNK // ((len(student) + len(teacher)) * student.shape[2]))
    return [slice(i, min(i + n, N)) for i in range(0, N, n)]


def targets(teacher, center, temperature, S, skip):
    """For every student view the sum of its teacher views' probabilities [S, n, K], and the
    teacher's shift and logarithm [2, T, n]."""
    P_TnK = at_least_float32(teacher)
    stats = P_TnK.new_zeros(2, *P_TnK.shape[:2])
    if temperature is not None:
        P_TnK = P_TnK if center is None else P_TnK - center
        P_TnK = P_TnK / temperature
        stats[0] = P_TnK.amax(-1)
        P_TnK = P_TnK.sub_(stats[0, ..., None]).exp_()
        total = P_TnK.sum(-1)
        stats[1] = total.log()
        P_TnK = P_TnK.div_(total[..., None])
    T = len(P_TnK)
    every = [slice(0, T)] * S
    if skip:  # the views before and after a view's own
        every = [[t for t in range(T) if t != s] if s < T else slice(0, T) for s in range(S)]
    return [P_TnK[views].sum(0) for views in every], stats


def forward(student, teacher, center, weights, temperatures, skip):
    loss, stats, teacher_stats = operators.output_space(student, teacher)
    for n in chunks(student, teacher):
        Q, teacher_stats[:, :, n] = targets(
            teacher[:, n], center, temperatures[1], len(student), skip
        )
        for s, Q_nK in enumerate(Q):
            z_nK = select(student[s, n], weights, s, n) / temperatures[0]
            top = z_nK.amax(-1)
            below_nK = z_nK.sub_(top[:, None])
            log_sum = below_nK.exp().sum(-1).log()
            mass = Q_nK.sum(-1)
            loss[s, n] = mass * log_sum - (Q_nK * below_nK).sum(-1)
            stats[:, s, n] = torch.stack([top, log_sum, mass])
    if weights is not None:
        loss = torch.where(weights != 0, weights * loss, 0.0)
    return loss, stats, teacher_stats


def select(logits, weights, s, n):
    """float32 rows [n, K], zero where the weight is zero."""
    logits = at_least_float32(logits)
    if weights is None:
        return logits
    return torch.where(weights[s, n, None] != 0, logits, 0.0)


def backward(upstream, stats, teacher_stats, student, teacher, center, weights, temperatures, skip):
    gradient = torch.empty_like(student)
    if weights is not None:
        upstream = torch.where(weights != 0, weights * upstream, 0.0)
    for n in chunks(student, teacher):
        Q, _ = targets(teacher[:, n], center, temperatures[1], len(student), skip)
        for s, Q_nK in enumerate(Q):
            top, log_sum, mass = stats[:, s, n].unbind()
            z_nK = select(student[s, n], weights, s, n) / temperatures[0]
            z_nK.sub_(top[:, None]).sub_(log_sum[:, None]).exp_()
            G_nK = z_nK.mul_(mass[:, None]).sub_(Q_nK)
            G_nK = G_nK.mul_((upstream[s, n] / temperatures[0])[:, None])
            if weights is not None:
                G_nK = torch.where(weights[s, n, None] != 0, G_nK, 0.0)
            gradient[s, n] = G_nK
    return gradient


dino_loss = operators.define("chunked", forward, backward)
