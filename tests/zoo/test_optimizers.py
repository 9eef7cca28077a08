"""Optimizers against steps worked by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from sslzoo import optimizers
from sslzoo.optimizers import LARS


def with_gradient(weight, gradient):
    parameter = nn.Parameter(torch.tensor(weight))
    parameter.grad = torch.tensor(gradient)
    return parameter


def test_lars_first_and_second_step_by_hand():
    w = with_gradient([[3.0, 4.0]], [[0.0, 2.0]])
    optimizer = LARS([w], lr=0.5, momentum=0.9, trust=0.1)
    optimizer.step()
    # ||w|| = 5, ||g|| = 2: g <- [0, 2] * 0.1 * 5 / 2 = [0, 0.5]; v = [0, 0.5]; w = [3, 3.75]
    torch.testing.assert_close(w.data, torch.tensor([[3.0, 3.75]]))
    w.grad = torch.tensor([[1.0, 0.0]])
    optimizer.step()
    # g <- [1, 0] * 0.1 * ||w||; v = [0.1 ||w||, 0.45]; w <- w - 0.5 v
    norm = math.hypot(3.0, 3.75)
    expected = torch.tensor([[3.0 - 0.05 * norm, 3.75 - 0.225]])
    torch.testing.assert_close(w.data, expected)


def test_lars_decays_before_it_measures_the_gradient():
    w = with_gradient([[1.0, 0.0]], [[0.0, 1.0]])
    LARS([w], lr=1.0, weight_decay=1.0, trust=0.1).step()
    # g <- [0, 1] + [1, 0] = [1, 1], norm sqrt 2; step [1, 1] * 0.1 / sqrt 2
    step = 0.1 / math.sqrt(2)
    torch.testing.assert_close(w.data, torch.tensor([[1.0 - step, -step]]))


@pytest.mark.parametrize("weight, gradient", [([[0.0]], [[2.0]]), ([[2.0]], [[0.0]])])
def test_lars_does_not_adapt_where_a_norm_is_zero(weight, gradient):
    w = with_gradient(weight, gradient)
    LARS([w], lr=0.5).step()
    torch.testing.assert_close(w.data, torch.tensor(weight) - 0.5 * torch.tensor(gradient))


def test_lars_leaves_biases_and_norms_to_plain_momentum():
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    nn.init.constant_(module[0].bias, 4.0)
    optimizer = optimizers.build("lars", optimizers.parameter_groups(module, 0.1), lr=0.5)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    for value in (3.5, 3.5 - 0.5 * 1.9):
        optimizer.step()
        torch.testing.assert_close(module[0].bias.data, torch.tensor([value]))


def test_lars_skips_parameters_without_gradient():
    used, unused = with_gradient([[1.0]], [[1.0]]), nn.Parameter(torch.ones(1, 1))
    LARS([used, unused], lr=1.0, trust=0.1).step()
    torch.testing.assert_close(used.data, torch.tensor([[0.9]]))
    torch.testing.assert_close(unused.data, torch.ones(1, 1))


def test_lars_continues_from_its_state():
    def run(steps, optimizer, w):
        for i in range(steps):
            w.grad = torch.full_like(w, float(i + 1))
            optimizer.step()

    w = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    first = LARS([w], lr=0.1, trust=0.1)
    run(2, first, w)
    twin = nn.Parameter(w.data.clone())
    second = LARS([twin], lr=0.1, trust=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(3, first, w)
    run(3, second, twin)
    assert torch.equal(w, twin)


def test_parameter_groups_decay_matrices_and_tokens_only():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))
    module.token = nn.Parameter(torch.zeros(1, 1, 4))  # decayed by the official ViT code too
    module.table = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    decayed, free = optimizers.parameter_groups(module, 0.3)
    assert [p.ndim for p in decayed["params"]] == [3, 4, 2]
    assert [p.ndim for p in free["params"]] == [1, 1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)


def test_sgd_and_adamw_first_steps_by_hand():
    w = with_gradient([[1.0]], [[2.0]])
    optimizers.build("sgd", [{"params": [w], "weight_decay": 0.5}], lr=0.1).step()
    torch.testing.assert_close(w.data, torch.tensor([[1.0 - 0.1 * 2.5]]))
    w = with_gradient([[1.0]], [[2.0]])
    optimizers.build("adamw", [{"params": [w], "weight_decay": 0.5}], lr=0.1).step()
    # decay first: 1 - 0.1 * 0.5; then the bias-corrected step has length lr
    torch.testing.assert_close(w.data, torch.tensor([[0.95 - 0.1]]))


def test_unknown_optimizer_names_the_choices():
    with pytest.raises(ValueError, match="sgd, adamw or lars"):
        optimizers.build("adam", [nn.Parameter(torch.ones(1))], lr=0.1)


def test_nesterov_looks_ahead():
    """Worked by hand: gradient 1, momentum 0.5, rate 1: steps of 1.5, then 1.75."""
    w = torch.tensor([0.0], requires_grad=True)
    optimizer = optimizers.build("sgd", [{"params": [w]}], lr=1.0, momentum=0.5, nesterov=True)
    seen = []
    for _ in range(2):
        w.grad = torch.ones(1)
        optimizer.step()
        seen.append(w.item())
    assert seen == [-1.5, -3.25]
