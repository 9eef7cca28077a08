"""Sinkhorn-Knopp: targets in which every prototype gets the same share of the batch.

What a backend of this op receives, already checked:

    sinkhorn_knopp(logits, temperature, *, iterations, group) -> [B, K], without gradient

    logits       [B, K]; B may be 0
    temperature  float, or a 0-d tensor on the same device
    iterations   int >= 1
    group        None, or the process group whose ranks' rows are one batch
"""

import torch

from sslops import arguments, registry

__all__ = ["sinkhorn_knopp"]

_backends = registry.load("sinkhorn_knopp", "cpu", "triton", "chunked", "reference")


@torch.no_grad()
def sinkhorn_knopp(logits, temperature, iterations=3, *, group=None, backend=None):
    """Assign rows to prototypes such that all prototypes get (nearly) the same mass.

    It equals, except that nothing overflows or underflows,

        Q = (logits / temperature).exp().T
        Q /= Q.sum()
        for _ in range(iterations):
            Q /= Q.sum(1, keepdim=True) * K
            Q /= Q.sum(0, keepdim=True) * B
        return (Q * B).T

    Args:
        logits: [B, K], B rows and K prototypes; float16, bfloat16, float32 or float64. B may be 0,
            and differ between ranks.
        temperature: float > 0, or a 0-d tensor.
        iterations: number of times that columns and then rows are scaled, 1 or more.
        group: None (this process only), or a torch.distributed process group: the rows of all
            ranks are one batch, and each rank gets its rows of what one process would return.
        backend: force "cpu", "triton", "chunked" or "reference"; None takes the first that can run.

    Returns:
        [B, K], float32 (float64 for float64 logits), without gradient: rows sum to 1, and the
        columns' sums over all ranks' rows approach B / K.

    Raises:
        TypeError, ValueError: an argument has a wrong type or shape.
        RuntimeError: the forced backend cannot run here.

    Source:
        Cuturi, "Sinkhorn Distances", NeurIPS 2013; in this form: Caron et al., SwAV, NeurIPS 2020,
        section 3.1; Oquab et al., DINOv2, 2024.

    Example:
        >>> import torch, sslops
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])  # both prefer the first prototype
        >>> print(sslops.sinkhorn_knopp(logits, 1.0, iterations=50))
        tensor([[0.6225, 0.3775],
                [0.3775, 0.6225]])
    """
    arguments.check_rows("logits", logits)
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(
            f"logits must be [B, K] with a prototype or more; got {arguments.describe(logits)}"
        )
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"iterations must be an int; got {arguments.describe(iterations)}")
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more; got {iterations}")
    temperature = arguments.check_temperature(temperature, logits)
    with torch.autocast(logits.device.type, enabled=False):
        return _backends(backend, logits.detach(), temperature, iterations=iterations, group=group)
