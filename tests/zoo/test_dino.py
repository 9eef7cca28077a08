"""DINO against the specification: pairs, centre, schedules, clipping, freezing, collapse."""

import math

import pytest
import torch
from stopped_runs import assert_stopping_changes_no_bit
from torch import nn

import sslops
from sslzoo import backbones, heads, optimizers, registry, self_distillation
from sslzoo.methods import dino
from sslzoo.methods.dino import DINO, Config
from sslzoo.watch import collapse_warning

SMALL = dict(prototypes=32, head_hidden=16, head_bottleneck=8, drop_path=0.0)


class Pixels(nn.Module):
    """The mean colour and a linear map of it: takes crops of any size."""

    def __init__(self, width=12):
        super().__init__()
        self.num_features = width
        self.layer = nn.Linear(3, width)

    def forward(self, x):
        return self.layer(x.mean((2, 3)))


def tiny_vit(**options):
    sizes = dict(embed_dim=32, num_heads=2, depth=3, **options)
    return backbones.build("vit_tiny_p4", image_size=16, **sizes)


def crops(N=3, count=6):
    """Two of 16 x 16, the others of 8 x 8."""
    return [torch.randn(N, 3, 16 if i < 2 else 8, 16 if i < 2 else 8) for i in range(count)]


def method(backbone=None, **options):
    torch.manual_seed(0)
    return DINO(backbone or Pixels(), Config(**{**SMALL, **options}))


def test_pairs_are_every_teacher_crop_with_every_other_crop(monkeypatch):
    """Crops that name themselves: {(0, 1..9), (1, 0), (1, 2..9)}, in the order of the crops."""
    seen = {}

    def record(student, teacher, **options):
        seen.update(student=student, teacher=teacher, options=options)
        return torch.zeros((), requires_grad=True)

    monkeypatch.setattr(sslops, "dino_loss", record)
    ids = [torch.full((2, 3, 16 if i < 2 else 8, 1), float(i)) for i in range(10)]
    ids = [x.expand(-1, -1, -1, x.shape[2]) for x in ids]
    model = method()
    model.student["backbone"] = model.backbone = Number()
    model.student["head"] = model.teacher_head = nn.Identity()
    model.center = torch.zeros(1)
    model(ids, 0)
    assert seen["student"][..., 0].tolist() == [[float(i)] * 2 for i in range(10)]
    assert seen["teacher"][..., 0].tolist() == [[0.0] * 2, [1.0] * 2]
    assert "skip_same_view" not in seen["options"]  # the default: pairs with t != s


class Number(nn.Module):
    """The first pixel."""

    num_features = 1

    def forward(self, x):
        return x[:, 0, 0, :1]


def test_the_loss_is_a_double_loop_over_pairs():
    model, views = method(teacher_temperature=0.06), crops(count=10)
    model.center = 0.1 * torch.randn(32)
    C = model.center
    loss = model(views, 0)["loss"]
    g_s = [model.student["head"](model.student["backbone"](x)) for x in views]
    g_t = [model.teacher_head(model.backbone(x)) for x in views[:2]]
    terms = [
        -(((g_t[t] - C) / 0.06).softmax(-1) * (g_s[s] / 0.1).log_softmax(-1)).sum(-1).mean()
        for t in range(2) for s in range(10) if t != s
    ]  # fmt: skip
    assert len(terms) == 18
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_a_student_like_its_teacher_has_the_teacher_s_entropy():
    model = method(teacher_temperature=0.1, warmup_teacher_temperature=0.1)
    same = [torch.randn(4, 3, 16, 16)] * 4
    outputs = model(same, 0)
    found = model.meters(outputs)
    torch.testing.assert_close(outputs["loss"], found["teacher_entropy"])
    assert abs(found["kl"]) < 1e-5


def test_the_centre_is_used_before_it_is_updated_and_lags_one_step():
    model, views = method(), crops()
    g_t = torch.cat([model.teacher_head(model.backbone(x)) for x in views[:2]])
    first = model(views, 0)
    assert not first["used_center"].any()
    torch.testing.assert_close(model.center, 0.1 * g_t.mean(0))
    second = model(views, 1)
    torch.testing.assert_close(second["used_center"], 0.1 * g_t.mean(0))
    torch.testing.assert_close(model.center, 0.19 * g_t.mean(0))
    first["loss"].backward()  # the centre of the first step is still the one that it used


def test_the_centre_is_in_the_checkpoint_and_stays_in_evaluation():
    model, views = method(), crops()
    model(views, 0)
    other = method()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.center, model.center) and other.center.any()
    before = model.eval().center
    model(views, 1)
    assert model.center is before


def test_no_gradient_reaches_the_teacher_and_it_is_not_optimised():
    model = method(tiny_vit())
    model(crops(), 0)["loss"].backward()
    teacher = [*model.backbone.parameters(), *model.teacher_head.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in teacher)
    assert all(p.grad is not None for p in model.student.parameters() if p.requires_grad)


def test_teacher_starts_as_the_student_and_follows_it_head_included():
    model = method(teacher_momentum=0.75)
    pairs = [*zip(model.backbone.parameters(), model.student["backbone"].parameters(), strict=True),
             *zip(model.teacher_head.parameters(), model.student["head"].parameters(),
                  strict=True)]  # fmt: skip
    assert all(torch.equal(t, s) for t, s in pairs)
    old = [t.clone() for t, _ in pairs]
    with torch.no_grad():
        for _, s in pairs:
            s.add_(1.0)
    model.after_step(1)
    for t, before in zip((t for t, _ in pairs), old, strict=True):
        torch.testing.assert_close(t, before + 0.25)


def test_schedules_of_temperature_momentum_and_decay():
    model = method(teacher_momentum=0.9, teacher_temperature=0.07, weight_decay_end=0.4,
                   warmup_teacher_temperature_epochs=4)  # fmt: skip
    model.plan(100, 10)
    temperatures = []
    for step in (0, 9, 10, 29, 30, 99):
        model.at(step)
        temperatures.append(model.teacher_temperature)
    # By epoch, not by step: 0.04, 0.05, 0.06, 0.07.
    assert temperatures == pytest.approx([0.04, 0.04, 0.05, 0.06, 0.07, 0.07])
    model.at(50)
    assert model.momentum == pytest.approx(0.95)
    model.at(100)
    assert model.momentum == 1.0
    groups = [{"weight_decay": 0.04}, {"weight_decay": 0.0}]
    model.schedule(50, groups)
    assert groups[0]["weight_decay"] == pytest.approx(0.22) and groups[1]["weight_decay"] == 0.0
    model.schedule(100, groups)
    assert groups[0]["weight_decay"] == pytest.approx(0.4)


def test_every_parameter_is_clipped_by_its_own_norm():
    model = method(clip_parameter=3.0)
    parameters = [p for p in model.student.parameters() if p.requires_grad]
    for i, p in enumerate(parameters):
        p.grad = torch.full_like(p, (10.0 if i == 0 else 0.01) / p.numel() ** 0.5)
    model.after_backward(0)
    assert parameters[0].grad.norm().item() == pytest.approx(3.0, rel=1e-5)
    for p in parameters[1:]:  # a global norm would have shrunk these
        assert p.grad.norm().item() == pytest.approx(0.01, rel=1e-5)


def test_the_last_layer_is_frozen_for_an_epoch_and_moves_afterwards():
    model = method(freeze_last_layer=1.0, norm_last_layer=False)
    model.plan(20, 2)
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=0.1, weight_decay=0.4)
    last = model.student["head"].last_layer
    start = last.weight_v.detach().clone(), last.weight_g.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        model(crops(), step)["loss"].backward()
        model.after_backward(step)
        optimizer.step()
        frozen = torch.equal(last.weight_v, start[0]) and torch.equal(last.weight_g, start[1])
        assert frozen == (step < 2)


def test_the_head_has_the_official_keys_and_prototypes_of_length_one():
    head = heads.DINOHead(12, 20, hidden=16, bottleneck=8)
    assert sorted(head.state_dict()) == [
        "last_layer.weight_g", "last_layer.weight_v", "mlp.0.bias", "mlp.0.weight", "mlp.2.bias",
        "mlp.2.weight", "mlp.4.bias", "mlp.4.weight",
    ]  # fmt: skip
    assert head.last_layer.weight_g.shape == (20, 1)
    assert not head.last_layer.weight_g.requires_grad
    assert heads.DINOHead(12, 20, train_length=True).last_layer.weight_g.requires_grad
    logits = head(100 * torch.randn(50, 12))
    assert logits.abs().max() <= 1 + 1e-6  # cosines
    old = nn.utils.weight_norm(nn.Linear(8, 20, bias=False))
    old.load_state_dict(head.last_layer.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(head.last_layer(x), old(x))


def test_initial_loss_is_near_log_k():
    """Cosines in 256 dimensions: within -0.8 and 0.2 of log K."""
    torch.manual_seed(0)
    options = Config(prototypes=4096, head_bottleneck=256)
    model = DINO(backbones.build("convnet4", image_size=16), options)
    first = model(crops(N=16, count=2), 0)["loss"].item()
    assert -0.8 < first - math.log(4096) < 0.2


def test_small_crops_take_interpolated_positions():
    vit = tiny_vit()
    tokens = self_distillation.vit_tokens(vit, torch.randn(2, 3, 8, 8))
    assert tokens.shape == (2, 1 + 4, 32)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(self_distillation.vit_tokens(vit, x), vit.forward_features(x))
    torch.testing.assert_close(self_distillation.encode(vit, x), vit(x))
    with torch.no_grad():  # positions that grow from row to row
        vit.pos_embed[:, 1:] = torch.arange(4.0).repeat_interleave(4)[:, None].expand(-1, 32)
    _, found = self_distillation.positions(vit, 8, 8)
    rows = found[0, :, 0].view(8, 8)
    assert (rows.std(1) < 1e-5).all()
    # Row 3 of 8 lies at 3.5 * 4 / 8.1 - 0.5 of 4, not at 3.5 * 4 / 8 - 0.5.
    place = 3.5 * 4 / 8.1 - 0.5
    expected = sum(i * cubic(abs(i - place)) for i in range(4))
    assert rows[3, 0].item() == pytest.approx(expected, abs=1e-4)


def cubic(x):
    """Weights of bicubic interpolation with a = -0.75 (Keys, 1981)."""
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_stochastic_depth_rises_and_is_the_student_s_alone():
    model = method(tiny_vit(), drop_path=0.1)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in model.student["backbone"].blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1])
    assert all(isinstance(b.drop_path1, nn.Identity) for b in model.backbone.blocks)
    assert list(model.backbone.state_dict()) == list(model.student["backbone"].state_dict())


def test_views_are_the_paper_s():
    first, second, *local = dino.views(Config(blur=1.0, local_crops=8, local_size=96), 224)
    assert (first.size, second.size, len(local), local[0].size) == (224, 224, 8, 96)
    assert (first.blur, second.blur, local[0].blur) == (1.0, 0.1, 0.5)
    assert (first.solarize, second.solarize, local[0].solarize) == (0.0, 0.2, 0.0)
    assert first.crop_scale == (0.4, 1.0) and local[0].crop_scale == (0.1, 0.4)
    for view in (first, second, local[0]):
        assert (view.jitter, view.brightness, view.saturation, view.hue) == (0.8, 0.4, 0.2, 0.1)
        assert view.interpolation == "bicubic" and view.grayscale == 0.2
    assert [v.size for v in dino.views(Config(), 32)] == [32, 32, 16, 16, 16, 16]


def test_prototypes_and_momentum_follow_batch_and_images():
    config, reasons = dino.adapt(Config(), 256, 50_000)
    assert (config.prototypes, config.teacher_momentum, len(reasons)) == (4096, 0.99, 2)
    config, _ = dino.adapt(Config(), 1024, 1_281_167)
    assert (config.prototypes, config.teacher_momentum) == (65536, 0.996)
    config, _ = dino.adapt(Config(), 64, 4000)  # 62.5 steps an epoch
    assert (config.prototypes, config.teacher_momentum) == (256, 0.984)
    given = Config(prototypes=100, teacher_momentum=0.9, global_crop_scale=(0.3, 1.0))
    assert dino.adapt(given, 256, 50_000) == (given, [])


def test_unstable_teacher_temperatures_are_named_at_the_start():
    warmed = dict(prototypes=100, teacher_momentum=0.9, warmup_teacher_temperature_epochs=30)
    assert dino.adapt(Config(teacher_temperature=0.07, **warmed), 256, 50_000)[1] == []
    for wrong in (
        dict(teacher_temperature=0.08),
        dict(teacher_temperature=0.07, warmup_teacher_temperature_epochs=0),
    ):
        _, (reason,) = dino.adapt(Config(**{**warmed, **wrong}), 256, 50_000)
        assert "unstable" in reason


def test_meters_tell_both_kinds_of_collapse():
    K = 64
    uniform = self_distillation.teacher_meters(torch.full((10, K), 1 / K))
    assert uniform["teacher_entropy_share"].item() == pytest.approx(1.0)
    one = self_distillation.teacher_meters(torch.eye(K)[[3] * 10])
    assert one["usage_entropy"] == 0 and one["used_prototypes"] == 1
    healthy = self_distillation.teacher_meters(torch.eye(K))
    assert healthy["teacher_entropy"] == 0 and healthy["used_prototypes"] == K
    assert "same prototype" in collapse_warning({k: float(v) for k, v in one.items()}, 8)
    assert "uniform" in collapse_warning({k: float(v) for k, v in uniform.items()}, 8)
    assert collapse_warning({k: float(v) for k, v in healthy.items()}, 8) is None


def collapse_run(**options):
    """Usage and teacher entropy, as shares of log K, after training on random colours."""
    model = method(prototypes=16, teacher_momentum=0.98, **options)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=3e-3)
    x = 2 * torch.randn(64, 3, 1, 1, generator=generator)
    for step in range(200):
        views = [x + 0.1 * torch.randn(64, 3, 1, 1, generator=generator) for _ in range(2)]
        outputs = model(views, step)
        optimizer.zero_grad()
        outputs["loss"].backward()
        model.after_backward(step)
        optimizer.step()
        model.after_step(step + 1)
    found = model.meters(outputs)
    return found["usage_entropy_share"].item(), found["teacher_entropy_share"].item()


def test_the_full_recipe_does_not_collapse():
    usage, entropy = collapse_run()
    assert usage > 0.5 and entropy < 0.5


def test_without_centring_one_prototype_wins():
    usage, _ = collapse_run(center_momentum=1.0)  # the centre stays 0
    assert usage < 0.01


def test_without_sharpening_all_prototypes_are_equal():
    _, entropy = collapse_run(teacher_temperature=1.0, warmup_teacher_temperature=1.0)
    assert entropy > 0.99


def test_the_teacher_s_batch_norm_keeps_statistics_of_its_own():
    def after_a_step(**options):
        model = method(backbones.build("convnet4", image_size=16), **options)
        model(crops(N=4, count=4), 0)
        model.after_step(1)
        networks = model.backbone, model.student["backbone"]
        return [[b for n, b in x.named_buffers() if n.endswith("running_mean")] for x in networks]

    teacher, student = after_a_step()
    assert all(t.isfinite().all() and t.any() for t in teacher)
    # The student saw the small crops as well.
    assert not any(torch.equal(t, s) for t, s in zip(teacher, student, strict=True))
    teacher, student = after_a_step(ema_buffers="copy")
    assert all(torch.equal(t, s) for t, s in zip(teacher, student, strict=True))


def test_position_and_class_token_are_decayed_and_biases_are_not():
    model = method(tiny_vit())
    decayed, others = optimizers.parameter_groups(model, 0.04)
    decayed, others = ({id(p) for p in group["params"]} for group in (decayed, others))
    vit = model.student["backbone"]
    assert {id(vit.pos_embed), id(vit.cls_token), id(vit.blocks[0].attn.qkv.weight)} <= decayed
    assert {id(vit.norm.weight), id(model.student["head"].mlp[0].bias)} <= others
    assert not (decayed | others) & {id(p) for p in model.backbone.parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_a_batch_of_one_are_finite(dtype):
    model = method(tiny_vit())
    with torch.autocast("cpu", dtype):
        outputs = model(crops(N=1), 0)
    outputs["loss"].backward()
    assert outputs["loss"].isfinite() and model.center.isfinite().all()
    assert model.center.dtype == outputs["loss"].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.student.parameters() if p.requires_grad)


def test_one_crop_size_is_one_pass_of_the_backbone():
    """Two sizes, two passes: not one for every crop."""
    model = method()
    seen = []
    model.student["backbone"].register_forward_hook(lambda *a: seen.append(tuple(a[2].shape)))
    model(crops(N=3, count=6), 0)
    assert seen == [(6, 12), (12, 12)]
    seen.clear()
    model(crops(N=3, count=2), 0)  # no small crops
    assert seen == [(6, 12)]


def test_a_stopped_run_goes_on_with_its_centre_to_the_same_bits(tmp_path):
    config = Config(prototypes=64, local_crops=1)
    whole = assert_stopping_changes_no_bit("dino", config, tmp_path, backbone="convnet4")
    assert whole.center.any()
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert state["method"]["center"].any()


@pytest.mark.parametrize("wrong", [dict(teacher_temperature=0.0), dict(center_momentum=1.5),
                                   dict(local_crops=-1)])  # fmt: skip
def test_wrong_options_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Config(**wrong)


def test_the_recipes_name_the_method():
    assert {"dino_cifar10", "dino_imagenet"} <= set(registry.recipes())
