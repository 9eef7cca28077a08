"""Moving averages of networks: the closed form, buffers, and what must not match."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sslzoo.ema import frozen_copy, update_ema


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_three_updates_equal_the_closed_form():
    student = network()
    teacher = frozen_copy(student)
    start = [p.double() for p in teacher.parameters()]
    seen = []
    for _ in range(3):
        for p in student.parameters():
            nn.init.normal_(p)
        seen.append([p.detach().double().clone() for p in student.parameters()])
        update_ema(teacher, student, 0.9)
    for i, p in enumerate(teacher.parameters()):
        expected = 0.729 * start[i] + 0.081 * seen[0][i] + 0.09 * seen[1][i] + 0.1 * seen[2][i]
        torch.testing.assert_close(p.double(), expected, rtol=1e-6, atol=1e-6)


class Called(TorchDispatchMode):
    """Names of the operations that are called inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_all_parameters_are_averaged_by_one_operation():
    student = network()
    teacher = frozen_copy(student)
    with Called() as called:
        update_ema(teacher, student, 0.9)
    assert called.names == ["aten._foreach_lerp_.Scalar"]


def test_the_copy_takes_no_gradient_and_shares_no_memory():
    student = network()
    teacher = frozen_copy(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)


@pytest.mark.parametrize(
    "buffers, mean, count", [("none", 0.0, 0), ("copy", 8.0, 5), ("ema", 2.0, 5)]
)
def test_buffers_are_left_copied_or_averaged(buffers, mean, count):
    student = network()
    teacher = frozen_copy(student)
    student[1].running_mean.fill_(8.0)
    student[1].num_batches_tracked.fill_(5)
    update_ema(teacher, student, 0.75, buffers)
    assert teacher[1].running_mean.tolist() == [mean] * 4
    assert teacher[1].num_batches_tracked.item() == count


def test_networks_that_differ_are_refused_by_name():
    with pytest.raises(ValueError, match="weight"):
        update_ema(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), 0.9)
    with pytest.raises(ValueError, match="buffers must be"):
        update_ema(network(), network(), 0.9, "mean")
