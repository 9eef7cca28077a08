"""Jigsaw: which slot shows which cell, permutations far apart, no shortcut left open."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sslzoo import backbones
from sslzoo.methods import jigsaw
from sslzoo.methods.jigsaw import Config, Jigsaw, margin, mosaic
from sslzoo.permutations import all_permutations, mean_distance, permutation_set


def method(**options):
    torch.manual_seed(0)
    return Jigsaw(backbones.build("convnet4", image_size=32, width=8), Config(**options))


def cell_images(B, S=30, channels=3):
    """Images whose pixels hold the number of their cell."""
    line = torch.arange(S) // (S // 3)
    return (3 * line[:, None] + line).float().expand(B, channels, S, S).clone()


def smooth_images(B, S, seed):
    """Colourful waves of low frequency: neighbouring tiles continue one another."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, 3, 3, 3, generator=g)
    return torch.nn.functional.interpolate(x, size=(S, S), mode="bicubic", align_corners=True)


def lit_images(B, S, seed):
    """Noise in a light that fades from a corner: brightness alone tells where a tile was."""
    g = torch.Generator().manual_seed(seed)
    a, b = 0.5 + torch.rand(2, B, 1, 1, 1, generator=g)
    line = torch.linspace(-1, 1, S)
    return a * line[:, None] + b * line + 0.3 * torch.randn(B, 3, S, S, generator=g)


def train(model, images, steps, lr=0.003):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        outputs = model([images(step)], step)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
    return outputs


def test_permutation_sets_are_far_apart_and_always_the_same():
    chosen = permutation_set(100)
    mean, least = mean_distance(chosen)
    assert mean == pytest.approx(8.08, abs=0.01) and least >= 3
    assert mean_distance(permutation_set(30))[0] == pytest.approx(8.26, abs=0.02)
    assert (np.sort(chosen, 1) == np.arange(9)).all() and len(np.unique(chosen, axis=0)) == 100
    assert (permutation_set(30) == chosen[:30]).all()
    assert (permutation_set(30, seed=1) != chosen[:30]).any()
    assert len(np.unique(all_permutations(5), axis=0)) == 120


@pytest.mark.slow
def test_a_thousand_permutations_have_the_distances_of_the_specification():
    mean, least = mean_distance(permutation_set(1000))
    assert mean == pytest.approx(8.01, abs=0.01) and least >= 2


def test_each_choice_has_the_greatest_summed_distance():
    chosen, every = permutation_set(12, items=5), all_permutations(5)
    for n in range(1, 12):
        left = [p for p in every if not (p == chosen[:n]).all(1).any()]
        best = max(sum((p != q).sum() for q in chosen[:n]) for p in left)
        assert sum((chosen[n] != q).sum() for q in chosen[:n]) == best


def test_slot_s_shows_cell_h_of_s():
    model = method(per_tile_norm=False, gray=0.0)
    label, tiles = model.puzzles(cell_images(5), 0)
    assert tiles.shape == (5, 9, 3, 8, 8)
    for image in range(5):
        H = model.permutations[label[image]]
        for s in range(9):
            assert (tiles[image, s] == H[s]).all()


def test_the_inverse_permutation_restores_the_image():
    model = method(per_tile_norm=False, gray=0.0, tile=10)
    x = torch.randn(4, 3, 30, 30)
    label, tiles = model.puzzles(x, 0)
    rows = torch.arange(4)[:, None]
    restored = mosaic(tiles[rows, model.permutations[label].argsort(1)])
    assert torch.equal(restored, x) and not torch.equal(mosaic(tiles), x)


def test_tiles_stay_in_their_cells_at_places_of_their_own():
    x = torch.arange(32.0).expand(64, 3, 32, 32)  # a pixel holds its column
    model = method(per_tile_norm=False, gray=0.0, channel_shift=2)
    label, tiles = model.puzzles(x, 0)
    column = model.permutations[label] % 3
    first = tiles[..., 0, 0]  # [B, N, C]
    # A crop of 30 starts at 0 to 2; the tile of 8 at 0 to 2 in its cell of 10, in every channel.
    inside = first - 10 * column[..., None]
    assert set(inside.unique().tolist()) == {0, 1, 2, 3, 4}
    assert set((inside.amax((1, 2)) - inside.amin((1, 2))).tolist()) <= {0, 1, 2}
    assert (tiles[..., 0, 7] - first == 7).all()
    differs = (first[..., 0] != first[..., 1]).float().mean()
    assert 0.1 < differs < 0.9


def test_numbers_are_a_function_of_step_and_sample_alone():
    model, x = method(), torch.randn(6, 3, 32, 32)
    label, tiles = model.puzzles(x, 7)
    again, _ = model.puzzles(x[:3], 7)
    assert torch.equal(again, label[:3])
    assert torch.equal(model.puzzles(x, 7)[1], tiles)
    assert not torch.equal(model.puzzles(x, 8)[0], label)


def test_each_tile_is_normalised_by_itself():
    _, tiles = method(gray=0.0).puzzles(5 + 2 * torch.randn(2, 3, 32, 32), 0)
    torch.testing.assert_close(tiles.mean((-1, -2)), torch.zeros(2, 9, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(tiles.square().mean((-1, -2)), torch.ones(2, 9, 3))


def test_gray_and_projected_puzzles_have_the_colours_they_should():
    x = torch.rand(200, 3, 30, 30)
    model = method(per_tile_norm=False, gray=0.5, projection=0.5)
    _, tiles = model.puzzles(x, 0)
    red, green, blue = tiles.unbind(2)
    gray = ((red - green).abs() + (green - blue).abs()).amax((1, 2, 3)) < 1e-5
    projected = (2 * green - red - blue).abs().amax((1, 2, 3)) < 1e-5
    assert 0.4 < gray.float().mean() < 0.6
    assert 0.35 < projected[~gray].float().mean() < 0.65


def test_tiles_do_not_exchange_information_before_the_last_layer():
    model = method().eval()
    tiles = torch.randn(2, 9, 3, 8, 8)
    before = model.tile_head(model.backbone(tiles.flatten(0, 1))).unflatten(0, (2, 9))
    tiles[:, 4] = 0
    after = model.tile_head(model.backbone(tiles.flatten(0, 1))).unflatten(0, (2, 9))
    changed = (before - after).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("P", [10, 100])
def test_a_zero_head_starts_at_chance_exactly(P):
    model = method(permutations=P)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    loss = model([torch.randn(8, 3, 32, 32)], 0)["loss"].item()
    assert loss == pytest.approx(math.log(P), abs=1e-5)


def test_flat_gray_images_are_solved_by_chance_alone():
    model = method(permutations=10)
    x = torch.rand(20, 1, 1, 1).expand(20, 3, 32, 32)
    train(model, lambda step: x, 10)
    with torch.no_grad():
        label = torch.arange(10).repeat(2)
        _, tiles = model.eval().puzzles(x, 3, label=label)
        assert (model.solve(tiles).argmax(1) == label).float().mean() == pytest.approx(0.1)


@pytest.mark.slow
def test_128_images_are_learnt_by_heart():
    x = smooth_images(128, 32, 0)
    model = method(permutations=10)
    drawn = model.puzzles(x, 0)
    model.puzzles = lambda *_: drawn
    assert train(model, lambda step: x, 60, lr=0.01)["accuracy"].item() == 1.0


@pytest.mark.slow
def test_without_its_protections_the_task_is_easier():
    """Brightness that is continuous from tile to tile is a shortcut, which the recipe closes."""
    accuracies = {}
    for name, options in (("open", dict(tile=10, jitter=0, per_tile_norm=False)), ("closed", {})):
        model = method(permutations=10, gray=0.0, **options)
        train(model, lambda step: lit_images(64, 32, step), 15)
        with torch.no_grad():
            accuracies[name] = model.eval()([lit_images(512, 32, 999)], 0)["accuracy"].item()
    assert accuracies["closed"] < 0.3 and accuracies["open"] > accuracies["closed"] + 0.3


def test_the_auxiliary_head_names_the_cell_of_each_slot():
    model, plain = method(permutations=10, position_weight=0.5), method(permutations=10)
    plain.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(6, 3, 32, 32)
    outputs, without = model.eval()([x], 0), plain.eval()([x], 0)
    label, tiles = model.puzzles(x, 0)
    H = model.permutations[label]
    with torch.no_grad():
        logits = model.position_head(model.read(tiles)[1]).double().view(6, 9, 9)
    expected = -sum(logits[b, s].log_softmax(0)[H[b, s]] for b in range(6) for s in range(9)) / 54
    assert outputs["positions"].item() == pytest.approx(expected.item(), rel=1e-5)
    total = without["loss"] + 0.5 * expected
    assert outputs["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    for s in range(9):
        right = (logits[:, s].argmax(1) == H[:, s]).double().mean().item()
        assert outputs[f"slot_accuracy_{s}"].item() == pytest.approx(right)
    assert not any(name.startswith("slot") for name in without)


@pytest.mark.parametrize(
    "size, expected", [(32, (10, 8, 2)), (64, (21, 16, 5)), (255, (85, 64, 21))]
)
def test_sizes_are_those_of_the_specification(size, expected):
    assert margin(Config(), size) == expected
    assert jigsaw.views(Config(), size)[0].size == size


def test_tiles_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="tile 12"):
        jigsaw.views(Config(tile=12), 32)


def test_scores_and_pictures_of_a_trained_method():
    model = method(permutations=10).eval()
    x = torch.randn(12, 3, 32, 32)
    scores = model.test_scores([x], 0)
    assert {"accuracy", "accuracy_gray", "accuracy_colour", "tile_accuracy"} <= set(scores)
    pictures = model.pictures([x])
    assert set(pictures) == {"confusion", "puzzles"}
    assert all(p.dtype == torch.uint8 and p.shape[0] == 3 for p in pictures.values())
    assert "permutations" in model.state_dict()
