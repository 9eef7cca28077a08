"""How a backend of colour attention is held against the specification in float64.

The error may be at most twice that of plain PyTorch, plus a few roundings. Plain PyTorch is the
specification in float32, for values whatever the dtype of the embeddings. For gradients of
half-precision embeddings it is the code people write, with everything in that dtype.

A rounding moves a score of size L by L epsilon, a weight by that share of itself, and so a result
by that share of what its terms could add up to; a gradient is rounded once more to its dtype.
"""

import torch

import sslops
from sslops.ops.color_attention import reference

ROUNDINGS = 4


def largest(x):
    return x.abs().max().item() if x.numel() else 0.0


def run(function, tensors, options):
    """The value and the gradients of all tensors, in float64 on the CPU."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*tensors, **options)
    gradients = torch.autograd.grad(value, tensors, upstream_of(value).to(value))
    return [x.detach().double().cpu() for x in (value, *gradients)]


def kept_cells(target, ref, options):
    """Which weights the specification keeps, from exact scores."""
    window = sslops.ops.color_attention._as_window(
        options.get("grid"), options.get("radius"), target, ref
    )
    rows = torch.arange(target.shape[1], device=target.device)
    scores = target.double() @ ref.double().mT
    keep = reference.candidates(rows, ref.shape[1], window).expand_as(scores)
    if options.get("topk") is None:
        return keep
    return keep & reference.is_largest(scores.masked_fill(~keep, -torch.inf), options["topk"])


def naive(target, ref, *values, **options):
    """Both ops as people write them: every intermediate in the dtype of the inputs."""
    with torch.no_grad():
        keep = kept_cells(target, ref, options)
    scores = target @ ref.mT / options.get("temperature", 1.0)
    scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).masked_fill(~keep, 0)
    if values:
        return weights @ values[0]
    is_match = options["target_labels"][:, :, None] == options["reference_labels"][:, None, :]
    loss = -torch.log(weights.masked_fill(~is_match, 0).sum(-1).float() + reference.EPSILON)
    return {"none": loss, "mean": loss.mean()}[options.get("reduction", "mean")]


def upstream_of(value):
    """A gradient of the value, the same for every backend."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)


def magnitudes(tensors, options):
    """How large scores, value and gradients would be if nothing cancelled."""
    target, ref, *values = (t.detach() for t in tensors)
    T = options.get("temperature", 1.0)
    scores = target @ ref.mT / T
    keep = kept_cells(target, ref, options)
    A = scores.masked_fill(~keep, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~keep, 0)
    if values:
        out = A @ values[0].abs()
        dout = upstream_of(out).abs()
        dS = A * (dout @ values[0].abs().mT + (dout * out).sum(-1, keepdim=True))
    else:
        right = options["target_labels"][:, :, None] == options["reference_labels"][:, None, :]
        p = A.masked_fill(~right, 0).sum(-1, keepdim=True)
        out = -torch.log(p[..., 0] + reference.EPSILON)
        weight = upstream_of(out).abs() if options.get("reduction") == "none" else 1 / out.numel()
        dS = A * (torch.as_tensor(weight)[..., None] * (right + p) / (p + reference.EPSILON))
    sizes = [largest(out), largest(dS @ ref.abs()) / T, largest(dS.mT @ target.abs()) / T]
    return max(1.0, largest(scores)), *sizes, *(largest(A.mT @ dout) for _ in values)


def allowed_errors(function, tensors, options):
    """(name, exact value, allowed error) of the value and of each gradient."""
    dtype = tensors[0].dtype
    doubles = [t.detach().double() for t in tensors]
    exact = run(function, doubles, {**options, "backend": "reference"})
    plain = run(function, tensors, {**options, "backend": "reference"})
    if dtype in (torch.float16, torch.bfloat16):
        half = run(naive, tensors, options)[1:]
        if all(g.isfinite().all() for g in half):  # p below 1e-8 overflows float16
            plain[1:] = half
    score, *sizes = magnitudes(doubles, options)
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for n, (e, p, size) in enumerate(zip(exact, plain, sizes, strict=True)):
        rounded = largest(e) * torch.finfo(tensors[n - 1].dtype).eps / 2 if n else 0.0
        name = f"gradient {n - 1}" if n else "value"
        yield name, e, 2 * largest(e - p) + rounded + ROUNDINGS * wide * score * size


def assert_agrees(function, tensors, options, backend):
    """Value and gradients of the backend against the reference in float64 on the same data."""
    ours = run(function, tensors, {**options, "backend": backend})
    allowed = allowed_errors(function, tensors, options)
    for (name, exact, limit), o in zip(allowed, ours, strict=True):
        assert o.isfinite().all(), f"{name}: not finite"
        error = largest(o - exact)
        assert error <= limit, f"{name}: error {error:.3g}, allowed {limit:.3g}"
