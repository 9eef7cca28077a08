"""koleo and sinkhorn_knopp on the CPU: many tiles, every instruction set, any number of threads."""

import pytest
import torch

import sslops
from sslops import registry

_C = pytest.importorskip("sslops._C", exc_type=ModuleNotFoundError)
KOLEO = {name: run for name, (run, _) in registry.OPS["koleo"].backends.items()}


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def rows_on_a_grid(*shape):
    """Rows of four ones among zeros: of one length, with exact products and many ties."""
    places = torch.rand(*shape).argsort(-1) < 4
    return places.float()


@pytest.mark.parametrize("N", [33, 300, 900])
def test_ties_across_tiles_go_to_the_lowest_index(N, instruction_set, threads):
    """Products of 0, 1/4, .. 1 in float32 are exact, so the specification's answer is the one."""
    x = rows_on_a_grid(2, N, 24)
    expected = KOLEO["reference"](x.double(), x.double(), 0)
    assert torch.equal(KOLEO["cpu"](x, x, 0), expected)
    assert torch.equal(KOLEO["cpu"](x, x.clone(), 0), expected)  # the search without the triangle


@pytest.mark.parametrize("N, M, offset", [(40, 700, 0), (200, 700, 500), (1, 2, 1), (3, 70, 64)])
def test_rows_among_more_candidates(N, M, offset, instruction_set):
    y = rows_on_a_grid(1, M, 24)
    x = y[:, offset : offset + N].contiguous()
    expected = KOLEO["reference"](x.double(), y.double(), offset)
    assert torch.equal(KOLEO["cpu"](x, y, offset), expected)


def test_rows_of_zeros_and_nan_choose_as_the_specification_does():
    x = rows_on_a_grid(1, 400, 24)
    x[0, [0, 70, 300]] = 0
    x[0, [1, 99, 256]] = torch.nan
    x[0, 5] *= 1e-14  # counts as zero
    expected = KOLEO["reference"](x, x, 0)
    assert torch.equal(KOLEO["cpu"](x, x, 0), expected)
    assert torch.equal(KOLEO["cpu"](x, x.clone(), 0), expected)


def test_rows_without_width_go_to_another_backend():
    x = torch.zeros(3, 0)
    with pytest.raises(RuntimeError, match="width 0"):
        sslops.koleo(x, backend="cpu")
    assert sslops.koleo(x).item() == pytest.approx(18.42, abs=0.01)


@pytest.mark.parametrize("B, K", [(3, 37), (150, 70), (20, 2600)])
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_sinkhorn_knopp_agrees_in_every_instruction_set(B, K, iterations, instruction_set):
    logits = torch.randn(B, K)
    found = sslops.sinkhorn_knopp(logits, 0.25, iterations, backend="cpu")
    exact = sslops.sinkhorn_knopp(logits.double(), 0.25, iterations, backend="reference")
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=1e-12)


def test_sinkhorn_knopp_is_the_same_on_any_number_of_threads():
    logits, before, found = torch.randn(150, 3000), torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(sslops.sinkhorn_knopp(logits, 0.1, backend="cpu"))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_prototype_that_the_first_rows_cannot_take():
    """64 rows of -inf come before the first finite logit of the column."""
    logits = torch.randn(130, 5)
    logits[:100, 2] = -torch.inf
    found = sslops.sinkhorn_knopp(logits, 0.5, backend="cpu")
    exact = sslops.sinkhorn_knopp(logits.double(), 0.5, backend="reference")
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-12)
