"""Random numbers without a state: the published generator, uniform and unrelated streams."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_1samp, ks_2samp
from torch import empty
from torchvision.transforms import RandomResizedCrop

from sslzoo.clips import ClipSpec, draw_resized_boxes
from sslzoo.counter_random import GOLDEN, Uniform, mix64, stream_keys


def uniforms(count, seed=0, epoch=0, view=0):
    """Six uniform numbers of each sample's view."""
    return Uniform(stream_keys(seed, epoch, view, np.arange(count)))(6)


def boxes(spec, count, height, width, seed=0):
    uniform = Uniform(stream_keys(seed, 0, np.arange(count)))
    sides = (np.full((count, 1), float(side)) for side in (height, width))
    return draw_resized_boxes(spec, uniform, *sides)


def test_generator_is_splitmix64():
    # The published first outputs for the state 1234567 (Vigna's splitmix64.c).
    with np.errstate(over="ignore"):
        outputs = mix64(np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * GOLDEN).tolist()
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_are_uniform_and_unrelated_across_samples_epochs_views_and_seeds():
    N = 20000
    u = uniforms(N)
    for column in u.T:
        assert ks_1samp(column, lambda x: np.clip(x, 0, 1)).pvalue > 1e-3
    others = [u[1:], *(uniforms(N, **{name: 1})[:-1] for name in ("seed", "epoch", "view"))]
    for other in others:
        correlation = np.corrcoef(u[:-1].T, other.T)[:6, 6:]
        assert np.abs(correlation).max() < 4.5 / np.sqrt(N)
    within = np.corrcoef(u.T) - np.eye(6)
    assert np.abs(within).max() < 4.5 / np.sqrt(N)


def test_seeds_and_epochs_do_not_shift_into_one_another():
    # A sum of the four numbers as key would make (seed 0, epoch 1) equal (seed 1, epoch 0).
    first = [uniforms(1, s, e, v)[0, 0] for s, e, v in itertools.product(range(6), repeat=3)]
    assert len(set(first)) == 6**3


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.08, 1)), (48, 30, (0.2, 1)), (20, 90, (0.5, 1))]
)
def test_crops_of_clips_are_distributed_as_torchvisions(height, width, scale):
    ours = boxes(ClipSpec(32, crop_scale=scale), 20000, height, width)
    blank, ratio = empty(3, height, width), (3 / 4, 4 / 3)
    theirs = np.array([RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(4000)])
    for column in range(4):  # top, left, height, width
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    areas = (x[:, 2] * x[:, 3] for x in (ours, theirs))
    assert ks_2samp(*areas).pvalue > 1e-3


@given(st.integers(1, 70), st.integers(1, 70), st.floats(0.01, 1), st.integers(0, 2**40))
def test_crops_of_clips_lie_within_the_frame(height, width, smallest, seed):
    spec = ClipSpec(8, crop_scale=(smallest, 1.0))
    top, left, h, w = boxes(spec, 50, height, width, seed).T
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
