"""How a backend is held against the specification in float64.

The error of a backend may be at most twice that of plain PyTorch in the same dtype, plus the
roundings that no order of operations avoids. Plain PyTorch is the specification for float32, and
for half precision the code people write, with everything in the dtype of the inputs; so also for
float64, where the specification would be compared with itself.

The roundings matter where plain PyTorch happens to be exact. With unit roundoff u: a logit of size
L is the product of two rounded rows and rounded itself, 3 L u; so far a loss moves, and a gradient
by that share of itself. A gradient is a softmax weight times a row over the temperature, 3 u more,
and a weight that is a difference from 1 errs by u even where it is small.
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
    gradients = torch.autograd.grad(loss, wanted, upstream_of(loss.shape).to(loss))
    return [x.detach().double().cpu() for x in (loss, *gradients)]


def upstream_of(shape):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def largest(x):
    return x.abs().max().item() if x.numel() else 0.0


def roundings(function, doubles, options, exact):
    """What the roundings move the loss and each gradient by, in units of the unit roundoff."""
    temperature = float(options.get("temperature", 0.1))
    rows, norms, gradients = doubles, [torch.ones(())] * len(doubles), exact[1:]
    if options.get("normalize", True):
        # The part of a gradient along its row cancels, but its rounding stays.
        norms = [t.norm(dim=-1, keepdim=True) for t in doubles]
        norms = [torch.where(n == 0, torch.inf, n) for n in norms]
        rows = [t / n for t, n in zip(doubles, norms, strict=True)]
        gradients = run(function, rows, {**options, "normalize": False})[1:]
    N = rows[0].shape[:-1].numel()
    logit = max(1.0, max(largest(r.norm(dim=-1)) for r in rows) ** 2 / temperature)
    weight = 1 / N if options.get("reduction", "mean") == "mean" else 1.0
    of_row = weight * max(map(largest, rows)) / temperature
    moved = [3 * logit * (N if options.get("reduction") == "sum" else 1)] + [
        3 * (logit + 1) * largest(g / n.cpu()) + largest(of_row / n)
        for g, n in zip(gradients, norms, strict=False)
    ]
    if len(exact) > 1 + len(doubles):
        along = (rows[0].cpu() * gradients[0]).abs().sum().item()
        moved.append((3 * (logit + 1) * along + N * weight * logit) / temperature)
    return moved


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
    # The errors of single rows cancel in their sum, more so with luck: take the rows' errors.
    # By the temperature only in half precision, where a kernel's weights are rounded, and of few
    # rows: each takes a pass of its own, and many leave luck little.
    is_half = exact_dtype(tensors[0].dtype) != tensors[0].dtype
    is_scalar = len(exact) > 1 + len(tensors) and is_half
    is_scalar = is_scalar and tensors[0].shape[:-1].numel() <= 70
    right = by_row(function, doubles, in_double, is_scalar)
    of_rows = [
        r - n for r, n in zip(right, by_row(naive, tensors, settings, is_scalar), strict=True)
    ]
    N, reduction = of_rows[0].numel(), options.get("reduction", "mean")
    if reduction != "none":
        errors[0] = max(errors[0], largest(of_rows[0]) * (N if reduction == "sum" else 1))
    if is_scalar:
        upstream = upstream_of(exact[0].shape) / (N if reduction == "mean" else 1)
        # Rows err independently of each other: twice the deviation of the sum.
        errors[-1] = max(errors[-1], 2 * (of_rows[1] * upstream.flatten()).norm().item())
    u = torch.finfo(exact_dtype(tensors[0].dtype)).eps / 2
    # In float64 both sides are rounded, the specification too.
    u *= 2 if tensors[0].dtype == torch.float64 else 1
    names = ["loss", *(f"gradient {i}" for i in range(len(exact) - 1))]
    moved = roundings(function, doubles, in_double, exact)
    return [
        (name, e, 2 * error + u * by + torch.finfo(dtype).eps / 2 * largest(e))
        for name, e, error, by, dtype in zip(names, exact, errors, moved, dtypes, strict=True)
    ]


def by_row(function, tensors, options, has_temperature):
    """The loss of each row, and its derivative by the temperature if that is a tensor."""
    options = {**options, "reduction": "none"}
    if has_temperature:
        options["temperature"] = options["temperature"].detach().clone().requires_grad_()
    losses = function(*(t.detach() for t in tensors), **options)
    found = [losses.detach().double().cpu()]
    if has_temperature:
        each = [torch.autograd.grad(x, options["temperature"], retain_graph=True)[0]
                for x in losses.flatten()]  # fmt: skip
        found.append(torch.stack(each).double().cpu() if each else torch.zeros(0))
    return found


def exact_dtype(dtype):
    """The dtype of logits and losses."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
