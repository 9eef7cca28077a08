"""Video colourisation: colours copied by pointing, checked by hand and by embeddings that know."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from videos import sprite_data, sprite_video

from sslzoo import backbones, registry
from sslzoo.clips import ClipLoader, ClipSpec
from sslzoo.data import DataError
from sslzoo.evaluation.propagation import PROTOCOLS, cells_to_mask, mask_to_cells, propagate
from sslzoo.evaluation.tracking import region_similarity
from sslzoo.lab import rgb_to_lab
from sslzoo.methods import video_colorization
from sslzoo.methods.video_colorization import Config, VideoColorization

CELLS = 12  # of a side


def make(image_size=32, backbone="convnet4", **options):
    torch.manual_seed(0)
    encoder = video_colorization.build_backbone(backbone, image_size=image_size, channels=3)
    return VideoColorization(encoder, Config(**options))


class Knowing(VideoColorization):
    """Embeddings are one-hot vectors of what a cell shows, so they find it wherever it went."""

    def __init__(self, shifts, sharpness=30.0, **options):
        super().__init__(backbones.build("convnet4", image_size=32, channels=1), Config(**options))
        content = torch.arange(CELLS**2).reshape(CELLS, CELLS)
        moved = torch.stack([content.roll(shift, (0, 1)) for shift in shifts])
        f = sharpness * F.one_hot(moved, CELLS**2).float().permute(0, 3, 1, 2)
        self.register_buffer("f", f)

    def embed_with_features(self, clips):
        f = self.f.expand(len(clips), -1, -1, -1, -1)
        return f, f.flatten(0, 1).mean((2, 3))


def moving_clip(shifts, seed=0):
    """[1, frames, 3, 48, 48]: a block of coloured cells that moves by whole cells over one colour.

    It stays two cells off the rim, where shrinking a frame weighs pixels in another way.
    """
    rng = np.random.default_rng(seed)
    colors = torch.tensor([0.8, 0.3, 0.2])[:, None, None].repeat(1, CELLS, CELLS)
    colors[:, 2:6, 2:6] = torch.from_numpy(rng.random((3, 4, 4), np.float32))
    cells = torch.stack([colors.roll(shift, (1, 2)) for shift in shifts])
    return cells.repeat_interleave(4, -1).repeat_interleave(4, -2)[None]


# Discriminating tests of the specification


def colors_of_equal_lightness():
    """Two images of other colours whose lightness L is the same, bit for bit."""
    rng = np.random.default_rng(0)
    rgb = torch.from_numpy(rng.integers(0, 256, (3, 512, 512))).float() / 255
    flat, L = rgb.flatten(1), rgb_to_lab(rgb)[0].flatten()
    order = L.argsort(stable=True)
    is_pair = (L[order][1:] == L[order][:-1]) & (flat[:, order[1:]] != flat[:, order[:-1]]).all(0)
    same = is_pair.nonzero().flatten()[-32 * 32 :]
    first, second = (flat[:, order[same + k]].reshape(1, 3, 32, 32) for k in (0, 1))
    return first, second


def test_other_colours_of_the_same_lightness_give_the_same_embeddings_bit_for_bit():
    first, second = colors_of_equal_lightness()
    assert (first - second).abs().mean() > 0.05
    # Vector units round the last pixels otherwise: compare where L is equal in place, too.
    L, other = rgb_to_lab(first)[:, :1], rgb_to_lab(second)[:, :1]
    second = torch.where(other == L, second, first)
    assert (second != first).any(1).float().mean() > 0.3
    method = make().eval()
    assert torch.equal(method.embed(first[None]), method.embed(second[None]))
    assert not torch.equal(method.embed(first[None]), method.embed(first[None].flip(-1)))


def test_the_encoder_gets_lightness_alone_from_minus_one_to_one():
    method, seen = make(), []
    method.backbone.blocks[0][0].register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    x = torch.rand(2, 4, 3, 32, 32)
    x[0, 0], x[0, 1] = 0, 1
    method([x], 0)
    (grey,) = seen
    assert grey.shape == (8, 1, 32, 32)  # references and targets alike
    assert grey[0].max() == -1 and grey[1].min() == pytest.approx(1, abs=1e-4)
    expected = rgb_to_lab(x.flatten(0, 1))[:, :1] / 50 - 1
    torch.testing.assert_close(grey, expected)


def test_embeddings_that_know_the_motion_copy_every_colour():
    shifts = [(0, 0), (1, 0), (1, 2), (2, 2)]
    method = Knowing(shifts, colors=16)
    clip = moving_clip(shifts)
    outputs = method([clip], 0)
    meters = method.meters(outputs)
    assert meters["color_top1"] == 1 and outputs["loss"] < 1e-3
    assert meters["attention_entropy"] < math.log(3) + 1e-3  # it looks at one cell of each frame
    assert meters["copied_top1"] < 0.97


def test_our_loss_falls_where_that_with_two_softmaxes_cannot():
    """A distribution taken for logits: no better than log(1 + 15 / e) = 1.88 nats."""
    shifts = [(0, 0), (0, 1), (0, 2), (1, 2)]
    method, clip = Knowing(shifts), moving_clip(shifts)
    outputs = method([clip], 0)
    p = F.one_hot(outputs["labels"][:, -1].flatten(1), 16).float()  # the best that there is
    wrong = F.cross_entropy(p.flatten(0, 1), outputs["labels"][:, -1].flatten())
    assert wrong == pytest.approx(math.log(1 + 15 / math.e), abs=1e-4)
    assert outputs["loss"] < 1e-3 < wrong


def test_the_softmax_runs_over_all_reference_cells_at_once():
    """Against the formula in float64, with a loop over target cells."""
    torch.manual_seed(1)
    method = make(temperature=0.7).double().eval()
    torch.nn.init.normal_(method.embedding.layer.weight, std=0.3)
    clip = torch.rand(2, 4, 3, 32, 32, dtype=torch.float64)
    loss = method([clip], 0)["loss"]
    f, c = method.embed(clip).double(), method.quantise(clip, (8, 8))
    total = 0.0
    for b in range(2):
        references = f[b, :3].permute(0, 2, 3, 1).reshape(-1, 64)
        labels = c[b, :3].flatten()
        for j, target in enumerate(f[b, 3].flatten(1).T):
            A = torch.exp(references @ target / 0.7)
            A = A / A.sum()
            total -= torch.log(A[labels == c[b, 3].flatten()[j]].sum() + 1e-8) / 128
    torch.testing.assert_close(loss.double(), total, rtol=1e-5, atol=1e-6)


def test_training_begins_at_the_histogram_of_the_references():
    data = sprite_data(4)
    method = make(image_size=64)
    stills = torch.stack([data.load(i) for i in range(0, len(data), 3)]).float() / 255
    method.survey([stills])
    clips = next(loader(data, batch_size=4).epoch(0)).views[0]
    outputs = method([clips], 0)
    meters = method.meters(outputs)
    loss = outputs["loss"].item()
    assert abs(meters["excess_loss"]) < 0.05
    assert 0.5 < loss < math.log(16)
    cells = math.log(3 * 16 * 16)
    assert meters["attention_entropy"] == pytest.approx(cells, abs=0.05)


# Colours


def test_cells_get_the_nearest_centroid_of_the_shrunken_frame():
    method = make(colors=3)
    method.centroids.copy_(torch.tensor([[80.0, 67.0], [79.0, -108.0], [0.0, 0.0]]))
    clip = torch.zeros(1, 1, 3, 8, 8)
    clip[..., 0, :, :4] = 1  # red
    clip[..., 2, :4, 4:] = 1  # blue
    clip[..., :, 4:, 4:] = 0.5  # grey
    assert method.quantise(clip, (2, 2))[0, 0].tolist() == [[0, 1], [0, 2]]
    assert method.quantise(clip, (4, 4))[0, 0, :, 0].tolist() == [0, 0, 0, 0]


def test_the_survey_finds_the_colours_and_is_repeatable():
    base = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.9], [0.5, 0.5, 0.5]])
    images = base[torch.randint(4, (6, 16, 16))].permute(0, 3, 1, 2)
    methods = [make(colors=4) for _ in range(2)]
    for method in methods:
        method.survey([images[:3], images[3:]])
    expected = rgb_to_lab(base.T[:, :, None])[1:].flatten(1).T
    distance = torch.cdist(expected, methods[0].centroids).min(1).values
    assert distance.max() < 0.05
    assert torch.equal(methods[0].centroids, methods[1].centroids)
    assert "centroids" in methods[0].state_dict()


# Options


def test_defaults_are_those_of_the_specification():
    config = Config()
    assert (config.colors, config.references) == (16, 3)
    assert (config.temperature, config.test_temperature) == (1.0, 0.5)
    assert not config.normalize and config.conv3d_layers == 0
    defaults = video_colorization.DEFAULTS
    assert (defaults["base_lr"], defaults["batch_size"], defaults["image_size"]) == (1e-3, 32, 64)
    method = make(image_size=64, backbone=defaults["backbone"])
    f = method.embed(torch.rand(1, 4, 3, 64, 64))
    assert f.shape == (1, 4, 64, 16, 16) and method.backbone.num_features == 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colors": 1}, "colors must be 2 to 64"),
        ({"gap": (0, 1)}, "gap must rise from at least 1"),
        ({"gap": (3, 2)}, "gap must rise"),
        ({"references": 0}, "references"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_normalised_embeddings_have_length_one():
    f = make(normalize=True, temperature=0.07).embed(torch.rand(2, 4, 3, 32, 32))
    torch.testing.assert_close(f.norm(dim=2), torch.ones(2, 4, 8, 8))


def test_the_three_dimensional_network_sees_time_and_place():
    method = make(conv3d_layers=2).eval()
    torch.nn.init.normal_(method.embedding.layers[-1].weight, std=0.1)
    x = torch.rand(1, 5, 3, 32, 32)
    f = method.embed(x)
    changed = x.clone()
    changed[:, 4] = 0
    there = (method.embed(changed) - f).abs().amax((0, 2, 3, 4))
    assert (there[:2] == 0).all() and (there[2:] > 0).all()  # two layers reach two frames
    flat = method.embed(torch.full((1, 5, 3, 32, 32), 0.5))[0, 2]
    assert not torch.allclose(flat[:, 3, 3], flat[:, 5, 5])  # places differ in x and y only


@pytest.mark.parametrize("layers", [0, 2])
def test_a_video_is_embedded_as_one_clip(layers):
    method = make(conv3d_layers=layers).eval()
    frames = torch.rand(23, 3, 16, 24)
    with torch.no_grad():
        whole = method.embed(frames[None])[0]
        found = torch.stack(list(method.embed_video(iter(frames))))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_drops_once():
    method = make(drop_lr_after=0.15)
    method.plan(400, 10)
    groups = [{}, {}]
    scales = []
    for step in range(400):
        method.schedule(step, groups)
        scales.append(groups[1]["lr_scale"])
    assert scales == [1.0] * 60 + [0.1] * 340


# Clips


def loader(data, batch_size=4, **options):
    spec = ClipSpec(**(dict(size=64, frames=4, crop_scale=(1.0, 1.0), crop_ratio=(1, 1)) | options))
    return ClipLoader(data, [spec], batch_size=batch_size, seed=0, device="cpu")


def test_frames_of_a_clip_are_of_one_video_in_order_and_treated_alike():
    """Frames that hold their own coordinates and number: what was cropped can be read off."""
    T, S = 12, 64
    y, x = torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij")
    data = sprite_data(2, frames=T)
    for number, video in enumerate(data.videos):
        video.source.images = torch.stack([
            torch.stack([x * 2, y * 2, torch.full_like(x, 10 * t + number)]) for t in range(T)
        ]).byte()  # fmt: skip
    made = loader(data, batch_size=2, size=16, gap=(2, 3), crop_scale=(0.1, 0.5))
    flips = 0
    for epoch in range(6):
        for clip in next(made.epoch(epoch)).views[0]:
            numbers = (clip[:, 2] * 255).round().flatten(1)
            assert (numbers == numbers[:, :1]).all()
            video, times = numbers[0, 0] % 10, numbers[:, 0] // 10
            assert (numbers[:, 0] % 10 == video).all() and set(times.diff().tolist()) <= {2, 3}
            assert torch.equal(clip[:1, :2].expand(4, -1, -1, -1), clip[:, :2])
            flips += bool(clip[0, 0, 0, 0] > clip[0, 0, 0, -1])
    assert 0 < flips < 12


def test_clips_are_a_function_of_seed_epoch_and_sample():
    data = sprite_data(3)
    first, again = (list(loader(data, batch_size=3).epoch(5)) for _ in range(2))
    assert torch.equal(first[0].views[0], again[0].views[0])
    other = list(loader(data, batch_size=3).epoch(6))
    assert not torch.equal(first[0].views[0], other[0].views[0])


def test_short_videos_get_smaller_steps_and_too_short_ones_are_named():
    batch = next(loader(sprite_data(2, frames=4), batch_size=2, gap=(3, 4)).epoch(0))
    assert batch.views[0].shape == (2, 4, 3, 64, 64)
    with pytest.raises(DataError, match=r"sprites/[01] has 3 frames; a clip needs 4"):
        next(loader(sprite_data(2, frames=3), batch_size=2).epoch(0))


# Tracking by colour


def sprite_J(method, seed):
    """Mean J over ten frames of a sprite, by the paper's protocol."""
    frames, masks = sprite_video(seed, frames=11)
    with torch.no_grad():
        features = list(method.embed_video(frames.float() / 255))
        soft = list(propagate(features, mask_to_cells(masks[0], features[0].shape[1:]),
                              PROTOCOLS["paper"]))  # fmt: skip
    found = [cells_to_mask(x, (64, 64), PROTOCOLS["paper"], (64, 64)) for x in soft]
    return np.mean([region_similarity(f.numpy() == 1, t.numpy() == 1)
                    for f, t in zip(found[1:], masks[1:], strict=True)])  # fmt: skip


@pytest.mark.slow
def test_a_sprite_is_tracked_after_some_steps_and_not_before():
    data, method = sprite_data(64), make(image_size=64)
    stills = torch.stack([data.load(i) for i in range(0, len(data), 3)]).float() / 255
    method.survey([stills])
    before = [sprite_J(method.eval(), seed) for seed in range(1000, 1004)]
    optimizer = torch.optim.Adam(method.train().parameters(), lr=2e-3)
    batches = loader(data, batch_size=4, gap=(1, 3), clips_per_video=100).epoch(0)
    for step, batch in zip(range(100), batches, strict=False):
        loss = method(batch.views, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = [sprite_J(method.eval(), seed) for seed in range(1000, 1004)]
    assert np.mean(before) < 0.3 and np.mean(after) > 0.6


def test_the_method_is_found_by_its_name():
    module = registry.method("video_colorization")
    assert registry.method_class(module) is VideoColorization and module.DATA == "video"


def test_pictures_are_drawn():
    method = make().eval()
    pictures = method.pictures([torch.rand(3, 4, 3, 32, 32)])
    assert set(pictures) == {"colors", "attention"}
    for picture in pictures.values():
        assert picture.dtype == torch.uint8 and picture.shape[0] == 3 and picture.float().std() > 0
