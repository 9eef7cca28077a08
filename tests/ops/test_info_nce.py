"""info_nce against hand-worked numbers and a loop over scalars, on every backend."""

import math

import pytest
import torch
import torch.nn.functional as F

import sslops


def brute_force(q, candidates, positive, T):
    """Loss and its gradient with respect to q, of one query, in Python floats."""
    logits = [sum(a * b for a, b in zip(q, k, strict=True)) / T for k in candidates]
    largest = max(logits)
    weights = [math.exp(s - largest) for s in logits]
    total = sum(weights)
    loss = largest + math.log(total) - logits[positive]
    gradient = [
        sum((w / total - (j == positive)) * k[d] / T
            for j, (w, k) in enumerate(zip(weights, candidates, strict=True)))
        for d in range(len(q))
    ]  # fmt: skip
    return loss, gradient


def unit_lists(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("mode", ["in-batch", "unpaired", "paired"])
def test_equals_a_loop_over_scalars(info_nce, mode):
    q, k = unit_lists(2, 5, 4)
    negatives = {"in-batch": None, "unpaired": unit_lists(6, 4), "paired": unit_lists(5, 6, 4)}[
        mode
    ]
    tensors = [None if x is None else x.float() for x in (q.requires_grad_(), k, negatives)]
    rows = info_nce(*tensors, temperature=0.2, reduction="none", normalize=False,
                    negative_mode="paired" if mode == "paired" else "unpaired")  # fmt: skip
    (gradient,) = torch.autograd.grad(rows.sum(), q)
    for i in range(5):
        if mode == "in-batch":
            candidates, positive = k.tolist(), i
        else:
            own = negatives[i] if mode == "paired" else negatives
            candidates, positive = [k[i].tolist(), *own.tolist()], 0
        loss, dq = brute_force(q[i].tolist(), candidates, positive, 0.2)
        assert rows[i].item() == pytest.approx(loss, rel=2e-6, abs=2e-6)
        assert gradient[i].tolist() == pytest.approx(dq, rel=2e-5, abs=5e-6)


def test_orthogonal_pairs(info_nce):
    """One positive at 1, N - 1 negatives at 0: log(e + N - 1) - 1."""
    for N in (1, 2, 8):
        loss = info_nce(torch.eye(N, 8), torch.eye(N, 8), temperature=1.0)
        assert loss.item() == pytest.approx(math.log(math.e + N - 1) - 1, rel=1e-6, abs=1e-7)


def test_gradient_of_two_orthogonal_pairs(info_nce):
    """p = 1 / (1 + e) on the negative: dq_0 = p (k_1 - k_0) / 2, of unnormalised rows."""
    q = torch.eye(2).requires_grad_()
    info_nce(q, torch.eye(2), temperature=1.0, normalize=False).backward()
    p = 1 / (1 + math.e)
    expected = p / 2 * torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    torch.testing.assert_close(q.grad, expected, rtol=1e-6, atol=1e-7)


def test_gradient_through_the_normalisation(info_nce):
    """At length 4 the gradient along the row vanishes, the rest is a quarter."""
    q = (4 * torch.eye(2)).requires_grad_()
    info_nce(q, torch.eye(2), temperature=1.0).backward()
    p = 1 / (1 + math.e)
    expected = p / 8 * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(q.grad, expected, rtol=1e-6, atol=1e-7)


def test_gradient_of_the_temperature(info_nce):
    """dL/dT of log(1 + exp(-1/T)) is exp(-1/T) / (T^2 (1 + exp(-1/T)))."""
    T = torch.tensor(0.5, requires_grad=True)
    info_nce(torch.eye(2), torch.eye(2), temperature=T).backward()
    e = math.exp(-2)
    assert T.grad.item() == pytest.approx(e / (0.25 * (1 + e)), rel=1e-6)


def test_queue_of_orthogonal_negatives(info_nce):
    """A positive at 1/T and M negatives at 0: log(1 + M exp(-1/T))."""
    q, negatives = torch.eye(3, 16), torch.eye(16)[3:]
    loss = info_nce(q, q, negatives, temperature=0.25)
    assert loss.item() == pytest.approx(math.log1p(13 * math.exp(-4)), rel=1e-5)


def test_stats_of_hand_worked_rows(info_nce):
    """Logits of the rows: (2, 1, 0), (3, 0, 0), (1, 1, 1); positives on the diagonal."""
    k = torch.eye(3)
    q = torch.tensor([[2.0, 1.0, 0.0], [3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    loss, stats = info_nce(q, k, temperature=1.0, normalize=False, reduction="none",
                           return_stats=True)  # fmt: skip
    lse = torch.tensor([math.log(math.e**2 + math.e + 1), math.log(math.e**3 + 2),
                        math.log(3) + 1])  # fmt: skip
    torch.testing.assert_close(stats.lse, lse)
    torch.testing.assert_close(stats.positive_logit, torch.tensor([2.0, 0.0, 1.0]))
    # The second row's positive ties with one other candidate: only one is more similar.
    assert stats.positive_rank.tolist() == [0, 1, 0] and stats.positive_rank.dtype == torch.int64
    torch.testing.assert_close(loss, stats.lse - stats.positive_logit)
    assert isinstance(stats, sslops.InfoNCEStats)


def test_stats_of_negatives(info_nce):
    """The positive at 1; negatives at 2, 1 (a tie) and 0."""
    q = torch.tensor([[1.0, 0.0]])
    negatives = torch.tensor([[2.0, 5.0], [1.0, -3.0], [0.0, 1.0]])
    _, stats = info_nce(q, q, negatives, 1.0, normalize=False, return_stats=True)
    assert stats.positive_rank.tolist() == [1]
    assert stats.positive_logit.item() == 1.0
    assert stats.lse.item() == pytest.approx(math.log(math.e**2 + 2 * math.e + 1), rel=1e-6)


def test_stats_have_the_shape_of_the_rows_and_no_gradient(info_nce):
    q = torch.randn(2, 3, 5, 8, requires_grad=True)
    _, stats = info_nce(q, torch.randn(2, 3, 5, 8), return_stats=True)
    for value in stats:
        assert value.shape == (2, 3, 5) and not value.requires_grad


def test_symmetric_equals_the_mean_of_both_directions(info_nce):
    q, k = torch.randn(2, 33, 16, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        z = [x.to(dtype).requires_grad_() for x in (q, k)]
        both = info_nce(*z, symmetric=True, reduction="none")
        one = info_nce(*z, reduction="none")
        other = info_nce(*z[::-1], reduction="none")
        tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else {}
        torch.testing.assert_close(both, (one + other) / 2, **tolerance)
        weights = torch.rand(33, dtype=dtype)
        gradients = torch.autograd.grad(both, z, weights)
        expected = torch.autograd.grad((one + other) / 2, z, weights)
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


def test_leading_dimensions_are_separate_problems(info_nce):
    q, k = torch.randn(2, 2, 3, 7, 8).unbind()
    rows = info_nce(q, k, reduction="none")
    for i in range(2):
        for j in range(3):
            single = info_nce(q[i, j], k[i, j], reduction="none")
            torch.testing.assert_close(rows[i, j], single, rtol=1e-6, atol=1e-6)
    assert info_nce(q, k).item() == pytest.approx(rows.mean().item(), rel=1e-6)


def test_shared_negatives_serve_every_leading_dimension(info_nce):
    q, k = torch.randn(2, 3, 4, 8).unbind()
    negatives = torch.randn(5, 8)
    shared = info_nce(q, k, negatives, reduction="none")
    copied = info_nce(q, k, negatives.expand(3, 5, 8), reduction="none")
    torch.testing.assert_close(shared, copied, rtol=1e-6, atol=1e-6)
