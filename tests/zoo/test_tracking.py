"""J, F and PCK against numbers worked by hand and those of the specification."""

import math

import numpy as np
import pytest

from sslzoo.data import DataError
from sslzoo.evaluation.tracking import (
    boundary,
    contour_accuracy,
    pck,
    region_similarity,
    score_sequence,
    summarise,
)


def square(left, top=140, side=200, size=(480, 854)):
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize(("shift", "J", "F"), [(0, 1, 1), (1, 0.990, 1), (8, 0.923, 1),
                                               (20, 0.818, 0.4925)])  # fmt: skip
def test_a_shifted_square_scores_as_the_specification_says(shift, J, F):
    truth, moved = square(300), square(300 + shift)
    assert region_similarity(moved, truth) == pytest.approx(J, abs=5e-4)
    assert contour_accuracy(moved, truth) == pytest.approx(F, abs=5e-5)


def test_empty_masks():
    nothing, something = np.zeros((480, 854), dtype=bool), square(300)
    assert region_similarity(nothing, nothing) == contour_accuracy(nothing, nothing) == 1
    assert region_similarity(nothing, something) == contour_accuracy(nothing, something) == 0
    assert contour_accuracy(something, nothing) == 0


def test_the_boundary_lies_on_the_upper_left_of_a_change():
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 1:3] = True
    expected = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    assert (boundary(mask) == expected).all()
    at_rim = np.zeros((3, 3), dtype=bool)
    at_rim[1:, 1:] = True  # reaches the last row and the last column
    assert (boundary(at_rim) == np.array([[1, 1, 1], [1, 0, 0], [1, 0, 0]])).all()


def test_the_corner_has_no_boundary_and_the_rim_only_along_itself():
    corner = np.zeros((3, 3), dtype=bool)
    corner[2, 2] = True
    assert (boundary(corner) == np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0]])).all()


def test_first_and_last_frame_do_not_count_and_objects_are_scored_apart():
    truth = np.zeros((5, 40, 40), int)
    truth[:, 5:15, 5:15], truth[:, 20:30, 20:30] = 1, 2
    predicted = truth.copy()
    predicted[0] = predicted[-1] = 0  # not counted
    predicted[2][truth[2] == 2] = 0  # object 2 is lost in one of three frames
    (first_J, first_F), (second_J, second_F) = score_sequence(predicted, truth)
    assert (first_J.mean, first_J.recall, first_F.mean) == (1, 1, 1)
    assert second_J.mean == second_F.mean == second_J.recall == pytest.approx(2 / 3)


def test_decay_is_the_first_quarter_minus_the_last():
    values = np.linspace(1, 0.2, 9)  # quarters share their ends: 0, 2, 4, 6, 8
    assert summarise(values).decay == pytest.approx(values[:3].mean() - values[6:].mean())
    assert summarise(np.full(7, 0.6)) == (0.6, 1.0, 0.0)


def test_masks_of_another_size_and_too_short_sequences_are_refused():
    with pytest.raises(DataError, match="masks of another size"):
        score_sequence(np.zeros((3, 4, 4), int), np.zeros((3, 4, 5), int))
    with pytest.raises(DataError, match="needs 3 frames"):
        score_sequence(np.zeros((2, 4, 4), int), np.ones((2, 4, 4), int))


def test_pck_by_hand():
    # The box around the visible joints is 30 x 40: the unit is 0.6 x 50 = 30 pixels.
    truth = np.array([[[0, 0, 1], [30, 40, 1], [500, 500, 0]]], float)
    predicted = np.array([[[0, 3], [30, 31], [0, 0]]], float)  # 3 and 9 pixels off
    assert pck(predicted, truth).lenient == {0.1: 0.5, 0.2: 0.5, 0.3: 1, 0.4: 1, 0.5: 1}
    predicted[0, 1] = -1  # given up
    result = pck(predicted, truth, levels=(0.1,))
    assert result.lenient == {0.1: 1} and result.strict == {0.1: 0.5}


def test_pck_of_one_joint_keeps_the_box_of_all():
    truth = np.array([[[0, 0, 1], [30, 40, 1]]], float)  # a unit of 30 pixels
    predicted = np.array([[[0, 4], [30, 49]]], float)
    assert pck(predicted, truth, levels=(0.1, 0.2), joint=0).strict == {0.1: 0, 0.2: 1}
    assert pck(predicted, truth, levels=(0.2, 0.3), joint=1).strict == {0.2: 0, 0.3: 1}


def test_pck_without_joints_is_nan():
    result = pck(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)), levels=(0.1,))
    assert math.isnan(result.strict[0.1]) and math.isnan(result.lenient[0.1])
