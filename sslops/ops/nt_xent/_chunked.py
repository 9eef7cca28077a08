"""NT-Xent in plain PyTorch, a chunk of rows at a time: on any device, in O(N D) memory.

The forward pass takes each row against all rows: 2 R^2 D FLOP for R = 2N rows. The backward uses
the symmetry of the logits: with softmax weights P and upstream gradients g,

    dz_i = sum_j G_ij z_j / T,   G_ij = P_ij g_i + P_ji g_j - [j is i's positive] (g_i + g_j)

and since G is symmetric, a strip of its upper triangle serves its rows and its columns: 3 R^2 D.
"""

import torch

from sslops.ops.info_nce import _chunked as info_nce
from sslops.ops.info_nce.reference import InfoNCERows
from sslops.unit_rows import at_least_float32, unit_rows, unit_rows_backward

# R = 2N rows, D width; a strip holds rows i .. i+n against the C = R - i rows from i on.


def unsupported(*args, **kwargs):
    return None


def nt_xent(z, temperature, *, normalize, return_stats):
    """See sslops.ops.nt_xent for the arguments of a backend."""
    T = info_nce.as_tensor(temperature, z)
    loss, lse, positive, rank = _forward(z, T, normalize, return_stats)
    rank = rank if return_stats else None
    return InfoNCERows(loss, lse, positive, rank)


def weight_strip(logits, rows, positive, loss, weights):
    """G of a strip [n, C], in place of its logits."""
    i, N = rows.start, len(weights) // 2
    # lse = positive + loss, subtracted one by one: beside large logits their sum loses the loss.
    others = (logits - positive[i:]).sub_(loss[i:]).exp_().mul_(weights[i:])
    own = logits.sub_(positive[rows, None]).sub_(loss[rows, None]).exp_()
    G_nC = own.mul_(weights[rows, None]).add_(others)
    G_nC.diagonal().zero_()
    of_positive = weights * torch.expm1(-loss)
    of_positive = of_positive + of_positive.roll(N)
    # Positives right of the diagonal and, in a strip of more than N rows, left of it.
    for offset, first in ((N, i), (-N, i + N)):
        entries = G_nC.diagonal(offset)
        entries.copy_(of_positive[first : first + len(entries)])
    return G_nC


@torch.library.custom_op(
    "sslops::nt_xent_chunked",
    mutates_args=(),
    schema="(Tensor z, Tensor temperature, bool normalize, bool return_stats) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
)
def _forward(z, temperature, normalize, return_stats):
    N = len(z) // 2
    outputs = info_nce.output_space(z[None], temperature, symmetric=False)
    with torch.autocast(z.device.type, enabled=False):
        for own, positive in ((0, N), (N, 0)):
            half = slice(own, own + N)
            options = info_nce.Options(False, normalize, positive, own, wants=[False] * 4)
            part = info_nce.Part(z[None, half], z[None], None, temperature, options)
            views = [*(x[:, half] for x in outputs[:4]), outputs[4]]
            part.losses(slice(0, 1), views, None, return_stats)
    return tuple(x[0] for x in outputs[:4])


@_forward.register_fake
def _(z, temperature, normalize, return_stats):
    outputs = info_nce.output_space(z[None], temperature, symmetric=False)
    return tuple(x[0] for x in outputs[:4])


@torch.library.custom_op(
    "sslops::nt_xent_chunked_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor z, Tensor temperature, Tensor positive, Tensor loss, "
    "bool normalize) -> (Tensor, Tensor)",
)
def _backward(upstream, z, temperature, positive, loss, normalize):
    with torch.autocast(z.device.type, enabled=False):
        unit = unit_rows(z) if normalize else at_least_float32(z)
        dtype = info_nce.operand_dtype(z)
        weights, factor = info_nce.bounded(upstream, dtype)
        dz = gradient_of_rows(unit, dtype, temperature, positive, loss, weights)
        dz *= factor / temperature
        # Each logit s_ij = <z_i, z_j> / T stands in <z_i, dz_i> and in <z_j, dz_j>.
        dT = (unit * dz).sum() / (-2 * temperature)
        return (unit_rows_backward(z, dz) if normalize else dz).to(z.dtype), dT


def gradient_of_rows(unit, dtype, T, positive, loss, weights):
    """sum_j G_ij z_j, strip by strip."""
    z_1RD, dz_1RD = unit.to(dtype)[None], torch.zeros_like(unit)[None]
    step = max(info_nce.SMALLEST_CHUNK, info_nce.chunk_logits(unit) // max(1, len(unit)))
    for rows in info_nce.slices(len(unit), step):
        logits = info_nce.product(z_1RD[:, rows], z_1RD[:, rows.start :].mT)[0].div_(T)
        G_1nC = weight_strip(logits, rows, positive, loss, weights).to(dtype)[None]
        info_nce.add_product(dz_1RD[:, rows], G_1nC, z_1RD[:, rows.start :])
        beyond = G_1nC[:, :, rows.stop - rows.start :]
        info_nce.add_product(dz_1RD[:, rows.stop :], beyond.mT, z_1RD[:, rows])
    return dz_1RD[0]


@_backward.register_fake
def _(upstream, z, temperature, positive, loss, normalize):
    return torch.empty_like(z), torch.empty_like(temperature)


def _save(ctx, inputs, output):
    z, temperature, ctx.normalize, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(z, temperature, output[2], output[0])


def _gradients(ctx, upstream, *_):
    dz, dT = _backward(upstream, *ctx.saved_tensors, ctx.normalize)
    return dz, dT, None, None


_forward.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(lambda ctx, *_: info_nce.no_double_backward("nt_xent"))
