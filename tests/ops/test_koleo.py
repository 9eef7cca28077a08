"""koleo: against float64, closed forms, duplicates, half precision, edges."""

import math

import pytest
import torch
import torch.nn.functional as F
from backends import LAYOUTS
from float64_agreement import EPSILON, largest, value_and_gradient
from hypothesis import given, settings
from hypothesis import strategies as st

import sslops
from sslops import registry
from sslops.ops.koleo import cases

OP = registry.OPS["koleo"]
EVERY = list(OP.backends)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
each_backend = pytest.mark.parametrize("backend", EVERY)


def needs(backend, x):
    x = x.detach().reshape(-1, *x.shape[-2:])
    reason = OP.why_not(backend, x, x, 0)
    if reason:
        pytest.skip(reason)


def rows(backend, layout=lambda x: x):
    return lambda x: sslops.koleo(layout(x), reduction="none", backend=backend)


def assert_agrees(x, backend, layout=lambda x: x):
    """A unit row rounds by u, so a distance d by 2 u, and 1 / d by 2 u / d^2."""
    upstream = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(3))
    loss, gradient = value_and_gradient(rows(backend, layout), x, upstream)
    exact_loss, exact = value_and_gradient(rows("reference"), x.double(), upstream.double())
    plain_loss, plain = value_and_gradient(rows("reference"), x.float(), upstream)
    distance = (-exact_loss).exp().min().item()
    u = EPSILON if x.dtype != torch.float64 else 2 * torch.finfo(torch.float64).eps
    allowed = 2 * largest(plain_loss - exact_loss) + 4 * u * (1 / distance + largest(exact_loss))
    assert largest(loss - exact_loss) <= allowed
    allowed = 2 * largest(plain - exact) + 8 * u / distance * largest(exact)
    allowed += torch.finfo(x.dtype).eps / 2 * largest(exact)
    assert largest(gradient - exact) <= allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
@each_backend
def test_backend_agrees_with_the_specification(backend, case, dtype, device):
    x = case.inputs(device, dtype)
    needs(backend, x)
    assert_agrees(x, backend)


@each_backend
def test_any_shape_dtype_and_stride_agrees(backend, device):
    @settings(max_examples=4 if backend == "triton" and device == "cpu" else 30)
    @given(st.integers(2, 40), st.integers(2, 70), st.sampled_from(DTYPES[:3]),
           st.sampled_from([0.01, 1.0, 100.0]), st.sampled_from([*LAYOUTS]),
           st.integers(0, 2**31))  # fmt: skip
    def agrees(N, D, dtype, scale, layout, seed):
        generator = torch.Generator().manual_seed(seed)
        x = (scale * torch.randn(N, D, generator=generator)).to(device, dtype)
        needs(backend, x)
        assert_agrees(x, backend, LAYOUTS[layout])

    agrees()


@each_backend
@pytest.mark.parametrize("theta", [0.1, 0.7, math.pi / 2, math.pi])
def test_two_points_at_an_angle(backend, theta, device):
    """-log(2 sin(theta / 2)), and its derivative -cot(theta / 2) / 2 along the circle."""
    x = torch.tensor([[1.0, 0.0], [math.cos(theta), math.sin(theta)]], device=device)
    needs(backend, x)
    x.requires_grad_()
    loss = sslops.koleo(x, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(2 * math.sin(theta / 2)), rel=1e-5, abs=1e-6)
    if theta == 0.7:
        assert loss.item() == pytest.approx(0.3772, abs=1e-4)  # the specification's number
    along = torch.tensor([-math.sin(theta), math.cos(theta)], device=device)
    expected = -0.5 / math.tan(theta / 2)
    assert (x.grad[1] @ along).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@each_backend
def test_orthogonal_rows(backend, device):
    x = 5 * torch.eye(6, device=device)
    needs(backend, x)
    assert sslops.koleo(x, backend=backend).item() == pytest.approx(-0.5 * math.log(2), rel=1e-6)


@each_backend
def test_sanity_values_of_the_specification(backend, device):
    """64 random rows of width 192: -0.25; one row with 1 % noise each time: 4.37."""
    x = torch.randn(64, 192, device=device)
    needs(backend, x)
    assert sslops.koleo(x, backend=backend).item() == pytest.approx(-0.25, abs=0.03)
    near = F.normalize(torch.randn_like(x[:1]), dim=-1) + 0.01 / math.sqrt(192) * x
    assert sslops.koleo(near, backend=backend).item() == pytest.approx(4.37, abs=0.03)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_duplicates_cost_18_and_have_a_finite_gradient(backend, dtype, device):
    """Rows 0 and 1 are one point; the others are not; -log(1e-8) = 18.42."""
    x = torch.randn(8, 16, device=device).to(dtype)
    needs(backend, x)
    x[1] = x[0]
    x.requires_grad_()
    loss = sslops.koleo(x, reduction="none", backend=backend)
    loss.sum().backward()
    expected = torch.full((2,), -math.log(1e-8), device=device)
    torch.testing.assert_close(loss[:2], expected, rtol=1e-6, atol=0)
    assert (loss[2:] < 2).all() and x.grad.isfinite().all() and x.grad[2:].any()


@each_backend
def test_a_batch_of_copies_is_finite_in_float16(backend, device):
    x = torch.randn(1, 16, device=device).half().expand(6, -1).clone().requires_grad_()
    needs(backend, x)
    loss = sslops.koleo(x, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(18.42, abs=0.01) and not x.grad.any()


@each_backend
def test_near_duplicates_saturate_float16_without_nan(backend, device):
    """Short rows a hair apart: the gradient is about 1e7, beyond 65504."""
    x = torch.full((2, 4), 2.0**-10, device=device).half()
    x[1, 0] *= 1 + 2.0**-10
    needs(backend, x)
    x.requires_grad_()
    (65536 * sslops.koleo(x, backend=backend)).backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() == 65504


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_single_row_has_loss_and_gradient_zero(backend, dtype, device):
    x = torch.randn(1, 16, device=device).to(dtype).requires_grad_()
    needs(backend, x)
    loss = sslops.koleo(x, backend=backend)
    loss.backward()
    assert loss.item() == 0.0 and not x.grad.any()


@each_backend
def test_no_rows_give_nan_for_mean_and_zero_for_sum(backend, device):
    x = torch.zeros(0, 8, device=device, requires_grad=True)
    assert sslops.koleo(x, backend=backend).isnan()
    total = sslops.koleo(x, reduction="sum", backend=backend)
    total.backward()
    assert total.item() == 0.0 and x.grad.shape == (0, 8)


@each_backend
def test_zero_rows_have_a_finite_gradient(backend, device):
    x = torch.randn(5, 8, device=device)
    needs(backend, x)
    x[2] = 0
    x.requires_grad_()
    loss = sslops.koleo(x, reduction="none", backend=backend)
    loss.sum().backward()
    assert loss.isfinite().all() and x.grad.isfinite().all() and not x.grad[2].any()


@each_backend
def test_one_nan_row_does_not_poison_the_others(backend, device):
    x = torch.randn(6, 8, device=device)
    needs(backend, x)
    x[3, 1] = math.nan
    x.requires_grad_()
    loss = sslops.koleo(x, reduction="none", backend=backend)
    others = [0, 1, 2, 4, 5]
    loss[others].sum().backward()
    assert loss[3].isnan() and x.grad[others].isfinite().all()
    alone = sslops.koleo(x[others], reduction="none", backend="reference")
    torch.testing.assert_close(loss[others], alone)


@each_backend
def test_crops_are_batches_of_their_own(backend, device):
    """Two views of an image are never neighbours: not one batch of all crops."""
    x = torch.randn(2, 9, 16, device=device)
    needs(backend, x)
    x[1] = x[0]
    together = sslops.koleo(x, backend=backend)
    apart = sum(sslops.koleo(crop, backend=backend) for crop in x) / 2
    torch.testing.assert_close(together, apart)
    assert sslops.koleo(x.flatten(0, 1), backend=backend) > 18 > together


@each_backend
def test_equal_candidates_give_the_first(backend, device):
    """Ties do not depend on the order of tiles."""
    x = torch.eye(3, device=device)[torch.tensor([0, 1, 1, 2, 1, 2], device=device)]
    needs(backend, x)
    nearest = OP.backends[backend][0](x[None], x[None], 0)[0]
    assert nearest.tolist() == [1, 2, 1, 5, 1, 3]


@each_backend
def test_the_offset_names_the_row_itself(backend, device):
    x = torch.randn(70, 8, device=device)
    needs(backend, x)
    nearest = OP.backends[backend][0](x[None, 65:], x[None], 65)[0]
    assert torch.equal(nearest, OP.backends["reference"][0](x[None], x[None], 0)[0, 65:])


@each_backend
def test_twenty_runs_are_equal_bit_for_bit(backend, device):
    x = torch.randn(40, 16, device=device, requires_grad=True)
    needs(backend, x)
    runs = set()
    for _ in range(20 if backend != "triton" or device != "cpu" else 3):
        (gradient,) = torch.autograd.grad(sslops.koleo(x, backend=backend), x)
        runs.add((gradient.double().sum().item(), gradient.double().norm().item()))
    assert len(runs) == 1


@each_backend
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_compiles_into_one_graph(backend, dtype, device):
    x = torch.randn(9, 12, device=device, dtype=dtype, requires_grad=True)
    needs(backend, x)

    def loss(x):
        return sslops.koleo(x, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected)


@pytest.mark.parametrize("backend", [b for b in EVERY if b != "reference"])
def test_opcheck(backend, device):
    x = torch.randn(2, 5, 8, device=device)
    needs(backend, x)
    torch.library.opcheck(getattr(torch.ops.sslops, f"koleo_{backend}").default, (x, x, 0))


def test_second_derivatives_are_those_of_the_closed_form():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sslops.koleo(x), x)
    assert torch.autograd.gradgradcheck(lambda x: sslops.koleo(x), x)


WRONG = {
    "features are a list": (TypeError, "features|tensor|list", ([1.0],), {}),
    "one dimension": (ValueError, "features|at least 2|(8,)", (torch.zeros(8),), {}),
    "integers": (TypeError, "features|floating-point|int64", (torch.zeros(2, 2).long(),), {}),
    "reduction": (ValueError, "reduction|'mean'|'avg'", (torch.eye(2),), {"reduction": "avg"}),
    "backend": (ValueError, "backend|reference|'fast'", (torch.eye(2),), {"backend": "fast"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    error, words, args, options = WRONG[name]
    with pytest.raises(error) as found:
        sslops.koleo(*args, **options)
    for word in words.split("|"):
        assert word in str(found.value)
