"""The custom operators: opcheck, fullgraph compile, no second derivative, every instruction set."""

import importlib

import pytest
import torch
from backends import is_interpreted, slow_if, slow_interpreted
from color_agreement import assert_agrees

import sslops
from sslops import registry
from sslops.ops.color_attention import cases

COMPILED = [b for b in registry.OPS["color_attention"].backends if b in ("cpu", "triton")]
each_compiled = pytest.mark.parametrize("backend", COMPILED)
NAMES = ["odd widths", "window", "top 10 in a window", "loss, two classes"]
each_case = pytest.mark.parametrize("case", [c for c in cases.CASES if c.name in NAMES],
                                    ids=lambda c: c.name)  # fmt: skip


def needs(backend, device):
    """Skip where the backend does not run on this device."""
    args, kwargs = cases.example(device)
    reason = registry.OPS["color_attention"].why_not(backend, *args, **kwargs)
    if reason:
        pytest.skip(reason)


def call(case, tensors, options, backend):
    return getattr(sslops, case.op)(*tensors, **options, backend=backend)


# Without a GPU the compiled graphs below cover Triton's operators; the interpreted opcheck is slow.
@pytest.mark.parametrize("backend", slow_interpreted(COMPILED))
def test_opcheck(backend, device):
    needs(backend, device)
    B, Nt, Nr, D, C, k = 2, 6, 12, 8, 3, 4
    f, g, v = (torch.randn(B, n, w, device=device) for n, w in ((Nt, D), (Nr, D), (Nr, C)))
    grad, temperature = torch.randn(B, Nt, C, device=device), torch.tensor(0.5, device=device)
    labels = [torch.randint(3, (B, n), device=device) for n in (Nt, Nr)]
    window = [2, 3, 1, 6]

    def check(name, *arguments):
        torch.library.opcheck(getattr(torch.ops.sslops, f"{name}_{backend}").default, arguments)

    def differentiable(*tensors):
        return [t.clone().requires_grad_() for t in tensors]

    inputs = differentiable(f, g, v, temperature)
    check("color_attention", *inputs, window)
    out, lse = getattr(torch.ops.sslops, f"color_attention_{backend}")(*inputs, window)
    check(
        "color_attention_backward", grad, f, g, v, temperature, out.detach(), lse.detach(), window
    )

    check("color_top", f, g, window, k)
    index = getattr(torch.ops.sslops, f"color_top_{backend}")(f, g, window, k)
    check("color_gather", *inputs, index)
    out, weights = getattr(torch.ops.sslops, f"color_gather_{backend}")(*inputs, index)
    check("color_gather_backward", grad, f, g, v, temperature, index, out.detach(),
          weights.detach())  # fmt: skip

    check("color_match", *inputs[:2], *labels, inputs[3])
    match = getattr(torch.ops.sslops, f"color_match_{backend}")
    _, *saved = match(f, g, *labels, temperature)
    check("color_match_backward", grad[..., 0].contiguous(), f, g, *labels, temperature, *saved)


# With sizes as symbols only what the backends share is at stake: one of them runs all cases.
GRAPHS = [
    pytest.param(
        backend,
        case,
        dynamic,
        id=f"{backend}-{case.name}-{'dynamic' if dynamic else 'static'}",
        marks=slow_if(is_interpreted(backend) and case.name != "window"),
    )
    for backend in COMPILED
    for case in cases.CASES
    for dynamic in (False, True)
    if case.name in NAMES and (not dynamic or backend == COMPILED[0])
]


@pytest.mark.parametrize("backend, case, dynamic", GRAPHS)
def test_compiles_into_one_graph(backend, case, dynamic, device):
    needs(backend, device)
    tensors, options = case.inputs(device)

    def loss(*tensors):
        out = call(case, tensors, options, backend)
        return out.square().sum()

    torch._dynamo.reset()  # every case is a recompilation of `loss`, and their number is limited
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected = torch.autograd.grad(loss(*tensors), tensors)
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        assert torch.equal(a, b)


@each_compiled
@each_case
def test_a_second_derivative_is_an_error(backend, case, device):
    needs(backend, device)
    tensors, options = case.inputs(device)
    out = call(case, tensors, options, backend)
    (gradient, *_) = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{case.op}: double backward is not supported"):
        torch.autograd.grad(gradient.square().sum(), tensors)


@pytest.mark.skipif("cpu" not in COMPILED, reason="sslops._C is not built")
@pytest.mark.parametrize("name", ["avx512", "avx2", "vector4", "scalar"])
@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
def test_every_instruction_set_agrees_with_the_specification(name, case):
    extension = importlib.import_module("sslops._C")
    usual = extension.select_instruction_set("")
    try:
        if extension.select_instruction_set(name) != name:
            pytest.skip(f"this machine has no {name}")
        tensors, options = case.inputs()
        assert_agrees(getattr(sslops, case.op), tensors, options, "cpu")
    finally:
        extension.select_instruction_set(usual)
