"""Labels carried by features that know the answer, and by hand-worked attention."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from sslzoo.evaluation import propagation
from sslzoo.evaluation.propagation import PROTOCOLS, propagate

GRID = (12, 16)


def moving_cells(steps, sharpness=60.0):
    """Features of a world that moves: each cell keeps a vector of its own; [T, D, h, w]."""
    h, w = GRID
    cells = sharpness * torch.eye(h * w).reshape(h * w, h, w)
    return [cells.roll((dy, dx), (1, 2)) for dy, dx in steps]


def labels_of(mask):
    return torch.stack([~mask, mask]).float()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_oracle_features_move_a_mask_exactly(name):
    steps = [(t, 2 * t) for t in range(6)]
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[2:5, 1:4] = True
    out = list(propagate(moving_cells(steps), labels_of(mask), PROTOCOLS[name]))
    for (dy, dx), soft in zip(steps, out, strict=True):
        assert torch.equal(soft.argmax(0).bool(), mask.roll((dy, dx), (0, 1)))


def plain(features, labels, protocol):
    """The same in float64, with a loop over frames, target cells and context cells."""
    done = []
    for t, feature in enumerate(features):
        if t == 0:
            done.append(labels.double())
            continue
        context = list(range(max(0, t - protocol.last_frames), t))
        if protocol.keeps_first and 0 not in context:
            context.insert(0, 0)
        done.append(torch.zeros_like(done[0]))
        for y, x in itertools.product(*map(range, feature.shape[1:])):
            pairs = []
            for s, v, u in itertools.product(context, *map(range, feature.shape[1:])):
                far = max(abs(v - y), abs(u - x)) > (protocol.radius or 99)
                if far and (s > 0 or protocol.limits_first):
                    continue
                f, g = feature[:, y, x].double(), features[s][:, v, u].double()
                if protocol.normalize:
                    f, g = f / f.norm(), g / g.norm()
                pairs.append((float(f @ g) / protocol.temperature, done[s][:, v, u]))
            pairs.sort(key=lambda pair: -pair[0])
            pairs = pairs[: protocol.topk]
            A = torch.tensor([score for score, _ in pairs]).double().softmax(0)
            done[t][:, y, x] = sum(a * label for a, (_, label) in zip(A, pairs, strict=True))
    return done


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("changes", [{}, {"last_frames": 2, "radius": 1, "topk": 3}])
def test_propagation_equals_a_plain_loop(name, changes):
    torch.manual_seed(0)
    protocol = replace(PROTOCOLS[name], **changes)
    features = [torch.randn(6, 4, 5) for _ in range(5)]
    labels = torch.rand(3, 4, 5)
    found = list(propagate(features, labels, protocol))
    for frame, expected in zip(found, plain(features, labels, protocol), strict=True):
        torch.testing.assert_close(frame.double(), expected, rtol=1e-4, atol=1e-6)


def test_the_protocols_are_those_of_the_specification():
    dino, crw, paper = (PROTOCOLS[name] for name in ("dino", "crw", "paper"))
    assert (dino.temperature, dino.topk, dino.radius, dino.last_frames) == (0.1, 5, 12, 7)
    assert (crw.topk, crw.radius, crw.last_frames) == (
        10,
        12,
        20,
    ) and 0.05 <= crw.temperature <= 0.07
    assert dino.limits_first and not crw.limits_first and dino.keeps_first and crw.keeps_first
    assert (paper.temperature, paper.last_frames, paper.topk, paper.radius) == (0.5, 3, None, None)
    assert not paper.normalize and not paper.keeps_first


def test_labels_stay_soft_and_are_the_mean_that_attention_says():
    f = torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]])  # two cells, of one row
    protocol = replace(PROTOCOLS["paper"], temperature=0.5)
    labels = torch.tensor([[[1.0, 0.0]]])
    second = list(propagate([f, f], labels, protocol))[1]
    weight = 1 / (1 + math.exp(2))  # cell 1: score 0 to cell 0, 1 / T to itself
    torch.testing.assert_close(second, torch.tensor([[[0.5, weight]]]))


def test_the_first_frame_stays_in_memory_where_the_protocol_says_so():
    """Uniform features: labels become means over what is remembered."""
    blank = torch.zeros(4, 1, 2)
    sharp = torch.zeros(4, 1, 2)
    labels = torch.tensor([[[1.0, 0.0]]])
    frames = [sharp, blank, blank, blank]
    forgetful = replace(PROTOCOLS["paper"], last_frames=1)
    keeping = replace(forgetful, keeps_first=True, topk=1)  # ties go to the first frame
    assert [float(x[0, 0, 1]) for x in propagate(frames, labels, forgetful)][2] == 0.5
    assert [float(x[0, 0, 1]) for x in propagate(frames, labels, keeping)][1:] == [1, 1, 1]


def test_the_window_holds_in_the_first_frame_or_not():
    h, w = 1, 40
    f = torch.zeros(1, h, w)
    labels = torch.zeros(1, h, w)
    labels[0, 0, 0] = 1  # far from the last cell
    dino = replace(PROTOCOLS["dino"], topk=None)
    crw = replace(PROTOCOLS["crw"], topk=None)
    assert list(propagate([f, f], labels, dino))[1][0, 0, -1] == 0
    assert list(propagate([f, f], labels, crw))[1][0, 0, -1] == pytest.approx(1 / 40)


def test_more_than_64_channels_are_carried_alike():
    features = [torch.randn(8, 3, 4) for _ in range(3)]
    labels = torch.rand(70, 3, 4)
    many = list(propagate(features, labels, PROTOCOLS["dino"]))[-1]
    few = list(propagate(features, labels[60:], PROTOCOLS["dino"]))[-1]
    torch.testing.assert_close(many[60:], few)


def test_a_mask_goes_to_cells_and_back():
    mask = torch.zeros(96, 128, dtype=torch.uint8)
    mask[16:48, 32:64], mask[64:80, 96:128] = 1, 2
    cells = propagation.mask_to_cells(mask, GRID)
    assert cells.shape == (3, *GRID) and torch.equal(cells.sum(0), torch.ones(GRID))
    for protocol in PROTOCOLS.values():
        back = propagation.cells_to_mask(cells, mask.shape, protocol, (96, 128))
        wrong = (back != mask).float().mean()
        assert wrong < 0.02  # the corners, which bilinear enlargement rounds


def test_stretching_gives_a_faint_object_its_peak():
    soft = torch.tensor([[[0.9, 0.6, 0.9]], [[0.1, 0.4, 0.1]]])
    stretched = propagation.cells_to_mask(soft, (1, 3), PROTOCOLS["dino"], (1, 3))
    plain = propagation.cells_to_mask(soft, (1, 3), PROTOCOLS["paper"], (1, 3))
    assert stretched.tolist() == [[0, 1, 0]] and plain.tolist() == [[0, 0, 0]]


def test_keypoints_go_to_cells_and_back():
    size = (120, 160)
    keypoints = torch.tensor([[45.0, 70.0, 1], [121, 33, 1], [0, 0, 0]])
    maps = propagation.keypoints_to_cells(keypoints, GRID, size)
    assert maps[2].sum() == 0
    places = propagation.cells_to_keypoints(maps, size)
    assert places[2].tolist() == [-1, -1]
    assert (places[:2] - keypoints[:2, :2]).abs().max() < 4  # cells are 10 pixels wide


def test_a_keypoint_is_the_weighted_mean_of_the_three_best_cells():
    maps = torch.zeros(1, 2, 4)
    maps[0, 0] = torch.tensor([0.0, 0.5, 0.25, 0.25])
    maps[0, 1, 3] = 0.2  # the fourth best does not count
    x, y = propagation.cells_to_keypoints(maps, (2, 4))[0].tolist()
    assert (x, y) == (1 * 0.5 + 2 * 0.25 + 3 * 0.25, 0)


def test_oracle_features_move_a_keypoint():
    steps = [(0, 0), (1, 2), (3, 4)]
    keypoints = torch.tensor([[5.0, 4.0, 1]])
    maps = propagation.keypoints_to_cells(keypoints, GRID, GRID)
    out = list(propagate(moving_cells(steps), maps, PROTOCOLS["dino"]))
    assert propagation.cells_to_keypoints(out[2], GRID).round().tolist() == [[9, 7]]


def test_input_sizes():
    assert propagation.frame_size(480, 854, 480) == (480, 832)
    assert propagation.frame_size(854, 480, 240) == (384, 240)
    assert propagation.frame_size(64, 64, 64) == (64, 64)
