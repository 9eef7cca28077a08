"""CPC against the specification: what a context sees, the loss of each step, negatives, shapes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslzoo import backbones
from sslzoo.grid_encoders import ChannelNorm, PatchGridEncoder, WaveEncoder
from sslzoo.kinds import kind_of
from sslzoo.methods import cpc
from sslzoo.methods.cpc import CPC, Config


def wave_cpc(width=16, norm="channel", **options):
    torch.manual_seed(0)
    return CPC(WaveEncoder(1, width, 12, norm), Config(**options))


def patch_cpc(width=16, **options):
    torch.manual_seed(0)
    return CPC(PatchGridEncoder(32, 3, width), Config(**{"steps": 3, **options}))


@pytest.mark.parametrize("norm", ["channel", "none"])
def test_a_latent_sees_465_samples_and_a_context_none_later(norm):
    encoder = wave_cpc(norm=norm).backbone.eval()
    x, t = torch.randn(1, 1, 8000), 20
    later, within = x.clone(), x.clone()
    later[..., 160 * t + 312 :] = torch.randn(8000 - 160 * t - 312)
    within[..., 160 * t + 311] += 10
    z, z_later, z_within = (encoder.latents(v) for v in (x, later, within))
    assert z.shape == (1, 50, 1, 16)
    c, c_later = encoder.context(z), encoder.context(z_later)
    assert torch.equal(c[:, : t + 1], c_later[:, : t + 1])
    assert not torch.equal(c[:, t + 1], c_later[:, t + 1])
    assert not torch.equal(z[:, t], z_within[:, t])
    before = x.clone()
    before[..., : 160 * t - 153] = 0
    assert torch.equal(encoder.latents(before)[:, t], z[:, t])
    before[..., 160 * t - 153] += 10
    assert not torch.equal(encoder.latents(before)[:, t], z[:, t])


def test_the_papers_window_gives_128_latents():
    assert WaveEncoder(1, 4, 4).latents(torch.zeros(2, 1, 20480)).shape == (2, 128, 1, 4)


def test_the_context_of_an_image_sees_no_row_below():
    encoder = patch_cpc().backbone
    z = torch.randn(2, 7, 7, 16)
    for r in range(6):
        noisy = z.clone()
        noisy[:, r + 1 :] = torch.randn(2, 6 - r, 7, 16)
        assert torch.equal(encoder.context(z)[:, : r + 1], encoder.context(noisy)[:, : r + 1])
        assert not torch.equal(encoder.context(z)[:, r + 1], encoder.context(noisy)[:, r + 1])


def test_noise_below_a_row_of_patches_leaves_its_context_unchanged():
    encoder = patch_cpc().backbone
    x = torch.randn(2, 3, 32, 32)
    c = encoder.context(encoder.latents(x))
    for r in range(6):  # row r of patches ends with row 4 r + 7 of pixels
        noisy = x.clone()
        noisy[:, :, 4 * r + 8 :] = torch.randn(2, 3, 24 - 4 * r, 32)
        c_noisy = encoder.context(encoder.latents(noisy))
        assert torch.equal(c[:, : r + 1], c_noisy[:, : r + 1])
        assert not torch.equal(c[:, r + 1], c_noisy[:, r + 1])


def test_patches_are_encoded_each_alone_and_overlap_by_half():
    encoder = patch_cpc().backbone
    x = torch.randn(1, 3, 32, 32)
    changed = x.clone()
    changed[..., :4, :4] += 1  # only the patch in the corner holds these pixels
    same = (encoder.latents(x) == encoder.latents(changed)).all(-1)[0]
    assert not same[0, 0] and same.sum() == 48
    changed = x.clone()
    changed[..., 8:12, 8:12] += 1  # pixels 4 to 11 and 8 to 15: two patches each way
    same = (encoder.latents(x) == encoder.latents(changed)).all(-1)[0]
    assert same.sum() == 45 and not same[1:3, 1:3].any()


def test_channel_norm_takes_the_unbiased_variance_at_each_place():
    x = torch.randn(3, 5, 4)
    y = ChannelNorm(5, epsilon=0)(x)
    torch.testing.assert_close(y, (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))


def one_by_one(model, z, c, negatives):
    """Equation 4 with loops, in float64: losses [K, P, B]."""
    B, R, J, C = z.shape
    K, P = model.steps, (R - model.steps) * J
    W = model.predict.weight.double().view(K, C, -1)
    losses = torch.zeros(K, P, B, dtype=torch.float64)
    for k in range(1, K + 1):
        for p in range(P):
            r, j = divmod(p, J)
            for b in range(B):
                prediction = W[k - 1] @ c[b, r, j].double()
                candidates = torch.cat([z[b, r + k, j][None], negatives[p]]).double()
                scores = candidates @ prediction / C
                losses[k - 1, p, b] = -F.log_softmax(scores, 0)[0]
    return losses


@pytest.mark.parametrize("shape", [(3, 6, 1, 16), (2, 5, 3, 16)])
def test_losses_are_those_of_the_equation(shape):
    model = wave_cpc(steps=2, negatives=5)
    z, c = 3 * torch.randn(shape), torch.randn(*shape[:3], 12)
    torch.manual_seed(1)
    losses, stats = model.losses(z, c)
    torch.manual_seed(1)
    negatives = model.draw_negatives(z, (shape[1] - 2) * shape[2])
    expected = one_by_one(model, z, c, negatives)
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)
    assert stats.positive_rank.shape == losses.shape


def test_colours_of_single_patches_are_dropped_in_training_alone():
    model, x = patch_cpc(patch_grayscale=0.5), torch.randn(8, 3, 32, 32)
    seen, encode = [], model.backbone.encode
    model.backbone.encode = lambda patches: seen.append(patches) or encode(patches)
    model.latents(x)
    is_grey = seen[0].std(3).amax((-1, -2)) < 1e-6
    assert 0.4 < is_grey.float().mean() < 0.6 and 0 < is_grey[0].sum() < 49  # each on its own
    patches = model.backbone.patches(x)
    torch.testing.assert_close(seen[0][~is_grey], patches[~is_grey], rtol=0, atol=0)
    torch.testing.assert_close(seen[0][is_grey].mean(1), patches[is_grey].mean(1))
    model.eval()
    torch.testing.assert_close(model.latents(x), model.backbone.latents(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="patch_grayscale"):
        Config(patch_grayscale=1.5)


def test_a_latent_changes_only_the_losses_that_use_it():
    model = wave_cpc(steps=3, negatives=4)
    z, c = torch.randn(2, 9, 1, 16), torch.randn(2, 9, 1, 12)
    model.draw_negatives = lambda z, P: torch.ones(P, 4, 16)
    before, _ = model.losses(z, c)
    z[1, 5] += 1
    changed = (model.losses(z, c)[0] != before).nonzero().tolist()
    # k steps ahead of place 5 - k, for sample 1.
    assert changed == [[0, 4, 1], [1, 3, 1], [2, 2, 1]]


def test_negatives_come_from_every_sample_and_never_from_the_place_itself():
    model = wave_cpc(negatives=3000)
    B, R = 4, 10
    z = torch.arange(B * R, dtype=torch.float32).view(B, R, 1, 1)
    drawn = model.draw_negatives(z, 4)[..., 0].long()
    sample, place = drawn // R, drawn % R
    for p in range(4):
        assert (place[p] != p).all() and len(place[p].unique()) == R - 1
        share = torch.bincount(sample[p], minlength=B) / 3000
        assert (share - 1 / B).abs().max() < 0.04


@pytest.mark.parametrize("make, x, N", [
    (wave_cpc, torch.randn(8, 1, 8000), 128), (patch_cpc, torch.randn(4, 3, 32, 32), 255)
])  # fmt: skip
def test_the_loss_of_a_new_network_is_chance(make, x, N):
    outputs = make(width=64, negatives=N)([x], 0)
    assert outputs["loss"].item() == pytest.approx(math.log(N + 1), abs=0.05)
    assert outputs["loss_1"].item() == pytest.approx(math.log(N + 1), abs=0.05)
    assert outputs["features"].shape == (len(x), 12 if N == 128 else 64)


def test_accuracy_leaves_out_the_steps_that_overlap():
    model = wave_cpc(steps=4, negatives=8)
    torch.manual_seed(2)
    outputs = model([torch.randn(4, 1, 4000)], 0)
    near, far = ((outputs[f"accuracy_{k}"] + outputs[f"accuracy_{k + 1}"]) / 2 for k in (1, 3))
    assert outputs["accuracy"].item() == pytest.approx(far.item())
    assert abs(near - far) > 0.01
    mean = sum(outputs[f"loss_{k}"] for k in range(1, 5)) / 4
    assert outputs["loss"].item() == pytest.approx(mean.item(), abs=1e-6)


@pytest.mark.parametrize("score, divisor", [("mean", 16.0), ("sum", 1.0), ("cosine", 0.1)])
def test_scores_are_scaled_as_asked(score, divisor):
    assert wave_cpc(score=score).scale(16) == divisor


def test_cosine_scores_do_not_depend_on_the_length_of_latents():
    model = wave_cpc(score="cosine", steps=2, negatives=4)
    z, c = torch.randn(2, 6, 1, 16), torch.randn(2, 6, 1, 12)
    torch.manual_seed(1)
    before, _ = model.losses(z, c)
    torch.manual_seed(1)
    torch.testing.assert_close(model.losses(7 * z, c)[0], before)


def test_every_part_learns_and_the_maps_are_one_for_each_step():
    for model, x in (
        (wave_cpc(), torch.randn(4, 1, 4000)),
        (patch_cpc(), torch.randn(2, 3, 32, 32)),
    ):
        model([x], 0)["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        width = model.steps * model.latent_width
        assert model.predict.weight.shape[0] == width and model.predict.bias is None


def test_a_sound_too_short_for_the_steps_is_refused():
    with pytest.raises(ValueError, match="6 steps ahead need more than 6 rows of latents"):
        wave_cpc()([torch.randn(2, 1, 900)], 0)


def test_a_backbone_without_latents_is_refused():
    layer = nn.Linear(3, 4)
    with pytest.raises(ValueError, match="cpc_audio for sounds, cpc_patches for images"):
        CPC(layer, Config())


def test_the_narrow_encoder_of_patches_has_half_the_width():
    narrow, whole = (
        backbones.build(n, image_size=32) for n in ("cpc_patches_narrow", "cpc_patches")
    )
    assert (narrow.num_features, whole.num_features) == (128, 256)
    assert narrow(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


def test_the_backbone_says_what_kind_of_data_is_learnt_from():
    assert kind_of(cpc, "cpc_audio") == "audio" and kind_of(cpc, "cpc_patches") == "images"
    sound, image = cpc.views(Config(), 32, "audio"), cpc.views(Config(), 32, "images")
    assert sound[0].window == 8000 and sound[0].same_group
    assert image[0].size == 32 and not image[0].is_jittered and image[0].grayscale == 0.2


def test_features_of_a_sound_are_the_mean_of_its_contexts():
    encoder = backbones.build("cpc_audio", image_size=32, channels=1)
    x = torch.randn(2, 1, 1600)
    torch.testing.assert_close(encoder(x), encoder.context(encoder.latents(x)).mean((1, 2)))
    assert encoder(x).shape == (2, encoder.num_features)


def test_layers_of_patches_are_read_as_mean_and_deviation_over_the_grid():
    encoder = patch_cpc().backbone.double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    z = encoder.latents(x)
    grids = {"convolutions": z, "above": encoder.context(z)}
    read = backbones.layer_features(encoder, x, backbones.layers(encoder))
    assert list(read) == list(grids)
    for name, grid in grids.items():
        places = grid.reshape(2, 49, 16)
        mean = places.sum(1) / 49
        spread = ((places - mean[:, None]).square().sum(1) / 49).sqrt()
        torch.testing.assert_close(read[name], torch.cat([mean, spread], 1))
    with pytest.raises(ValueError, match="no layer 'convolution'"):
        backbones.layer_features(encoder, x, ["convolution"])


def accuracies_after(make_waves, model, steps, lr, count=16):
    """Accuracy of each step on fresh sounds after training on such sounds."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    for step in range(steps):
        optimizer.zero_grad()
        model([make_waves(16)], step)["loss"].backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        outputs = [model([make_waves(count)], 0) for _ in range(192 // count)]
    return [torch.stack([o[f"accuracy_{k}"] for o in outputs]).mean().item()
            for k in range(1, model.steps + 1)]  # fmt: skip


@pytest.mark.slow
def test_noise_cannot_be_foretold_beyond_the_samples_that_latents_share():
    """More than chance there would be a leak of the future into the context."""
    model = wave_cpc(width=32, steps=6, negatives=16)
    accuracy = accuracies_after(lambda n: torch.randn(n, 1, 4000), model, steps=300, lr=2e-3)
    count = 12 * 16 * 19  # predictions of each step
    for k in (3, 4, 5, 6):
        assert abs(accuracy[k - 1] - 1 / 17) < 4 * math.sqrt(1 / 17 * 16 / 17 / count) + 0.01


@pytest.mark.slow
def test_sweeps_of_a_tone_are_foretold():
    """All rise at one rate from phase 0, so that where one begins decides what follows.

    A step of 20 ms rises by as much as their beginnings differ: no two latents are of one tone.
    """

    def sweeps(n):
        t = torch.arange(4000) / 8000
        start = 400 + 130 * torch.rand(n, 1)
        return torch.sin(2 * math.pi * (start * t + 6500 / 2 * t**2))[:, None]

    torch.manual_seed(0)
    model = CPC(WaveEncoder(), Config(steps=6, negatives=8, score="cosine", temperature=0.07))
    # Among many sounds a negative is seldom the positive itself.
    assert min(accuracies_after(sweeps, model, steps=500, lr=5e-3, count=64)) > 0.95
