"""How a backend is held against the specification in float64.

The error of a backend may be at most twice that of the specification run in the same dtype
("plain PyTorch"), plus a floor of a few roundings of the largest value.
"""

import torch

EPSILON = {torch.float64: 2.0**-52, torch.float32: 2.0**-23,
           torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # fmt: skip


def run(function, tensors, options, upstream=None):
    """Loss and the gradients of all tensors, in float64."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    loss = function(*tensors, **options)
    torch.manual_seed(7)
    upstream = torch.rand(loss.shape, dtype=torch.float64) if loss.ndim else torch.tensor(1.0)
    gradients = torch.autograd.grad(loss, tensors, upstream.to(loss))
    return [loss.detach().double().cpu(), *(g.double().cpu() for g in gradients)]


def assert_agrees(function, tensors, options, backend, names=("loss", "1st", "2nd", "3rd", "4th")):
    """Value and gradients of the backend against the reference in float64 on the same data."""
    exact = run(function, [t.detach().double() for t in tensors], {**options, "backend": "reference"})
    plain = run(function, tensors, {**options, "backend": "reference"})
    ours = run(function, tensors, {**options, "backend": backend})
    epsilon = EPSILON[tensors[0].dtype]
    for name, e, p, o in zip(names, exact, plain, ours, strict=False):
        assert o.isfinite().all(), f"{name}: not finite"
        # Roundings of the result, and of the logits it is a difference of.
        floor = 8 * EPSILON[torch.float32] * max(1.0, e.abs().max().item() if e.numel() else 0.0)
        floor = max(floor, 4 * epsilon * (e.abs().max().item() if e.numel() and name != "loss" else 0.0))
        error = (o - e).abs().max().item() if e.numel() else 0.0
        allowed = 2 * ((p - e).abs().max().item() if e.numel() else 0.0) + floor
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
