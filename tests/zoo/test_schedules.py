"""Schedules against the formula of the papers, by hand."""

import math
from itertools import pairwise

import pytest

from sslzoo.announcement import unfinished_warm_up
from sslzoo.schedules import scaled_learning_rate, warmup_cosine
from sslzoo.training_config import TrainingConfig


def test_warm_up_is_linear_from_zero():
    values = [warmup_cosine(t, 100, 2.0, warmup_steps=10) for t in (0, 1, 5, 10)]
    assert values == [0.0, 0.2, 1.0, 2.0]


def test_cosine_passes_the_middle_and_ends_at_the_minimum():
    # 10 + 45 is half of the cosine: (2 + 0.2) / 2
    assert warmup_cosine(55, 100, 2.0, warmup_steps=10, minimum=0.2) == pytest.approx(1.1)
    assert warmup_cosine(100, 100, 2.0, warmup_steps=10, minimum=0.2) == pytest.approx(0.2)
    third = 0.2 + 0.9 * (1 + math.cos(math.pi / 3))
    assert warmup_cosine(40, 100, 2.0, warmup_steps=10, minimum=0.2) == pytest.approx(third)


def test_no_warm_up_starts_at_the_peak():
    assert warmup_cosine(0, 7, 0.3) == pytest.approx(0.3)


def test_a_run_that_is_all_warm_up_never_divides_by_zero():
    assert warmup_cosine(10, 10, 1.0, warmup_steps=10) == pytest.approx(1.0)


def test_every_iteration_has_its_own_value():
    values = [warmup_cosine(t, 50, 1.0, warmup_steps=5) for t in range(51)]
    assert all(a < b for a, b in pairwise(values[:6]))
    assert all(a > b for a, b in pairwise(values[5:]))


@pytest.mark.parametrize(
    "rule, batch, expected", [("linear", 512, 0.2), ("sqrt", 1024, 0.2), ("none", 512, 0.1)]
)
def test_learning_rate_follows_the_batch(rule, batch, expected):
    assert scaled_learning_rate(0.1, batch, rule) == pytest.approx(expected)


def test_the_papers_learning_rate():
    assert scaled_learning_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    # 0.075 sqrt(B) of the paper's table, written per 256 images: 1.2
    assert scaled_learning_rate(1.2, 4096, "sqrt") == pytest.approx(0.075 * math.sqrt(4096))


@pytest.mark.parametrize("epochs, warmup, said", [(2, 10, "20%"), (10, 10, "100%"), (11, 10, ""),
                                                  (1, 0, "")])  # fmt: skip
def test_a_warm_up_that_does_not_end_is_said(epochs, warmup, said):
    lines = unfinished_warm_up(TrainingConfig(epochs=epochs, warmup_epochs=warmup))
    assert len(lines) == bool(said) and said in "".join(lines)
