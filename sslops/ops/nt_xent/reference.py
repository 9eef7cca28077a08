"""NT-Xent in plain PyTorch: the specification. Runs in float64; stores the 2N x 2N logits."""

import torch

from sslops.ops.info_nce.reference import InfoNCERows
from sslops.unit_rows import at_least_float32, unit_rows


def unsupported(*args, **kwargs):
    return None


def nt_xent(z, temperature, *, normalize, return_stats):
    """See sslops.ops.nt_xent for the arguments of a backend.

    loss_i = log sum_{j != i} exp(s_ij) - s_ip,  s_ij = <z_i, z_j> / temperature   (SimCLR, eq. 1)
    """
    # R = 2N rows: first views, then second views; the positive of row i is row (i + N) mod 2N
    z_RD = unit_rows(z) if normalize else at_least_float32(z)
    R = len(z)
    rows = torch.arange(R, device=z.device)
    logits = z_RD @ z_RD.mT / temperature
    # The first and second half of the positives lie on the diagonals of two N x N blocks.
    positive = logits[rows, (rows + R // 2) % R]
    logits = logits.masked_fill(torch.eye(R, dtype=torch.bool, device=z.device), -torch.inf)

    # Relative to the positive, so that a loss near 0 keeps its digits beside logits of 1e4.
    loss = (logits - positive[:, None]).logsumexp(-1)
    with torch.no_grad():
        lse = logits.logsumexp(-1)
        rank = (logits > positive[:, None]).sum(-1) if return_stats else None
    return InfoNCERows(loss, lse, positive.detach(), rank)
