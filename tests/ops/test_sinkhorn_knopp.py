"""sinkhorn_knopp: against the formula in float64, marginals, numbers worked by hand, edges."""

import math

import pytest
import torch
from backends import LAYOUTS, by_dtype, is_interpreted, slow_if
from hypothesis import given, settings
from hypothesis import strategies as st

import sslops
from sslops import registry
from sslops.ops.sinkhorn_knopp import cases

OP = registry.OPS["sinkhorn_knopp"]
EVERY = list(OP.backends)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
each_backend = pytest.mark.parametrize("backend", EVERY)


def needs(backend, logits):
    reason = OP.why_not(backend, logits, 0.1, iterations=3, group=None)
    if reason:
        pytest.skip(reason)


def formula(logits, temperature, iterations):
    """The paper's, step by step, in float64; only the largest logit is subtracted."""
    z = logits.double() / temperature
    Q = (z - z.max()).exp().T
    K, B = Q.shape
    Q /= Q.sum()
    for _ in range(iterations):
        Q /= Q.sum(1, keepdim=True)
        Q /= K
        Q /= Q.sum(0, keepdim=True)
        Q /= B
    return (Q * B).T


def allowed(logits, temperature, iterations, exact):
    """A rounded logit z moves an entry by z u; each half-iteration rounds another time."""
    u = torch.finfo(torch.float32 if logits.dtype != torch.float64 else torch.float64).eps / 2
    largest = logits.double().abs().max() / temperature
    # Scalings are sums that were rounded as well, and each is passed on to the next.
    return u * (8 * (largest + 8) * (1 + iterations)) * exact + 1e-37


def assert_agrees(logits, temperature, iterations, backend):
    found = sslops.sinkhorn_knopp(logits, temperature, iterations, backend=backend).double()
    exact = OP.backends["reference"][0](
        logits.double(), temperature, iterations=iterations, group=None
    )
    assert found.isfinite().all()
    assert ((found - exact).abs() <= allowed(logits, temperature, iterations, exact)).all()


@pytest.mark.parametrize("case", [c for c in cases.CASES if "beyond" not in c.name],
                         ids=lambda c: c.name)  # fmt: skip
def test_the_specification_is_the_paper_s_formula(case, device):
    logits, (temperature, iterations) = case.inputs(device, torch.float64)
    found = sslops.sinkhorn_knopp(logits, temperature, iterations, backend="reference")
    torch.testing.assert_close(found, formula(logits, temperature, iterations),
                               rtol=1e-9, atol=1e-15)  # fmt: skip


RUNS = [(backend, case) for backend in EVERY for case in cases.CASES]
HALVES = ("fewer rows than prototypes", "one iteration", "exponentials beyond float32")


@pytest.mark.parametrize("backend, case, dtype", by_dtype(RUNS, HALVES))
def test_backend_agrees_with_the_specification(backend, case, dtype, device):
    logits, arguments = case.inputs(device, dtype)
    needs(backend, logits)
    assert_agrees(logits, *arguments, backend)


@each_backend
def test_any_shape_dtype_stride_and_temperature_agrees(backend, device):
    @settings(max_examples=4 if is_interpreted(backend) else 30)
    @given(st.integers(1, 20), st.integers(1, 70), st.sampled_from(DTYPES[:3]),
           st.floats(0.02, 2.0), st.integers(1, 5), st.sampled_from([0.1, 1.0, 3.0]),
           st.sampled_from([*LAYOUTS]), st.integers(0, 2**31))  # fmt: skip
    def agrees(B, K, dtype, temperature, iterations, scale, layout, seed):
        generator = torch.Generator().manual_seed(seed)
        logits = (scale * torch.randn(B, K, generator=generator)).to(device, dtype)
        needs(backend, logits)
        assert_agrees(LAYOUTS[layout](logits), temperature, iterations, backend)

    agrees()


@pytest.mark.parametrize("backend, dtype", [
    pytest.param(b, d, marks=slow_if(is_interpreted(b) and d != torch.bfloat16))
    for b in EVERY for d in DTYPES[:3]
])  # fmt: skip
def test_rows_sum_to_one_and_prototypes_share_the_mass(backend, dtype, device):
    """DINOv2's sanity value: within 0.1 % of uniform after three iterations, for logits that are
    cosines in 256 dimensions."""
    logits = torch.randn(64, 32, device=device) / 16
    needs(backend, logits.to(dtype))
    Q = sslops.sinkhorn_knopp(logits.to(dtype), 0.07, backend=backend)
    assert Q.dtype == torch.float32 and not Q.requires_grad
    assert (Q.sum(1, dtype=torch.float64) - 1).abs().max() < 1e-6
    mass = Q.sum(0, dtype=torch.float64) * 32 / 64
    assert (mass - 1).abs().max() < 1e-3


@each_backend
def test_two_rows_by_hand(backend, device):
    """Both prefer the first prototype, by e^2 and e. After one iteration: column sums e^2 + e and
    2; the balanced end: odds e^0.5 each, for its own prototype."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]], device=device)
    needs(backend, logits)
    once = sslops.sinkhorn_knopp(logits, 1.0, 1, backend=backend)
    e = math.e
    first = (e**2 / (e**2 + e)) / (e**2 / (e**2 + e) + 0.5)
    second = (e / (e**2 + e)) / (e / (e**2 + e) + 0.5)
    expected = torch.tensor([[first, 1 - first], [second, 1 - second]])
    torch.testing.assert_close(once.cpu(), expected)
    many = sslops.sinkhorn_knopp(logits, 1.0, 60, backend=backend)
    p = e**0.5 / (1 + e**0.5)
    torch.testing.assert_close(many.cpu(), torch.tensor([[p, 1 - p], [1 - p, p]]))


@each_backend
def test_a_shift_of_all_logits_changes_nothing(backend, device):
    logits = torch.randn(9, 12, device=device)
    needs(backend, logits)
    shifted = sslops.sinkhorn_knopp(logits + 64.0, 0.5, backend=backend)
    torch.testing.assert_close(shifted, sslops.sinkhorn_knopp(logits, 0.5, backend=backend),
                               rtol=1e-3, atol=1e-6)  # fmt: skip


@each_backend
def test_a_permutation_of_the_rows_permutes_the_result(backend, device):
    logits, order = torch.randn(15, 20, device=device), torch.randperm(15, device=device)
    needs(backend, logits)
    first = sslops.sinkhorn_knopp(logits, 0.2, backend=backend)[order]
    torch.testing.assert_close(sslops.sinkhorn_knopp(logits[order], 0.2, backend=backend), first,
                               rtol=1e-5, atol=1e-8)  # fmt: skip


@each_backend
def test_float16_at_the_end_of_its_range(backend, device):
    """exp(60000 / 0.04) is far beyond any dtype."""
    logits = torch.randint(-60000, 60000, (8, 30), device=device).half()
    needs(backend, logits)
    Q = sslops.sinkhorn_knopp(logits, 0.04, backend=backend)
    assert Q.isfinite().all()
    torch.testing.assert_close(Q.sum(1), torch.ones(8, device=device))


@each_backend
def test_no_rows_give_no_rows(backend, device):
    logits = torch.zeros(0, 5, device=device)
    needs(backend, logits)
    assert sslops.sinkhorn_knopp(logits, 0.1, backend=backend).shape == (0, 5)


@each_backend
def test_temperature_may_be_a_tensor(backend, device):
    logits = torch.randn(9, 12, device=device)
    needs(backend, logits)
    found = sslops.sinkhorn_knopp(logits, torch.tensor(0.25, device=device), backend=backend)
    torch.testing.assert_close(found, sslops.sinkhorn_knopp(logits, 0.25, backend=backend))


@each_backend
def test_the_logits_are_not_changed_and_get_no_gradient(backend, device):
    logits = torch.randn(9, 12, device=device, requires_grad=True)
    needs(backend, logits.detach())
    before = logits.detach().clone()
    assert not sslops.sinkhorn_knopp(logits, 0.25, backend=backend).requires_grad
    assert torch.equal(logits, before)


@each_backend
def test_compiles_into_one_graph(backend, device):
    logits = torch.randn(9, 12, device=device)
    needs(backend, logits)

    def targets(logits):
        return sslops.sinkhorn_knopp(logits, 0.25, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(targets, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits), targets(logits), rtol=1e-6, atol=1e-8)


def test_opcheck(device):
    if "triton" not in EVERY:
        pytest.skip(OP.missing["triton"])
    logits = torch.randn(5, 8, device=device)
    needs("triton", logits)
    operator = torch.ops.sslops.sinkhorn_knopp_triton.default
    torch.library.opcheck(operator, (logits, None, 0.1, 3))
    torch.library.opcheck(operator, (logits, torch.tensor(0.1, device=device), 0.0, 1))


def test_opcheck_of_the_cpu_passes():
    if "cpu" not in EVERY:
        pytest.skip(OP.missing["cpu"])
    logits, T, P = torch.randn(5, 8), torch.tensor(0.1).double(), torch.rand(5, 8)
    check, operators = torch.library.opcheck, torch.ops.sslops
    check(operators.sinkhorn_knopp_cpu_columns.default, (logits, T))
    check(operators.sinkhorn_knopp_cpu_softmax.default, (logits, T, torch.randn(8), True))
    check(operators.sinkhorn_knopp_cpu_softmax.default, (logits, T, torch.randn(8), False))
    check(operators.sinkhorn_knopp_cpu_mass.default, (P, torch.rand(8)))
    check(operators.sinkhorn_knopp_cpu_finish.default, (P, torch.rand(8)))


logits = torch.randn(4, 8)
# fmt: off
WRONG = {
    "logits are a list": (TypeError, "logits|tensor|list", ([1.0], 0.1), {}),
    "logits have integers": (TypeError, "logits|floating-point|int64", (logits.long(), 0.1), {}),
    "three dimensions": (ValueError, "logits|[B, K]|(1, 4, 8)", (logits[None], 0.1), {}),
    "no prototype": (ValueError, "logits|prototype|(4, 0)", (logits[:, :0], 0.1), {}),
    "temperature": (ValueError, "temperature|positive|0.0", (logits, 0.0), {}),
    "iterations": (ValueError, "iterations|1 or more|0", (logits, 0.1, 0), {}),
    "iterations as a float": (TypeError, "iterations|int|3.0", (logits, 0.1, 3.0), {}),
    "backend": (ValueError, "backend|reference|'fast'", (logits, 0.1), {"backend": "fast"}),
}
# fmt: on


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    error, words, args, options = WRONG[name]
    with pytest.raises(error) as found:
        sslops.sinkhorn_knopp(*args, **options)
    for word in words.split("|"):
        assert word in str(found.value)
