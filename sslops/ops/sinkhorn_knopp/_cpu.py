"""Sinkhorn-Knopp on the CPU: csrc/cpu/sinkhorn_knopp.cpp, a read of the matrix per iteration.

B rows, K prototypes. The passes are custom ops of their own, because ranks exchange the prototypes'
sums between them.
"""

import math

import torch
from torch import Tensor

import sslops._C as _C
from sslops import cpu_helpers, distributed
from sslops.cpu_helpers import address
from sslops.ops.sinkhorn_knopp.reference import log_add_over_ranks

LOGITS_PER_THREAD = 1 << 16  # work of a few tens of microseconds: fewer do not pay for waking one


def unsupported(logits, temperature, *, iterations, group):
    return cpu_helpers.why_not_cpu(logits)


def sinkhorn_knopp(logits, temperature, *, iterations, group):
    """See sslops.ops.sinkhorn_knopp for the arguments of a backend."""
    z_BK, T = logits.float().contiguous(), cpu_helpers.as_tensor(temperature, logits)
    a_K = columns(z_BK, T)
    if group is not None:
        a_K = log_add_over_ranks(a_K * math.log(2), group) / math.log(2)
    P_BK, mass_K = softmax(z_BK, T, a_K, iterations > 1)
    for i in range(1, iterations):
        if group is not None:
            mass_K = distributed.sum_over_ranks(mass_K, group)
        u_K = mass_K.reciprocal()
        if i == iterations - 1:
            finish(P_BK, u_K)
        else:
            mass_K = mass(P_BK, u_K)
    return P_BK


@torch.library.custom_op("sslops::sinkhorn_knopp_cpu_columns", mutates_args=(), device_types="cpu")
def columns(logits: Tensor, temperature: Tensor) -> Tensor:
    """logits [B, K] -> a [K]: log2 of the sum of 2^z over rows, z = log2(e) logits / T."""
    log_sum = logits.new_empty(logits.shape[1])
    _C.sinkhorn_columns(*_matrix(logits), _scale(temperature), _threads(logits), address(log_sum))
    return log_sum


@torch.library.custom_op("sslops::sinkhorn_knopp_cpu_softmax", mutates_args=(), device_types="cpu")
def softmax(logits: Tensor, temperature: Tensor, a: Tensor, with_mass: bool) -> tuple[
    Tensor, Tensor
]:  # fmt: skip
    """P [B, K] = softmax of z - a along rows, and its sum over rows, [K] or [0]."""
    P, mass = torch.empty_like(logits), logits.new_empty(logits.shape[1] if with_mass else 0)
    address_of, B, K = _matrix(logits)
    _C.sinkhorn_softmax(address_of, address(a), B, K, _scale(temperature), _threads(logits),
                        address(P), address(mass))  # fmt: skip
    return P, mass


@torch.library.custom_op("sslops::sinkhorn_knopp_cpu_mass", mutates_args=(), device_types="cpu")
def mass(P: Tensor, u: Tensor) -> Tensor:
    """sum_b P_b / <P_b, u>, [K]."""
    out = torch.empty_like(u)
    address_of, B, K = _matrix(P)
    _C.sinkhorn_mass(address_of, address(u), B, K, _threads(P), address(out))
    return out


@torch.library.custom_op(
    "sslops::sinkhorn_knopp_cpu_finish", mutates_args=("P",), device_types="cpu"
)
def finish(P: Tensor, u: Tensor) -> None:
    """P_bk *= u_k / <P_b, u>, in place."""
    address_of, B, K = _matrix(P)
    _C.sinkhorn_finish(address_of, address(u), B, K, _threads(P))


@columns.register_fake
def _(logits, temperature):
    return logits.new_empty(logits.shape[1])


@softmax.register_fake
def _(logits, temperature, a, with_mass):
    return torch.empty_like(logits), logits.new_empty(logits.shape[1] if with_mass else 0)


@mass.register_fake
def _(P, u):
    return torch.empty_like(u)


def _matrix(x):
    return address(x), *x.shape


def _scale(temperature):
    return math.log2(math.e) / temperature.item()


def _threads(x):
    return max(1, min(torch.get_num_threads(), x.numel() // LOGITS_PER_THREAD))
