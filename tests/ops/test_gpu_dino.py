"""dino_loss, sinkhorn_knopp and koleo on a CUDA device, at size: values, graphs, waits, memory."""

import pytest
import torch
from float64_agreement import assert_dino_agrees

import sslops
from sslops.ops.dino_loss import cases as dino_cases
from sslops.ops.koleo import cases as koleo_cases
from sslops.ops.sinkhorn_knopp import cases as sinkhorn_cases

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("S, T, N, K", [(10, 2, 4, 65536), (2, 2, 3, 131072), (0, 1, 300, 8192)])
def test_dino_loss_agrees_at_size(S, T, N, K, dtype):
    student, teacher, options = dino_cases.Case("", S, T, N, K).inputs("cuda", dtype)
    assert_dino_agrees(student, teacher, options, "triton")


def test_dino_loss_takes_no_memory_of_the_size_of_the_logits():
    student, teacher, options = dino_cases.MEASURED[0].inputs("cuda", torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = sslops.dino_loss(student, teacher, **options, backend="triton")
    assert torch.cuda.max_memory_allocated() - before < 2 << 20
    loss.backward()
    gradient = student.numel() * student.element_size()
    assert torch.cuda.max_memory_allocated() - before < gradient + (2 << 20)


def no_waits(function):
    """Run twice; the second time a wait for the device raises."""
    function()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return function()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_device():
    student, teacher, options = dino_cases.CASES[2].inputs("cuda")
    no_waits(lambda: sslops.dino_loss(student, teacher, **options).backward())
    logits = torch.randn(64, 300, device="cuda")
    no_waits(lambda: sslops.sinkhorn_knopp(logits, 0.1))
    features = torch.randn(2, 64, 384, device="cuda", requires_grad=True)
    no_waits(lambda: sslops.koleo(features).backward())


def test_a_graph_replays_with_new_logits_and_temperature():
    logits = torch.randn(4, 8, 500, device="cuda")
    temperature = torch.tensor(0.05, device="cuda")

    def step():
        targets = sslops.sinkhorn_knopp(logits[:2].flatten(0, 1), temperature).view(2, 8, 500)
        loss = sslops.dino_loss(logits, targets)
        return loss + sslops.dino_loss(logits, logits[:2], teacher_temperature=temperature)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    logits.normal_()
    temperature.fill_(0.07)
    graph.replay()
    torch.testing.assert_close(found, step(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("B, K", [(128, 65536), (4096, 4096), (1, 131072)])
def test_sinkhorn_knopp_agrees_at_size(B, K, dtype):
    logits, (temperature, iterations) = sinkhorn_cases.Case("", B, K).inputs("cuda", dtype)
    found = sslops.sinkhorn_knopp(logits, temperature, iterations, backend="triton").double()
    exact = sslops.sinkhorn_knopp(logits.double(), temperature, iterations, backend="reference")
    torch.testing.assert_close(found, exact, rtol=2e-4, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", koleo_cases.MEASURED, ids=lambda c: c.name)
def test_koleo_agrees_at_size(case, dtype):
    x = case.inputs("cuda", dtype)
    found = sslops.koleo(x, reduction="none", backend="triton").double()
    exact = sslops.koleo(x.detach().double(), reduction="none", backend="reference")
    # Products of sixteen-bit rows are exact, so the neighbour is right or as near to rounding.
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def test_runs_are_equal_bit_for_bit():
    x = torch.randn(1000, 256, device="cuda", requires_grad=True)
    student, teacher, options = dino_cases.CASES[2].inputs("cuda", torch.bfloat16)
    runs = set()
    for _ in range(20):
        loss = sslops.koleo(x) + sslops.dino_loss(student, teacher, **options)
        gradients = torch.autograd.grad(loss, [x, student])
        runs.add((loss.item(), *(g.double().norm().item() for g in gradients)))
    assert len(runs) == 1
