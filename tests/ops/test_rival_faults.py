"""Faults seen in other libraries, each with a test of its own, on every backend.

Those of several processes stand in test_distributed.py, those of memory banks in test_compat.py.
"""

import pytest
import torch
import torch.nn.functional as F
from backends import STATIC_IS_SLOW, Forced, parameters
from plain import PLAIN


def pair(N=24, D=16, dtype=torch.float32):
    q = torch.randn(N, D)
    return [x.to(dtype).requires_grad_() for x in (q, q + torch.randn(N, D))]


def test_exponentials_are_taken_relative_to_the_largest_logit(loss):
    """exp without a max (lightning-bolts #811): overflows beyond a logit of 88."""
    z = pair()
    for temperature in (1e-2, 1e-3, 1e-4):
        value = loss(*z, temperature=temperature)
        assert value.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, z))


def test_small_exponentials_do_not_vanish_before_the_logarithm(loss):
    """A shift by 1/T instead of the row's max: all candidates at -1/T would sum to zero."""
    z0 = torch.eye(1, 8).repeat(4, 1) + 1e-3 * torch.randn(4, 8)
    z = [z0, -z0]
    if loss.op_name == "nt_xent":
        z = [torch.eye(2, 8), -torch.eye(2, 8)]
    loss.assert_agrees(*z, temperature=1e-3, reduction="none")


def test_reduction_none_scales_each_row_by_its_own_upstream_gradient(loss):
    """Liger #968: the gradient of the mean whatever came from above."""
    z = pair()
    rows = loss(*z, reduction="none")
    weights = torch.rand_like(rows) * 10
    weights[3] = 0
    gradients = torch.autograd.grad(rows, z, weights)
    doubles = [x.detach().double().requires_grad_() for x in z]
    exact = loss.public(*doubles, reduction="none", backend="reference")
    for a, b in zip(gradients, torch.autograd.grad(exact, doubles, weights.double()),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def assert_compiles(step, make_inputs, dynamic=None):
    """One graph without a break, whose values and gradients are those of eager code."""
    step(*make_inputs())  # skips where the backend cannot run
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for _ in range(2):
        inputs = make_inputs()
        expected, found = step(*inputs), compiled(*inputs)
        expected += torch.autograd.grad(expected[0], inputs)
        found += torch.autograd.grad(found[0], inputs)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


# The specification is plain PyTorch, whose compilation others test.
BUT_THE_SPECIFICATION = [p for p in parameters("info_nce", "nt_xent")
                         if p.values[0][1] != "reference"]  # fmt: skip


@pytest.fixture(params=BUT_THE_SPECIFICATION)
def compiled_loss(request):
    return Forced(*request.param)


@pytest.mark.parametrize("dynamic", STATIC_IS_SLOW)
def test_torch_compile_changes_nothing(compiled_loss, dynamic):
    """Silently wrong under torch.compile (Liger #1338). Here with another size the second time."""
    numbers = iter((9, 9, 13))

    def make_inputs():
        return pair(next(numbers), 8)

    def step(z0, z1):
        mean, stats = compiled_loss(2 * z0, z1, return_stats=True)
        rows = compiled_loss(z0, z1, reduction="none")
        weights = torch.arange(len(rows), device=rows.device)
        return (mean + (weights * rows).sum(), rows, *stats)

    assert_compiles(step, make_inputs, dynamic)


def test_torch_compile_changes_nothing_in_other_forms(info_nce):
    def make_inputs():
        shapes = [(9, 8), (9, 8), (7, 8), (9, 7, 8)]
        tensors = [torch.randn(s) for s in shapes] + [torch.tensor(0.3)]
        return [t.requires_grad_() for t in tensors]

    def step(q, k, negatives, own_negatives, T):
        symmetric = info_nce(q, k, temperature=T, symmetric=True)
        unpaired = info_nce(q, k, negatives, T)
        paired = info_nce(q, k, own_negatives, T, negative_mode="paired")
        return symmetric + unpaired + paired, symmetric, unpaired, paired

    assert_compiles(step, make_inputs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_gives_the_same_gradient(loss, reduction):
    """Peers scale their saved gradients in place: the second time they are scaled twice."""
    z = pair()
    value = 3.0 * loss(*z, reduction=reduction).sum()
    first = torch.autograd.grad(value, z, retain_graph=True)
    first = [g.clone() for g in first]
    second = torch.autograd.grad(value, z, retain_graph=True)
    halved = torch.autograd.grad(value, z, torch.tensor(0.5))
    for a, b, c in zip(first, second, halved, strict=True):
        assert torch.equal(a, b) and torch.equal(a, 2 * c)


def test_gradients_accumulate(loss):
    z = pair()
    loss(*z).backward()
    once = [x.grad.clone() for x in z]
    loss(*z).backward()
    for x, g in zip(z, once, strict=True):
        torch.testing.assert_close(x.grad, 2 * g)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_double_backward_is_right_or_a_clear_error(loss, reduction):
    z = pair(5, 8)
    value = loss(*z, reduction=reduction).sum()
    (gradient,) = torch.autograd.grad(value, z[0], create_graph=True)
    if loss.backend == "reference":
        doubles = [x.detach().double() for x in z]
        assert torch.autograd.gradgradcheck(
            lambda *x: loss(*x, reduction=reduction), [x.requires_grad_() for x in doubles]
        )
        return
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(gradient.square().sum(), z)


@pytest.mark.parametrize("dtype", [
    torch.bfloat16, torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)
], ids=str)  # fmt: skip
def test_autocast_neither_lowers_nor_raises_the_inputs(loss, dtype):
    """The same loss and gradients inside and outside, and float32."""
    z = pair(dtype=dtype)
    for reduction in ("mean", "none"):
        expected = loss(*z, reduction=reduction)
        gradients = torch.autograd.grad(expected.sum(), z)
        for low in (torch.bfloat16, torch.float16):
            with torch.autocast(z[0].device.type, dtype=low):
                value = loss(*z, reduction=reduction)
                # The specification's own backward is autograd's, which obeys autocast.
                if loss.backend != "reference":
                    found = torch.autograd.grad(value.sum(), z)
            if loss.backend == "reference":
                found = torch.autograd.grad(value.sum(), z)
            assert value.dtype == torch.float32 and torch.equal(value, expected)
            for a, b in zip(found, gradients, strict=True):
                assert a.dtype == dtype and torch.equal(a, b)


def test_float16_does_not_overflow_before_the_scale(loss):
    """Products of 64 * 300^2 exceed 65504, logits do not."""
    z = [torch.full((6, 64), 300.0, dtype=torch.float16) for _ in range(2)]
    z[0][::2] *= -1
    z = [x.requires_grad_() for x in z]
    value = loss(*z, temperature=1e5, normalize=False, reduction="none")
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), z))
    loss.assert_agrees(*(x.detach().float() for x in z), temperature=1e5, normalize=False)
    exact = loss.public(*(x.detach().double() for x in z), temperature=1e5, normalize=False,
                        reduction="none", backend="reference")  # fmt: skip
    torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=1e-3)


def test_float16_norms_do_not_overflow(loss):
    """The squared length of these rows is 2.3e7."""
    z = [600 * x.detach().half() for x in pair(6, 64)]
    z = [x.clamp(-6e4, 6e4).requires_grad_() for x in z]
    value = loss(*z)
    exact = loss.public(*(x.detach().double() for x in z), backend="reference")
    torch.testing.assert_close(value.double(), exact, rtol=2e-3, atol=2e-3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, z))


def gradient_error(loss_of, z, exact):
    """Relative error of the gradients of all views together."""
    z = [x.clone().requires_grad_() for x in z]
    gradients = torch.autograd.grad(loss_of(*z), z)
    error = sum((a.double() - b).square().sum() for a, b in zip(gradients, exact, strict=True))
    return (error / sum(b.square().sum() for b in exact)).sqrt().item()


def test_bfloat16_gradient_error_is_that_of_bfloat16_inputs(loss):
    """At T = 0.07, against float64 on the data before rounding: about 4e-3, where autocast PyTorch
    has 2e-2, because it rounds the logits too."""
    N, D = (256, 128) if not loss.is_interpreted else (96, 128)
    z0 = F.normalize(torch.randn(N, D, dtype=torch.float64), dim=-1)
    z1 = F.normalize(z0 + 0.1 * torch.randn(N, D, dtype=torch.float64), dim=-1)
    z = [x.clone().requires_grad_() for x in (z0, z1)]
    exact = torch.autograd.grad(loss.public(*z, temperature=0.07, backend="reference"), z)
    naive = PLAIN[loss.op_name]

    def autocast(*z):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return naive(*z, temperature=0.07)

    rounded = [x.bfloat16() for x in (z0, z1)]
    inputs_only = gradient_error(
        lambda *z: naive(*z, temperature=0.07), [x.double() for x in rounded], exact
    )
    ours = gradient_error(lambda *z: loss(*z, temperature=0.07), rounded, exact)
    theirs = gradient_error(autocast, [x.float() for x in (z0, z1)], exact)
    print(f"{loss.op_name} {loss.backend}: {inputs_only:.1e} {ours:.1e} {theirs:.1e}")
    assert ours < 1.5 * inputs_only
    assert ours < theirs / 2
