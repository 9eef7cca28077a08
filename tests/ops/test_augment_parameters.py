"""Parameters of views: functions of four numbers, distributed as torchvision's transforms'."""

import math

import numpy as np
import pytest
import torch

import sslops

stats = pytest.importorskip("scipy.stats")
v1 = pytest.importorskip("torchvision.transforms")
N = 10_000
SPEC = sslops.ViewSpec(32, brightness=0.4, contrast=0.8, saturation=1.2, hue=0.1, blur=0.5,
                       solarize=0.2, posterize=0.3, erase=0.6, rotate=20, translate=0.1,
                       shear=10)  # fmt: skip


def draw(spec=SPEC, count=N, seed=0, epoch=0, view=0, height=32, width=32):
    index = torch.arange(count)
    return sslops.sample_parameters(spec, seed, epoch, index, view, height=height, width=width)


def assert_share(chosen, share):
    assert abs(chosen.double().mean() - share) < 4 * math.sqrt(share * (1 - share) / len(chosen))


def test_parameters_depend_on_nothing_but_their_four_numbers():
    rows = torch.tensor([40, 7, 63])
    together = draw(count=64, seed=5, epoch=3, view=1)
    alone = sslops.sample_parameters(SPEC, 5, 3, rows, 1, height=32, width=32)
    assert set(together) == set(alone) and len(alone) == 10
    for name, value in together.items():
        assert torch.equal(value[rows], alone[name]), name


@pytest.mark.parametrize("change", [dict(seed=1), dict(seed=2**40), dict(epoch=1), dict(view=1)])
def test_every_number_changes_every_sample(change):
    spec = sslops.ViewSpec(32, jitter=1, brightness=0.4)
    same = draw(spec, 500)["factors"][:, 0] == draw(spec, 500, **change)["factors"][:, 0]
    assert same.sum() == 0


def test_turning_a_step_on_leaves_the_other_draws_as_they_are():
    everything = draw(count=50)
    for name, value in draw(sslops.ViewSpec(32), 50).items():
        assert torch.equal(value, everything[name]), name


def test_an_epoch_may_be_a_tensor_and_sizes_may_differ():
    sizes = torch.tensor([10, 40, 25]), torch.tensor([30, 12, 25])
    index = torch.arange(3)
    together = sslops.sample_parameters(SPEC, 0, torch.tensor(6), index, height=sizes[0],
                                        width=sizes[1])  # fmt: skip
    for i in range(3):
        alone = sslops.sample_parameters(SPEC, 0, 6, index[i : i + 1], height=int(sizes[0][i]),
                                         width=int(sizes[1][i]))  # fmt: skip
        assert torch.equal(together["crop"][i], alone["crop"][0])


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.08, 1)), (48, 30, (0.2, 1)), (20, 90, (0.5, 1))]
)
def test_crops_are_distributed_as_torchvisions(height, width, scale):
    torch.manual_seed(0)
    ours = draw(sslops.ViewSpec(32, crop_scale=scale), height=height, width=width)["crop"].numpy()
    blank = torch.empty(3, height, width)
    theirs = np.array(
        [v1.RandomResizedCrop.get_params(blank, scale, (3 / 4, 4 / 3)) for _ in range(3000)]
    )
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    areas = (x[:, 2] * x[:, 3] for x in (ours, theirs))
    assert stats.ks_2samp(*areas).pvalue > 1e-3
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


def test_colours_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    drawn = draw()
    factors, order = drawn["factors"].numpy(), drawn["order"]
    jitter = v1.ColorJitter(0.4, 0.8, 1.2, 0.1)
    ranges = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    theirs = [v1.ColorJitter.get_params(*ranges) for _ in range(3000)]
    is_jittered = (factors != [1, 1, 1, 0]).any(1)
    assert_share(torch.from_numpy(is_jittered), 0.8)
    for column in range(4):
        expected = [t[column + 1] for t in theirs]
        assert stats.ks_2samp(factors[is_jittered, column], expected).pvalue > 1e-3
    code = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3


def test_choices_are_made_as_often_as_asked_and_do_not_depend_on_one_another():
    drawn = draw()
    chosen = {
        "flip": (drawn["flip"], 0.5),
        "grayscale": (drawn["grayscale"], 0.2),
        "solarize": (drawn["solarize"], 0.2),
        "blur": (drawn["blur_sigma"] > 0, 0.5),
        "posterize": (drawn["posterize"] == 4, 0.3),
        "erase": (drawn["erase"][:, 2] > 0, 0.6),
        "jitter": ((drawn["factors"] != torch.tensor([1.0, 1, 1, 0])).any(1), 0.8),
    }
    for share in chosen.values():
        assert_share(*share)
    columns = np.stack([c.double().numpy() for c, _ in chosen.values()])
    assert np.abs(np.corrcoef(columns) - np.eye(len(columns))).max() < 4.5 / math.sqrt(N)
    sigma = drawn["blur_sigma"][drawn["blur_sigma"] > 0]
    assert stats.ks_1samp(sigma.numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_affine_maps_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    ours = draw()["affine"]
    theirs = [v1.RandomAffine.get_params([-20.0, 20.0], [0.1, 0.1], None, [-10.0, 10.0], [32, 32])
              for _ in range(3000)]  # fmt: skip
    angle = torch.rad2deg(torch.atan2(-ours[:, 1, 0], ours[:, 1, 1]))
    assert stats.ks_2samp(angle.numpy(), [t[0] for t in theirs]).pvalue > 1e-3
    forward = torch.linalg.inv(ours[:, :, :2].double())
    shift = -(forward @ ours[:, :, 2:].double())[..., 0] * 16
    # Column 1 of R(a) H(s) is R(a) (-tan s, 1), its product with column 0 is -tan s.
    shear = torch.rad2deg(torch.atan(-(forward[:, :, 0] * forward[:, :, 1]).sum(1)))
    assert stats.ks_2samp(shear.numpy(), [t[3][0] for t in theirs]).pvalue > 1e-3
    for axis in range(2):
        whole = shift[:, axis].round()
        assert (shift[:, axis] - whole).abs().max() < 1e-4
        assert stats.ks_2samp(whole.numpy(), [t[1][axis] for t in theirs]).pvalue > 1e-3


def test_erased_boxes_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    boxes = draw()["erase"]
    boxes = boxes[boxes[:, 2] > 0].numpy()
    blank = torch.empty(3, 32, 32)
    theirs = np.array([v1.RandomErasing.get_params(blank, (0.02, 0.33), (0.3, 3.3), [0.0])[:4]
                       for _ in range(3000)])  # fmt: skip
    for column in range(4):
        assert stats.ks_2samp(boxes[:, column], theirs[:, column]).pvalue > 1e-3


def test_padded_crops_shift_by_every_number_of_pixels_alike():
    crop = draw(sslops.ViewSpec(8, crop_padding=2), height=8, width=9)["crop"]
    assert (crop[:, 2:] == torch.tensor([8.0, 9.0])).all()
    cells = (5 * (crop[:, 0] + 2) + crop[:, 1] + 2).unique(return_counts=True)[1]
    assert len(cells) == 25 and stats.chisquare(cells).pvalue > 1e-3


@pytest.mark.parametrize(
    ("error", "words", "args"),
    [
        (TypeError, "index|int64|float32", (0, 0, torch.zeros(2))),
        (TypeError, "seed|int|0.5", (0.5, 0, torch.arange(2))),
        (ValueError, "seed|-1", (-1, 0, torch.arange(2))),
        (ValueError, "view|256", (0, 0, torch.arange(2), 256)),
    ],
)
def test_bad_arguments_are_named(error, words, args):
    with pytest.raises(error) as caught:
        sslops.sample_parameters(SPEC, *args, height=8, width=8)
    for word in words.split("|"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("erase", 2), ("posterize_bits", 0), ("erase_scale", (0.5, 0.2)), ("erase_ratio", (0, 1))],
)
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        sslops.ViewSpec(**{"size": 32, option: value})
