"""KoLeo: spread features over the sphere by pushing each from its nearest neighbour.

What a backend of this op receives, already checked:

    koleo(features, candidates, offset) -> nearest [B, N], int64

    features    [B, N, D], N >= 1, of any length, without gradient
    candidates  [B, M, D], M >= 2, one dtype and device; row i is its own candidate i + offset

nearest_i is the j != i + offset of the largest cosine, the lowest one of equals; a candidate that
is nan is nobody's nearest. The loss follows from it in O(N D): reference.losses.
"""

import torch

from sslops import arguments, distributed, registry
from sslops.ops.koleo.reference import losses
from sslops.unit_rows import unit_rows

__all__ = ["koleo"]

_backends = registry.load("koleo", "cpu", "triton", "chunked", "reference")


def koleo(features, *, reduction="mean", group=None, backend=None):
    """Minus the logarithm of each feature's distance to its nearest neighbour on the sphere.

    It equals, without ever storing the N x N products,

        x = F.normalize(features.float(), dim=-1)
        nearest = (x @ x.mT - 2 * torch.eye(N)).argmax(-1)
        -((x - x[nearest]).norm(dim=-1) + 1e-8).log().mean()

    Args:
        features: [..., N, D]; leading dimensions are batches of their own, such as the two global
            crops [2, N, D], so that views of one image are never neighbours. float16, bfloat16,
            float32 or float64.
        reduction: "mean" over all rows, "sum", or "none": [..., N].
        group: None (neighbours within this process, as DINOv2's official code), or a
            torch.distributed process group whose other ranks' rows may be neighbours too;
            gradients flow through the gather.
        backend: force "cpu", "triton", "chunked" or "reference"; None takes the first that can run.

    Returns:
        The loss: float32 (float64 for float64 features). A single row has no neighbour: its loss
        and its gradient are 0. N = 0 gives nan for "mean" and 0 for "sum". Rows nearer than 1e-6
        to their neighbour have a loss but no gradient, as float32 cannot tell its direction;
        gradients beyond the range of float16 take its largest value.

        With `group` and reduction="mean", the loss of a rank is scaled such that the average over
        ranks (as DDP averages gradients) is the mean over all ranks' rows, uneven batches
        included; with even batches it is the plain mean over the rank's own rows.

    Raises:
        TypeError, ValueError: an argument has a wrong type or shape.
        RuntimeError: the forced backend cannot run here.

    Source:
        Sablayrolles, Douze, Schmid, Jégou, "Spreading Vectors for Similarity Search", ICLR 2019,
        eq. 2; Oquab et al., DINOv2, 2024, section 4.

    Example:
        >>> import torch, sslops
        >>> x = torch.eye(4)  # all distances are the square root of 2
        >>> print(f"{sslops.koleo(x).item():.4f}")
        -0.3466
    """
    arguments.check_choice("reduction", reduction, ("mean", "sum", "none"))
    arguments.check_rows("features", features)
    shape = features.shape[:-1]
    features = features.reshape(features.shape[:-2].numel(), *features.shape[-2:])
    with torch.autocast(features.device.type, enabled=False):
        x = unit_rows(_Float32.apply(features) if features.dtype == torch.float16 else features)
        if group is None:
            candidates, y, offset = features, x, 0
        else:
            features, (y, offset) = x, distributed.gather_rows(x, group)
            candidates = y
        if x.shape[1] and y.shape[1] > 1:
            nearest = _backends(backend, features.detach(), candidates.detach(), offset)
            rows = losses(x, y, nearest)
        else:  # in the graph even so: the gather's backward waits for every rank
            rows = 0.0 * (x.sum(-1) + y.sum())
    if reduction == "none":
        return rows.reshape(shape)
    if reduction == "sum":
        return rows.sum()
    if group is None:
        return rows.mean()
    return rows.sum() * distributed.mean_scale(rows, group)


class _Float32(torch.autograd.Function):
    """float16 to float32; a gradient beyond float16 comes back as its largest value, not as inf."""

    @staticmethod
    def forward(ctx, x):
        return x.float()

    @staticmethod
    def backward(ctx, gradient):
        largest = torch.finfo(torch.float16).max
        return gradient.clamp(-largest, largest).half()
