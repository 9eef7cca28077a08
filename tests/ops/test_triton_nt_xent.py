"""The Triton backend of nt_xent: what the agreement cases do not reach."""

import pytest
import torch
from agreement import assert_agrees

pytest.importorskip("triton")

import sslops
from sslops import triton_launch as launch
from sslops.ops.nt_xent import _triton, reference
from sslops.triton_helpers import INTERPRETED


def views(N, D, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(N)
    z0 = torch.randn(N, D, generator=generator)
    z1 = z0 + torch.randn(N, D, generator=generator)
    return [z.to(device, dtype) for z in (z0, z1)]


@pytest.mark.parametrize("N", [
    1, 2, 7, 8, 9, 17, 33, *(pytest.param(N, marks=pytest.mark.slow) for N in (15, 16, 24, 40, 57))
])  # fmt: skip
@pytest.mark.parametrize("splits", [1, 3])
def test_triangle_visits_every_pair_once(N, splits, monkeypatch, device):
    if not INTERPRETED:
        pytest.skip("the tiles of a GPU are fixed")
    monkeypatch.setattr(launch, "INTERPRETER_TILE", (16, 16))
    z = torch.cat(views(N, 8, device))
    (rows,), _ = launch.prepare_rows([z[None]], True)
    loss, lse, logit, stats = _triton.triangle_rows(rows, 0.5, splits)
    exact = reference.nt_xent(z.double(), 0.5, normalize=True, return_stats=False)
    for ours, expected in ((loss, exact.loss), (lse, exact.lse), (logit, exact.positive_logit)):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=2e-6)
    share = 1 - torch.exp(exact.positive_logit - exact.lse)
    torch.testing.assert_close(stats[2].double(), share, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tile", [(16, 16), (32, 16), (16, 32)], ids=str)
@pytest.mark.parametrize("options", [
    dict(temperature=0.2), dict(temperature=0.01), dict(temperature=3.0, normalize=False),
])  # fmt: skip
def test_many_tiles_agree_with_the_specification(tile, options, monkeypatch, device):
    if not INTERPRETED:
        pytest.skip("the tiles of a GPU are fixed")
    if options["temperature"] == 0.2 and tile[0] != tile[1]:
        pytest.skip("the triangle takes square tiles")
    monkeypatch.setattr(launch, "INTERPRETER_TILE", tile)
    assert_agrees(sslops.nt_xent, views(21, 8, device), dict(options, reduction="none"), "triton")


def test_triangle_gives_way_where_its_sums_would_take_too_much_room(monkeypatch, device):
    if not INTERPRETED:
        pytest.skip("the tiles of a GPU are fixed")
    monkeypatch.setattr(launch, "INTERPRETER_TILE", (16, 16))
    assert _triton.count_slots(128, 16, 1) > 4 * 1
    assert_agrees(sslops.nt_xent, views(64, 1, device), {}, "triton")


def test_ranks_equal_the_reference(device):
    z = views(19, 8, device)
    _, ours = sslops.nt_xent(*z, return_stats=True, backend="triton")
    _, exact = sslops.nt_xent(*(v.double() for v in z), return_stats=True, backend="reference")
    assert torch.equal(ours.positive_rank, exact.positive_rank)
    torch.testing.assert_close(ours.lse.double(), exact.lse, rtol=1e-5, atol=1e-6)


def test_one_pair_has_loss_zero_and_no_gradient(device):
    z0, z1 = (v.requires_grad_() for v in views(1, 8, device))
    loss = sslops.nt_xent(z0, z1, backend="triton")
    loss.backward()
    assert loss.item() == 0.0
    assert not z0.grad.any() and not z1.grad.any()


def test_no_pairs_give_nan_for_mean_and_zero_for_sum(device):
    z0, z1 = (torch.zeros(0, 8, device=device, requires_grad=True) for _ in range(2))
    assert sslops.nt_xent(z0, z1, backend="triton").isnan()
    total = sslops.nt_xent(z0, z1, reduction="sum", backend="triton")
    total.backward()
    assert total.item() == 0.0 and z0.grad.shape == (0, 8)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_zero_rows_have_gradient_zero(temperature, device):
    z = views(9, 8, device)
    z[0][4] = 0
    assert_agrees(sslops.nt_xent, z, dict(temperature=temperature), "triton")
    z0, z1 = (v.requires_grad_() for v in z)
    sslops.nt_xent(z0, z1, temperature=temperature, backend="triton").backward()
    assert not z0.grad[4].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_temperature_gradient_equals_the_reference(dtype, device):
    z = views(21, 16, device, dtype)
    gradients = []
    for backend, cast in (("triton", lambda t: t), ("reference", torch.Tensor.double)):
        temperature = cast(torch.tensor(0.3, device=device, dtype=dtype)).requires_grad_()
        sslops.nt_xent(*map(cast, z), temperature=temperature, backend=backend).backward()
        gradients.append(temperature.grad.double())
    tolerance = 1e-5 if dtype == torch.float32 else 3 * 2.0**-10
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


def test_a_second_backward_gives_the_same_gradient_and_a_double_one_is_refused(device):
    z = [v.requires_grad_() for v in views(20, 8, device)]
    loss = sslops.nt_xent(*z, backend="triton")
    first = torch.autograd.grad(loss, z, create_graph=True)
    second = torch.autograd.grad(loss, z, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(NotImplementedError, match="no double backward"):
        first[0].sum().backward()


def test_operator_passes_opcheck(device):
    z = torch.cat(views(5, 8, device)).requires_grad_()
    T = torch.tensor(0.3, device=device, requires_grad=True)
    torch.library.opcheck(_triton._forward, (z, T, 1.0, True, True))
    torch.library.opcheck(_triton._forward, (z, None, 0.5, True, False))


def test_compiles_into_one_graph(device):
    z = [v.requires_grad_() for v in views(9, 8, device)]

    def step(z0, z1):
        return sslops.nt_xent(z0, z1, backend="triton")

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(step(*z), z)
    for a, b in zip(torch.autograd.grad(compiled(*z), z), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
