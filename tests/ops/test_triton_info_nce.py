"""The Triton backend of info_nce: what the agreement cases do not reach."""

import pytest
import torch
from agreement import assert_agrees

pytest.importorskip("triton")

import sslops
from sslops import triton_launch as launch
from sslops.ops.info_nce import _triton, reference
from sslops.triton_helpers import INTERPRETED

OPTIONS = dict(symmetric=False, normalize=True, positive_offset=0, exclude_offset=None,
               return_stats=True, uniform=False)  # fmt: skip


def rows(*shape, seed=0, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def losses_and_gradients(function, tensors, temperature, **options):
    """All outputs and the gradients of all tensors, in float64, for uneven upstream gradients."""
    tensors = [t if t is None else t.detach().clone().requires_grad_() for t in tensors]
    result = function(*tensors, temperature, **{**OPTIONS, **options})
    upstream = torch.linspace(0.5, 1.5, result.loss.numel()).reshape(result.loss.shape)
    present = [t for t in tensors if t is not None]
    gradients = torch.autograd.grad(result.loss, present, upstream.to(result.loss))
    outputs = [result.loss, result.lse, result.positive_logit, *gradients]
    return [x.detach().double().cpu() for x in outputs], result.positive_rank.cpu()


def assert_equals_reference(tensors, temperature, **options):
    doubles = [t if t is None else t.double() for t in tensors]
    ours, rank = losses_and_gradients(_triton.info_nce, tensors, temperature, **options)
    exact, exact_rank = losses_and_gradients(reference.info_nce, doubles, temperature, **options)
    plain, _ = losses_and_gradients(reference.info_nce, tensors, temperature, **options)
    for o, e, p in zip(ours, exact, plain, strict=True):
        # At low temperatures plain PyTorch in float32 is off by more: twice that is allowed.
        atol = max(2e-6, 2 * (p - e).abs().max().item())
        torch.testing.assert_close(o, e, rtol=2e-5, atol=atol)
    assert torch.equal(rank, exact_rank)


@pytest.fixture(
    params=[pytest.param((16, 16), marks=pytest.mark.slow), (32, 16), (16, 32)], ids=str
)
def small_tile(request, monkeypatch):
    """Many tiles in a small input, under the interpreter."""
    if not INTERPRETED:
        pytest.skip("the tiles of a GPU are fixed")
    monkeypatch.setattr(launch, "INTERPRETER_TILE", request.param)


@pytest.mark.parametrize("N, M, offset, exclude", [
    (20, 53, 0, None), (20, 53, 33, None), (20, 53, 17, 0), (20, 53, 0, 30), (20, 40, 20, 0),
    (20, 53, 5, 33), (20, 53, 20, 15), (3, 5, 2, 0), (1, 2, 1, 0),
])  # fmt: skip
def test_offsets_and_exclusion_equal_the_reference(N, M, offset, exclude, small_tile, device):
    q, k = rows(1, N, 24, device=device), rows(1, M, 24, seed=1, device=device)
    assert_equals_reference((q, k, None), 0.2, positive_offset=offset, exclude_offset=exclude)


def test_more_keys_than_queries_of_this_rank_get_gradients(device):
    q, k = rows(2, 5, 16, device=device), rows(2, 37, 16, seed=1, device=device)
    assert_equals_reference((q, k, None), 0.01, positive_offset=30)


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("fixed", [True, False])
def test_keys_split_over_programs_give_the_same_sums(splits, fixed, small_tile, device):
    q, p, k = (rows(1, n, 24, seed=n, device=device) for n in (10, 10, 90))
    q = q[:, :10]
    p = p[:, :10] + q
    prepared, _ = launch.prepare_rows([q, p, k], True)
    options = dict(normalize=True, fixed=fixed, rank=True, key_sum=True)
    loss, lse, _, rank, stats, sums = _triton.softmax_rows(*prepared, 0.1, splits=splits, **options)
    exact = reference.info_nce(q.double(), p.double(), k.double(), 0.1, **OPTIONS)
    torch.testing.assert_close(loss.double(), exact.loss[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.double(), exact.lse[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(rank, exact.positive_rank[0])
    unit = torch.nn.functional.normalize
    weights = torch.exp(unit(q[0].double(), dim=-1) @ unit(k[0].double(), dim=-1).T / 0.1
                        - exact.lse[0][:, None])  # fmt: skip
    expected = weights @ unit(k[0].double(), dim=-1)
    torch.testing.assert_close(sums.double() * stats[1, :, None], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fixed", [True, False])
def test_both_sides_split_over_programs_have_their_own_lengths(fixed, small_tile, device):
    # Not a multiple of 16 rows: the lengths of the keys do not follow those of the queries.
    q, k = 3 * rows(1, 67, 24, device=device), rows(1, 67, 24, seed=1, device=device)
    prepared, _ = launch.prepare_rows([q, k], True)
    options = dict(normalize=True, fixed=fixed, symmetric=True, splits=3)
    loss, lse, *_ = _triton.softmax_rows(*prepared, prepared[1], 0.1, **options)
    sides = [reference.info_nce(x.double(), y.double(), None, 0.1, **OPTIONS)
             for x, y in ((q, k), (k, q))]  # fmt: skip
    for ours, name in ((loss, "loss"), (lse, "lse")):
        exact = torch.cat([getattr(side, name)[0] for side in sides])
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_single_candidate_has_loss_zero_and_no_gradient(dtype, device):
    q, k = (rows(1, 8, seed=s, device=device, dtype=dtype).requires_grad_() for s in (1, 2))
    loss = sslops.info_nce(q, k, temperature=0.07, backend="triton")
    loss.backward()
    assert loss.item() == 0.0
    assert not q.grad.any() and not k.grad.any()


def test_no_rows_give_no_losses_and_empty_gradients(device):
    q, k = (torch.zeros(1, 0, 8, device=device, requires_grad=True) for _ in range(2))
    loss = _triton.info_nce(q, k, None, 0.1, **OPTIONS).loss
    loss.sum().backward()
    assert loss.shape == (1, 0) and q.grad.shape == k.grad.shape == (1, 0, 8)


@pytest.mark.parametrize("temperature", [1e-4, 0.05, 1.0])
def test_equal_logits_give_the_log_of_the_number_of_candidates(temperature, device):
    row = rows(1, 16, device=device)
    q, k = row.repeat(37, 1), row.repeat(37, 1)
    loss, stats = sslops.info_nce(q, k, temperature=temperature, reduction="none",
                                  return_stats=True, backend="triton")  # fmt: skip
    torch.testing.assert_close(loss, torch.full_like(loss, 37).log(), rtol=1e-6, atol=0)
    assert not stats.positive_rank.any()  # a tie is not larger


def test_logits_of_ten_thousand_stay_finite(device):
    tensors = [rows(33, 16, seed=s, device=device) for s in (1, 2)]
    for symmetric in (False, True):
        options = dict(temperature=1e-4, symmetric=symmetric, reduction="none")
        assert_agrees(sslops.info_nce, tensors, options, "triton")


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_rows_have_gradient_zero(symmetric, device):
    tensors = [rows(9, 16, seed=s, device=device) for s in (1, 2)]
    tensors[0][3] = 0
    tensors[1][5] = 0
    assert_agrees(sslops.info_nce, tensors, dict(symmetric=symmetric), "triton")
    q, k = (t.requires_grad_() for t in tensors)
    sslops.info_nce(q, k, symmetric=symmetric, backend="triton").backward()
    assert not q.grad[3].any() and not k.grad[5].any()


def test_a_nan_query_poisons_only_its_own_row(device):
    q, k = rows(20, 16, device=device), rows(20, 16, seed=1, device=device)
    clean = sslops.info_nce(q, k, reduction="none", backend="triton")
    q[7, 2] = torch.nan
    q.requires_grad_()
    loss = sslops.info_nce(q, k, reduction="none", backend="triton")
    loss.sum().backward()
    others = torch.arange(20, device=device) != 7
    assert loss[7].isnan() and q.grad[7].isnan().all()
    assert torch.equal(loss[others], clean[others]) and q.grad[others].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_temperature_gradient_equals_the_reference(dtype, symmetric, device):
    q, k = (rows(21, 16, seed=s, device=device, dtype=dtype) for s in (1, 2))
    gradients = []
    for backend, cast in (("triton", lambda t: t), ("reference", torch.Tensor.double)):
        temperature = cast(torch.tensor(0.3, device=device, dtype=dtype)).requires_grad_()
        sslops.info_nce(cast(q), cast(k), temperature=temperature, symmetric=symmetric,
                        backend=backend).backward()  # fmt: skip
        gradients.append(temperature.grad.double())
    tolerance = 1e-5 if dtype == torch.float32 else 3 * 2.0**-10
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("wanted", ["q", "k", "n", "T"])
def test_gradient_may_be_wanted_for_one_input_only(wanted, device):
    tensors = dict(
        zip("qkn", (rows(n, 16, seed=n, device=device) for n in (7, 7, 19)), strict=True)
    )
    tensors["k"] = tensors["k"] + 0.5
    tensors["T"] = torch.tensor(0.2, device=device)
    gradients = []
    for backend in ("triton", "reference"):
        inputs = {name: t.clone() for name, t in tensors.items()}
        inputs[wanted].requires_grad_()
        sslops.info_nce(*inputs.values(), backend=backend).backward()
        gradients.append(inputs[wanted].grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_second_backward_gives_the_same_gradient_bit_for_bit(device):
    q, k = (rows(40, 16, seed=s, device=device).requires_grad_() for s in (1, 2))
    loss = sslops.info_nce(q, k, symmetric=True, backend="triton")
    first = torch.autograd.grad(loss, (q, k), retain_graph=True)
    second = torch.autograd.grad(loss, (q, k))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_double_backward_is_refused_in_words(device):
    q, k = (rows(5, 16, seed=s, device=device).requires_grad_() for s in (1, 2))
    loss = sslops.info_nce(q, k, backend="triton")
    (gradient,) = torch.autograd.grad(loss, q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_float32_logits(dtype, device):
    """Error against float64 on the same data: far below that of logits in half precision."""
    q = rows(64, 64, device=device, dtype=dtype)
    k = (q + 0.8 * rows(64, 64, seed=1, device=device)).to(dtype)
    errors = {}
    doubles = [t.double().requires_grad_() for t in (q, k)]
    exact = torch.autograd.grad(
        sslops.info_nce(*doubles, temperature=0.07, backend="reference"), doubles)  # fmt: skip
    unit = torch.nn.functional.normalize

    def naive(q, k, temperature, backend):
        return torch.nn.functional.cross_entropy(
            unit(q, dim=-1) @ unit(k, dim=-1).T / temperature, torch.arange(64, device=q.device)
        )

    runs = {"ours": (sslops.info_nce, "triton"), "float32 logits": (sslops.info_nce, "reference"),
            "naive": (naive, None)}  # fmt: skip
    for name, (function, backend) in runs.items():
        tensors = [t.clone().requires_grad_() for t in (q, k)]
        loss = function(*tensors, temperature=0.07, backend=backend)
        gradients = torch.autograd.grad(loss, tensors)
        difference = torch.cat([(g.double() - e) for g, e in zip(gradients, exact, strict=True)])
        errors[name] = (difference.norm() / torch.cat(exact).norm()).item()
    # All that ours adds is one rounding of the weights in front of the second product.
    rounding = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    assert errors["ours"] <= errors["float32 logits"] + rounding, errors
    assert errors["ours"] <= errors["naive"] / 3, errors


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_float16_rows_of_any_length(scale, device):
    tensors = [(rows(20, 32, seed=s, device=device) * scale).half() for s in (1, 2)]
    assert_agrees(sslops.info_nce, tensors, dict(reduction="sum"), "triton")


@pytest.mark.parametrize("symmetric", [False, True])
def test_operators_pass_opcheck(symmetric, device):
    q, k = (rows(1, 9, 16, seed=s, device=device).requires_grad_() for s in (1, 2))
    n = None if symmetric else rows(1, 12, 16, device=device).requires_grad_()
    T = torch.tensor(0.3, device=device, requires_grad=True)
    torch.library.opcheck(_triton._forward, (q, k, n, T, 1.0, symmetric, True, 0, None, True, True))


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_of_half_precision_have_the_dtypes_a_graph_expects(symmetric, device):
    q, k = (rows(1, 9, 16, seed=s, device=device, dtype=torch.bfloat16) for s in (1, 2))
    loss, *_, stats, key_sum, norms = _triton._forward(
        q, k, None, None, 0.3, symmetric, True, 0, None, False, True
    )
    saved = torch.ones_like(loss), stats, key_sum, norms, q, k
    options = None, None, 0.3, symmetric, True, 0, None, [True, True, False, False]
    torch.library.opcheck(_triton._backward, (*saved, *options), test_utils="test_faketensor")


def test_compiles_into_one_graph(device):
    q, k = (rows(2, 9, 16, seed=s, device=device).requires_grad_() for s in (1, 2))

    def step(q, k):
        return sslops.info_nce(q, k, temperature=0.2, symmetric=True, backend="triton")

    eager = torch.autograd.grad(step(q, k), (q, k))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for a, b in zip(torch.autograd.grad(compiled(q, k), (q, k)), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["transposed", "expanded", "offset"])
def test_strides_do_not_matter(change, device):
    base = rows(16, 24, device=device)
    q = {"transposed": base.T.contiguous().T, "expanded": base[:1].expand(16, 24),
         "offset": rows(17, 25, device=device)[1:, 1:]}[change]  # fmt: skip
    k = rows(16, 24, seed=1, device=device)
    ours = sslops.info_nce(q, k, reduction="none", backend="triton")
    copied = sslops.info_nce(q.clone(), k, reduction="none", backend="triton")
    assert torch.equal(ours, copied)


def test_unsupported_says_why():
    q = torch.zeros(1, 4, 300)
    assert "width D" in _triton.unsupported(q, q, None, 0.1, **OPTIONS)
    assert "float64" in _triton.unsupported(q[..., :8].double(), q, None, 0.1, **OPTIONS)
    paired = torch.zeros(4, 1, 8)
    assert "paired" in _triton.unsupported(paired, paired, torch.zeros(4, 3, 8), 0.1, **OPTIONS)
