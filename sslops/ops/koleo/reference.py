"""KoLeo in plain PyTorch: the specification. Runs in float64; stores the N x M products."""

import torch

from sslops.unit_rows import unit_rows

EPSILON = 1e-8  # added to a distance before its logarithm: 0 costs 18.4
# Nearer than this, the difference of two unit rows in float32 is rounding error: it has no
# direction, and 1 / distance would only magnify it. Such a pair has no gradient.
SMALLEST_DISTANCE = 1e-6


def unsupported(*args, **kwargs):
    return None


def koleo(features, candidates, offset):
    """See sslops.ops.koleo for the arguments of a backend.

    loss_i = - log(min_{j != i} ||x_i - x_j|| + 1e-8),  x unit rows   (Sablayrolles et al., eq. 2)
    """
    # B batches, N rows, M candidates, D width
    x_BND, y_BMD = unit_rows(features), unit_rows(candidates)
    products = x_BND @ y_BMD.mT
    own = torch.arange(x_BND.shape[1], device=features.device)[:, None] + offset
    is_own = own == torch.arange(y_BMD.shape[1], device=features.device)
    return products.masked_fill(is_own | products.isnan(), -torch.inf).argmax(-1)


def losses(x_BND, y_BMD, nearest_BN):
    """The loss of every row, given its nearest neighbour: O(N D), the same for all backends."""
    # Indexing, whose backward adds up in a fixed order on a GPU too; gather's does not.
    batch = torch.arange(len(x_BND), device=x_BND.device)[:, None]
    apart_BND = x_BND - y_BMD[batch, nearest_BN]
    squares = apart_BND.detach().square().sum(-1)
    # The value of a distance below the smallest counts, its gradient (inf at 0) does not. Nor does
    # that of a nan row, which would reach the row that is called its neighbour.
    has_gradient = squares >= SMALLEST_DISTANCE**2
    apart_BND = torch.where(has_gradient[..., None], apart_BND, 0.0)
    distance = torch.where(has_gradient, apart_BND.square().sum(-1), 1.0).sqrt()
    distance = torch.where(has_gradient, distance, squares.sqrt())
    return -(distance + EPSILON).log()
