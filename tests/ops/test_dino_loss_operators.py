"""dino_loss as operators: opcheck, fullgraph compile, second derivatives, bad input, C++ sets."""

import importlib

import pytest
import torch
from backends import STATIC_IS_SLOW, slow_interpreted
from float64_agreement import assert_dino_agrees

import sslops
from sslops import registry
from sslops.ops.dino_loss import cases

OP = registry.OPS["dino_loss"]
FAST = [b for b in OP.backends if b != "reference"]
each_fast = pytest.mark.parametrize("backend", FAST)
NAMES = ["multi-crop", "views with weights", "rows of probabilities"]
each_case = pytest.mark.parametrize("case", [c for c in cases.CASES if c.name in NAMES],
                                    ids=lambda c: c.name)  # fmt: skip


def needs(backend, device):
    args, kwargs = cases.example(device)
    reason = OP.why_not(backend, *args, **kwargs)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("backend", slow_interpreted(FAST))
@each_case
def test_opcheck(backend, case, device):
    needs(backend, device)
    student, teacher, options = case.inputs(device)
    student, teacher = (x if x.ndim == 3 else x[None] for x in (student, teacher))
    weights = options.get("weights")
    weights = weights if weights is None or weights.ndim == 2 else weights[None]
    temperature = options["teacher_temperature"]
    rest = (options.get("center"), weights, None, 0.1, None, temperature or 0.0, case.S > 0)
    name = f"dino_loss_{backend}"
    leaf = student.detach().requires_grad_()
    torch.library.opcheck(getattr(torch.ops.sslops, name).default, (leaf, teacher, *rest))
    loss, *stats = getattr(torch.ops.sslops, name)(student.detach(), teacher, *rest)
    arguments = (torch.rand_like(loss), *stats, student.detach(), teacher, *rest)
    torch.library.opcheck(getattr(torch.ops.sslops, f"{name}_backward").default, arguments)


@pytest.mark.parametrize("backend", slow_interpreted(FAST))
@each_case
@pytest.mark.parametrize("dynamic", STATIC_IS_SLOW)
def test_compiles_into_one_graph(backend, case, dynamic, device):
    needs(backend, device)
    student, teacher, options = case.inputs(device)

    def loss(student, teacher):
        return sslops.dino_loss(student, teacher, **options, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(student, teacher), student)
    (found,) = torch.autograd.grad(compiled(student, teacher), student)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@each_fast
def test_a_second_backward_is_the_same_and_a_double_one_is_refused(backend, device):
    needs(backend, device)
    student, teacher, options = cases.CASES[2].inputs(device)
    loss = sslops.dino_loss(student, teacher, **options, backend=backend)
    (first,) = torch.autograd.grad(loss, student, create_graph=True)
    (second,) = torch.autograd.grad(loss, student, retain_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="dino_loss: this backend has no double backward"):
        first.sum().backward()


def test_the_reference_has_a_double_backward():
    student, teacher, options = cases.CASES[2].inputs(dtype=torch.float64)
    options = {**options, "center": options["center"].double(), "backend": "reference"}
    small, teacher = student[:, :1, :3].detach().requires_grad_(), teacher[:, :1, :3]
    options["center"] = options["center"][:3]
    assert torch.autograd.gradgradcheck(lambda x: sslops.dino_loss(x, teacher, **options), small)


@pytest.mark.skipif("cpu" not in FAST, reason="sslops._C is not built")
@pytest.mark.parametrize("name", ["avx512", "avx2", "vector4", "scalar"])
def test_every_instruction_set_agrees_with_the_specification(name):
    extension = importlib.import_module("sslops._C")
    usual = extension.select_instruction_set("")
    try:
        if extension.select_instruction_set(name) != name:
            pytest.skip(f"this machine has no {name}")
        for case in cases.CASES:
            assert_dino_agrees(*case.inputs(), "cpu")
    finally:
        extension.select_instruction_set(usual)


@pytest.mark.skipif("cpu" not in FAST, reason="sslops._C is not built")
def test_threads_do_not_change_a_bit():
    student, teacher, options = cases.Case("", 4, 2, 9, 20000).inputs()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        loss = sslops.dino_loss(student, teacher, **options, backend="cpu")
        found.append((loss.item(), torch.autograd.grad(loss, student)[0]))
    torch.set_num_threads(1)
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


views, rows = torch.randn(3, 4, 8), torch.randn(4, 8)
# Error, words of its message (the argument, what was expected, what came), arguments, options.
# fmt: off
WRONG = {
    "student is a list": (TypeError, "student|tensor|list", ([1.0], rows), {}),
    "student has integers": (TypeError, "student|floating-point|int64", (rows.long(), rows), {}),
    "student has four dimensions":
        (ValueError, "student|[views, N, K]|(1, 3, 4, 8)", (views[None], views), {}),
    "teacher has no views": (ValueError, "teacher|[views, N, K]|(4, 8)", (views, rows), {}),
    "teacher has other rows": (ValueError, "teacher|(3, 4, 8)|(2, 3, 8)",
                               (views, views[:2, :3]), {}),
    "teacher has other prototypes": (ValueError, "teacher|(4, 8)|(4, 7)", (rows, rows[:, :7]), {}),
    "teacher is on another device":
        (ValueError, "teacher|cpu|meta", (rows, torch.empty(4, 8, device="meta")), {}),
    "no teacher view": (ValueError, "at least one view|(0, 4, 8)", (views, views[:0]), {}),
    "no prototype": (ValueError, "one prototype|(4, 0)", (rows[:, :0], rows[:, :0]), {}),
    "no pair": (ValueError, "skip_same_view|no pair", (views[:1], views[:1]), {}),
    "center without temperature":
        (ValueError, "center|teacher_temperature", (rows, rows), {"center": rows[0]}),
    "center of another width": (ValueError, "center|(8,)|(7,)", (rows, rows),
                                {"center": rows[0, :7], "teacher_temperature": 1.0}),
    "weights of other rows": (ValueError, "weights|(4,)|(3,)", (rows, rows),
                              {"weights": torch.ones(3)}),
    "weights of integers": (TypeError, "weights|floating-point|int64", (rows, rows),
                            {"weights": torch.ones(4, dtype=torch.int64)}),
    "student temperature": (ValueError, "student_temperature|positive|0.0", (rows, rows),
                            {"student_temperature": 0.0}),
    "teacher temperature": (TypeError, "teacher_temperature|float|'a'", (rows, rows),
                            {"teacher_temperature": "a"}),
    "temperature with gradient": (ValueError, "student_temperature|gradient", (rows, rows),
                                  {"student_temperature": torch.ones((), requires_grad=True)}),
    "reduction": (ValueError, "reduction|'mean'|'avg'", (rows, rows), {"reduction": "avg"}),
    "backend": (ValueError, "backend|reference|'fast'", (rows, rows), {"backend": "fast"}),
}
# fmt: on


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    error, words, args, options = WRONG[name]
    with pytest.raises(error) as found:
        sslops.dino_loss(*args, **options)
    for word in words.split("|"):
        assert word in str(found.value)
    assert "\n" not in str(found.value)


def test_a_centre_of_another_width_is_named():
    with pytest.raises(ValueError, match=r"center must be \[K\]"):
        sslops.updated_center(torch.zeros(3), torch.zeros(2, 4))
