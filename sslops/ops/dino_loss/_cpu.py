"""The DINO loss on the CPU: csrc/cpu/dino_loss.cpp."""

import math

import torch

import sslops._C as _C
from sslops import cpu_helpers
from sslops.cpu_helpers import address
from sslops.ops.dino_loss import operators

LOGITS_PER_THREAD = 1 << 16  # work of a few tens of microseconds: fewer do not pay for waking one


def unsupported(student, teacher, *args, **kwargs):
    return cpu_helpers.why_not_cpu(student) or cpu_helpers.why_not_cpu(teacher)


def fields(student, teacher, center, weights, scales, skip, is_probability, stats, teacher_stats):
    """The struct DinoLoss of csrc/cpu/dino_loss.h."""
    S, N, K = student.shape
    threads = max(1, min(torch.get_num_threads(), S * N * K // LOGITS_PER_THREAD))
    inputs = map(address, (student, teacher, center, weights))
    return (*inputs, S, len(teacher), N, K, int(skip), int(is_probability), address(scales),
            threads, address(stats), address(teacher_stats))  # fmt: skip


def scales_of(temperatures):
    """log2(e) / temperature of student and teacher, and whether the latter has none."""
    student, teacher = (1.0 if t is None else float(t) for t in temperatures)
    log2_e = math.log2(math.e)
    return torch.tensor([log2_e / student, log2_e / teacher]), temperatures[1] is None


def forward(student, teacher, center, weights, temperatures, skip):
    outputs = operators.output_space(student, teacher)
    (scales, is_probability), student = scales_of(temperatures), student.float()
    tensors = student, teacher.float(), center, weights, scales
    _C.dino_loss_forward(fields(*tensors, skip, is_probability, *outputs[1:]), address(outputs[0]))
    return outputs


def backward(upstream, stats, teacher_stats, student, teacher, center, weights, temperatures, skip):
    (scales, is_probability), dtype = scales_of(temperatures), student.dtype
    student, upstream = student.float(), upstream / temperatures[0]
    gradient = torch.empty_like(student)
    tensors = student, teacher.float(), center, weights, scales
    _C.dino_loss_backward(
        fields(*tensors, skip, is_probability, stats, teacher_stats),
        address(upstream), address(gradient),
    )  # fmt: skip
    return gradient.to(dtype)


dino_loss = operators.define("cpu", forward, backward)
