"""Views of images: sslops.augment, held to torchvision's functions with the same parameters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sslops
from sslops.ops.augment.cases import Case
from sslzoo import pixels, registry
from sslzoo.data import ImageData, open_data
from sslzoo.torchvision_views import TorchvisionViews, make_views
from sslzoo.views import FileCrops, HeldViews, ViewSpec, evaluation_view, make_view

LEVEL = 1 / 255
AS_BYTES = dict(mean=(0.0,) * 3, std=(1.0,) * 3)
SPECS = {
    "SimCLR": ViewSpec(32, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5),
    "MoCo v1": ViewSpec(32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4,
                        grayscale_first=True),
    "a local crop": ViewSpec(16, (0.05, 0.4), brightness=0.4, hue=0.1, blur=0.5, solarize=0.2,
                             interpolation="bicubic"),
    "padded": ViewSpec(32, crop_padding=4, jitter=0, grayscale=0),
    "moved": ViewSpec(28, rotate=20, translate=0.1, shear=10, brightness=0.4, erase=0.5),
}  # fmt: skip


def photographs(count=24, height=40, width=36, channels=3, seed=0):
    """Smooth noise, as neighbours in photographs are alike."""
    case = Case("", count, height, width, 32, channels)
    return case.images(seed=seed)


def draw(spec, images, seed=3, view=0):
    H, W = images.shape[-2:]
    index = torch.arange(len(images))
    return sslops.sample_parameters(spec, seed, 1, index, view, height=H, width=W)


def assert_alike(spec, images, drawn):
    """Within a grey level; solarising makes a jump, so values at its threshold may differ more."""
    error = (make_view(images, spec, drawn) - make_views(images, spec, drawn)).abs()
    assert (error > LEVEL).double().mean() <= (2e-3 if spec.solarize else 0)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_within_a_grey_level_of_torchvisions(name, channels):
    spec = replace(SPECS[name], mean=(0.0,) * channels, std=(1.0,) * channels)
    images = photographs(channels=channels)
    assert_alike(spec, images, draw(spec, images))


@pytest.mark.parametrize("recipe", registry.recipes())
def test_every_recipe_s_views_are_torchvisions(recipe):
    """All views of the small recipes of images, drawn and made both ways."""
    images = photographs(6, 32, 32)
    for view, spec in enumerate(image_specs(recipe)):
        spec = replace(spec, **AS_BYTES)
        assert_alike(spec, images, draw(spec, images, view=view))


def image_specs(recipe):
    from sslzoo import options
    from sslzoo.kinds import kind_of, views_of

    chosen = options.parse_pretrain(["--config", recipe])
    module = registry.method(chosen.name)
    kind = kind_of(module, chosen.training.backbone)
    if kind != "images" or chosen.training.image_size > 64:
        pytest.skip("not of small images")
    return views_of(module, chosen.method, chosen.training.image_size, kind)


def test_a_view_depends_on_nothing_but_its_four_numbers():
    images, rows = photographs(64), np.array([40, 7, 63])
    maker = HeldViews(images, [SPECS["SimCLR"], SPECS["moved"]], seed=5)
    together, alone = maker[3, np.arange(64)][0], maker[3, rows][0]
    for view, part in zip(together, alone, strict=True):
        assert torch.equal(view[rows], part)
    for other in (HeldViews(images, maker.specs, 6)[3, rows], maker[4, rows]):
        assert not torch.equal(other[0][0], alone[0])
    twice = HeldViews(images, [maker.specs[0]] * 2, 5)[3, rows][0]
    assert not torch.equal(*twice)


def test_files_are_cropped_and_coloured_as_images_in_memory(tmp_path):
    """Crops of files are whole grey levels: without colours, within half a level and rounding."""
    images = photographs(8)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    spec = ViewSpec(24, jitter=0, grayscale=0, solarize=0.0, erase=0.5, **AS_BYTES)
    streamed = open_data(tmp_path, memory_limit_mib=0)
    assert streamed.images is None and streamed.load(3).equal(images[3])
    item = 2, np.arange(8)
    (crops,), (drawn,), wrong = FileCrops(streamed, [spec], 1)[item]
    assert crops.dtype == torch.uint8 and wrong == {}
    expected = HeldViews(images, [spec], 1)[item][0][0]
    assert (make_view(crops, spec, drawn) - expected).abs().max() < 1.01 * LEVEL


def test_torchvision_reads_the_same_images_and_parameters(tmp_path):
    data = ImageData("noise", images=photographs(8))
    spec = replace(SPECS["SimCLR"], **AS_BYTES)
    item = 0, np.array([5, 2])
    (theirs,), (ours,) = (v[item][0] for v in (TorchvisionViews(data, [spec], 1),
                                               HeldViews(data.images, [spec], 1)))  # fmt: skip
    assert (theirs - ours).abs().max() < LEVEL


def test_normalisation_and_one_channel():
    pictures = photographs(4, 8, 8, channels=1)
    spec = ViewSpec(8, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=1,
                    mean=(0.3,), std=(0.4,))  # fmt: skip
    views = make_view(pictures, spec, draw(spec, pictures))
    torch.testing.assert_close(views, (pictures / 255.0 - 0.3) / 0.4, atol=1e-5, rtol=0)


def test_shrinking_does_not_alias():
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    board = board.to(torch.uint8).expand(1, 3, 64, 64)
    evaluated = evaluation_view(board, 16, (0, 0, 0), (1, 1, 1))
    torch.testing.assert_close(evaluated, torch.full_like(evaluated, 0.5), atol=0.05, rtol=0)


def test_evaluation_view_shows_the_centre():
    small = photographs(2, 32, 32)
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


def test_grey_is_torchvisions():
    x = photographs(12) / 255
    theirs = pixels.tv.rgb_to_grayscale(x, 1)
    torch.testing.assert_close(pixels.grey(x), theirs, atol=1e-6, rtol=0)
    assert pixels.grey(theirs) is theirs


@pytest.mark.parametrize(
    ("option", "value"),
    [("flip", 1.5), ("crop_scale", (0.5, 0.2)), ("crop_scale", (0, 1)), ("crop_ratio", (2, 1)),
     ("hue", 0.6), ("interpolation", "nearest"), ("size", 0), ("blur_kernel", 4),
     ("blur_sigma", (0.0, -1.0)), ("brightness", -1)],
)  # fmt: skip
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        ViewSpec(**{"size": 32, option: value})
