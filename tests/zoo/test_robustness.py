"""Corruptions inside the ranges of the benchmark, and what is counted on them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo.data import DataError, ImageData
from sslzoo.evaluation.corruption_fields import from_hsv, to_hsv
from sslzoo.evaluation.corruptions import BENCHMARK, EXTRAS, NAMES, SEVERITIES, corrupt
from sslzoo.evaluation.robustness import (
    CleanProbe,
    calibration_error,
    mean_corruption_error,
    shared_classes,
    shift,
)

FROST = [np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)]


def photo(side=32, count=4):
    """Smooth pictures with edges in them, uint8 [N, 3, S, S]."""
    generator = np.random.default_rng(1)
    line = np.linspace(0, 3, side)
    waves = [np.sin(line[:, None] * a + b) * np.cos(line * c) for a, b, c in
             generator.uniform(1, 4, (3 * count, 3))]  # fmt: skip
    images = 100 + 80 * np.stack(waves).reshape(count, 3, side, side)
    images[:, :, side // 4 : side // 2, side // 3 : side // 2] += 40
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))


def grey(value, side=64):
    return torch.full((1, 3, side, side), value, dtype=torch.uint8)


def distance(a, b):
    return (a.float() - b.float()).abs().mean().item() / 255


def test_there_are_fifteen_kinds_and_four_extras_of_five_severities():
    assert len(BENCHMARK) == 15 and len(EXTRAS) == 4
    assert all(len(constants) == 5 for constants in SEVERITIES.values())


@pytest.mark.parametrize("kind", NAMES)
def test_every_kind_changes_the_image_and_comes_again(kind):
    x = photo()
    y = corrupt(x, kind, 3, frost=FROST)
    assert y.dtype == torch.uint8 and y.shape == x.shape
    assert 0.002 < distance(x, y) < 0.4
    assert torch.equal(y, corrupt(x, kind, 3, frost=FROST))
    alone = corrupt(x[2:3], kind, 3, indices=[2], frost=FROST)
    assert torch.equal(alone[0], y[2]), "an image's corruption depends on the batch"
    one_channel = corrupt(x[:, :1], kind, 1, frost=FROST)
    assert one_channel.shape == (4, 1, 32, 32)


RISING = ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur",
          "defocus_blur", "zoom_blur", "fog", "brightness", "contrast", "pixelate",
          "jpeg_compression"]  # fmt: skip


@pytest.mark.parametrize("kind", RISING)
def test_severities_rise(kind):
    x = photo()
    found = [distance(x, corrupt(x, kind, severity)) for severity in (1, 2, 3, 4, 5)]
    assert found == sorted(found) and found[4] > 1.2 * found[0], found


@pytest.mark.parametrize("severity, std", [*enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1)])
def test_gaussian_noise_has_the_deviation_of_the_benchmark(severity, std):
    y = corrupt(grey(128), "gaussian_noise", severity).double() / 255
    assert y.std().item() == pytest.approx(std, rel=0.03)
    assert y.mean().item() == pytest.approx(128 / 255, abs=0.005)


@pytest.mark.parametrize("severity, photons", [*enumerate((500, 250, 100, 75, 50), 1)])
def test_shot_noise_has_the_variance_of_its_photons(severity, photons):
    y = corrupt(grey(128), "shot_noise", severity).double() / 255
    assert y.var().item() == pytest.approx(128 / 255 / photons, rel=0.06)


@pytest.mark.parametrize("severity, share", [*enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1)])
def test_impulse_noise_hits_its_share_half_white_half_black(severity, share):
    y = corrupt(grey(128, 128), "impulse_noise", severity)
    for value in (0, 255):
        assert (y == value).double().mean().item() == pytest.approx(share / 2, rel=0.15)


def test_values_of_colour_and_contrast_worked_by_hand():
    assert corrupt(grey(100), "brightness", 5)[0, 0, 0, 0] == 176  # 100 + 0.3 x 255 = 176.5
    x = torch.tensor([50, 150], dtype=torch.uint8).repeat(1, 3, 4, 2)
    assert corrupt(x, "contrast", 3)[0, 0, 0].tolist() == [80, 120, 80, 120]  # 100 -+ 0.4 x 50
    red = torch.tensor([200, 100, 100], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 4, 4)
    # Saturation 0.5 becomes 0.3 x 0.5: the lower channels are 200 (1 - 0.15).
    assert corrupt(red, "saturate", 1)[0, :, 0, 0].tolist() == [200, 170, 170]


def test_colours_survive_hue_and_back():
    x = np.random.default_rng(0).random((2, 5, 5, 3))
    np.testing.assert_allclose(from_hsv(*to_hsv(x)), x, atol=1e-12)


def test_blurs_keep_a_flat_image_and_the_mean_of_a_dot():
    for kind in ("gaussian_blur", "defocus_blur", "zoom_blur", "motion_blur", "glass_blur"):
        assert (corrupt(grey(100, 32), kind, 5).int() - 100).abs().max() <= 1, kind
    dot = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    dot[..., 14:16, 14:16] = 255
    for kind in ("gaussian_blur", "defocus_blur", "motion_blur"):
        y = corrupt(dot, kind, 5).double()
        assert y.sum().item() == pytest.approx(dot.double().sum().item(), rel=0.05), kind
        assert y.max() < 255, kind


def test_pixelate_makes_neighbours_equal():
    x = photo(20, 1)
    y = corrupt(x, "pixelate", 5)  # 0.65 x 20 = 13 pixels, so neighbours become equal
    assert (y.diff(dim=-1) == 0).double().mean() > 1.5 * (x.diff(dim=-1) == 0).double().mean()


# Counts


def test_mean_corruption_error_by_hand():
    ours, theirs = {"a": [0.2, 0.4], "b": [0.3, 0.3]}, {"a": [0.5, 0.7], "b": [0.6, 0.6]}
    assert mean_corruption_error(ours, theirs) == pytest.approx(0.5)
    assert mean_corruption_error(theirs, theirs) == 1
    # (0.6 - 0.2) / (1.2 - 0.8) = 1 and (0.6 - 0.2) / (1.2 - 0.8) = 1
    assert mean_corruption_error(ours, theirs, 0.1, 0.4) == pytest.approx(1)
    assert math.isnan(mean_corruption_error({"a": [0.1]}, {"a": [0.0]}))


def test_calibration_error_by_hand():
    # One bin: |0.8 - 0.5| with two samples; another: |1 - 1| with two.
    confidence, right = np.array([0.8, 0.8, 1.0, 1.0]), np.array([True, False, True, True])
    assert calibration_error(confidence, right) == pytest.approx(0.15)
    assert calibration_error(np.ones(5), np.ones(5, bool)) == 0


def test_probabilities_of_some_classes_sum_to_one():
    labels = torch.arange(4).repeat(20)
    probe = CleanProbe(torch.eye(4)[labels], labels)
    assert probe.error(torch.eye(4), torch.arange(4)) == 0
    p = probe.probabilities(torch.eye(4), [1, 3])
    assert p[:, [0, 2]].max() == 0 and p.sum(1) == pytest.approx(1)
    assert probe.predictions(p)[[1, 3]].tolist() == [1, 3]


def test_classes_are_matched_by_name():
    cifar, stl = ["airplane", "automobile", "bird"], ["airplane", "bird", "car", "monkey"]
    assert shared_classes(cifar, stl) == {0: 0, 1: 2, 2: 1}


def test_shifts_keep_the_size_and_differ_by_image():
    x = photo(16).repeat(1, 1, 1, 1)
    x[1] = x[0]
    assert torch.equal(shift(x, "inverted"), 255 - x)
    for kind in ("rotated", "translated"):
        y = shift(x, kind)
        assert y.shape == x.shape and not torch.equal(y[0], y[1])
        assert torch.equal(y, shift(x, kind)) and not torch.equal(y, shift(x, kind, seed=1))


def test_the_protocol_counts_errors_on_corrupted_digits(judge, make_subject):
    options = dict(kinds=("gaussian_noise", "contrast", "frost"), severities=(1, 5), images=40)
    values, result = judge("robustness", **options)
    assert "frost is left out" in result.notes[0] and "2 kinds" in result.notes[0]
    errors = result.details["errors"]["trained"]
    assert values["mean error under corruption"] == pytest.approx(np.mean([*errors.values()]))
    assert values["inverted, accuracy"] == pytest.approx(
        values["clean, accuracy"] - values["inverted, drop"])  # fmt: skip
    assert values["clean error"] == pytest.approx(1 - values["clean, accuracy"])
    assert result.pictures["errors"].exists()
    again, _ = judge("robustness", **options)
    assert again == values

    same = make_subject(untrained=True)
    values, _ = judge("robustness", same, **options)
    assert values["mCE (untrained encoder = 100 %)"] == 1


def test_another_data_set_is_judged_on_the_shared_classes(judge, make_subject):
    judged = make_subject(max_test=0)
    ours = judged.data("test")
    ours.class_names = [f"digit {i}" for i in range(10)]
    # The same images, classes 0 to 4 under other numbers, and no others.
    kept = ours.subset((ours.labels < 5).nonzero()[:, 0])
    other = ImageData("other", images=kept.images, labels=4 - kept.labels,
                      class_names=ours.class_names[4::-1])  # fmt: skip
    judged._splits["other", "test"] = other
    judged._fingerprints["other", "test"] = other.fingerprint()
    values, _ = judge("robustness", judged, kinds=(), shifts=(), other=("other",), reference=False)
    assert values["other, 5 shared classes, drop"] == pytest.approx(0)
    assert values["other, 5 shared classes, accuracy"] > 0.7


@pytest.mark.parametrize("options, words", [
    ({"kinds": ("rain",)}, "no corruption 'rain'"), ({"severities": (6,)}, "severities must be"),
])  # fmt: skip
def test_options_that_do_not_exist_are_told(judge, options, words):
    with pytest.raises(ValueError, match=words):
        judge("robustness", **options)


def test_a_folder_without_textures_is_told(judge, tmp_path):
    with pytest.raises(DataError, match="no texture"):
        judge("robustness", kinds=("frost",), frost=str(tmp_path))
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "frost1.png")
    values, result = judge("robustness", kinds=("frost",), frost=str(tmp_path), severities=(1,),
                           reference=False, shifts=(), images=20)  # fmt: skip
    assert "frost, mean error" in values and not result.notes
