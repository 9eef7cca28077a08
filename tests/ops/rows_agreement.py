"""How a backend's own function (before reductions) is held against the specification in float64."""

import torch

EPSILON = 2.0**-23


def run(function, tensors, options, upstream):
    """The rows and the gradients of all tensors."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    rows = function(*tensors, **options)
    gradients = torch.autograd.grad(rows.loss, tensors, upstream.to(rows.loss), allow_unused=True)
    return rows, gradients


def assert_rows_agree(function, reference, tensors, options, upstream):
    """Loss, lse, positive logit and gradients: at most twice the error of plain float32 PyTorch and
    a few roundings of the largest value; ranks are those of the plain run where float32 decides."""
    exact, exact_gradients = run(reference, [t.double() for t in tensors], options, upstream)
    plain, plain_gradients = run(reference, tensors, options, upstream)
    ours, our_gradients = run(function, tensors, options, upstream)
    names = ["loss", "lse", "positive_logit", *(f"gradient {i}" for i in range(len(tensors)))]
    for name, e, p, o in zip(
        names, (*exact[:3], *exact_gradients), (*plain[:3], *plain_gradients),
        (*ours[:3], *our_gradients), strict=True,
    ):  # fmt: skip
        assert o.shape == e.shape and o.dtype == p.dtype, name
        if not e.numel():
            continue
        error, plain_error = (o - e).abs().max().item(), (p - e).abs().max().item()
        allowed = 2 * plain_error + 8 * EPSILON * max(1.0, e.abs().max().item())
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
    if options["return_stats"]:
        assert_ranks_agree(ours.positive_rank, exact, plain)


def assert_ranks_agree(rank, exact, plain):
    """Equal to the float64 rank wherever float32 PyTorch finds that one as well."""
    sure = exact.positive_rank == plain.positive_rank
    assert sure.double().mean() > 0.9 or not sure.numel()
    assert torch.equal(rank[sure], exact.positive_rank[sure])
