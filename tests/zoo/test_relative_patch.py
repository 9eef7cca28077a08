"""Relative position: labels match the geometry, and colour, edges and other images tell nothing."""

import math

import pytest
import torch
from torch import nn

from sslzoo import backbones
from sslzoo.colour_axis import project, projection
from sslzoo.methods import relative_patch
from sslzoo.methods.relative_patch import (
    NEIGHBOURS,
    Config,
    RelativePatch,
    coarseners,
    pair_table,
    position_r2,
    recoloured,
)


def method(width=16, **options):
    torch.manual_seed(0)
    backbone = backbones.build("convnet4", image_size=32, width=width)
    return RelativePatch(backbone, Config(hidden=64, **options))


def coordinates(B, S):
    """Images whose channels hold row, column and row again."""
    line = torch.arange(S).float()
    row, column = line[:, None].expand(S, S), line.expand(S, S)
    return torch.stack([row, column, row]).expand(B, 3, S, S)


def train(model, images, steps, lr=0.003):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        outputs = model([images(step)], step)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model, x):
    return model.eval()([x], 0)["accuracy"].item()


def bowls(B, S, seed, axis):
    """Brightness that grows from the centre outwards, along one axis of colours."""
    depth = 0.1 + 0.1 * torch.rand(B, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    line = torch.linspace(-1, 1, S).square()
    return 0.5 + depth * (line[:, None] + line) * torch.tensor(axis)[:, None, None]


@pytest.mark.parametrize("S, options", [
    (32, {}),
    (64, dict(patch=16, gap=6, position_jitter=2)),
    (96, dict(patch=16, gap=6, position_jitter=2, grids=2, pairs="adjacent")),
])  # fmt: skip
def test_labels_match_the_geometry(S, options):
    """A pixel tells its place, so the places of cut patches must differ as the label says."""
    model = method(**options)
    config = model.config
    x = coordinates(40, S).repeat_interleave(config.grids, 0)
    u = model.draws(0, len(x)).uniform(len(x), 2 + 18)
    patches, place = model.cut(x, u[:, :2], u[:, 2:].unflatten(1, (9, 2)))
    assert torch.equal(patches[..., 0, 0, 0].long(), place[..., 0])
    assert torch.equal(patches[..., 1, 0, 0].long(), place[..., 1])
    assert (patches[..., 0, -1, 0] - patches[..., 0, 0, 0] == config.patch - 1).all()
    pitch, jitter = config.patch + config.gap, config.position_jitter
    for first, second, label in model.table.tolist():
        dx, dy = NEIGHBOURS[label]
        moved = place[:, second] - place[:, first]
        off = moved - pitch * torch.tensor([dy, dx])
        assert off.abs().max() <= 2 * jitter and off.unique().numel() > 1
    assert place.min() >= 0 and place.max() + config.patch <= S


def test_both_orders_of_a_pair_have_opposite_labels():
    for pairs, count in (("centre", 16), ("adjacent", 40)):
        table = {(a, b): label for a, b, label in pair_table(3, pairs).tolist()}
        assert len(table) == count
        assert all(table[b, a] == 7 - label for (a, b), label in table.items())
    labels = pair_table(3, "centre")[:, 2]
    assert torch.bincount(labels).tolist() == [2] * 8
    assert pair_table(3, "centre")[:8].tolist() != pair_table(3, "centre")[8:].tolist()


def test_the_head_can_tell_the_order():
    model = method().eval()
    h = torch.randn(3, 9, 64)
    logits, label = model.compare(h)
    first = model.table[:, 0] == 4
    assert label.tolist() == model.table[:, 2].tolist() * 3
    assert not torch.allclose(logits[:16][first], logits[:16][~first])
    assert not model.head[1].affine


def test_the_start_is_at_chance():
    model = method()
    nn.init.zeros_(model.head[-1].weight)
    outputs = model([torch.randn(6, 3, 32, 32)], 0)
    assert outputs["loss"].item() == pytest.approx(math.log(8), abs=1e-5)
    assert outputs["accuracy"].item() == pytest.approx(1 / 8)  # ties take label 0


def test_the_projection_removes_green_magenta_and_keeps_the_rest():
    expected = [[0.8333, 0.3333, -0.1667], [0.3333] * 3, [-0.1667, 0.3333, 0.8333]]
    torch.testing.assert_close(projection(), torch.tensor(expected), atol=1e-4, rtol=0)
    aberration = torch.tensor([-1.0, 2.0, -1.0])[:, None, None] * torch.randn(1, 4, 4)
    gray = torch.randn(1, 4, 4).expand(3, 4, 4)
    torch.testing.assert_close(project(aberration + gray), gray)


def test_dropping_keeps_one_channel_and_fills_the_others_with_noise():
    patches = torch.rand(300, 3, 8, 8)
    noise = (torch.rand(300, 3, 8, 8) - 0.5) / 255
    u = torch.rand(300)
    out = recoloured(patches, "drop", u, noise)
    rms = out.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 50 / 255))
    kept = (u * 3).long()
    assert torch.bincount(kept).min() > 70
    centred = patches - patches.mean((-1, -2), keepdim=True)
    for row, channel in zip(range(300), kept.tolist(), strict=True):
        others = [c for c in range(3) if c != channel]
        scale = out[row, channel].norm() / centred[row, channel].norm()
        torch.testing.assert_close(out[row, channel], centred[row, channel] * scale)
        torch.testing.assert_close(out[row, others], noise[row, others] * scale)


def test_flat_patches_stay_flat():
    assert recoloured(torch.full((2, 3, 8, 8), 0.7), "project", None, None).abs().max() < 1e-4


def test_numbers_are_a_function_of_step_and_sample_alone():
    model, x = method(), torch.randn(6, 3, 32, 32)
    patches, place = model.patches(x, 7)
    again, _ = model.patches(x[:3], 7)
    assert torch.equal(again, patches[:3])
    assert not torch.equal(model.patches(x, 8)[1], place)


def test_coarse_patches_are_those_of_interpolation():
    options = dict(patch=16, gap=6, position_jitter=2, downsample=0.33)
    model = method(**options)
    patches = torch.rand(40, 9, 3, 16, 16)
    u = torch.rand(2, 40, 9)
    out = model.coarsened(patches, *u)
    same = (out == patches).all(-1).all(-1).all(-1)
    # Side 16 of 16 changes nothing either: (17² - 16²) / (17² - 6²) of the coarse ones.
    assert same.float().mean().item() == pytest.approx(0.67 + 0.33 * 33 / 253, abs=0.07)
    g, i = (u[0] < 0.33).logical_and(u[1] < 0.5).nonzero()[0].tolist()
    side = int((36 + u[1, g, i].item() * (289 - 36)) ** 0.5)
    resize = torch.nn.functional.interpolate
    small = resize(patches[g, i][None], (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(out[g, i], resize(small, (16, 16), mode="bilinear")[0])
    assert coarseners(Config(**options)).shape == (12, 16, 16)


@pytest.mark.slow
def test_a_bend_in_brightness_is_solvable_and_one_in_green_magenta_alone_is_not():
    open_options = dict(gap=0, position_jitter=0, patch=10)
    gray = method(color="keep", **open_options)
    train(gray, lambda step: bowls(16, 32, step, [1.0, 1.0, 1.0]), 80)
    assert accuracy(gray, bowls(40, 32, 999, [1.0, 1.0, 1.0])) > 0.9
    tinted = method(color="project", **open_options)
    train(tinted, lambda step: bowls(16, 32, step, [-1.0, 2.0, -1.0]), 10)
    assert accuracy(tinted, bowls(40, 32, 999, [-1.0, 2.0, -1.0])) == 0.125
    # The colour is the cause: kept, it can be solved like brightness.
    kept = method(color="keep", **open_options)
    train(kept, lambda step: bowls(16, 32, step, [-1.0, 2.0, -1.0]), 80)
    assert accuracy(kept, bowls(40, 32, 999, [-1.0, 2.0, -1.0])) > 0.9


def test_second_patches_of_other_images_tell_nothing():
    """Each image has waves of its own phase: places show only when two patches are compared."""

    def waves(B, seed):
        g = torch.Generator().manual_seed(seed)
        phase = 6.3 * torch.rand(2, B, 1, 1, 1, generator=g)
        line = torch.arange(32) / 6
        row, column = torch.sin(line[:, None] + phase[0]), torch.sin(line + phase[1])
        return torch.cat([row.expand(B, 1, 32, 32), column.expand(B, 1, 32, 32), row * column], 1)

    model = method(color="keep")
    train(model, lambda step: waves(32, step), 60)
    x = waves(256, 999)
    assert accuracy(model, x) > 0.5
    with torch.no_grad():
        h, _ = model.embed(x, 0)
        first, second, label = model.table.T
        z = torch.cat([h[:, first], h.roll(1, 0)[:, second]], -1).flatten(0, 1)
        right = (model.head(z).argmax(1) == label.repeat(256)).float().mean().item()
    # 256 independent images: the standard deviation is at most 0.125 x sqrt(7 / 256) = 0.02.
    assert right == pytest.approx(0.125, abs=0.06)


def test_the_position_probe_finds_places_in_features_and_none_in_noise():
    torch.manual_seed(0)
    place = torch.randint(0, 20, (40, 9, 2))
    noise = torch.randn(40, 9, 100)
    assert position_r2(torch.cat([place.float(), noise], -1), place) > 0.99
    assert -0.05 < position_r2(noise, place) < 0.05  # also where features are many


@pytest.mark.parametrize("options", [dict(gap=1), dict(grid=4)])
def test_options_that_leave_a_shortcut_or_no_centre_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Config(**options)


def test_a_grid_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="image_size"):
        relative_patch.views(Config(patch=16), 32)
    assert relative_patch.views(Config(), 32)[0].size == 32


def test_scores_and_pictures_of_a_method():
    model = method().eval()
    x = torch.randn(12, 3, 32, 32)
    assert {"accuracy", "accuracy_color", "position_r2"} <= set(model.test_scores([x], 0))
    assert model.pictures([x])["confusion"].dtype == torch.uint8
