"""Rotation: the turns are exact, the labels name them, only the image gives them away."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslzoo import backbones
from sslzoo.data import open_data
from sslzoo.methods import rotation
from sslzoo.methods.rotation import Config, Rotation, rotate


def method(**options):
    torch.manual_seed(0)
    return Rotation(backbones.build("convnet4", image_size=16, width=8), Config(**options))


def train(model, x, steps, lr=0.02, pick=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        rows = slice(None) if pick is None else pick(step)
        outputs = model([x[rows]], step)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
    return outputs


@torch.no_grad()
def accuracy(model, x):
    return model.eval()([x], 0)["accuracy"].item()


@pytest.fixture(scope="module")
def cifar(shared_data):
    """1600 CIFAR-10 images of 16 x 16 pixels, mean 0."""
    data = open_data(str(shared_data / "cifar10"), "test", memory_limit_mib=0)
    images = torch.stack([data.load(i) for i in range(1600)]).float() / 255
    return F.avg_pool2d(images, 2) * 4 - 2


def test_turns_are_permutations_of_pixels():
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(rotate(rotate(x, 1), 3), x)
    assert torch.equal(rotate(x, 2), x.flip(-1, -2))
    # Counter-clockwise: the right column becomes the top row.
    assert torch.equal(rotate(x, 1)[..., 0, :], x[..., :, -1])


@pytest.mark.parametrize(
    "rotations, turns", [("4", (0, 1, 2, 3)), ("0-180", (0, 2)), ("90-270", (1, 3))]
)
def test_every_image_is_shown_under_every_turn_in_order(rotations, turns):
    x = torch.randn(3, 3, 16, 16)
    shown, y = method(rotations=rotations).rotated(x, 0)
    K = len(turns)
    assert y.tolist() == list(range(K)) * 3
    for image in range(3):
        for k, turn in enumerate(turns):
            assert torch.equal(shown[image * K + k], rotate(x[image], turn))


def test_one_rotation_is_drawn_for_each_image_and_named():
    x = torch.randn(400, 1, 4, 4)
    model = method(one_rotation=True)
    shown, y = model.rotated(x, 3)
    assert all(torch.equal(s, rotate(i, int(k))) for s, i, k in zip(shown, x, y, strict=True))
    counts = torch.bincount(y, minlength=4)
    assert counts.min() > 70  # 100 expected, standard deviation 9
    assert torch.equal(model.rotated(x, 3)[1], y) and not torch.equal(model.rotated(x, 4)[1], y)


def test_the_loss_is_the_mean_over_images_and_turns():
    model, x = method().eval(), torch.randn(3, 3, 16, 16)
    total = 0.0
    for image in x:
        for k in range(4):
            logits = model.head(model.backbone(rotate(image, k)[None]))[0].double()
            total -= torch.log_softmax(logits, 0)[k].item()
    outputs = model([x], 0)
    assert outputs["loss"].item() == pytest.approx(total / 12, abs=1e-5)
    assert outputs["features"].shape == (12, 32) and not outputs["features"].requires_grad


def test_a_zero_head_starts_at_chance_exactly():
    model = method()
    nn.init.zeros_(model.head.weight)
    outputs = model([torch.randn(4, 3, 16, 16)], 0)
    assert outputs["loss"].item() == pytest.approx(math.log(4), abs=1e-6)
    assert outputs["accuracy_0"] == 1 and outputs["accuracy_90"] == 0  # ties take class 0


def test_oblong_images_are_refused():
    with pytest.raises(ValueError, match="square"):
        method()([torch.randn(2, 3, 16, 12)], 0)


def test_64_images_are_learnt_by_heart(cifar):
    model = method()
    outputs = train(model, cifar[:64], 100)
    assert outputs["accuracy"].item() == 1.0


@pytest.mark.slow
def test_held_out_rotations_are_recognised_and_permuted_labels_are_not(cifar):
    def pick(step):
        return slice(step % 11 * 128, step % 11 * 128 + 128)

    model = method()
    train(model, cifar[:1408], 66, pick=pick)
    assert accuracy(model, cifar[1408:]) > 0.45
    shuffled = method()
    real = shuffled.rotated
    # Every image gets the four labels in an order of its own, the same at every visit.
    orders = torch.stack([torch.randperm(4) for _ in range(128)])
    shuffled.rotated = lambda x, step: (real(x, step)[0], orders.flatten())
    train(shuffled, cifar[:1408], 66, pick=pick)
    shuffled.rotated = real
    assert accuracy(shuffled, cifar[1408:]) == pytest.approx(0.25, abs=0.08)


def test_images_that_look_the_same_under_all_turns_give_nothing_away(cifar):
    same = sum(rotate(cifar[:100], k) for k in range(4)) / 4
    # Sums in another order differ in the last place; whole steps of 1/64 do not.
    same = (same * 64).round() / 64
    model = method()
    train(model, same, 40)
    assert accuracy(model, same) == 0.25


def test_noise_stays_at_chance():
    model = method()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for step in range(20):
        optimizer.zero_grad()
        model([torch.randn(32, 3, 16, 16)], step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        outputs = model([torch.randn(256, 3, 16, 16)], 0)
    assert outputs["loss"].item() == pytest.approx(math.log(4), abs=0.05)
    # 256 independent images: the standard deviation is at most 0.25 x sqrt(3 / 256) = 0.027.
    assert outputs["accuracy"].item() == pytest.approx(0.25, abs=0.08)


def test_images_that_are_never_turned_are_trivial():
    model, x = method(), torch.randn(16, 3, 16, 16)
    model.rotated = lambda x, step: (x, torch.zeros(len(x), dtype=torch.int64))
    assert train(model, x, 20)["loss"].item() < 0.01


def test_the_view_has_the_papers_augmentation():
    (view,) = rotation.views(Config(), 32)
    assert (view.size, view.crop_padding, view.flip, view.grayscale) == (32, 4, 0.5, 0.0)
    assert not view.is_jittered and not view.is_affine and not view.blur


def test_pictures_show_the_confusion():
    pictures = method().eval().pictures([torch.randn(8, 3, 16, 16)])
    picture = pictures["confusion"]
    assert picture.dtype == torch.uint8 and picture.ndim == 3 and picture.float().std() > 10
