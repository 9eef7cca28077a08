"""DINOv2 against the specification: swap, masks, weights, KoLeo, groups, clipping, resolution."""

import math
import random

import pytest
import torch
from stopped_runs import assert_stopping_changes_no_bit
from torch import nn

import sslops
from sslzoo import backbones, registry
from sslzoo.block_masks import block_mask, stratified_masks
from sslzoo.methods import dinov2
from sslzoo.methods.dinov2 import Config, DINOv2
from sslzoo.run_folder import load_backbone
from sslzoo.self_distillation import SubsetResidual, vit_tokens
from sslzoo.watch import collapse_warning

SMALL = dict(prototypes=24, patch_prototypes=20, head_hidden=16, head_bottleneck=8,
             patch_bottleneck=8, drop_path=0.0, layer_scale=0.1)  # fmt: skip


def method(**options):
    torch.manual_seed(0)
    config = Config(**{**SMALL, **options})
    sizes = dict(embed_dim=32, num_heads=2, depth=3)
    extra = dinov2.backbone_options(config, "vit_tiny_p4")
    vit = backbones.build("vit_tiny_p4", image_size=32, **sizes, **extra)
    return DINOv2(vit, config)


def crops(N=4, count=4):
    """Two of 32 x 32, the others of 16 x 16."""
    return [torch.randn(N, 3, 32 if i < 2 else 16, 32 if i < 2 else 16) for i in range(count)]


def spread(model):
    """Weights that make logits differ between images, which random small ones hardly do."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    model.backbone.load_state_dict(model.student["backbone"].state_dict())
    for name, head in model.teacher_heads.items():
        head.load_state_dict(model.student[name].state_dict())
    return model


def test_student_views_meet_the_teacher_views_of_the_other_crop():
    """Equal crops: the loss is the teacher's entropy. Different ones: swapped targets change it."""
    options = dict(targets="centering", mask_share=0.0, teacher_temperature=0.1,
                   warmup_teacher_temperature=0.1)  # fmt: skip
    model = spread(method(**options))
    x, y = torch.randn(2, 4, 3, 32, 32)
    same = model.eval()([x, x], 0)
    P = same["targets"]
    entropy = torch.special.entr(P).sum(-1).mean()
    torch.testing.assert_close(same["dino_global"], entropy)
    different = model([x, y], 0)
    P = different["targets"].view(2, 4, -1)
    g_s = [model.student["dino_head"](model.student["backbone"](v)) for v in (x, y)]
    log_p = torch.stack([(g / 0.1).log_softmax(-1) for g in g_s])
    crossed = -(P.flip(0) * log_p).sum(-1).mean()
    own = -(P * log_p).sum(-1).mean()
    torch.testing.assert_close(different["dino_global"], crossed.detach())
    assert abs(crossed - own) > 1e-3


def test_terms_are_those_of_the_paper():
    """Mean over the 18 pairs of ten crops; iBOT over 2B; KoLeo over both crops, times 0.1."""
    model, views = spread(method(targets="centering")).eval(), crops(count=10)
    found = model(views, 0)
    x = torch.cat(views[:2])
    masks = model.draw_masks(x, 0)
    B = 4
    tau = model.teacher_temperature
    teacher = vit_tokens(model.backbone, x)
    P = (model.teacher_heads["dino_head"](teacher[:, 0]) / tau).softmax(-1).view(2, B, -1)
    P_patch = (model.teacher_heads["ibot_head"](teacher[:, 1:]) / tau).softmax(-1)
    student = vit_tokens(model.student["backbone"], x, masks, model.mask_token)
    local = [vit_tokens(model.student["backbone"], v)[:, 0] for v in views[2:]]
    g = model.student["dino_head"](torch.cat([student[:, 0], *local])).view(10, B, -1)
    log_p = (g / 0.1).log_softmax(-1)
    pairs = {(t, s): -(P[t] * log_p[s]).sum(-1).mean()
             for t in range(2) for s in range(10) if t != s}  # fmt: skip
    of_global, everything = pairs[0, 1] + pairs[1, 0], sum(pairs.values())
    torch.testing.assert_close(found["dino_global"], (of_global / 18).detach())
    torch.testing.assert_close(found["dino_local"], ((everything - of_global) / 18).detach())

    log_p = (model.student["ibot_head"](student[:, 1:]) / 0.1).log_softmax(-1)
    cross = -(P_patch * log_p).sum(-1)
    ibot = sum(cross[i][masks[i]].mean() for i in range(2 * B) if masks[i].any())
    torch.testing.assert_close(found["ibot"], (ibot / (2 * B)).detach())
    unit = torch.nn.functional.normalize(student[:, 0], dim=-1).view(2, B, -1)
    distances = (unit[:, :, None] - unit[:, None]).norm(dim=-1) + 10 * torch.eye(B)
    koleo = -distances.amin(2).log().mean(1).sum()
    torch.testing.assert_close(found["koleo"], koleo.detach(), rtol=1e-4, atol=1e-5)
    total = found["dino_global"] + found["dino_local"] + found["ibot"] + 0.1 * found["koleo"]
    torch.testing.assert_close(found["loss"].detach(), total)


def test_a_batch_without_masks_has_no_ibot_loss_and_no_nan():
    model = method(mask_share=0.0)
    outputs = model(crops(), 0)
    outputs["loss"].backward()
    assert outputs["ibot"].item() == 0.0 and outputs["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert not model.mask_token.grad.any()


@pytest.mark.parametrize("targets", ["sinkhorn_knopp", "centering"])
def test_initial_losses_are_near_chance(targets):
    """Image loss about log K; patch loss about half of it where half of the crops are masked."""
    model = method(targets=targets, prototypes=512, patch_prototypes=256, head_bottleneck=256,
                   patch_bottleneck=256)  # fmt: skip
    outputs = model(crops(N=16), 0)
    image = (outputs["dino_global"] + outputs["dino_local"]).item()
    assert abs(image - math.log(512)) < 0.8
    assert abs(outputs["ibot"].item() - 0.5 * math.log(256)) < 0.4
    assert -0.5 < outputs["koleo"].item() / 2 < 12


def test_mask_ratios_cover_their_range_in_every_batch():
    masks = stratified_masks(64, 8, 8, seed=0, share=0.5, ratios=(0.1, 0.5))
    shares = masks.float().mean(1).sort().values
    assert masks.shape == (64, 64) and (shares > 0).sum() == 32
    middles = 0.1 + 0.4 * (torch.arange(32) + 0.5) / 32
    # Each draws from its own thirty-second of the range; whole patches, and some fall short.
    assert (shares[32:] - middles).abs().max() < 0.06
    order = masks.any(1)
    assert 0 < order[:32].sum() < 32  # shuffled


def test_block_masks_reach_their_targets():
    """The specification's numbers on 8 x 8: targets 6, 19, 32 realise 5.99, 18.95, 31.98."""
    generator = random.Random(0)
    for target, expected in ((6, 5.99), (19, 18.95), (32, 31.98)):
        counts = [int(block_mask(8, 8, target, generator).sum()) for _ in range(300)]
        assert max(counts) <= target
        assert sum(counts) / 300 == pytest.approx(expected, abs=0.12)
    assert not block_mask(8, 8, 0, generator).any()


def test_masks_follow_the_seed_and_the_step():
    model, x = method(mask_share=0.9), torch.randn(8, 3, 32, 32)
    once, again, later = (model.draw_masks(x, step) for step in (3, 3, 4))
    assert torch.equal(once, again) and not torch.equal(once, later)
    model.draws.seed += 1
    assert not torch.equal(once, model.draw_masks(x, 3))


def test_masks_of_some_crops_are_those_of_the_batch():
    whole = stratified_masks(12, 8, 8, seed=1, share=0.7)
    assert torch.equal(whole[[7, 2]], stratified_masks(12, 8, 8, seed=1, share=0.7, chosen=[7, 2]))


def test_mask_tokens_stand_in_before_positions_and_only_in_the_student():
    model = method()
    with torch.no_grad():
        model.mask_token.fill_(math.nan)
    x = torch.randn(2, 3, 32, 32)
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[0, 5] = True
    tokens = vit_tokens(model.student["backbone"], x, mask, model.mask_token)
    assert tokens[0].isnan().any() and tokens[1].isfinite().all()
    assert vit_tokens(model.backbone, x).isfinite().all()
    with torch.no_grad():
        model.mask_token.zero_()
    plain = nn.Identity()
    vit = model.student["backbone"]
    blocks, vit.blocks, norm, vit.norm = vit.blocks, plain, vit.norm, plain
    tokens = vit_tokens(vit, x, mask, model.mask_token)
    torch.testing.assert_close(tokens[0, 1 + 5], vit.pos_embed[0, 1 + 5])
    vit.blocks, vit.norm = blocks, norm


def test_teacher_is_in_evaluation_mode_without_gradient_and_covers_both_heads():
    model = method(drop_path=0.3, teacher_momentum=0.5)
    model.train()
    assert not model.backbone.training and not model.teacher_heads.training
    assert isinstance(model.student["backbone"].blocks[0], SubsetResidual)
    assert not isinstance(model.backbone.blocks[0], SubsetResidual)
    model(crops(), 0)["loss"].backward()
    assert set(model.teacher_heads) == {"dino_head", "ibot_head"}
    teacher = [*model.backbone.parameters(), *model.teacher_heads.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in teacher)
    with torch.no_grad():
        for p in model.student.parameters():
            p.fill_(2.0)
    before = [p.clone() for p in teacher]
    model.after_step(1)
    for old, new in zip(before, teacher, strict=True):
        torch.testing.assert_close(new, (old + 2.0) / 2)


def test_stochastic_depth_keeps_a_subset_and_its_mean():
    model = method(drop_path=0.5)
    block, plain = model.student["backbone"].blocks[0], model.backbone.blocks[0]
    x = torch.randn(8, 5, 32)
    torch.manual_seed(1)
    out = block.train().add(x, torch.ones_like)
    added = (out - x)[:, 0, 0]
    assert sorted(added.round(decimals=3).tolist()) == [0.0] * 4 + [2.0] * 4
    torch.testing.assert_close(block.eval()(x), plain(x))
    assert list(block.state_dict()) == list(plain.state_dict())


def test_layer_scale_and_registers_are_of_the_backbone():
    model = method(registers=4, layer_scale=1e-5)
    assert model.backbone.blocks[0].ls1.gamma.tolist() == pytest.approx([1e-5] * 32)
    keys = set(model.backbone.state_dict())
    assert {"blocks.0.ls1.gamma", "blocks.2.ls2.gamma", "reg_token"} <= keys
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit_tokens(model.backbone, x), model.backbone.forward_features(x))
    assert vit_tokens(model.backbone, torch.randn(2, 3, 16, 16)).shape == (2, 1 + 4 + 16, 32)
    assert model(crops(), 0)["loss"].isfinite()
    assert dinov2.backbone_options(Config(), "resnet18") == {}


def test_one_head_for_both_where_they_are_not_separate():
    model = method(separate_heads=False)
    assert set(model.student) == {"backbone", "dino_head"}
    model(crops(), 0)["loss"].backward()
    assert model.student["dino_head"].last_layer.weight_g.grad.any()


def test_centres_lag_a_step_and_stay_untouched_by_sinkhorn():
    model, views = method(targets="centering"), crops()
    torch.manual_seed(3)
    model(views, 0)
    g_t = model.teacher_heads["dino_head"](vit_tokens(model.backbone, torch.cat(views[:2]))[:, 0])
    torch.testing.assert_close(model.center, 0.1 * g_t.mean(0))
    assert model.patch_center.any()
    model = method(targets="sinkhorn_knopp")
    model(views, 0)
    assert not model.center.any() and "center" in model.state_dict()


def test_parameter_groups_decay_scale_and_freeze():
    model = method(layer_decay=0.5, patch_embed_lr=0.2, weight_decay_end=0.2)
    model.plan(100, 10)
    groups = model.parameter_groups(0.04)
    of = {id(p): g for g in groups for p in g["params"]}
    assert len(of) == len([p for p in model.parameters() if p.requires_grad])
    vit, head = model.student["backbone"], model.student["ibot_head"]
    assert of[id(vit.patch_embed.proj.weight)]["factor"] == pytest.approx(0.5**4 * 0.2)
    assert of[id(vit.pos_embed)]["factor"] == of[id(model.mask_token)]["factor"] == 0.5**4
    assert of[id(vit.blocks[0].attn.qkv.weight)]["factor"] == 0.5**3
    assert of[id(vit.blocks[2].attn.qkv.weight)]["factor"] == 0.5
    assert of[id(head.mlp[0].weight)]["factor"] == 1.0
    for decayed in (vit.pos_embed, vit.cls_token, model.mask_token, head.last_layer.weight_g):
        assert of[id(decayed)]["weight_decay"] == 0.04
    for free in (vit.blocks[0].ls1.gamma, vit.norm.weight, head.mlp[0].bias):
        assert of[id(free)]["weight_decay"] == 0.0
    last = of[id(head.last_layer.weight_v)]
    last["lr"] = 0.5
    model.schedule(9, groups)
    assert model.last_layer_group["lr"] == 0.5  # logged as last_layer_lr
    assert last["lr_scale"] == 0.0 and of[id(head.mlp[0].weight)]["lr_scale"] == 1.0
    model.schedule(10, groups)
    assert last["lr_scale"] == 1.0
    model.schedule(100, groups)
    assert last["weight_decay"] == pytest.approx(0.2)


def test_temperature_rises_step_by_step():
    model = method(warmup_teacher_temperature_epochs=3)
    model.plan(100, 10)
    model.at(29)
    assert model.teacher_temperature == pytest.approx(0.07)
    model.at(10)
    assert model.teacher_temperature == pytest.approx(0.04 + 0.03 * 10 / 29)
    model = method()  # by default over 15 % of the run
    model.plan(100, 10)
    for step, expected in ((0, 0.04), (7, 0.055), (14, 0.07), (99, 0.07)):
        model.at(step)
        assert model.teacher_temperature == pytest.approx(expected)


def test_each_network_is_clipped_to_its_own_norm():
    model = method()
    for name, norm in (("backbone", 30.0), ("dino_head", 1.0), ("ibot_head", 6.0)):
        parameters = [*model.student[name].parameters()]
        count = sum(p.numel() for p in parameters)
        for p in parameters:
            p.grad = torch.full_like(p, norm / count**0.5)
    model.after_backward(0)
    norms = {
        name: torch.stack([p.grad.norm() for p in network.parameters()]).norm().item()
        for name, network in model.student.items()
    }
    assert norms == pytest.approx({"backbone": 3.0, "dino_head": 1.0, "ibot_head": 3.0}, rel=1e-4)
    assert model.gradient_norms["ibot_head"].item() == pytest.approx(6.0, rel=1e-4)


def test_the_last_steps_are_at_high_resolution():
    model = method(high_resolution=48, high_resolution_share=0.1)
    model.plan(100, 10)
    views = [torch.randn(2, 3, 48, 48), torch.randn(2, 3, 48, 48), torch.randn(2, 3, 16, 16)]
    seen = []
    draw_masks = model.draw_masks
    model.draw_masks = lambda x, step: seen.append(x.shape[-1]) or draw_masks(x, step)
    for step in (0, 89, 90):
        assert model(views, step)["loss"].isfinite()
    assert seen == [32, 32, 48]
    assert [v.size for v in dinov2.views(Config(high_resolution=48, local_crops=1), 32)] == [
        48, 48, 16,
    ]  # fmt: skip


def test_koleo_takes_the_backbone_s_class_tokens_of_each_crop(monkeypatch):
    seen, koleo = [], sslops.koleo
    monkeypatch.setattr(sslops, "koleo", lambda x, **options: seen.append(x) or koleo(x, **options))
    model = method().eval()
    model(crops(), 0)
    assert seen[0].shape == (2, 4, 32)  # width of the backbone, not of a head


def test_a_backbone_without_patches_is_refused():
    with pytest.raises(ValueError, match="needs a ViT"):
        DINOv2(backbones.build("convnet4", image_size=16), Config())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_a_batch_of_one_are_finite(dtype):
    model = method()
    with torch.autocast("cpu", dtype):
        outputs = model(crops(N=1), 0)
    outputs["loss"].backward()
    assert outputs["loss"].isfinite() and outputs["koleo"] == 0  # one image has no neighbour
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_copies_of_an_image_cost_18_each_and_leave_finite_gradients():
    model = method(mask_share=0.0)
    x = torch.randn(1, 3, 32, 32).expand(4, -1, -1, -1)
    outputs = model([x, x], 0)
    outputs["loss"].backward()
    assert outputs["koleo"].item() == pytest.approx(2 * 18.42, abs=0.1)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_two_crops_without_local_ones_are_two_pairs():
    model = spread(method(targets="centering", mask_share=0.0)).eval()
    views = crops(count=2)
    found = model(views, 0)
    P = found["targets"].view(2, 4, -1)
    g_s = torch.stack([model.student["dino_head"](model.student["backbone"](v)) for v in views])
    cross = -(P.flip(0) * (g_s / 0.1).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(found["dino_global"], cross.detach())
    assert found["dino_local"] == 0


def test_prototypes_and_momentum_follow_batch_and_images():
    """The specification's: 2048 for 50,000 images, 65536 for ImageNet-1k, 131072 for 142 M."""
    for images, K in ((4000, 256), (50_000, 2048), (1_281_167, 65536), (142_000_000, 131072)):
        config, reasons = dinov2.adapt(Config(), 256, images)
        assert config.prototypes == K and len(reasons) == 2
    assert config.teacher_momentum == 0.994
    assert dinov2.adapt(Config(), 64, 4000)[0].teacher_momentum == 0.984
    given = Config(prototypes=100, teacher_momentum=0.9)
    assert dinov2.adapt(given, 256, 50_000) == (given, [])
    assert "unstable" in dinov2.adapt(Config(teacher_temperature=0.1), 256, 50_000)[1][-1]
    model = method(prototypes=30, patch_prototypes=0)
    assert model.student["ibot_head"].last_layer.weight_v.shape[0] == 30


def test_collapse_of_patches_is_warned_of_as_that_of_images():
    for suffix, word in (("", "image"), ("_patch", "patch")):
        uniform = {f"teacher_entropy_share{suffix}": 0.999, f"usage_entropy_share{suffix}": 0.999}
        assert f"no {word} from another" in collapse_warning(uniform, 8)
        assert "same prototype" in collapse_warning({f"usage_entropy_share{suffix}": 0.01}, 8)
    model = method()
    found = {name: float(value) for name, value in model.meters(model(crops(N=16), 0)).items()}
    assert {"teacher_entropy_share_patch", "used_prototypes_patch", "last_layer_lr"} <= set(found)


def test_a_stopped_run_goes_on_to_the_same_bits_and_its_backbone_loads(tmp_path):
    options = {**SMALL, "local_crops": 1, "registers": 2, "drop_path": 0.2}
    config = Config(targets="centering", **options)
    whole = assert_stopping_changes_no_bit("dinov2", config, tmp_path, backbone="vit_micro_p4")
    assert whole.center.any() and whole.patch_center.any()
    backbone, about = load_backbone(tmp_path / "whole")
    assert about["backbone_options"]["init_values"] == 0.1
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(backbone(x), whole.backbone.eval()(x))


@pytest.mark.parametrize("wrong", [dict(teacher_temperature=0.0), dict(mask_share=1.5),
                                   dict(mask_ratio=(0.5, 0.1))])  # fmt: skip
def test_wrong_options_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Config(**wrong)


def test_the_recipes_name_the_method():
    assert {"dinov2_cifar10", "dinov2_imagenet", "dinov2_small"} <= set(registry.recipes())
