"""Triton kernels on a CUDA device: against float64, in CUDA graphs, compiled, without any sync."""

import pytest
import torch

import sslops

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Error of a gradient, relative to its norm: weights and result are rounded once each.
ROUNDING = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def tensors(shapes, dtype, seed=0, likeness=1.0):
    """Standard normal rows on the device; the second tensor resembles the first."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=generator) for shape in shapes]
    made[1] = likeness * made[0] + made[1]
    return [t.to("cuda", dtype).requires_grad_() for t in made]


def run(op, inputs, backend, **options):
    loss = getattr(sslops, op)(*inputs, backend=backend, **options)
    return loss.detach(), torch.autograd.grad(loss, inputs)


def assert_near_float64(op, inputs, **options):
    dtype = inputs[0].dtype
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    loss, gradients = run(op, inputs, "triton", **options)
    exact_loss, exact = run(op, doubles, "reference", **options)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=2e-5, atol=2e-6)
    for ours, expected in zip(gradients, exact, strict=True):
        error = (ours.double() - expected).norm() / expected.norm()
        assert error < ROUNDING[dtype], f"relative gradient error {error:.3g}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N, D", [(2, 8), (127, 64), (1000, 24), (4097, 64), (2048, 128),
                                  (1000, 200), (4096, 256)])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("form", ["one-sided", "symmetric", "nt_xent"])
def test_loss_and_gradient_equal_float64(form, temperature, N, D, dtype):
    if dtype == torch.float32 and D > 64:
        pytest.skip("float32 in full precision is tiled for D of at most 64")
    # The colder, the less alike: where a loss is below 1e-16 float64 has no gradient either.
    inputs = tensors([(N, D)] * 2, dtype, likeness=10 * temperature)
    op = "nt_xent" if form == "nt_xent" else "info_nce"
    options = {} if form == "nt_xent" else {"symmetric": form == "symmetric"}
    # The sum keeps the gradients of float16 clear of underflow.
    assert_near_float64(op, inputs, temperature=temperature, reduction="sum", **options)


@pytest.mark.parametrize("op", ["info_nce", "nt_xent"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_one_number_have_no_gradient(op, dtype):
    _, gradients = run(op, tensors([(5, 1)] * 2, dtype), "triton", temperature=0.1)
    assert all(g.abs().max() < 1e-5 for g in gradients)  # of unit length whatever the number


@pytest.mark.parametrize("op", ["info_nce", "nt_xent"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_single_pair_has_loss_zero_and_no_gradient(op, dtype):
    loss, gradients = run(op, tensors([(1, 32)] * 2, dtype), "triton")
    assert loss.item() == 0.0 and not any(g.any() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("N, M", [(256, 65536), (33, 4097), (1000, 3)])
def test_queue_split_over_the_device_equals_float64(N, M, dtype):
    inputs = tensors([(N, 128), (N, 128), (M, 128)], dtype)
    assert_near_float64("info_nce", inputs, temperature=0.07, reduction="sum")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_float32_follows_the_matmul_precision(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        inputs = tensors([(500, 64)] * 2, torch.float32)
        _, ours = run("info_nce", inputs, "triton", reduction="sum")
        doubles = [t.detach().double().requires_grad_() for t in inputs]
        _, exact = run("info_nce", doubles, "reference", reduction="sum")
    finally:
        torch.set_float32_matmul_precision(before)
    error = max((o.double() - e).norm() / e.norm() for o, e in zip(ours, exact, strict=True))
    assert error < {"highest": 1e-5, "high": 1e-5, "medium": 2e-2}[precision]


@pytest.mark.parametrize("form", ["one-sided", "symmetric", "nt_xent"])
def test_twenty_runs_are_equal_bit_for_bit(form):
    op, options = ("nt_xent", {}) if form == "nt_xent" else (
        "info_nce", {"symmetric": form == "symmetric"})  # fmt: skip
    inputs = tensors([(1000, 128)] * 2, torch.bfloat16)
    loss, first = run(op, inputs, "triton", **options)
    for _ in range(20):
        again, gradients = run(op, inputs, "triton", **options)
        assert torch.equal(loss, again)
        assert all(torch.equal(a, b) for a, b in zip(first, gradients, strict=True))


@pytest.mark.parametrize("form", ["one-sided", "symmetric", "nt_xent"])
def test_no_host_sync_and_replay_in_a_cuda_graph(form):
    op, options = ("nt_xent", {}) if form == "nt_xent" else (
        "info_nce", {"symmetric": form == "symmetric"})  # fmt: skip
    inputs = tensors([(300, 64)] * 2, torch.bfloat16)
    temperature = torch.tensor(0.1, device="cuda", requires_grad=True)
    wanted = [*inputs, temperature]

    def step():
        loss = getattr(sslops, op)(*inputs, temperature=temperature, backend="triton", **options)
        return [loss, *torch.autograd.grad(loss, wanted)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for t in inputs:
            t.copy_(torch.randn_like(t))
        temperature.fill_(0.2)
    graph.replay()
    for ours, expected in zip(captured, step(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("op", ["info_nce", "nt_xent"])
def test_compiled_by_inductor_equals_eager(op):
    inputs = tensors([(200, 64)] * 2, torch.bfloat16)

    def step(a, b):
        return getattr(sslops, op)(a, b, temperature=0.1, backend="triton")

    expected = torch.autograd.grad(step(*inputs), inputs)
    compiled = torch.compile(step, fullgraph=True)
    for ours, eager in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        torch.testing.assert_close(ours, eager, rtol=2.0**-7, atol=1e-6)


@pytest.mark.parametrize("op", ["info_nce", "nt_xent"])
def test_memory_stays_in_the_order_of_the_inputs(op):
    inputs = tensors([(16384, 128)] * 2, torch.bfloat16)
    run(op, inputs, "triton")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(op, inputs, "triton")
    used = torch.cuda.max_memory_allocated() - before
    bytes_of_inputs = sum(t.numel() * t.element_size() for t in inputs)
    assert used < 16 * bytes_of_inputs  # the logits alone would take 256 or 1024 times as much
