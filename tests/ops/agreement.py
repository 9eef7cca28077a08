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


def assert_agrees(function, tensors, options, backend):
    """Value and gradients of the backend against the reference in float64 on the same data."""
    doubles = [t.detach().double() for t in tensors]
    exact = run(function, doubles, {**options, "backend": "reference"})
    plain = run(function, tensors, {**options, "backend": "reference"})
    ours = run(function, tensors, {**options, "backend": backend})
    names = ("loss", *(f"gradient {i}" for i in range(len(tensors))))
    for name, e, p, o in zip(names, exact, plain, ours, strict=True):
        assert o.isfinite().all(), f"{name}: not finite"
        if not e.numel():
            continue
        # One rounding of the result; the loss comes in float32 whatever the inputs are.
        epsilon = EPSILON[torch.float32 if name == "loss" else tensors[0].dtype]
        floor = max(8 * EPSILON[torch.float32], epsilon) * max(1.0, e.abs().max().item())
        error, allowed = (o - e).abs().max().item(), 2 * (p - e).abs().max().item() + floor
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
