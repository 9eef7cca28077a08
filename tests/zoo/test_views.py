"""Views: pure functions of four numbers, distributed as torchvision's, equal in every pixel."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_1samp, ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from sslzoo import pixels
from sslzoo.counter_random import GOLDEN, mix64
from sslzoo.views import (
    ViewSpec,
    apply_cropped_views,
    apply_views,
    draw_parameters,
    evaluation_view,
)

LEVEL = 1 / 255
FULL = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.5, solarize=0.2,
            rotate=20, translate=0.1, shear=10)  # fmt: skip
PLAIN = dict(flip=0, jitter=0, grayscale=0, mean=(0, 0, 0), std=(1, 1, 1))


def images(count, height=20, width=24, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def draw(spec, count, seed=0, epoch=0, view=0, height=32, width=32):
    return draw_parameters(spec, seed, epoch, np.arange(count), view, height, width)


def uniforms(count, seed=0, epoch=0, view=0):
    """Six uniform numbers of each sample's view: brightness to hue, and the blur's sigma."""
    spec = ViewSpec(32, jitter=1, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5, blur=1,
                    blur_sigma=(0.0, 1.0))  # fmt: skip
    p = draw(spec, count, seed, epoch, view)
    low = torch.tensor([0.5, 0.5, 0.5, -0.5])
    return torch.cat([p["factors"] - low, p["blur_sigma"][:, None]], 1).double().numpy()


def test_generator_is_splitmix64():
    # The published first outputs for the state 1234567 (Vigna's splitmix64.c).
    with np.errstate(over="ignore"):
        outputs = mix64(np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * GOLDEN).tolist()
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_view_depends_on_nothing_but_its_four_numbers():
    spec = ViewSpec(32, **FULL)
    together = draw(spec, 64, seed=5, epoch=3, view=1)
    rows = [40, 7, 63]
    alone = draw_parameters(spec, 5, 3, rows, 1, 32, 32)
    for name, value in together.items():
        assert torch.equal(value[rows], alone[name]), name
    pictures = images(64)
    views = apply_views(
        pictures, spec, draw(spec, 64, seed=5, epoch=3, view=1, height=20, width=24)
    )
    again = draw_parameters(spec, 5, 3, rows, 1, 20, 24)
    # Matrix kernels may round differently for another batch size.
    torch.testing.assert_close(apply_views(pictures[rows], spec, again), views[rows],
                               atol=1e-5, rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("change", [dict(seed=1), dict(epoch=1), dict(view=1)])
def test_every_number_changes_every_sample(change):
    spec = ViewSpec(32, **FULL)
    same = (draw(spec, 500)["factors"] == draw(spec, 500, **change)["factors"]).all(1)
    # A fifth is not jittered in each, so 4 % agree by chance.
    assert same.float().mean() < 0.1


def test_numbers_are_uniform_and_unrelated_across_samples_epochs_views_and_seeds():
    N = 20000
    u = uniforms(N)
    for column in u.T:
        assert ks_1samp(column, lambda x: np.clip(x, 0, 1)).pvalue > 1e-3
    others = [u[1:], *(uniforms(N, **{name: 1})[:-1] for name in ("seed", "epoch", "view"))]
    for other in others:
        correlation = np.corrcoef(u[:-1].T, other.T)[:5, 5:]
        assert np.abs(correlation).max() < 4.5 / np.sqrt(N)
    within = np.corrcoef(u.T) - np.eye(5)
    assert np.abs(within).max() < 4.5 / np.sqrt(N)


def test_seeds_and_epochs_do_not_shift_into_one_another():
    # A sum of the four numbers as key would make (seed 0, epoch 1) equal (seed 1, epoch 0).
    first = [uniforms(1, s, e, v)[0, 0] for s, e, v in itertools.product(range(6), repeat=3)]
    assert len(set(first)) == 6**3


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.08, 1)), (48, 30, (0.2, 1)), (20, 90, (0.5, 1))]
)
def test_crops_are_distributed_as_torchvisions(height, width, scale):
    p = draw(ViewSpec(32, crop_scale=scale), 20000, height=height, width=width)
    blank, ratio = torch.empty(3, height, width), (3 / 4, 4 / 3)
    theirs = np.array([RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(4000)])
    for column in range(4):  # top, left, height, width
        assert ks_2samp(p["crop"][:, column].numpy(), theirs[:, column]).pvalue > 1e-3
    ours_area, their_area = p["crop"][:, 2] * p["crop"][:, 3], theirs[:, 2] * theirs[:, 3]
    assert ks_2samp(ours_area.numpy(), their_area).pvalue > 1e-3


@given(st.integers(1, 70), st.integers(1, 70), st.floats(0.01, 1), st.integers(0, 2**40))
def test_crops_lie_within_the_image(height, width, smallest, seed):
    spec = ViewSpec(8, crop_scale=(smallest, 1.0))
    top, left, h, w = draw(spec, 50, seed=seed, height=height, width=width)["crop"].T
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_images_of_different_sizes_get_crops_of_their_own():
    spec, rows = ViewSpec(8), np.arange(3)
    heights, widths = np.array([10, 40, 25]), np.array([30, 12, 25])
    together = draw_parameters(spec, 0, 0, rows, 0, heights, widths)["crop"]
    for i in range(3):
        alone = draw_parameters(spec, 0, 0, [i], 0, heights[i], widths[i])["crop"]
        assert torch.equal(together[i], alone[0])


def test_probabilities_are_met_and_orders_are_even():
    N = 20000
    p = draw(ViewSpec(32, **{**FULL, "jitter": 0.7}), N)
    for name, share in dict(flip=0.5, grayscale=0.2, solarize=0.2).items():
        assert abs(p[name].double().mean() - share) < 4 * np.sqrt(share * (1 - share) / N)
    assert abs((p["blur_sigma"] > 0).double().mean() - 0.5) < 4 * 0.5 / np.sqrt(N)
    is_jittered = (p["factors"] != torch.tensor([1.0, 1, 1, 0])).any(1)
    assert abs(is_jittered.double().mean() - 0.7) < 4 * np.sqrt(0.21 / N)
    code = (p["order"] * torch.tensor([64, 16, 4, 1])).sum(1)
    assert chisquare(code.unique(return_counts=True)[1]).pvalue > 1e-3
    assert len(code.unique()) == 24


def torchvision_jitter(x, factors, order):
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for i in order.tolist():
        x = operations[i](x, float(factors[i]))
    return x


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_equals_torchvisions_sample_by_sample(channels):
    p = draw(ViewSpec(32, jitter=0.9, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5), 96)
    x = images(96, channels=channels).float() / 255
    ours = pixels.jitter(x.clone(), p["factors"], p["order"])
    for i in range(len(x)):
        theirs = torchvision_jitter(x[i], p["factors"][i], p["order"][i])
        torch.testing.assert_close(ours[i], theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("operation", range(4))
def test_each_colour_operation_is_within_a_grey_level_of_torchvisions_on_bytes(operation):
    bytes_ = images(24)
    factors = torch.tensor([1.0, 1, 1, 0]).repeat(24, 1)
    factors[:, operation] = torch.linspace(-0.5, 0.5, 24) + (operation != pixels.HUE)
    ours = pixels.jitter(bytes_.float() / 255, factors, torch.arange(4).repeat(24, 1))
    function = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for i in range(24):
        theirs = function[operation](bytes_[i], factors[i, operation].item())
        # torchvision cuts off the fractions of greys and of results.
        ours_as_bytes = (ours[i] * 255 + 1e-3).int()
        assert (ours_as_bytes - theirs).abs().max() <= 1


def test_grey_blur_and_solarisation_equal_torchvisions():
    x = images(12).float() / 255
    grey = pixels.grey(x).expand_as(x)
    torch.testing.assert_close(grey, tv.rgb_to_grayscale(x, 3), atol=1e-6, rtol=0)
    sigma = torch.linspace(0, 2, 12)
    blurred = pixels.blur(x, sigma, 7)
    assert torch.equal(blurred[0], x[0]), "sigma 0 is no blur"
    for i in range(1, 12):
        theirs = tv.gaussian_blur(x[i], [7, 7], [sigma[i].item()] * 2)
        torch.testing.assert_close(blurred[i], theirs, atol=1e-6, rtol=0)

    bytes_ = images(12, 8, 8)
    spec = ViewSpec(8, crop_scale=(1, 1), crop_ratio=(1, 1), **{**PLAIN, "solarize": 0.5})
    p = draw(spec, 12, height=8, width=8)
    views = apply_views(bytes_, spec, p)
    assert 0 < p["solarize"].sum() < 12
    for i in range(12):
        expected = tv.solarize(bytes_[i], 128) if p["solarize"][i] else bytes_[i]
        torch.testing.assert_close(views[i], expected / 255.0, atol=1e-5, rtol=0)


def test_grayscale_reaches_the_chosen_samples_only():
    spec = ViewSpec(24, **{**PLAIN, "grayscale": 0.5})
    p = draw(spec, 40, height=20, width=24)
    spread = apply_views(images(40), spec, p).std(1).amax((1, 2))
    assert ((spread < 1e-6) == p["grayscale"]).all() and 0 < p["grayscale"].sum() < 40


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_resize_and_flip_equal_torchvisions(interpolation):
    spec = ViewSpec(30, **{**PLAIN, "flip": 0.5}, interpolation=interpolation)
    p = draw(spec, 32, height=20, width=24)
    pictures = images(32)
    views = apply_views(pictures, spec, p)
    inner = slice(3, -3) if interpolation == "bicubic" else slice(None)
    for i in range(32):
        box = p["crop"][i].int().tolist()
        mode = tv.InterpolationMode(interpolation)
        x = tv.resized_crop(pictures[i] / 255.0, *box, [30, 30], mode, antialias=False).clamp(0, 1)
        x = tv.hflip(x) if p["flip"][i] else x
        # Bicubic weights reach beyond the crop, whose border torchvision repeats.
        margin = slice(None) if interpolation == "bilinear" else inner
        error = (views[i] - x)[:, margin, margin].abs()
        assert error.max() < (2e-5 if interpolation == "bilinear" else 1), i
        assert error.median() < 2e-5


def test_rotation_shift_and_shear_move_pixels_as_named():
    x = images(1, 9, 9, seed=3).float() / 255
    whole, no_flip = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([False])

    def move(*affine):
        bytes_ = (x * 255).round().to(torch.uint8)
        return pixels.resample(bytes_, whole, no_flip, torch.tensor([affine]), 9, clamp=False)

    torch.testing.assert_close(
        move(np.pi / 2, 0.0, 0.0, 0.0), x.rot90(1, (2, 3)), atol=1e-5, rtol=0
    )
    shifted = move(0.0, 0.0, 2 / 9 * 2, 0.0)  # two pixels of nine
    torch.testing.assert_close(shifted[..., :-2], x[..., 2:], atol=1e-5, rtol=0)
    sheared = move(0.0, 1.0, 0.0, 0.0)  # row r moves by its distance from the middle row
    torch.testing.assert_close(sheared[:, :, 4], x[:, :, 4], atol=1e-5, rtol=0)
    torch.testing.assert_close(sheared[:, :, 6, :-2], x[:, :, 6, 2:], atol=1e-5, rtol=0)


def test_shrinking_does_not_alias():
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    board = board.to(torch.uint8).expand(1, 3, 64, 64)
    spec = ViewSpec(16, crop_scale=(1, 1), crop_ratio=(1, 1), **PLAIN)
    view = apply_views(board, spec, draw(spec, 1, height=64, width=64))
    torch.testing.assert_close(view, torch.full_like(view, 0.5), atol=1e-3, rtol=0)
    evaluated = evaluation_view(board, 16, (0, 0, 0), (1, 1, 1))
    torch.testing.assert_close(evaluated, torch.full_like(evaluated, 0.5), atol=0.05, rtol=0)


@pytest.mark.parametrize("affine", [{}, dict(rotate=30)])
def test_views_of_cropped_images_equal_those_of_whole_images(affine):
    spec = ViewSpec(30, **{**PLAIN, "flip": 0.5}, **affine)
    p = draw(spec, 16, height=20, width=24)
    pictures = images(16, seed=2)
    # Smooth images: a rotation after the crop resamples twice.
    pictures = torch.nn.functional.avg_pool2d(pictures.float(), 7, 1, 3).to(torch.uint8)
    crops = [
        pixels.crop_resize(x, box, 30) for x, box in zip(pictures, p["crop"].tolist(), strict=True)
    ]
    ours = apply_cropped_views(torch.stack(crops), spec, p)
    error = (ours - apply_views(pictures, spec, p)).abs()[:, :, 8:-8, 8:-8]
    assert error.max() < (8 if affine else 1.01) * LEVEL  # bytes are resized in fixed point


def test_normalisation_and_one_channel():
    pictures = images(4, 8, 8, channels=1)
    spec = ViewSpec(8, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=1,
                    mean=(0.3,), std=(0.4,))  # fmt: skip
    views = apply_views(pictures, spec, draw(spec, 4, height=8, width=8))
    torch.testing.assert_close(views, (pictures / 255.0 - 0.3) / 0.4, atol=1e-5, rtol=0)


def test_evaluation_view_shows_the_centre():
    small = images(2, 32, 32)
    plain = evaluation_view(small, 32, (0, 0, 0), (1, 1, 1))
    assert torch.equal(plain, small.float() / 255)
    wide = torch.zeros(1, 3, 64, 128, dtype=torch.uint8)
    wide[..., 32:96] = 200
    view = evaluation_view(wide, 64, (0, 0, 0), (1, 1, 1))
    assert torch.equal(view, torch.full_like(view, 200 / 255))
    large = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    large[..., 16:-16, 16:-16] = 255  # the central 224 of 256
    view = evaluation_view(large, 224, (0, 0, 0), (1, 1, 1))
    assert view.shape == (1, 3, 224, 224) and view.min() == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("flip", 1.5), ("crop_scale", (0.5, 0.2)), ("crop_scale", (0, 1)), ("crop_ratio", (2, 1)),
     ("hue", 0.6), ("interpolation", "nearest"), ("size", 0), ("blur_kernel", 4),
     ("blur_sigma", (0.0, -1.0)), ("brightness", -1)],
)  # fmt: skip
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        ViewSpec(**{"size": 32, option: value})


def test_crop_padding_shifts_the_whole_image_by_whole_pixels():
    spec = ViewSpec(size=8, crop_padding=2, flip=0.0, grayscale=0.0, mean=(0.0,) * 3,
                    std=(1.0,) * 3)  # fmt: skip
    images = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8)
    parameters = draw_parameters(spec, 0, 0, np.arange(60), 0, 8, 8)
    seen = {(int(top), int(left)) for top, left, *_ in parameters["crop"]}
    assert {x for pair in seen for x in pair} == {-2, -1, 0, 1, 2} and len(seen) > 20
    padded = torch.nn.functional.pad(images.float() / 255, [2] * 4, mode="replicate")
    views = apply_views(images, spec, parameters)
    for view, image, (top, left, _, _) in zip(views, padded, parameters["crop"], strict=True):
        expected = image[:, 2 + int(top) :, 2 + int(left) :][:, :8, :8]
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)
