"""Losses over several processes: value and parameter gradients, averaged over ranks as DDP does,
are those of the one-process loss in float64 on the concatenated batch."""

import processes
import pytest
import ranks
import torch

import sslops
from sslops import registry
from sslops.ops.logit_blocks import across_ranks

KINDS = ["even", "uneven", "empty"]
WORLDS = [2, pytest.param(4, marks=pytest.mark.slow)]
BACKENDS = {op.name: list(op.backends) for op in registry.OPS.values()}
RUNS = [
    (name, backend)
    for name, (op, options) in ranks.LOSSES.items()
    for backend in (across_ranks.BACKENDS if "exchange" in options else BACKENDS[op.__name__])
]


@pytest.fixture(scope="module", params=WORLDS, ids=lambda w: f"{w} processes")
def found(request, tmp_path_factory):
    """What each rank computed: one start per number of processes."""
    world = request.param
    folder = tmp_path_factory.mktemp("ranks")
    processes.start(world, ranks.main, world, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def expected(world, kind, name):
    """Mean, rows, ranks and gradients of one process on the concatenated batch, in float64."""
    op, options = ranks.LOSSES[name]
    model = ranks.Model(torch.float64)
    x, y = (x.double() for x in ranks.inputs(sum(ranks.sizes(world, kind))))
    q, k, T = model(x, y)
    rows, stats = op(q, k, temperature=T, reduction="none", return_stats=True,
                     backend="reference", **options)  # fmt: skip
    gradients = torch.autograd.grad(rows.mean(), list(model.parameters()))
    return rows.detach(), stats.positive_rank, gradients


def assert_gradients(found, gradients):
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6)


def of_rank(rows, rank, world, kind, name):
    """The rows of one rank out of those of the concatenated batch."""
    split = ranks.sizes(world, kind)
    if not name.startswith("nt_xent"):
        return rows.split(split)[rank]
    return torch.cat([half.split(split)[rank] for half in rows.chunk(2)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name, backend", RUNS)
def test_average_over_ranks_is_the_one_process_loss(found, name, backend, kind):
    rows, _, gradients = expected(len(found), kind, name)
    results = [r[name, backend, kind] for r in found]
    if isinstance(results[0], str):
        pytest.skip(results[0])
    average = torch.stack([r["loss"] for r in results]).double().mean()
    torch.testing.assert_close(average, rows.mean(), rtol=2e-6, atol=0)
    for r in results:
        assert_gradients(r["gradients"], gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name, backend", RUNS)
def test_rows_of_each_rank_are_those_of_the_one_process_loss(found, name, backend, kind):
    """Labels are offset by the rows of the ranks before (lightly #1177)."""
    rows, positive_ranks, _ = expected(len(found), kind, name)
    for rank, result in enumerate(found):
        result = result[name, backend, kind]
        if isinstance(result, str):
            pytest.skip(result)
        own = of_rank(rows, rank, len(found), kind, name)
        torch.testing.assert_close(result["rows"].double(), own, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result["sum"].double(), own.sum(), rtol=1e-5, atol=1e-6)
        own = of_rank(positive_ranks, rank, len(found), kind, name)
        assert torch.equal(result["ranks"], own)


def test_even_batches_give_the_plain_mean_of_the_rank_s_rows(found):
    for r in found:
        r = r["symmetric", "reference", "even"]
        torch.testing.assert_close(r["loss"], r["rows"].mean())


def test_distributed_data_parallel_leaves_the_one_process_gradient(found):
    """Neither the world size too large nor too small (lightly #1528, #1920, #1977; open_clip
    #616)."""
    _, _, gradients = expected(len(found), "uneven", "symmetric")
    for r in found:
        assert_gradients(r["ddp"], gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_ntxentloss_gathers_with_gradient(found, kind):
    rows, _, gradients = expected(len(found), kind, "nt_xent")
    average = torch.stack([r["ntxent", kind]["loss"] for r in found]).double().mean()
    torch.testing.assert_close(average, rows.mean(), rtol=2e-6, atol=0)
    for r in found:
        assert_gradients(r["ntxent", kind]["gradients"][:2], gradients[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_cliploss_has_the_one_process_gradient_local_or_not(found, kind):
    rows, _, gradients = expected(len(found), kind, "symmetric")
    for r in found:
        assert_gradients(r["clip", True, kind]["gradients"], gradients)
        assert_gradients(r["clip", False, kind]["gradients"], gradients)
        value = r["clip", False, kind]["loss"].double()
        torch.testing.assert_close(value, rows.mean(), rtol=2e-6, atol=0)


def test_drop_in_classes_equal_the_packages_where_those_are_right(found):
    assert len(found[0]["theirs"]) or pytest.skip("neither lightly nor open_clip is installed")
    for r in found:
        for name, theirs in r["theirs"].items():
            ours = r[(*name, "even") if isinstance(name, tuple) else (name, "even")]
            torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=2e-6, atol=0)
            for a, b in zip(ours["gradients"], theirs["gradients"], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def test_memory_banks_hold_the_keys_of_all_ranks_in_rank_order(found):
    """Else ranks disagree on the queue (pytorch-metric-learning #642)."""
    x, _ = ranks.inputs(sum(ranks.sizes(len(found), "uneven")))
    keys = torch.nn.functional.normalize(x, dim=-1)
    for r in found:
        bank, pointer = r["memory bank"]
        torch.testing.assert_close(bank[: len(x)], keys)
        assert pointer.item() == len(x)


def test_one_rank_sees_the_rows_it_would_see_among_others(info_nce):
    """The offsets of a rank, without processes: rows 4..6 of nine against all nine keys."""
    q, k = torch.randn(2, 9, 8).unbind()
    rows = info_nce(q, k, reduction="none")
    op = registry.OPS["info_nce"]
    own = op(info_nce.backend, q[None, 4:7], k[None], None, 0.1, symmetric=False, normalize=True,
             positive_offset=4, exclude_offset=None, return_stats=True, uniform=True)  # fmt: skip
    torch.testing.assert_close(own.loss[0], rows[4:7], rtol=1e-6, atol=1e-6)
    _, stats = sslops.info_nce(q, k, return_stats=True, backend="reference")
    assert torch.equal(own.positive_rank[0], stats.positive_rank[4:7])
