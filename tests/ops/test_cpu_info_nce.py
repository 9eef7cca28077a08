"""The CPU backend of info_nce, called directly: edges of tiles and strips, offsets, threads."""

import contextlib
import math

import pytest
import torch
from rows_agreement import assert_rows_agree

import sslops
from sslops import cpu_helpers
from sslops.ops.info_nce import reference

_cpu = pytest.importorskip("sslops.ops.info_nce._cpu", exc_type=ModuleNotFoundError)

OPTIONS = dict(symmetric=False, normalize=True, positive_offset=0, exclude_offset=None,
               return_stats=True, uniform=True)  # fmt: skip


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_batch(q, k, t, **options):
    return _cpu.info_nce(q, k, None, t, **options)


def in_batch_reference(q, k, t, **options):
    return reference.info_nce(q, k, None, t, **options)


def rows(*shape):
    return torch.randn(*shape)


def upstream(B, N, uniform):
    return torch.full((B, N), 0.7) if uniform else torch.rand(B, N)


def check_in_batch(B, N, M, D, temperature=0.2, **options):
    options = {**OPTIONS, **options}
    q, k = rows(B, N, D), rows(B, M, D)
    first = options["positive_offset"]
    k[:, first : first + N] += q
    tensors = [q, k, torch.tensor(temperature)]
    assert_rows_agree(in_batch, in_batch_reference, tensors, options,
                      upstream(B, N, options["uniform"]))  # fmt: skip


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("N", [1, 2, 31, 32, 33, 63, 64, 65, 128, 255, 256, 257])
def test_edges_of_tiles(N, uniform):
    check_in_batch(1, N, N, 24, uniform=uniform)


@pytest.mark.parametrize("D", [1, 8, 31, 32, 33, 63, 200])
def test_widths(D):
    check_in_batch(1, 40, 40, D)


@pytest.mark.parametrize("uniform", [True, False])
def test_several_strips(uniform):
    assert _cpu.kept_rows(600) < 600
    check_in_batch(1, 600, 600, 8, uniform=uniform)


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("positive, exclude", [(0, 3), (5, None), (70, 0), (230, 231), (0, 200)])
def test_offsets_and_excluded_keys(positive, exclude, uniform):
    check_in_batch(2, 70, 300, 16, positive_offset=positive, exclude_offset=exclude,
                   uniform=uniform)  # fmt: skip


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("temperature", [0.03, 0.01, 1e-4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_running_maximum_at_low_temperatures(temperature, symmetric, uniform):
    check_in_batch(1, 300, 300, 32, temperature, symmetric=symmetric, uniform=uniform)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("N", [1, 33, 64, 257, 520])
def test_symmetric(N, normalize):
    check_in_batch(1, N, N, 40, 0.1 if normalize else 4.0, symmetric=True, normalize=normalize,
                   uniform=False)  # fmt: skip


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("B, N, M", [(1, 300, 500), (1, 1, 1), (1, 7, 256), (3, 5, 257), (1, 4, 0)])
def test_extra_negatives(B, N, M, uniform):
    q = rows(B, N, 20)
    tensors = [q, q + rows(B, N, 20), rows(B, M, 20), torch.tensor(0.1)]
    assert_rows_agree(_cpu.info_nce, reference.info_nce, tensors, {**OPTIONS, "uniform": uniform},
                      upstream(B, N, uniform))  # fmt: skip


def test_more_keys_than_a_strip_can_keep():
    M = 110_000
    assert _cpu.kept_rows(M) == 0
    tensors = [rows(1, 3, 4), rows(1, 3, 4), rows(1, M, 4), torch.tensor(0.5)]
    assert_rows_agree(_cpu.info_nce, reference.info_nce, tensors, OPTIONS, upstream(1, 3, True))


@pytest.mark.parametrize("normalize", [True, False])
def test_a_queue_without_gradient_equals_one_with(normalize):
    q, k, queue = rows(300, 24), rows(300, 24), rows(1000, 24) * 3
    queue[5] = 0  # a zero vector stays zero
    queue[6] = 2 * k[0]  # a duplicate of a positive ties with it
    options = dict(normalize=normalize, return_stats=True, temperature=2.0, backend="cpu")
    frozen, frozen_stats = sslops.info_nce(q, k, queue, **options)
    loss, stats = sslops.info_nce(q, k, queue.requires_grad_(), **options)
    assert torch.equal(frozen, loss)
    assert all(map(torch.equal, frozen_stats, stats))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads_is_right(count, symmetric):
    with threads(count):
        assert cpu_helpers.threads_for(2 * 300, 300, 64) == count
        check_in_batch(2, 300, 300, 64, symmetric=symmetric)
        check_in_batch(5, 200, 200, 64, symmetric=symmetric)
        check_in_batch(1, 300, 500, 64, symmetric=False, uniform=False)


@pytest.mark.parametrize("symmetric, reduction", [(True, "mean"), (False, "mean"), (False, "none")])
def test_bitwise_the_same_over_20_runs(symmetric, reduction):
    q, k = rows(300, 64).requires_grad_(), rows(300, 64).requires_grad_()

    def once():
        loss = sslops.info_nce(q, k, reduction=reduction, symmetric=symmetric, backend="cpu")
        return loss.detach(), *torch.autograd.grad(loss.sum(), (q, k))

    with threads(2):
        assert cpu_helpers.threads_for(300, 300, 64) == 2
        first = once()
        for _ in range(19):
            assert all(map(torch.equal, first, once()))


def test_equal_logits_give_exactly_the_log_of_the_candidates():
    for D in (3, 64, 130):
        row = rows(1, D)
        loss = sslops.info_nce(*[row.expand(77, -1)] * 2, reduction="none", backend="cpu")
        assert torch.equal(loss, torch.full((77,), math.log(77)))
        loss = sslops.info_nce(*[row] * 2, row.expand(300, -1), reduction="none", backend="cpu")
        assert torch.equal(loss, torch.full((1,), math.log(301)))


def test_a_single_candidate_gives_zero_loss_and_gradient():
    for symmetric in (True, False):
        q, k = rows(1, 30).requires_grad_(), rows(1, 30).requires_grad_()
        loss = sslops.info_nce(q, k, symmetric=symmetric, backend="cpu")
        assert loss.item() == 0
        assert all(not g.any() for g in torch.autograd.grad(loss, (q, k)))


def test_a_nan_query_poisons_its_own_row_only():
    q, k = rows(100, 16), rows(100, 16)
    options = dict(reduction="none", backend="cpu")
    clean_q = q.clone().requires_grad_()
    clean = sslops.info_nce(clean_q, k, **options)
    q[41, 3] = torch.nan
    q.requires_grad_()
    loss = sslops.info_nce(q, k, **options)
    others = torch.arange(100) != 41
    assert loss[41].isnan() and torch.equal(loss[others], clean[others])
    (dq,) = torch.autograd.grad(loss.sum(), q)
    (clean_dq,) = torch.autograd.grad(clean.sum(), clean_q)
    assert dq[41].isnan().all() and torch.equal(dq[others], clean_dq[others])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", ["in-batch", "symmetric", "queue"])
def test_a_gradient_wanted_for_one_tensor_only(kind, reduction):
    tensors = [rows(70, 12), rows(70, 12), torch.tensor(0.3)]
    if kind == "queue":
        tensors.insert(2, rows(90, 12))

    def gradients(wanted):
        inputs = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        negatives = inputs[2] if kind == "queue" else None
        loss = sslops.info_nce(*inputs[:2], negatives, inputs[-1], reduction=reduction,
                               symmetric=kind == "symmetric", backend="cpu")  # fmt: skip
        loss.sum().backward()
        return [t.grad for t in inputs]

    everything = gradients(range(len(tensors)))
    for i in range(len(tensors)):
        alone = gradients([i])
        torch.testing.assert_close(alone[i], everything[i], rtol=1e-6, atol=1e-7)
        assert all(g is None for j, g in enumerate(alone) if j != i)


@pytest.mark.parametrize("symmetric, reduction", [(True, "mean"), (False, "mean"), (False, "none")])
def test_a_second_backward_gives_the_same_and_double_backward_is_refused(symmetric, reduction):
    q, k = rows(40, 8).requires_grad_(), rows(40, 8).requires_grad_()
    options = dict(symmetric=symmetric, reduction=reduction, backend="cpu")
    loss = sslops.info_nce(q, k, **options).sum()
    first = torch.autograd.grad(loss, (q, k), retain_graph=True)
    second = torch.autograd.grad(loss, (q, k), retain_graph=True)
    assert all(map(torch.equal, first, second))
    (dq,) = torch.autograd.grad(loss, q, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        dq.sum().backward()


@pytest.mark.parametrize("symmetric, reduction", [(True, "mean"), (False, "mean"), (False, "none")])
def test_compiles_as_one_graph(symmetric, reduction):
    inputs = [rows(40, 8), rows(40, 8), torch.tensor(0.2)]

    def loss(q, k, temperature):
        return sslops.info_nce(q, k, temperature=temperature, symmetric=symmetric,
                               reduction=reduction, return_stats=True, backend="cpu")  # fmt: skip

    def run(function):
        tensors = [t.clone().requires_grad_() for t in inputs]
        value, stats = function(*tensors)
        return value.detach(), *stats, *torch.autograd.grad(value.sum(), tensors)

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for eager, graph in zip(run(loss), run(compiled), strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-7)


def test_opcheck():
    q, k, t = rows(2, 5, 8), rows(2, 7, 8), torch.tensor(0.2, dtype=torch.float64)
    row = torch.rand(2, 5)
    nowhere = _cpu.NOWHERE
    norm = k.norm(dim=-1)
    grad = [x.clone().requires_grad_() for x in (q, k, t)]
    check = torch.library.opcheck
    check(_cpu.forward, (grad[0], None, grad[1], None, grad[2], True, 1, 0, True, True, True))
    check(_cpu.forward, (grad[0], grad[0] + 1, k, norm, grad[2], False, nowhere, nowhere, False,
                         True, False))  # fmt: skip
    loss, _, normaliser, _, dq, dk = _cpu.forward(
        q, None, k, None, t, True, 1, 0, False, True, True
    )
    check(_cpu.backward, (row, q, k, t, loss, normaliser, dq, dk, 1, 0, True, True))
    check(_cpu.backward, (row, q, k, t, loss, normaliser, dq, dk.new_empty(0), 1, 0, False, True))
    check(_cpu.symmetric_forward, (grad[0], grad[0] + 1, grad[2], False, True))
    a, b, _, *normalisers, _ = _cpu.symmetric_forward(q, q + 1, t, False, False)
    check(_cpu.symmetric_backward, (row, row + 1, q, q + 1, t, a, b, *normalisers, False))


def test_autocast_changes_nothing():
    q, k = rows(40, 8).requires_grad_(), rows(40, 8).requires_grad_()

    def run():
        loss = sslops.info_nce(q, k, backend="cpu")
        return loss, *torch.autograd.grad(loss, (q, k))

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, plain, run()))


def test_strided_and_expanded_inputs():
    q, k = rows(24, 50).T, rows(50, 1, 24).expand(50, 2, 24)[:, 1]
    negatives = rows(60, 48)[:, ::2]
    for extra in (None, negatives):
        args = [x.requires_grad_() for x in (q, k, extra) if x is not None]
        strided = sslops.info_nce(*args, backend="cpu")
        copies = [x.detach().contiguous().requires_grad_() for x in args]
        packed = sslops.info_nce(*copies, backend="cpu")
        assert torch.equal(strided, packed)
        for a, b in zip(torch.autograd.grad(strided, args), torch.autograd.grad(packed, copies),
                        strict=True):  # fmt: skip
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_what_is_not_supported_is_said_in_words():
    q = rows(4, 8)
    with pytest.raises(RuntimeError, match="inputs are float64"):
        sslops.info_nce(q.double(), q.double(), backend="cpu")
    with pytest.raises(RuntimeError, match="paired negatives"):
        sslops.info_nce(q, q, rows(4, 3, 8), negative_mode="paired", backend="cpu")
    assert "meta" in _cpu.unsupported(q[None].to("meta"), None, None, 0.1)
