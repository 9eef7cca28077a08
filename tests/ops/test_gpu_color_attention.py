"""The Triton kernels of colour attention on a GPU, at size: values, graphs, waits, memory.

The tests of values and gradients (test_color_attention*.py) run on the GPU too where there is one.
"""

import pytest
import torch
from color_agreement import assert_agrees

import sslops
from sslops import registry
from sslops.ops.color_attention.cases import Case

pytestmark = pytest.mark.gpu

# The shape of the paper's training step: 32 clips, 32 x 32 cells, 3 reference frames.
TRAINING = dict(D=64, B=32, grid=(32, 32), frames=3)
AT_SIZE = [
    Case("16 colours", C=16, **TRAINING),
    Case("64 channels", C=64, **TRAINING),
    Case("window", C=16, options={"radius": (None, 6, 6)}, **TRAINING),
    Case("top 10", C=16, options={"topk": 10}, **TRAINING),
    Case("propagation", C=5, D=384, grid=(60, 107), frames=2,
         options={"radius": 12, "topk": 5, "temperature": 0.1}),
    Case("loss", classes=16, **TRAINING),
]  # fmt: skip
at_size = pytest.mark.parametrize("case", AT_SIZE, ids=lambda c: c.name)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def call(case, tensors, options):
    return getattr(sslops, case.op)(*tensors, **options, backend="triton")


@at_size
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_specification_at_size(case, dtype):
    small = Case(**{**case.__dict__, "B": min(case.B, 2)})  # the specification stores the scores
    tensors, options = small.inputs("cuda", dtype)
    assert_agrees(getattr(sslops, case.op), tensors, options, "triton")


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_float32_products_follow_the_matmul_precision(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        tensors, options = Case("any", 200, 300, D=64, C=16).inputs("cuda")
        assert_agrees(sslops.color_attention, tensors, options, "triton")
    finally:
        torch.set_float32_matmul_precision(before)


@at_size
def test_the_default_backend_is_triton(case):
    tensors, options = case.inputs("cuda", torch.bfloat16)
    op = registry.OPS[case.op]
    args = list(tensors)
    if case.classes is not None:
        args += [options["target_labels"], options["reference_labels"]]
    extra = {} if case.classes is not None else {"window": None, "topk": None}
    assert op.why_not("triton", *args, 1.0, **extra) is None
    assert op.why_not("cpu", *args, 1.0, **extra) is not None


@at_size
def test_replays_in_a_cuda_graph_with_new_inputs(case):
    tensors, options = case.inputs("cuda", torch.bfloat16)
    new, new_options = case.inputs("cuda", torch.bfloat16, seed=1)

    def step():
        out = call(case, tensors, options)
        return out.detach(), *torch.autograd.grad(out.square().sum(), tensors)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compile before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for old, value in zip(tensors, new, strict=True):
            old.copy_(value)
        for name in ("target_labels", "reference_labels"):
            if name in options:
                options[name].copy_(new_options[name])
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@at_size
def test_never_waits_for_the_device(case):
    tensors, options = case.inputs("cuda", torch.bfloat16)
    torch.autograd.grad(call(case, tensors, options).sum(), tensors)  # compile
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(call(case, tensors, options).sum(), tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@at_size
def test_same_bits_over_20_runs(case):
    tensors, options = case.inputs("cuda", torch.bfloat16)

    def step():
        out = call(case, tensors, options)
        return out.detach(), *torch.autograd.grad(out.square().sum(), tensors)

    first = step()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))


@at_size
def test_memory_grows_with_the_cells_and_not_with_their_product(case):
    """Forward and backward take less than a tenth of one matrix of scores in float32, inputs and
    gradients apart."""
    tensors, options = case.inputs("cuda", torch.bfloat16)
    torch.autograd.grad(call(case, tensors, options).sum(), tensors)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(call(case, tensors, options).sum(), tensors)
    taken = torch.cuda.max_memory_allocated() - before
    gradients = 6 * sum(t.numel() for t in tensors)  # float32, and the dtype of the inputs
    assert taken - gradients < 4 * case.logits / 10


@pytest.mark.parametrize("backend", ["chunked"])
def test_what_triton_does_not_run_takes_little_memory_too(backend):
    case = Case("top 50", C=16, options={"topk": 50}, **TRAINING)
    tensors, options = case.inputs("cuda", torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = sslops.color_attention(*tensors, **options)  # 50 > 32: chunked by default
    torch.autograd.grad(out.sum(), tensors)
    assert torch.cuda.max_memory_allocated() - before < 4 * case.logits
