"""color_attention_loss: hand-worked numbers, labels, edges, memory, on every backend here."""

import math

import pytest
import torch
from color_agreement import assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st

import sslops
from sslops import registry
from sslops.ops.color_attention import cases

BACKENDS = list(registry.OPS["color_attention_loss"].backends)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def loss_of(*arguments, backend, **options):
    """color_attention_loss, or a skip where the backend says that it cannot run."""
    try:
        return sslops.color_attention_loss(*arguments, backend=backend, **options)
    except RuntimeError as error:
        if "cannot run here" not in str(error):
            raise
        pytest.skip(str(error))


def random_inputs(device, Nt=20, Nr=33, D=8, B=2, classes=4):
    target, reference = (torch.randn(B, n, D, device=device, requires_grad=True) for n in (Nt, Nr))
    labels = [torch.randint(classes, (B, n), device=device) for n in (Nt, Nr)]
    return target, reference, *labels


@each_backend
def test_shifted_embeddings_and_colours_cost_nothing(backend, device):
    H, W = 5, 6
    labels = torch.arange(H * W, device=device).view(1, H, W) % 7
    position = 10 * torch.eye(H * W, device=device).view(H, W, -1)
    shifted = position.roll((2, -1), (0, 1)).reshape(1, H * W, H * W)
    loss = loss_of(shifted, position.reshape(1, H * W, H * W),
                   labels.roll((2, -1), (1, 2)).flatten(1), labels.flatten(1),
                   backend=backend)  # fmt: skip
    assert abs(loss.item()) < 1e-7


@each_backend
def test_uniform_attention_gives_cross_entropy_with_the_reference_histogram(backend, device):
    target, reference, target_labels, reference_labels = random_inputs(device, classes=3)
    loss = loss_of(torch.zeros_like(target), reference, target_labels, reference_labels,
                   backend=backend)  # fmt: skip
    histogram = torch.nn.functional.one_hot(reference_labels, 3).double().mean(1)
    expected = -histogram.log().gather(1, target_labels).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@each_backend
def test_two_cells_by_hand(backend, device):
    f = torch.tensor([[[1.0, 2.0]]], device=device, requires_grad=True)
    g = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], device=device, requires_grad=True)
    labels = torch.tensor([[5]], device=device), torch.tensor([[5, -3]], device=device)
    loss = loss_of(f, g, *labels, temperature=0.5, backend=backend)  # scores 2 and 4
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2)), rel=1e-6)
    q = 1 / (1 + math.exp(-2))  # the mass on the wrong cell
    by_f, by_g = torch.autograd.grad(loss, (f, g))
    torch.testing.assert_close(by_f.cpu(), 2 * q * torch.tensor([[[-1.0, 1.0]]]))
    torch.testing.assert_close(by_g.cpu(), 2 * q * torch.tensor([[[-1.0, -2.0], [1.0, 2.0]]]))


@each_backend
def test_no_second_softmax_runs_over_the_mixture(backend, device):
    """16 colours, all copied right: a softmax over the mixture could not fall below 1.88."""
    cells = 10 * torch.eye(16, device=device)[None]
    labels = torch.arange(16, device=device)[None]
    assert loss_of(cells, cells, labels, labels, backend=backend).item() < 1e-6


@each_backend
def test_agrees_with_color_attention_on_one_hot_values(backend, device):
    target, reference, target_labels, reference_labels = random_inputs(device)
    one_hot = torch.nn.functional.one_hot(reference_labels, 4).float()
    mixture = sslops.color_attention(target, reference, one_hot, backend=backend)
    p = mixture.gather(2, target_labels[..., None])[..., 0]
    loss = loss_of(target, reference, target_labels, reference_labels, reduction="none",
                   backend=backend)  # fmt: skip
    torch.testing.assert_close(loss, -torch.log(p + 1e-8))


@each_backend
def test_a_label_that_no_reference_has_costs_a_finite_amount_and_no_gradient(backend, device):
    target, reference, target_labels, reference_labels = random_inputs(device)
    target_labels[:, ::2] = 99
    loss = loss_of(target, reference, target_labels, reference_labels, reduction="none",
                   backend=backend)  # fmt: skip
    torch.testing.assert_close(loss[:, ::2], torch.full_like(loss[:, ::2], -math.log(1e-8)))
    gradients = torch.autograd.grad(loss[:, ::2].sum(), (target, reference), retain_graph=True)
    assert not any(g.any() for g in gradients)
    (by_target,) = torch.autograd.grad(loss.sum(), target)
    assert by_target[:, 1::2].any(-1).all() and not by_target[:, ::2].any()


@each_backend
def test_all_references_of_the_right_label_cost_nothing_and_give_no_gradient(backend, device):
    target, reference, *_ = random_inputs(device)
    labels = torch.ones(2, 20, dtype=int, device=device), torch.ones(2, 33, dtype=int).to(device)
    loss = loss_of(target, reference, *labels, backend=backend)
    assert abs(loss.item()) < 1e-7
    for gradient in torch.autograd.grad(loss, (target, reference)):
        assert gradient.abs().max() < 1e-7


@each_backend
def test_scores_of_ten_thousand_give_finite_losses_and_gradients(backend, device):
    target = torch.tensor([[[100.0], [-100.0]]], device=device, requires_grad=True)
    reference = torch.tensor([[[100.0], [-100.0], [0.0]]], device=device, requires_grad=True)
    labels = torch.tensor([[0, 0]], device=device), torch.tensor([[0, 1, 2]], device=device)
    loss = loss_of(target, reference, *labels, reduction="none", backend=backend)
    assert loss[0].tolist() == pytest.approx([-1e-8, -math.log(1e-8)], rel=1e-6, abs=1.1e-8)
    gradients = torch.autograd.grad(loss.sum(), (target, reference))
    assert all(g.isfinite().all() for g in gradients)


@each_backend
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_dtype_of_labels_gives_the_same_loss(backend, dtype, device):
    target, reference, *labels = random_inputs(device)
    expected = loss_of(target, reference, *labels, backend=backend)
    labels = labels[0].to(dtype), labels[1]
    assert torch.equal(loss_of(target, reference, *labels, backend=backend), expected)


@each_backend
def test_labels_far_apart_are_told_apart(backend, device):
    """Labels that agree in their low 32 bits are different labels."""
    target, reference, _, _ = random_inputs(device)
    labels = torch.zeros(2, 20, dtype=int).to(device), torch.full((2, 33), 1 << 32).to(device)
    loss = loss_of(target, reference, *labels, backend=backend)
    assert loss.item() == pytest.approx(-math.log(1e-8))


@each_backend
def test_reductions(backend, device):
    inputs = random_inputs(device)
    rows = loss_of(*inputs, reduction="none", backend=backend)
    assert rows.shape == (2, 20) and rows.dtype == torch.float32
    torch.testing.assert_close(loss_of(*inputs, backend=backend), rows.mean())
    torch.testing.assert_close(loss_of(*inputs, reduction="sum", backend=backend), rows.sum())


@each_backend
def test_every_row_is_scaled_by_its_own_upstream_gradient(backend, device):
    target, reference, *labels = random_inputs(device, B=1)
    rows = loss_of(target, reference, *labels, reduction="none", backend=backend)
    upstream = torch.zeros_like(rows)
    upstream[0, 3] = 2.0
    by_target, by_reference = torch.autograd.grad(rows, (target, reference), upstream)
    alone = loss_of(target[:, 3:4], reference, labels[0][:, 3:4], labels[1], backend=backend)
    expected = torch.autograd.grad(2 * alone, (target, reference))
    torch.testing.assert_close(by_target, expected[0])
    torch.testing.assert_close(by_reference, expected[1])


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_temperature_as_a_tensor_gets_its_gradient(backend, dtype, device):
    target, reference, *labels = random_inputs(device)
    temperature = torch.tensor(0.7, dtype=dtype, device=device, requires_grad=True)
    loss = loss_of(target, reference, *labels, temperature=temperature, backend=backend)
    (gradient,) = torch.autograd.grad(loss, temperature)
    assert gradient.dtype == dtype and gradient.shape == ()
    exact = temperature.detach().double().requires_grad_()
    loss = loss_of(target.double(), reference.double(), *labels, temperature=exact,
                   backend="reference")  # fmt: skip
    (expected,) = torch.autograd.grad(loss, exact)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-3
    assert gradient.item() == pytest.approx(expected.item(), rel=tolerance)


@each_backend
@pytest.mark.parametrize("wanted", [0, 1])
def test_gradient_wanted_for_only_one_argument(backend, wanted, device):
    inputs = random_inputs(device)
    both = torch.autograd.grad(loss_of(*inputs, backend=backend), inputs[:2])
    one = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(inputs[:2])]
    loss = loss_of(*one, *inputs[2:], backend=backend)
    (gradient,) = torch.autograd.grad(loss, one[wanted])
    assert torch.equal(gradient, both[wanted])


@each_backend
@pytest.mark.parametrize("reduction, expected", [("mean", math.nan), ("sum", 0.0)])
def test_no_target_cells_give_nan_for_mean_and_0_for_sum(backend, reduction, expected, device):
    inputs = random_inputs(device, Nt=0)
    loss = loss_of(*inputs, reduction=reduction, backend=backend)
    assert loss.item() == pytest.approx(expected, nan_ok=True)


@each_backend
def test_no_reference_cells_give_the_loss_of_an_absent_label(backend, device):
    inputs = random_inputs(device, Nr=0)
    loss = loss_of(*inputs, backend=backend)
    assert loss.item() == pytest.approx(-math.log(1e-8))
    gradients = torch.autograd.grad(loss, inputs[:2], allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


@each_backend
def test_one_row_of_nan_does_not_poison_the_others(backend, device):
    target, *rest = random_inputs(device)
    clean = loss_of(target, *rest, reduction="none", backend=backend)
    target = target.detach().clone()
    target[0, 7] = torch.nan
    loss = loss_of(target, *rest, reduction="none", backend=backend)
    assert loss[0, 7].isnan()
    others = torch.ones_like(loss, dtype=bool)
    others[0, 7] = False
    assert torch.equal(loss[others], clean[others])


@each_backend
def test_same_bits_every_time_and_with_retain_graph(backend, device):
    inputs = random_inputs(device, Nt=70, Nr=150, D=24)
    loss = loss_of(*inputs, backend=backend)
    first = torch.autograd.grad(loss, inputs[:2], retain_graph=True)
    for _ in range(3):
        again = torch.autograd.grad(loss, inputs[:2], retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert torch.equal(loss, loss_of(*inputs, backend=backend))


@each_backend
def test_inputs_in_any_memory_layout(backend, device):
    target = torch.randn(8, 20, 2, device=device).permute(2, 1, 0)
    reference = torch.randn(1, 33, 17, device=device)[..., 1::2].expand(2, -1, -1)
    labels = torch.randint(4, (20, 2), device=device).T, torch.randint(4, (1, 33)).to(device)
    strided = [t.detach().requires_grad_() for t in (target, reference)]
    dense = [t.detach().contiguous().requires_grad_() for t in (target, reference)]
    a = loss_of(*strided, labels[0], labels[1].expand(2, -1), backend=backend)
    b = loss_of(*dense, labels[0].contiguous(), labels[1].repeat(2, 1), backend=backend)
    assert torch.equal(a, b)
    for x, y in zip(torch.autograd.grad(a, strided), torch.autograd.grad(b, dense), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_any_call_agrees_with_the_specification_in_float64(backend, device):
    loss_of(*random_inputs(device), backend=backend)  # or skip
    call = st.builds(
        cases.Case, st.just("any"), st.integers(1, 70), st.integers(1, 150),
        D=st.sampled_from([1, 3, 8, 64, 65, 130]), B=st.integers(1, 3),
        classes=st.sampled_from([1, 2, 16, 300]),
        options=st.fixed_dictionaries({"temperature": st.sampled_from([0.1, 1.0, 7.0])}),
    )  # fmt: skip

    @settings(max_examples=5 if backend == "triton" and device == "cpu" else 40)
    @given(case=call, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999))
    def check(case, dtype, seed):
        tensors, options = case.inputs(device, dtype, seed)
        options["reduction"] = "none"
        assert_agrees(sslops.color_attention_loss, tensors, options, backend)

    check()


def peak_bytes(function):
    """The most bytes of tensors that a call holds at a time, above those before it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b in ("cpu", "chunked")])
def test_memory_grows_with_the_cells_and_not_with_their_product(backend):
    """At 8 x 1024 x 3072 a matrix of scores has 96 MiB; plain PyTorch holds 336 MiB."""
    inputs = random_inputs("cpu", Nt=1024, Nr=3072, D=64, B=8)

    def forward_and_backward():
        torch.autograd.grad(loss_of(*inputs, backend=backend), inputs[:2])

    limit = {"cpu": 16, "chunked": 96}[backend]  # gradients: 8 MiB
    assert 8 < peak_bytes(forward_and_backward) / 2**20 < limit
