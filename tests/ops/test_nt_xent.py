"""nt_xent against hand-worked numbers and a double loop, on every backend."""

import math

import pytest
import torch
import torch.nn.functional as F

import sslops


def test_equals_a_double_loop_over_scalars(nt_xent):
    z = F.normalize(torch.randn(10, 4, dtype=torch.float64), dim=-1)
    rows = nt_xent(*z.float().chunk(2), temperature=0.3, reduction="none")
    for i in range(10):
        logits = [(z[i] @ z[j]).item() / 0.3 for j in range(10) if j != i]
        expected = math.log(sum(map(math.exp, logits))) - (z[i] @ z[(i + 5) % 10]).item() / 0.3
        assert rows[i].item() == pytest.approx(expected, rel=2e-6, abs=2e-6)


def test_orthogonal_pairs(nt_xent):
    """z_i = z_{i+B} = e_i, B = 8: one candidate at 1, 14 at 0: log(e + 14) - 1."""
    loss = nt_xent(torch.eye(8), torch.eye(8), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(math.e + 14) - 1, rel=1e-6)


def test_gradient_of_two_orthogonal_pairs(nt_xent):
    """Rows e_0, e_1, e_0, e_1, T = 1, unnormalised. Each row has weight p = 1 / (e + 2) on both
    negatives, so 1 - 2p on its positive; the mean's gradient of e_0, as query and as key, is
    (1/4) (2 (2p)(e_1) - 2 (2p) e_0) = p (e_1 - e_0)."""
    z = torch.eye(2).requires_grad_()
    nt_xent(z, torch.eye(2), temperature=1.0, normalize=False).backward()
    p = 1 / (math.e + 2)
    expected = p * torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    torch.testing.assert_close(z.grad, expected, rtol=1e-6, atol=1e-7)


def test_gradient_of_the_temperature(nt_xent):
    """L = log(1 + 2 exp(-1/T)); dL/dT = 2 exp(-1/T) / (T^2 (1 + 2 exp(-1/T)))."""
    T = torch.tensor(0.5, requires_grad=True)
    nt_xent(torch.eye(2), torch.eye(2), temperature=T).backward()
    e = 2 * math.exp(-2)
    assert T.grad.item() == pytest.approx(e / (0.25 * (1 + e)), rel=1e-6)


def test_swapping_the_views_leaves_the_loss(nt_xent):
    z0, z1 = torch.randn(2, 33, 16)
    a = nt_xent(z0, z1, reduction="none")
    b = nt_xent(z1, z0, reduction="none")
    torch.testing.assert_close(a, b.roll(33), rtol=2e-6, atol=2e-6)


def test_equals_info_nce_without_the_self_pairs(nt_xent):
    """Each row against its positive and the 2N - 2 rows that are neither it nor its positive."""
    N = 9
    z = torch.randn(2 * N, 8, dtype=torch.float64, requires_grad=True)
    others = torch.stack(
        [z[[j for j in range(2 * N) if j not in (i, (i + N) % (2 * N))]] for i in range(2 * N)]
    )
    expected = sslops.info_nce(z, z.roll(N, 0), others, 0.2, "none", "paired", backend="reference")
    weights = torch.rand(2 * N, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(expected, z, weights)

    ours = z.detach().float().requires_grad_()
    rows = nt_xent(*ours.chunk(2), temperature=0.2, reduction="none")
    (d_ours,) = torch.autograd.grad(rows, ours, weights.float())
    torch.testing.assert_close(rows.double(), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(d_ours.double(), gradient, rtol=1e-4, atol=2e-6)


def test_stats_count_all_other_views_as_candidates(nt_xent):
    """Views at angles 0, 10 | 30, 90 degrees: candidates nearer than the positive."""
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 30.0, 90.0]))
    z = torch.stack([angles.cos(), angles.sin()], 1)
    _, stats = nt_xent(z[:2], z[2:], temperature=1.0, return_stats=True)
    # 0: positive 30, nearer 10. 10: positive 90, nearer 0 and 30. 30: positive 0, nearer 10.
    # 90: positive 10, nearer 30.
    assert stats.positive_rank.tolist() == [1, 2, 1, 1]
    expected = torch.tensor([30.0, 80.0, 30.0, 80.0]).deg2rad().cos()
    torch.testing.assert_close(stats.positive_logit, expected, rtol=1e-6, atol=1e-6)
    logits = (z @ z.T).fill_diagonal_(-torch.inf)
    torch.testing.assert_close(stats.lse, logits.logsumexp(-1), rtol=1e-6, atol=1e-6)
