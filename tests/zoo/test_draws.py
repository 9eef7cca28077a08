"""Random choices in forward do not depend on how the batch is split over processes."""

from types import SimpleNamespace

import torch

from sslzoo import draws
from sslzoo.draws import Draws, whole_numbers


def test_each_process_draws_its_part_of_the_batch(monkeypatch):
    torch.manual_seed(7)
    drawn = Draws()
    whole = drawn(3, 8).uniform(8, 5)
    for rank in range(2):
        group = SimpleNamespace(rank=lambda rank=rank: rank)
        monkeypatch.setattr(draws, "default_group", lambda group=group: group)
        assert torch.equal(drawn(3, 4).uniform(4, 5), whole[4 * rank : 4 * rank + 4])


def test_the_seed_is_that_of_the_run():
    torch.manual_seed(7)
    first, second = Draws(), Draws()
    torch.manual_seed(8)
    other = Draws()
    numbers = [d(0, 2).uniform(2, 3) for d in (first, second, other)]
    assert torch.equal(numbers[0], numbers[1]) and not torch.equal(numbers[0], numbers[2])


def test_whole_numbers_are_even_and_in_range():
    drawn = whole_numbers(torch.arange(1000) / 1000, 4)
    assert torch.bincount(drawn).tolist() == [250] * 4
