"""CIE LAB against the specification's reference colours and against scikit-image."""

import numpy as np
import pytest
import torch

from sslzoo.lab import lab_to_rgb, rgb_to_lab


def colour(*rgb, dtype=torch.float32):
    return torch.tensor(rgb, dtype=dtype).reshape(3, 1, 1)


@pytest.mark.parametrize(
    "rgb, lab",
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_reference_colours(rgb, lab):
    assert rgb_to_lab(colour(*map(float, rgb))).flatten().tolist() == pytest.approx(lab, abs=0.05)


def test_a_colour_worked_by_hand():
    # 0.02 is on the straight part of sRGB and of f: linear 0.02 / 12.92 = 0.00154799.
    Y = 0.00154799
    expected = 116 * (7.787 * Y + 16 / 116) - 16
    lightness, a, b = rgb_to_lab(colour(0.02, 0.02, 0.02, dtype=torch.float64)).flatten().tolist()
    assert lightness == pytest.approx(expected, abs=1e-5) and abs(a) < 1e-2 and abs(b) < 1e-2


def test_the_range_is_that_of_all_colours():
    steps = torch.linspace(0, 1, 52)  # corners of the cube hold the extremes
    cube = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij")).flatten(1)[:, :, None]
    low, high = rgb_to_lab(cube).flatten(1).aminmax(dim=1)
    assert low.tolist() == pytest.approx([0, -86.18, -107.86], abs=0.02)
    assert high.tolist() == pytest.approx([100, 98.23, 94.48], abs=0.02)


def test_there_and_back():
    rgb = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    # The matrix and the white point of the definition have five and six digits.
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, rtol=0, atol=1e-6)


def test_gradients_are_finite_everywhere_and_right():
    rgb = torch.tensor([[0.0, 0.001, 0.04045, 0.3, 1.0]] * 3, dtype=torch.float64)[:, :, None]
    rgb.requires_grad_(True)
    rgb_to_lab(rgb).sum().backward()
    assert rgb.grad.isfinite().all()
    inner = (0.05 + 0.9 * torch.rand(3, 2, 2, dtype=torch.float64)).requires_grad_(True)
    assert torch.autograd.gradcheck(rgb_to_lab, inner)
    assert torch.autograd.gradcheck(lab_to_rgb, rgb_to_lab(inner).detach().requires_grad_(True))


# skimage.color.rgb2lab of version 0.26, in float64.
SCIKIT_IMAGE = {
    (1.0, 1.0, 1.0): (100.0, -0.002455, 0.004653),
    (0.0, 1.0, 0.0): (87.735099, -86.183030, 83.179703),
    (0.0, 0.0, 1.0): (32.295673, 79.185591, -107.857300),
    (0.0, 1.0, 1.0): (91.113301, -48.090596, -14.126330),
    (1.0, 0.0, 1.0): (60.323507, 98.233054, -60.821015),
    (1.0, 1.0, 0.0): (97.139507, -21.554681, 94.478122),
    (0.5, 0.5, 0.5): (53.388965, -0.001468, 0.002784),
    (0.2, 0.4, 0.6): (42.008001, -0.154041, -32.842897),
    (0.9, 0.3, 0.1): (54.086442, 57.227745, 58.183024),
    (0.75, 0.25, 0.5): (47.360054, 56.521308, -8.038504),
    (0.02, 0.01, 0.03): (0.948743, 1.375902, -1.694923),  # near black: straight lines
    (0.04045, 0.05, 0.003): (3.159187, -2.390539, 4.373677),
}


def test_colours_have_the_values_that_scikit_image_gives_them():
    rgb, expected = (torch.tensor(list(v), dtype=torch.float64)
                     for v in (SCIKIT_IMAGE.keys(), SCIKIT_IMAGE.values()))  # fmt: skip
    found = rgb_to_lab(rgb.T[:, :, None])[:, :, 0].T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    single = rgb_to_lab(rgb.float().T[:, :, None])[:, :, 0].T
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-3)
    back = lab_to_rgb(expected.T[:, :, None])[:, :, 0].T
    torch.testing.assert_close(back, rgb, rtol=0, atol=1e-4)


def test_images_have_the_values_that_an_installed_scikit_image_gives_them():
    color = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).random((64, 64, 3))
    rgb[:8] *= 0.05  # near black, where both formulas are straight lines
    expected = color.rgb2lab(rgb)
    found = rgb_to_lab(torch.from_numpy(rgb).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    back = lab_to_rgb(torch.from_numpy(expected).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(back, color.lab2rgb(expected), rtol=0, atol=1e-4)


def test_reduced_precision_of_the_network_does_not_reach_it():
    rgb = torch.rand(3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rgb_to_lab(rgb)
    assert torch.equal(inside, rgb_to_lab(rgb)) and inside.dtype == torch.float32


def test_other_than_three_channels_are_refused():
    with pytest.raises(ValueError, match="needs RGB images"):
        rgb_to_lab(torch.zeros(2, 1, 4, 4))
