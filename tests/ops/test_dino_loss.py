"""dino_loss: agreement with float64, numbers worked by hand, views, weights, edges."""

import math

import pytest
import torch
from backends import LAYOUTS, by_dtype
from float64_agreement import assert_dino_agrees, plain_dino
from hypothesis import given, settings
from hypothesis import strategies as st

import sslops
from sslops import registry
from sslops.ops.dino_loss import cases

OP = registry.OPS["dino_loss"]
EVERY = list(OP.backends)
FAST = [b for b in EVERY if b != "reference"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
each_backend = pytest.mark.parametrize("backend", EVERY)


def needs(backend, student, teacher=None):
    """Skip where the backend cannot run these tensors."""
    teacher = student if teacher is None else teacher
    options = dict(student_temperature=0.1, teacher_temperature=0.04, skip_same_view=True)
    reason = OP.why_not(backend, student, teacher, None, None, **options)
    if reason:
        pytest.skip(reason)


RUNS = [(backend, case) for backend in FAST for case in cases.CASES]
HALVES = ("every pair", "rows with weights", "rows of probabilities", "cold", "several chunks")


@pytest.mark.parametrize("backend, case, dtype", by_dtype(RUNS, HALVES))
def test_backend_agrees_with_the_specification(backend, case, dtype, device):
    student, teacher, options = case.inputs(device, dtype)
    needs(backend, student, teacher)
    assert_dino_agrees(student, teacher, options, backend)


@st.composite
def arguments(draw):
    S, T = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    N, K = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 7, 16, 33, 64, 130]))
    dtype = draw(st.sampled_from(DTYPES[:3]))
    options = {
        "student_temperature": draw(st.floats(0.05, 2.0)),
        "skip_same_view": draw(st.booleans()),
    }
    with_views = draw(st.booleans())
    if options["skip_same_view"] and with_views and S == T == 1:
        S = 2
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 4.0]))
    shapes = [(n, N, K) if with_views else (N, K) for n in (S, T)]
    student, teacher = (scale * torch.randn(s, generator=generator) for s in shapes)
    if draw(st.booleans()):
        options["teacher_temperature"] = draw(st.floats(0.02, 1.0))
        if draw(st.booleans()):
            options["center"] = torch.randn(K, generator=generator)
        teacher = teacher.to(dtype)
    else:
        teacher = teacher.softmax(-1)
    if draw(st.booleans()):
        weights = torch.rand(shapes[0][:-1], generator=generator)
        options["weights"] = torch.where(weights < 0.4, 0.0, weights)
    return student.to(dtype), teacher, options


@pytest.mark.parametrize("backend", FAST)
def test_any_shape_dtype_stride_and_temperature_agrees(backend, device):
    @settings(max_examples=4 if backend == "triton" and device == "cpu" else 30)
    @given(arguments(), st.sampled_from([*LAYOUTS]))
    def agrees(drawn, layout):
        student, teacher, options = drawn
        student, teacher = student.to(device), teacher.to(device)
        options = {name: value.to(device) if isinstance(value, torch.Tensor) else value
                   for name, value in options.items()}  # fmt: skip
        needs(backend, student, teacher)
        assert_dino_agrees(student, teacher, options, backend, LAYOUTS[layout])

    agrees()


@each_backend
def test_two_prototypes_by_hand(backend, device):
    """Teacher 0 is sure of prototype 0, teacher 1 says 3 : 1; students say 1 : 1 and 1 : e."""
    teacher = torch.tensor([[[1.0, 0.0]], [[0.75, 0.25]]], device=device)
    student = torch.tensor([[[0.0, 0.0]], [[0.0, 0.1]], [[0.0, 0.1]]], device=device)
    needs(backend, student, teacher)
    rows = sslops.dino_loss(student, teacher, reduction="none", backend=backend)[:, 0]
    first, second = math.log(1 + math.e), math.log(1 + math.e) - 1  # -log p of the prototypes
    expected = [math.log(2), first, first + 0.75 * first + 0.25 * second]
    torch.testing.assert_close(rows.cpu(), torch.tensor(expected))
    mean = sslops.dino_loss(student, teacher, backend=backend)
    assert mean.item() == pytest.approx(sum(expected) / 4, rel=1e-6)  # (1,0) (0,1) (0,2) (1,2)


@each_backend
def test_gradient_by_hand(backend, device):
    """(softmax - target) / temperature: odds 1 : 1 against a sure teacher."""
    student = torch.zeros(1, 2, device=device, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0]], device=device)
    needs(backend, student.detach(), teacher)
    sslops.dino_loss(student, teacher, student_temperature=0.5, backend=backend).backward()
    torch.testing.assert_close(student.grad.cpu(), torch.tensor([[-1.0, 1.0]]))


@each_backend
@pytest.mark.parametrize("S, T", [(10, 2), (2, 2), (3, 3), (1, 2), (4, 1)])
def test_pairs_are_all_views_but_the_same(backend, S, T, device):
    """One-hot teachers name themselves: the gradient of student s shows which it looked at."""
    student = torch.zeros(S, 1, T, device=device, requires_grad=True)
    teacher = torch.eye(T, device=device)[:, None]
    needs(backend, student.detach(), teacher)
    loss = sslops.dino_loss(student, teacher, student_temperature=1.0, reduction="sum",
                            backend=backend)  # fmt: skip
    loss.backward()
    seen = torch.tensor([[float(t != s) for t in range(T)] for s in range(S)])
    expected = seen.sum(1, keepdim=True) / T - seen
    torch.testing.assert_close(student.grad[:, 0].cpu(), expected, atol=1e-6, rtol=0)
    assert seen.sum() == S * T - min(S, T)


@each_backend
def test_a_student_like_its_teacher_has_the_teacher_s_entropy(backend, device):
    """Same logits in all views, centre 0, equal temperatures."""
    logits = 0.3 * torch.randn(1, 5, 40, device=device)
    needs(backend, logits)
    loss = sslops.dino_loss(logits.expand(4, -1, -1), logits.expand(2, -1, -1),
                            teacher_temperature=0.1, backend=backend)  # fmt: skip
    P = (logits / 0.1).softmax(-1)
    entropy = -(P * P.log()).sum(-1).mean()
    torch.testing.assert_close(loss, entropy, rtol=1e-5, atol=1e-6)


@each_backend
def test_equal_logits_have_the_loss_log_k(backend, device):
    student = torch.full((3, 4, 100), 0.7, device=device)
    needs(backend, student)
    loss = sslops.dino_loss(student, torch.randn(2, 4, 100, device=device),
                            teacher_temperature=0.04, backend=backend)  # fmt: skip
    assert loss.item() == pytest.approx(math.log(100), rel=1e-6)


@each_backend
def test_the_centre_is_subtracted_before_the_temperature(backend, device):
    student, teacher = torch.randn(3, 2, 30, device=device), torch.randn(2, 2, 30, device=device)
    center = torch.randn(30, device=device)
    needs(backend, student, teacher)
    centred = sslops.dino_loss(student, teacher, teacher_temperature=0.5, center=center,
                               backend=backend)  # fmt: skip
    P = ((teacher - center) / 0.5).softmax(-1)
    torch.testing.assert_close(centred, plain_dino(student, P).sum() / 8)


@each_backend
def test_the_loss_changes_none_of_its_inputs(backend, device):
    student, teacher, options = cases.CASES[2].inputs(device)
    needs(backend, student.detach(), teacher)
    tensors = [student, teacher, options["center"]]
    before = [t.detach().clone() for t in tensors]
    sslops.dino_loss(student, teacher, **options, backend=backend).backward()
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor.detach(), old)


@each_backend
def test_no_gradient_reaches_teacher_or_centre(backend, device):
    student, teacher, options = cases.CASES[2].inputs(device)
    needs(backend, student.detach(), teacher)
    teacher.requires_grad_()
    center = options["center"].requires_grad_()
    sslops.dino_loss(student, teacher, **options, backend=backend).backward()
    assert teacher.grad is None and center.grad is None and student.grad is not None


@each_backend
def test_rows_of_weight_zero_are_neither_read_nor_moved(backend, device):
    student, teacher = torch.randn(2, 6, 20, device=device).unbind()
    needs(backend, student, teacher)
    weights = torch.tensor([0.5, 0.0, 1.0, 0.0, 0.0, 2.0], device=device)
    poisoned = [x.masked_fill((weights == 0)[:, None], math.nan) for x in (student, teacher)]
    poisoned[0].requires_grad_()
    options = dict(teacher_temperature=0.1, reduction="sum", backend=backend)
    loss = sslops.dino_loss(*poisoned, weights=weights, **options)
    loss.backward()
    chosen = weights > 0
    rows = sslops.dino_loss(student[chosen], teacher[chosen], teacher_temperature=0.1,
                            reduction="none", backend="reference")  # fmt: skip
    torch.testing.assert_close(loss, (weights[chosen] * rows).sum())
    assert poisoned[0].grad.isfinite().all() and not poisoned[0].grad[~chosen].any()


@each_backend
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_selected_row_gives_zero_not_nan(backend, reduction, device):
    student = torch.randn(5, 20, device=device, requires_grad=True)
    needs(backend, student.detach())
    loss = sslops.dino_loss(student, torch.randn(5, 20, device=device), teacher_temperature=0.1,
                            weights=torch.zeros(5, device=device), reduction=reduction,
                            backend=backend)  # fmt: skip
    loss.backward()
    assert loss.item() == 0.0 and not student.grad.any()


@each_backend
def test_masked_patches_weigh_one_over_the_count_of_their_crop(backend, device):
    """iBOT with all crops masked alike is the mean cross-entropy times the masked share."""
    B, masked, K = 3, 4, 16
    student, teacher = torch.randn(2, 2 * masked, K, device=device).unbind()
    needs(backend, student, teacher)
    weights = torch.full((2 * masked,), 1 / masked, device=device)  # two of 2B = 6 crops
    loss = sslops.dino_loss(student, teacher, teacher_temperature=0.1, weights=weights,
                            reduction="sum", backend=backend) / (2 * B)  # fmt: skip
    mean = sslops.dino_loss(student, teacher, teacher_temperature=0.1, backend="reference")
    torch.testing.assert_close(loss, mean * 2 / 6)


@each_backend
def test_no_rows_give_nan_for_mean_and_zero_for_sum(backend, device):
    for shape in ((2, 0, 8), (0, 8)):
        student = torch.zeros(shape, device=device, requires_grad=True)
        needs(backend, student.detach())
        options = dict(teacher_temperature=0.1, backend=backend)
        assert sslops.dino_loss(student, student, **options).isnan()
        total = sslops.dino_loss(student, student, reduction="sum", **options)
        total.backward()
        assert total.item() == 0.0 and student.grad.shape == shape


@each_backend
@pytest.mark.parametrize("poisoned", ["student", "teacher"])
def test_one_nan_image_does_not_poison_the_others(backend, poisoned, device):
    inputs = {"student": torch.randn(4, 5, 30, device=device),
              "teacher": torch.randn(2, 5, 30, device=device)}  # fmt: skip
    needs(backend, *inputs.values())
    inputs[poisoned][1, 2, 7] = math.nan
    student = inputs["student"].requires_grad_()
    rows = sslops.dino_loss(student, inputs["teacher"], teacher_temperature=0.1, reduction="none",
                            backend=backend)  # fmt: skip
    rows[:, [0, 1, 3, 4]].sum().backward()
    assert rows[:, [0, 1, 3, 4]].isfinite().all() and rows[:, 2].isnan().any()
    assert student.grad[:, [0, 1, 3, 4]].isfinite().all()
    if poisoned == "teacher":  # teacher 1 is no target of student 1
        assert rows[1, 2].isfinite()
    else:
        assert rows[[0, 2, 3], 2].isfinite().all()


@each_backend
def test_huge_logits_stay_finite_and_right(backend, device):
    student = (2e3 * torch.randn(3, 2, 50, device=device)).requires_grad_()
    teacher = 2e3 * torch.randn(2, 2, 50, device=device)
    needs(backend, student.detach(), teacher)
    assert_dino_agrees(student, teacher, {"teacher_temperature": 0.04}, backend)


@each_backend
def test_temperatures_may_be_tensors(backend, device):
    student, teacher, options = cases.CASES[2].inputs(device)
    needs(backend, student.detach(), teacher)
    plain = sslops.dino_loss(student, teacher, **options, student_temperature=0.2, backend=backend)
    options["teacher_temperature"] = torch.tensor(options["teacher_temperature"], device=device)
    loss = sslops.dino_loss(student, teacher, **options, backend=backend,
                            student_temperature=torch.tensor(0.2, device=device))  # fmt: skip
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(x, student)[0] for x in (loss, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", FAST)
def test_twenty_runs_are_equal_bit_for_bit(backend, device):
    student, teacher, options = cases.CASES[2].inputs(device)
    needs(backend, student.detach(), teacher)
    runs = set()
    for _ in range(20 if backend != "triton" or device != "cpu" else 3):
        loss = sslops.dino_loss(student, teacher, **options, backend=backend)
        (gradient,) = torch.autograd.grad(loss, student)
        runs.add((loss.item(), gradient.double().sum().item(), gradient.double().norm().item()))
    assert len(runs) == 1


def test_the_new_centre_is_a_moving_average_of_raw_logits():
    center = torch.tensor([1.0, -1.0])
    logits = torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]]).bfloat16()
    new = sslops.updated_center(center, logits, 0.9)
    torch.testing.assert_close(new, torch.tensor([0.9 + 0.2, -0.9 + 0.4]))
    assert torch.equal(center, torch.tensor([1.0, -1.0]))  # it was passed in, not changed
    again = sslops.updated_center(new, logits, 0.9)
    torch.testing.assert_close(again, torch.tensor([0.81 + 0.38, -0.81 + 0.76]))


def test_the_centre_of_no_rows_is_the_old_one():
    center = torch.tensor([1.0, -1.0])
    assert torch.equal(sslops.updated_center(center, torch.zeros(0, 2)), center)
