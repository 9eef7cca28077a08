"""Where masks come from: the counter-based generator and the strategies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from masking_helpers import assert_same, by_backend, compiled

import sslops


@pytest.mark.parametrize(
    "key, counter, expected",
    [  # known answers of Random123
        ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(key, counter, expected):
    from sslops.counter_generator import philox

    words = philox(key[0] | key[1] << 32, tuple(torch.tensor(c) for c in counter))
    assert " ".join(f"{int(w):08x}" for w in words) == expected


@compiled
@given(
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**32 - 1),
    length=st.integers(1, 40),
)
def test_kernel_draws_the_bits_of_the_specification(backend, seed, step, first, length):
    generator = sslops.CounterGenerator(seed, step, first)
    ours = sslops.sample_mask(3, length, 0.5, generator=generator, backend=backend)
    noise = generator.uniform(3, length)
    assert_same(ours, sslops.sample_mask(3, length, 0.5, noise=noise, backend="reference"))


@by_backend
@pytest.mark.parametrize("strategy", ["random", "block"])
def test_mask_of_a_sample_does_not_depend_on_the_number_of_processes(strategy, backend):
    def masks(processes):
        per_rank = 12 // processes
        parts = [
            sslops.sample_mask(
                per_rank, 196, 0.5, strategy=strategy, backend=backend,
                generator=sslops.CounterGenerator(7, step=3, first_sample=rank * per_rank),
            ).mask
            for rank in range(processes)
        ]  # fmt: skip
        return torch.cat(parts)

    assert len(masks(1).unique(dim=0)) == 12
    assert torch.equal(masks(1), masks(2))
    assert torch.equal(masks(1), masks(4))


@by_backend
def test_step_may_be_a_tensor(backend):
    step = torch.tensor(41)
    generator = sslops.CounterGenerator(1, step)
    before = sslops.sample_mask(2, 64, 0.5, generator=generator, backend=backend)
    step += 1
    after = sslops.sample_mask(2, 64, 0.5, generator=generator, backend=backend)
    for value, ids in ((41, before), (42, after)):
        fixed = sslops.CounterGenerator(1, value)
        assert_same(ids, sslops.sample_mask(2, 64, 0.5, generator=fixed, backend=backend))
    assert not torch.equal(before.mask, after.mask)


def test_uniform_numbers_are_uniform():
    u = sslops.CounterGenerator(3).uniform(64, 4096).double()
    n = u.numel()
    assert u.min() >= 0 and u.max() < 1
    # Mean and second moment within five standard errors; no sample repeats another.
    assert abs(u.mean() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(u.square().mean() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
    assert len(u.unique(dim=0)) == 64


@by_backend
@pytest.mark.parametrize("side, ratio", [(14, 0.75), (14, 0.5), (8, 0.75), (4, 0.5), (1, 0.0)])
def test_block_removes_rectangles_up_to_the_exact_count(side, ratio, backend):
    generator = sslops.CounterGenerator(11)
    length = side * side
    ids = sslops.sample_mask(
        50, length, ratio, strategy="block", generator=generator, backend=backend
    )
    removed = length - int(length * (1 - ratio))
    assert ids.mask.sum(1).tolist() == [removed] * 50
    if side < 14:
        return
    # Rectangles: a removed token has a removed right neighbour far more often than a random one.
    grid = ids.mask.reshape(50, side, side)
    beside = (grid[:, :, 1:] * grid[:, :, :-1]).sum() / grid[:, :, :-1].sum()
    assert beside > ratio + 0.5 * (1 - ratio)


def test_hand_worked_block():
    from sslops.ops.masking.strategies import RECTANGLES, block_scores

    # 6 x 6 tokens, 8 to remove: areas between 8 and 8. Aspect 16 of 32 is 0.3**(-1/31) = 1.04:
    # height round(sqrt(8.32)) = 3, width round(sqrt(7.69)) = 3. The first lies at the upper left.
    uniform = torch.zeros(1, RECTANGLES, 4)
    uniform[:, :, 1] = 0.5
    order = block_scores(uniform, 6, 8).argsort(dim=1, stable=True)
    removed = sorted(order[0, 28:].tolist())
    assert removed == [1, 2, 6, 7, 8, 12, 13, 14]  # 3 x 3 without its first token: trimmed to 8


@by_backend
def test_grid_keeps_the_upper_left_of_every_two_by_two(backend):
    ids_keep, _, mask = sslops.sample_mask(3, 16, 0.75, strategy="grid", backend=backend)
    assert ids_keep.tolist() == [[0, 2, 8, 10]] * 3
    assert mask[0].tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1]
