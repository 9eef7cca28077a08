"""How a backend is held against the specification in float64.

The error of a backend may be at most twice that of plain PyTorch in the same dtype, plus one
rounding. Plain PyTorch is the specification for float32, and for half precision the code people
write, with everything in the dtype of the inputs; so also for float64, where the specification
would be compared with itself.

One rounding is what remains where plain PyTorch happens to be exact: a logit of size L is rounded
by L epsilon, which moves a loss by as much and a gradient by that share of itself; a softmax weight
near 1 by epsilon, which moves a gradient by that share of upstream gradient times row over
temperature; and a gradient is rounded once more to the dtype of its tensor.
"""

import torch
from plain import PLAIN


def run(function, tensors, options):
    """Loss and gradients, of the temperature last if it is a tensor, in float64 on the CPU."""
    options = dict(options)
    wanted = tensors = [t.detach().clone().requires_grad_() for t in tensors]
    if isinstance(options.get("temperature"), torch.Tensor):
        options["temperature"] = options["temperature"].detach().clone().requires_grad_()
        wanted = [*tensors, options["temperature"]]
    loss = function(*tensors, **options)
    generator = torch.Generator().manual_seed(7)
    upstream = torch.rand(loss.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(loss, wanted, upstream.to(loss))
    return [x.detach().double().cpu() for x in (loss, *gradients)]


def largest(x):
    return x.abs().max().item() if x.numel() else 0.0


def one_rounding(function, doubles, options, exact):
    """By how many epsilon one rounding of a logit moves the loss and each gradient."""
    temperature = float(options.get("temperature", 0.1))
    rows, norms, gradients = doubles, [torch.ones(())] * len(doubles), exact[1:]
    if options.get("normalize", True):
        # The part of a gradient along its row cancels, but its rounding stays.
        norms = [t.norm(dim=-1, keepdim=True) for t in doubles]
        norms = [torch.where(n == 0, torch.inf, n) for n in norms]
        rows = [t / n for t, n in zip(doubles, norms, strict=True)]
        gradients = run(function, rows, {**options, "normalize": False})[1:]
    logit = max(1.0, max(largest(r.norm(dim=-1)) for r in rows) ** 2 / temperature)
    weight = 1 / rows[0].shape[:-1].numel() if options.get("reduction", "mean") == "mean" else 1.0
    weight *= max(map(largest, rows)) / temperature
    scales = [largest(logit * g / n.cpu()) + largest(weight / n)
              for g, n in zip(gradients, norms, strict=False)]  # fmt: skip
    if len(exact) > 1 + len(doubles):
        scales.append(logit * (rows[0].cpu() * gradients[0]).abs().sum().item() / temperature)
    return [logit, *scales]


def allowed_errors(function, tensors, options):
    """(name, exact value, allowed error) of the loss and of each gradient."""
    reference = {**options, "backend": "reference"}
    doubles = [t.detach().double() for t in tensors]
    in_double = dict(reference)
    dtypes = [torch.float32, *(t.dtype for t in tensors)]
    if isinstance(options.get("temperature"), torch.Tensor):
        in_double["temperature"] = options["temperature"].double()
        dtypes.append(options["temperature"].dtype)
    exact = run(function, doubles, in_double)
    naive, settings = PLAIN[function.__name__], options
    if tensors[0].dtype == torch.float32:
        naive, settings = function, reference
    plain = run(naive, tensors, settings)
    errors = [largest(e - p) for e, p in zip(exact, plain, strict=True)]
    # The errors of single rows cancel in their mean, more so with luck: take the rows' errors.
    if options.get("reduction", "mean") == "mean":
        with torch.no_grad():
            right = function(*doubles, **{**in_double, "reduction": "none"})
            rows = naive(*tensors, **{**settings, "reduction": "none"})
        errors[0] = max(errors[0], largest(right - rows.double()))
    # In float64 both sides are rounded, the specification too.
    is_double = tensors[0].dtype == torch.float64
    epsilon = 2 * torch.finfo(torch.float64).eps if is_double else torch.finfo(torch.float32).eps
    floors = one_rounding(function, doubles, in_double, exact)
    names = ["loss", *(f"gradient {i}" for i in range(len(exact) - 1))]
    return [
        (name, e, 2 * error + epsilon * floor + torch.finfo(dtype).eps / 2 * largest(e))
        for name, e, error, floor, dtype in zip(names, exact, errors, floors, dtypes, strict=True)
    ]


def assert_agrees(function, tensors, options, backend, layout=None):
    """Value and gradients of the backend against the reference in float64 on the same data.

    layout, if given, changes the strides of the tensors that the backend receives.
    """

    def with_layout(*tensors, **options):
        return function(*map(layout, tensors), **options)

    ours = run(with_layout if layout else function, tensors, {**options, "backend": backend})
    allowed = allowed_errors(function, tensors, options)
    for (name, exact, allowed_error), o in zip(allowed, ours, strict=True):
        assert o.isfinite().all(), f"{name}: not finite"
        error = largest(o - exact)
        assert error <= allowed_error, f"{name}: error {error:.3g}, allowed {allowed_error:.3g}"
