"""The CPU backend of nt_xent, called directly: edges of tiles and blocks, threads, memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rows_agreement import assert_rows_agree

import sslops
from sslops import cpu_helpers
from sslops.ops.nt_xent import reference

_cpu = pytest.importorskip("sslops.ops.nt_xent._cpu", exc_type=ModuleNotFoundError)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def views(N, D):
    z0 = torch.randn(N, D)
    return torch.cat([z0, z0 + torch.randn(N, D)])


def check(N, D, temperature=0.2, normalize=True):
    options = dict(normalize=normalize, return_stats=True)
    tensors = [views(N, D), torch.tensor(temperature)]
    assert_rows_agree(_cpu.nt_xent, reference.nt_xent, tensors, options, torch.rand(2 * N))


@pytest.mark.parametrize("N", [1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 300, 520])
def test_edges_of_tiles_and_blocks(N):
    check(N, 24)


@pytest.mark.parametrize("D", [1, 8, 31, 32, 33, 63, 200])
def test_widths(D):
    check(40, D)


@pytest.mark.parametrize("temperature", [0.5, 0.034, 0.033, 0.01, 1e-4])
def test_shared_shift_and_running_maximum(temperature):
    check(150, 32, temperature)


def test_without_normalisation():
    check(150, 16, 5.0, normalize=False)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads_is_right(count, set_threads):
    set_threads(count)
    for N in (1, 300, 333):
        check(N, 64)
    assert cpu_helpers.threads_for(600, 600, 64) == count


@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_bitwise_the_same_over_20_runs(temperature, set_threads):
    set_threads(2)
    assert cpu_helpers.threads_for(400, 400, 64) == 2
    z0, z1 = views(200, 64).chunk(2)
    z0, z1 = z0.clone().requires_grad_(), z1.clone().requires_grad_()

    def once():
        loss = sslops.nt_xent(z0, z1, temperature, reduction="none", backend="cpu")
        return loss.detach(), *torch.autograd.grad(loss.sum(), (z0, z1))

    first = once()
    for _ in range(19):
        assert all(map(torch.equal, first, once()))


def test_the_number_of_threads_changes_roundings_only(set_threads):
    z = views(333, 64)
    results = []
    for count in (1, 2, 5):
        set_threads(count)
        results.append(_cpu.nt_xent(z, 0.2, normalize=True, return_stats=True))
    for rows in results[1:]:
        torch.testing.assert_close(rows.loss, results[0].loss, rtol=1e-6, atol=1e-6)
        assert torch.equal(rows.positive_rank, results[0].positive_rank)


def test_equal_logits_give_exactly_the_log_of_the_candidates():
    for D in (3, 64, 130):
        z = torch.randn(1, D).expand(77, -1)
        for temperature in (0.5, 0.01):
            loss = sslops.nt_xent(z, z, temperature, reduction="none", backend="cpu")
            assert torch.equal(loss, torch.full((154,), math.log(153)))


def test_one_pair_gives_zero_loss_and_gradient():
    z0, z1 = torch.randn(2, 1, 30).unbind()
    z0.requires_grad_()
    loss = sslops.nt_xent(z0, z1, backend="cpu")
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, z0)[0].any()


def test_equals_info_nce_without_the_own_view():
    from sslops.ops.info_nce import _cpu as info_nce

    z = views(70, 16).requires_grad_()
    rows = _cpu.nt_xent(z, 0.3, normalize=True, return_stats=True)
    options = dict(symmetric=False, normalize=True, return_stats=True, uniform=False)
    halves = [
        info_nce.info_nce(z[None, i : i + 70], z[None], None, 0.3, positive_offset=70 - i,
                          exclude_offset=i, **options)
        for i in (0, 70)
    ]  # fmt: skip
    loss = torch.cat([h.loss[0] for h in halves])
    torch.testing.assert_close(rows.loss, loss, rtol=1e-6, atol=1e-6)
    assert torch.equal(rows.positive_rank, torch.cat([h.positive_rank[0] for h in halves]))
    upstream = torch.rand(140)
    ours, theirs = (torch.autograd.grad(x, z, upstream)[0] for x in (rows.loss, loss))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_gradient_wanted_for_one_tensor_only():
    tensors = [*views(40, 12).chunk(2), torch.tensor(0.3)]

    def gradients(wanted):
        inputs = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        sslops.nt_xent(*inputs, backend="cpu").backward()
        return [t.grad for t in inputs]

    everything = gradients({0, 1, 2})
    for i in range(3):
        alone = gradients({i})
        assert torch.equal(alone[i], everything[i])
        assert all(g is None for j, g in enumerate(alone) if j != i)


def test_a_second_backward_gives_the_same_and_double_backward_is_refused():
    z0, z1 = (z.clone().requires_grad_() for z in views(40, 8).chunk(2))
    loss = sslops.nt_xent(z0, z1, backend="cpu")
    first = torch.autograd.grad(loss, (z0, z1), retain_graph=True)
    second = torch.autograd.grad(loss, (z0, z1), retain_graph=True)
    assert all(map(torch.equal, first, second))
    (dz,) = torch.autograd.grad(loss, z0, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        dz.sum().backward()


def test_opcheck():
    z, t = views(5, 8).requires_grad_(), torch.tensor(0.2, dtype=torch.float64)
    torch.library.opcheck(_cpu.forward, (z, t.requires_grad_(), False, True))
    z, t = z.detach(), t.detach()
    loss, _, normaliser, _ = _cpu.forward(z, t, False, False)
    torch.library.opcheck(_cpu.backward, (torch.rand(10), z, t, loss, normaliser, False))


def test_compiles_as_one_graph():
    inputs = [*views(40, 8).chunk(2), torch.tensor(0.2)]

    def loss(z0, z1, temperature):
        return sslops.nt_xent(z0, z1, temperature, return_stats=True, backend="cpu")

    def run(function):
        tensors = [t.clone().requires_grad_() for t in inputs]
        value, stats = function(*tensors)
        return value.detach(), *stats, *torch.autograd.grad(value, tensors)

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for eager, graph in zip(run(loss), run(compiled), strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-7)


def test_autocast_changes_nothing():
    z0, z1 = (z.clone().requires_grad_() for z in views(40, 8).chunk(2))

    def run():
        loss = sslops.nt_xent(z0, z1, backend="cpu")
        return loss, *torch.autograd.grad(loss, (z0, z1))

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, plain, run()))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_memory_at_4096_pairs_stays_below_64_mib():
    # A process of its own: what the suite has freed would hide what this call allocates.
    code = (
        "import torch, sslops; from benchmarks.measure import peak_mib;"
        "z = [torch.randn(4096, 128, requires_grad=True) for _ in range(2)];"
        "run = lambda: torch.autograd.grad(sslops.nt_xent(*z, backend='cpu'), z);"
        "print(peak_mib(run, 'cpu'), peak_mib(lambda: torch.ones(2**24), 'cpu'))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    peak, known = map(float, out.stdout.split())
    assert abs(known - 64) < 1  # the meter sees 2^24 floats
    assert 4 < peak <= 64
