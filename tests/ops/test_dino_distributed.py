"""dino_loss, sinkhorn_knopp, koleo and the centre over two processes against one in float64."""

import dino_ranks
import processes
import pytest
import torch

import sslops
from sslops import registry

KINDS = [*dino_ranks.KINDS]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank computed."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.start(2, dino_ranks.main, 2, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def everything(kind):
    x, w = dino_ranks.inputs(sum(dino_ranks.KINDS[kind]))
    return x.double(), w.double()


@pytest.mark.parametrize("backends", dino_ranks.backends_here(), ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dino", "koleo"])
def test_average_over_ranks_is_the_one_process_loss(found, name, kind, backends):
    x, w = everything(kind)
    loss, gradient = dino_ranks.of_rank(x, w, None, ("reference", "reference"))[name]
    of_ranks = [r[kind, backends[1]][name] for r in found]
    average = torch.stack([r[0] for r in of_ranks]).double().mean()
    torch.testing.assert_close(average, loss, rtol=5e-6, atol=1e-7)
    for _, averaged in of_ranks:
        torch.testing.assert_close(averaged.double(), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("backend", registry.OPS["sinkhorn_knopp"].backends)
@pytest.mark.parametrize("kind", KINDS)
def test_each_rank_gets_its_rows_of_the_one_process_result(found, kind, backend, dtype):
    x, w = everything(kind)
    # The ranks' logits were rounded to float32, and to their dtype, before.
    logits = (x.float() @ w.float()).to(dtype)
    whole = sslops.sinkhorn_knopp(logits.flatten(0, 1).double(), 0.1, backend="reference")
    split = whole.view(len(x), -1, w.shape[1]).split(dino_ranks.KINDS[kind], dim=1)
    for r, own in zip(found, split, strict=True):
        ours = r[kind, "sinkhorn", backend, dtype].double()
        torch.testing.assert_close(ours, own.flatten(0, 1), rtol=2e-4, atol=1e-7)
        torch.testing.assert_close(ours.sum(1), torch.ones(len(ours)).double())


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_have_the_centre_of_all_rows(found, kind):
    x, w = everything(kind)
    expected = sslops.updated_center(w[0], x @ w)
    for r in found:
        torch.testing.assert_close(r[kind, "center"].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0][kind, "center"], found[1][kind, "center"])
