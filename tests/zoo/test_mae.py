"""MAE against the specification; test_mae_agreement.py has the official step."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_mae import DEPTH, HEADS, WIDTH, method, official_patchify
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import sslops
from sslzoo import backbones
from sslzoo.methods import mae
from sslzoo.methods.mae import MAE, Config
from sslzoo.patch_targets import PCATarget, make_target, patchify, unpatchify
from sslzoo.positions import resize_positions, sincos_positions


def official_names(depth, decoder_depth):
    block = [
        f"{layer}.{kind}"
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ]
    pairs = ("patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred")
    return {
        *("cls_token", "pos_embed", "mask_token", "decoder_pos_embed"),
        *(f"{name}.{kind}" for name in pairs for kind in ("weight", "bias")),
        *(f"blocks.{i}.{name}" for i in range(depth) for name in block),
        *(f"decoder_blocks.{i}.{name}" for i in range(decoder_depth) for name in block),
    }


@pytest.mark.parametrize("target", ["norm_pixel", "pca"])
def test_weights_go_out_and_in_under_the_official_names(target):
    first, second = method(target=target), method(seed=1, target=target)
    state = first.official_state_dict()
    assert set(state) == official_names(DEPTH, 2)
    second.load_official_state_dict({"model": state})
    torch.testing.assert_close(second.official_state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("pooling, new", [("token", ["head"]), ("avg", ["fc_norm", "head"])])
def test_a_classifier_of_timm_misses_its_head_and_no_more(pooling, new):
    state = method().official_state_dict()
    sizes = dict(img_size=16, patch_size=4, embed_dim=WIDTH, num_heads=HEADS, depth=DEPTH)
    twin = VisionTransformer(**sizes, num_classes=10, global_pool=pooling)
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert set(missing) == {f"{layer}.{kind}" for layer in new for kind in ("weight", "bias")}
    decoder = {n for n in state if n.startswith(("decoder_", "mask_token"))}
    assert set(unexpected) == decoder | (
        {"norm.weight", "norm.bias"} if pooling == "avg" else set()
    )


def test_an_encoder_alone_loads_and_a_foreign_one_is_refused():
    first, second = method(), method(seed=1)
    decoder = second.decoder_pred.weight.clone()
    state = {n: v for n, v in first.official_state_dict().items()
             if n in first.backbone.state_dict()}  # fmt: skip
    second.load_official_state_dict(state)
    assert torch.equal(second.backbone.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"])
    assert torch.equal(second.decoder_pred.weight, decoder)
    state["head.weight"] = state.pop("norm.weight")
    with pytest.raises(ValueError, match=r"missing \['norm.weight'\], unknown \['head.weight'\]"):
        second.load_official_state_dict(state)


def test_positions_of_another_resolution_are_interpolated():
    small, large = method(16), method(32)
    large.load_official_state_dict(small.official_state_dict())
    assert large.backbone.pos_embed.shape == (1, 65, WIDTH)
    grid = small.backbone.pos_embed[:, 1:].reshape(1, 4, 4, WIDTH).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)
    found = large.backbone.pos_embed[:, 1:].reshape(1, 8, 8, WIDTH).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected)
    assert torch.equal(resize_positions(grid.flatten(2).mT, 4, num_prefix_tokens=0),
                       grid.flatten(2).mT)  # fmt: skip


def test_positions_hold_x_in_the_first_half_of_the_width():
    table = sincos_positions(3, 3, 8)[0].double()
    assert table.shape == (10, 8) and not table[0].any()
    for patch in range(9):
        y, x = divmod(patch, 3)
        expected = [f(t / 10000 ** (k / 2)) for t in (x, y)
                    for f in (math.sin, math.cos) for k in (0, 1)]  # fmt: skip
        assert table[1 + patch].tolist() == pytest.approx(expected, abs=1e-6)


# The discriminating tests of the specification


def test_patches_keep_the_official_order_and_come_back():
    x = torch.randn(2, 3, 12, 12)
    patches = patchify(x, 4)
    assert torch.equal(patches, official_patchify(x, 4)) and torch.equal(unpatchify(patches, 4), x)
    ids = torch.arange(9).expand(2, -1)
    assert torch.equal(sslops.gather_patches(x, ids, 4), patches)


def test_with_nothing_but_positions_every_patch_lands_in_its_own_place():
    """An image whose patches are their own numbers, 0 to 63, through identities."""
    ours = method(32, encoder_options=dict(embed_dim=64), decoder_width=64)
    for name in ("norm", "blocks"):
        setattr(ours.backbone, name, nn.Identity())
    ours.decoder_blocks, ours.decoder_norm, ours.decoder_embed = (nn.Identity() for _ in range(3))
    number = torch.arange(64.0)[:, None]
    x = unpatchify(number.expand(4, -1, 48), 4)
    with torch.no_grad():
        ours.backbone.patch_embed.proj.weight.fill_(1 / 48)
        for weight in (ours.backbone.patch_embed.proj.bias, ours.backbone.cls_token,
                       ours.mask_token):  # fmt: skip
            weight.zero_()
        ids = ours.sample(x)
        tokens = ours.decode(ours.encode(x, ids), ids)[:, 1:]
    position = ours.backbone.pos_embed[:, 1:]
    twice = 2.0 - ids.mask[:, :, None]  # kept tokens carry the encoder's position too
    torch.testing.assert_close(tokens, (1 - ids.mask[:, :, None]) * number + twice * position)


@pytest.mark.parametrize("sampling", ["random", "block", "grid"])
def test_every_row_loses_the_same_number_of_patches(sampling):
    ours = method(32, sampling=sampling)
    ids = ours.sample(torch.zeros(5, 3, 32, 32))
    assert (ids.mask.sum(1) == 64 - 16).all() and ids.ids_keep.shape == (5, 16)
    assert not ids.mask.gather(1, ids.ids_keep).any()
    removed = mae.ids_removed(ids)
    assert ids.mask.gather(1, removed).all() and removed.shape == (5, 48)


def test_grid_keeps_one_place_of_every_cell_and_blocks_hold_together():
    cells = method(32, sampling="grid").sample(torch.zeros(1, 3, 32, 32)).mask.reshape(8, 8)
    assert cells[0::2, 0::2].sum() == 0 and cells.sum() == 48

    def neighbours_alike(sampling):
        torch.manual_seed(0)
        mask = method(32, sampling=sampling, mask_ratio=0.5).sample(torch.zeros(40, 3, 32, 32)).mask
        mask = mask.reshape(-1, 8, 8)
        return (mask[:, 1:] == mask[:, :-1]).float().mean()

    assert neighbours_alike("block") > 0.7 > 0.6 > neighbours_alike("random")


def test_the_loss_reads_removed_patches_only():
    ours = method()
    x = torch.randn(2, 3, 16, 16)
    ids = ours.sample(x)
    tokens = torch.randn(2, 17, 16, requires_grad=True)
    ours.loss(x, tokens, mae.ids_removed(ids)).backward()
    touched = tokens.grad.abs().sum(-1)[:, 1:] > 0
    assert torch.equal(touched, ids.mask.bool()) and not tokens.grad[:, 0].any()


def test_targets_and_predictions_of_seen_patches_are_never_computed():
    ours, shapes = method(32), []
    for module in (ours.target, ours.decoder_pred):
        module.register_forward_hook(lambda m, inputs, output: shapes.append(output.shape))
    ours([torch.randn(3, 3, 32, 32)], 0)
    assert shapes == [(3, 48, 48)] * 2  # 48 of 64 patches, 48 values each


@pytest.mark.parametrize("mask_token_in_encoder", [False, True])
def test_the_encoder_does_not_see_removed_patches(mask_token_in_encoder):
    ours = method(mask_token_in_encoder=mask_token_in_encoder)
    x = torch.randn(2, 3, 16, 16)
    ids = ours.sample(x)
    removed = unpatchify(ids.mask[:, :, None].expand(-1, -1, 48), 4) > 0
    changed = torch.where(removed, torch.randn_like(x), x)
    assert not torch.equal(changed, x)
    assert torch.equal(ours.encode(x, ids), ours.encode(changed, ids))
    seen = torch.where(removed, x, x + 1)
    assert not torch.allclose(ours.encode(x, ids), ours.encode(seen, ids))


def test_removed_patches_are_never_embedded():
    ours = method(32)
    assert ours.encode(torch.randn(2, 3, 32, 32), ours.sample(torch.randn(2, 3, 32, 32))).shape == (
        2, 17, WIDTH)  # fmt: skip
    token = method(32, mask_token_in_encoder=True)
    x = torch.randn(2, 3, 32, 32)
    outputs = token([x], 0)
    outputs["loss"].backward()
    assert token.encode(x, token.sample(x)).shape == (2, 65, WIDTH)
    assert token.encoder_mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "patch_size, width, image_size", [(4, 96, 32), (4, 128, 32), (16, 512, 64)]
)
def test_the_loss_starts_where_the_initialisation_puts_it(patch_size, width, image_size):
    """(n - 1) / n of the target, and 2 Dd / (Dd + n) of the prediction."""
    n = 3 * patch_size**2
    ours = method(image_size, patch_size, decoder_width=width, decoder_heads=4)
    loss = ours([torch.randn(16, 3, image_size, image_size)], 0)["loss"].item()
    assert loss == pytest.approx((n - 1) / n + 2 * width / (width + n), rel=0.15)


def test_predicting_zero_gives_the_second_moment_of_the_target():
    target = make_target("norm_pixel", 48)(torch.randn(500, 48))
    assert target.square().mean().item() == pytest.approx(47 / 48, abs=1e-4)


@pytest.mark.slow
def test_32_images_are_learned_by_heart():
    torch.manual_seed(0)
    ours = method(16, 4, encoder_options=dict(embed_dim=64, depth=2), decoder_width=64,
                  decoder_depth=2, mask_ratio=0.5)  # fmt: skip
    x = F.interpolate(torch.randn(32, 3, 4, 4), size=16, mode="bicubic")
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=260)
    noise = torch.rand(32, 16)
    for step in range(260):
        loss = ours([x], step, noise=noise)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert loss.item() < 0.1, loss


# Targets, options, meters, pictures


def test_normalised_targets_use_the_unbiased_variance_and_come_back():
    patches = torch.randn(4, 7, 48) * 3 + 1
    target = make_target("norm_pixel", 48)
    normalised = target(patches)
    torch.testing.assert_close(normalised.var(-1), torch.ones(4, 7), rtol=1e-4, atol=0)
    torch.testing.assert_close(target.invert(normalised, patches), patches)


def test_components_are_those_of_largest_variance():
    torch.manual_seed(0)
    mix = torch.randn(12, 12)
    patches = torch.randn(4000, 12) @ mix + 5
    target = PCATarget(12, 3)
    target.fit(patches.split(500))
    centred = patches - patches.mean(0)
    _, singular, vectors = torch.linalg.svd(centred, full_matrices=False)
    found = target(patches)
    torch.testing.assert_close(found.square().mean(0), singular[:3] ** 2 / 4000, rtol=1e-3, atol=0)
    cosines = (target.basis.T @ vectors[:3].T).abs()
    torch.testing.assert_close(cosines, torch.eye(3), rtol=0, atol=1e-3)
    kept = 1 - (target.invert(found, patches) - patches).square().sum() / centred.square().sum()
    share = (singular[:3] ** 2).sum() / (singular**2).sum()
    assert kept.item() == pytest.approx(share.item(), abs=1e-3)


def test_the_target_of_components_is_fitted_before_training():
    ours = method(target="pca")
    assert ours.target.size == 24 == ours.decoder_pred.out_features
    ours.survey([torch.randn(8, 3, 16, 16) + 4])
    torch.testing.assert_close(ours.target.mean, torch.full((48,), 4.0), rtol=0, atol=0.4)
    outputs = ours([torch.randn(2, 3, 16, 16)], 0)
    outputs["loss"].backward()
    assert outputs["loss"].isfinite() and "target.basis" in ours.state_dict()
    assert make_target("pca", 768).size == 96


def test_meters_tell_the_error_on_seen_patches_and_how_flat_patches_are():
    ours = method()
    x = torch.randn(2, 3, 16, 16)
    x[0, :, :4, :4] = 0.5  # one flat patch
    outputs = ours([x], 0)
    meters = ours.meters(outputs)
    assert meters["target_variance_min"] == 0
    assert meters["target_variance_median"].item() == pytest.approx(1, abs=0.3)
    pred = ours.decoder_pred(outputs["tokens"][:, 1:])
    error = (pred - ours.target(patchify(x, 4))).square().mean(-1)
    kept = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, outputs["ids_keep"], True)
    assert meters["visible_loss"].item() == pytest.approx(error[kept].mean().item(), rel=1e-5)
    assert outputs["loss"].item() == pytest.approx(error[~kept].mean().item(), rel=1e-5)


def test_pictures_show_input_prediction_and_original():
    ours = method()
    ours.normalised_by(0.5, 0.25)
    x = torch.full((4, 3, 16, 16), 1.0)  # 0.75 as it was
    sheet = ours.pictures([x])["reconstruction"]
    assert sheet.dtype == torch.uint8 and sheet.shape == (3, 68, 12 * 66 + 2)
    masked, _, original = sheet[0, 2:66].split(66, 1)[:3]
    assert (original[:, 2:] == 191).all()
    assert (masked[:, 2:] == 128).float().mean() == 0.75
    assert (masked[:, 2:] == 191).float().mean() == 0.25
    assert torch.equal(sheet, ours.pictures([x])["reconstruction"])


def test_views_follow_the_augmentation():
    (default,) = mae.views(Config(), 32)
    assert default.crop_scale == (0.2, 1.0) and default.interpolation == "bicubic"
    assert default.flip == 0.5 and not default.is_jittered and not default.grayscale
    (none,) = mae.views(Config(augmentation="none"), 32)
    assert none.crop_scale == none.crop_ratio == (1.0, 1.0) and not none.flip
    (fixed,) = mae.views(Config(augmentation="fixed_crop"), 32)
    assert fixed.crop_scale == (0.765625, 0.765625) and fixed.flip == 0.5
    (jitter,) = mae.views(Config(augmentation="color_jitter"), 32)
    assert jitter.is_jittered and jitter.crop_scale == (0.2, 1.0)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(mask_ratio=1.0), "mask_ratio"),
        (dict(decoder_width=18), "decoder_width"),
        (dict(decoder_width=32, decoder_heads=3), "decoder_width"),
        (dict(decoder_depth=-1), "decoder_depth"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_a_count_that_rounding_spoils_is_refused():
    with pytest.raises(ValueError, match=r"keeps 9 of 100 patches, not 10: try 0.8999"):
        mae.check_count(100, 0.9)
    mae.check_count(100, 0.8999)
    mae.check_count(196, 0.75)
    with pytest.raises(ValueError, match="keeps 0 of 16"):
        mae.check_count(16, 0.95)


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_dinov3"])
def test_other_encoders_are_refused(name):
    with pytest.raises(ValueError, match="mae needs a ViT"):
        MAE(backbones.build(name, image_size=32), Config())


def test_the_weights_start_as_in_the_official_code():
    ours = method(32, encoder_options=dict(embed_dim=192))
    weight = ours.backbone.patch_embed.proj.weight
    assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / (192 + 48)), rel=0.01)
    qkv = ours.backbone.blocks[0].attn.qkv
    assert qkv.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (4 * 192)), rel=0.01)
    assert not qkv.bias.any()
    assert ours.backbone.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    frozen = {n for n, p in ours.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.pos_embed", "decoder_pos_embed"}
