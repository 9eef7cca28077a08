"""Sinkhorn-Knopp in plain PyTorch with one exponential per logit: on any device, any dtype.

After the first scaling of the prototypes, P_bk = softmax_k(z_bk - a_k) has a mass between 1 / (B K)
and 1 in every column, so what follows stays inside float32 as products: Q = u_k P_bk v_b with

    u = 1 / (P^T v),  v = 1 / (P u)

two products of a matrix and a vector per iteration, over the array that is returned.
"""

from sslops import distributed
from sslops.ops.sinkhorn_knopp.reference import sum_over_rows
from sslops.unit_rows import at_least_float32


def unsupported(*args, **kwargs):
    return None


def sinkhorn_knopp(logits, temperature, *, iterations, group):
    """See sslops.ops.sinkhorn_knopp for the arguments of a backend."""
    z_BK = at_least_float32(logits) / temperature
    P_BK = z_BK.sub_(sum_over_rows(z_BK, group)).softmax(1)
    v_B = P_BK.new_ones(len(P_BK))
    if iterations == 1:
        return P_BK
    for _ in range(iterations - 1):
        mass_K = P_BK.T.mv(v_B)
        if group is not None:
            mass_K = distributed.sum_over_ranks(mass_K, group)
        u_K = mass_K.reciprocal()
        v_B = P_BK.mv(u_K).reciprocal()
    return P_BK.mul_(u_K).mul_(v_B[:, None])
