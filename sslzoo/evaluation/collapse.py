"""Has the representation collapsed? Meters on a matrix of features, [N, d]."""

import torch
import torch.nn.functional as F


def feature_std(features):
    """Mean over dimensions of the standard deviation of the normalised features.

    `F.normalize(z).std(0).mean()`: 1 / sqrt(d) for features spread over the sphere, 0 in collapse.

    Source:
        Chen, He, "Exploring Simple Siamese Representation Learning", 2021, section 4.1.

    Example:
        >>> import torch
        >>> print(f"{feature_std(torch.randn(5000, 64)):.3f}")  # 1 / sqrt(64)
        0.125
    """
    return F.normalize(features.float(), dim=-1).std(0, correction=0).mean().item()


def effective_rank(features, epsilon=1e-7):
    """RankMe: the exponential of the entropy of the normalised singular values, 1 to min(N, d).

    Source:
        Garrido et al., "RankMe", 2023, eq. 1 and 2.

    Example:
        >>> import torch
        >>> print(f"{effective_rank(torch.eye(8)):.2f}")
        8.00
    """
    singular = torch.linalg.svdvals(features.double())
    total = singular.sum()
    if total == 0:
        return 0.0
    p = singular / total + epsilon
    return torch.exp(-(p * p.log()).sum()).item()
