"""NT-Xent on the CPU: csrc/cpu/nt_xent.cpp. Memory O(N D), half the scores of the matrix."""

import torch
from torch import Tensor

import sslops._C as _C
from sslops import cpu_helpers
from sslops.cpu_helpers import address
from sslops.ops.info_nce.reference import InfoNCERows
from sslops.unit_rows import at_least_float32, unit_rows


def unsupported(z, temperature, *, normalize, return_stats):
    return cpu_helpers.why_not_cpu(z)


def nt_xent(z, temperature, *, normalize, return_stats):
    """See sslops.ops.nt_xent for the arguments of a backend."""
    z_RD = unit_rows(z) if normalize else at_least_float32(z)
    temperature = cpu_helpers.as_tensor(temperature, z)
    loss, positive, _, rank = forward(z_RD, temperature, normalize, return_stats)
    positive_logit = (positive / temperature).detach()
    lse = loss.detach() + positive_logit
    return InfoNCERows(loss, lse, positive_logit, rank if return_stats else None)


@torch.library.custom_op("sslops::nt_xent_cpu", mutates_args=(), device_types="cpu")
def forward(z: Tensor, temperature: Tensor, unit: bool, want_rank: bool) -> tuple[
    Tensor, Tensor, Tensor, Tensor
]:  # fmt: skip
    """z [R, D] -> loss [R], similarity to the positive [R], normaliser [2, R], rank [R] or [0]."""
    R, D = z.shape
    z = z.contiguous()
    outputs = _outputs(z, want_rank)
    scale, bounded = cpu_helpers.scale_and_bounded(temperature, unit)
    threads = cpu_helpers.threads_for(R, R, D)
    block = cpu_helpers.block_rows(R, threads)
    _C.nt_xent_forward(address(z), R, D, scale, bounded, block, threads, *map(address, outputs))
    return outputs


def _outputs(z, want_rank):
    R = z.shape[0]
    rank = z.new_empty(R if want_rank else 0, dtype=torch.int64)
    return z.new_empty(R), z.new_empty(R), z.new_empty(2, R), rank


@torch.library.custom_op("sslops::nt_xent_cpu_backward", mutates_args=(), device_types="cpu")
def backward(
    upstream: Tensor, z: Tensor, temperature: Tensor, loss: Tensor, normaliser: Tensor, unit: bool
) -> tuple[Tensor, Tensor]:
    """upstream [R] -> the gradients of z [R, D] and of the temperature []."""
    R, D = z.shape
    z, upstream = z.contiguous(), upstream.contiguous()
    dz = torch.empty_like(z)
    scale, bounded = cpu_helpers.scale_and_bounded(temperature, unit)
    threads = cpu_helpers.threads_for(R, R, D)
    block = cpu_helpers.block_rows(R, threads)
    _C.nt_xent_backward(
        address(z), R, D, scale, bounded, block, threads,
        address(loss), address(normaliser), address(upstream), address(dz),
    )  # fmt: skip
    # s_ij = <z_i, z_j> / T serves rows i and j, so sum_i <z_i, dz_i> = 2 sum_ij s_ij dL/ds_ij.
    dt = -torch.linalg.vecdot(z, dz).double().sum() * (scale / 2)
    return dz, dt


@forward.register_fake
def _(z, temperature, unit, want_rank):
    return _outputs(z, want_rank)


@backward.register_fake
def _(upstream, z, temperature, loss, normaliser, unit):
    return z.new_empty(z.shape), temperature.new_empty(())


def _save(ctx, inputs, output):
    z, temperature, ctx.unit, _ = inputs
    loss, _, normaliser, _ = output
    ctx.save_for_backward(z, temperature, loss, normaliser)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, upstream, *_):
    if upstream is None:
        return None, None, None, None
    dz, dt = backward(upstream, *ctx.saved_tensors, ctx.unit)
    return dz, dt, None, None


forward.register_autograd(_differentiate, setup_context=_save)
cpu_helpers.forbid_double_backward(backward, "nt_xent")
