"""MoCo v3 against the specification: loss, momentum, frozen patches, positions, heads, views."""

import math

import forks
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sslzoo import backbones, optimizers
from sslzoo.methods import moco_v3
from sslzoo.methods.moco_v3 import Config, MoCoV3
from sslzoo.positions import sincos_positions


class Linear(nn.Module):
    """A backbone that is one matrix."""

    def __init__(self, inputs=6, outputs=5):
        super().__init__()
        self.num_features = outputs
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.layer(x)


def small_vit():
    return backbones.build("vit_tiny_p4", image_size=8, embed_dim=24, num_heads=3, depth=2)


def make(backbone=None, **options):
    torch.manual_seed(0)
    return MoCoV3(backbone or Linear(), Config(**{"head_width": 8, "head_features": 4, **options}))


class Given(nn.Module):
    """Heads and encoders that return the input."""

    num_features = 8

    def forward(self, x):
        return x


def loss_of(x1, x2, temperature):
    """The loss where queries and keys are the views themselves."""
    model = make(Given(), temperature=temperature)
    model.projector = model.predictor = nn.Identity()
    model.key_encoder["projector"] = nn.Identity()
    return model([x1, x2], 0)["loss"]


@pytest.mark.parametrize("T", [0.2, 1.0])
def test_identical_vectors_give_chance_exactly(T):
    x = torch.ones(32, 8)
    assert loss_of(x, x, T).item() == pytest.approx(4 * T * math.log(32), abs=1e-5)


def test_the_loss_is_that_of_the_paper_in_float64():
    torch.manual_seed(1)
    q1, q2 = torch.randn(2, 7, 8, dtype=torch.float64)
    k1, k2 = q1, q2  # f_k is f_q here
    ours = loss_of(q1, q2, 0.2).item()
    expected = sum(
        2 * 0.2 * F.cross_entropy(F.normalize(q) @ F.normalize(k).T / 0.2, torch.arange(7))
        for q, k in ((q1, k2), (q2, k1))
    )
    assert ours == pytest.approx(expected.item(), abs=1e-12)


def test_the_gradient_does_not_shrink_with_the_temperature():
    """Queries at right angles to all keys but slightly towards their own."""
    norms = []
    for T in (0.2, 1.0):
        q = torch.eye(8)[:4].requires_grad_()
        k = torch.eye(8)[4:]
        model = make(Given(), temperature=T)
        model.projector = model.predictor = nn.Identity()
        model.key_encoder["projector"] = nn.Identity()
        model([q, k], 0)["loss"].backward()
        norms.append(q.grad.norm().item())
    assert 0.5 < norms[0] / norms[1] < 2


def test_keys_are_those_of_the_other_view():
    model = make(Given(), temperature=0.2)
    model.projector = model.predictor = nn.Identity()
    model.key_encoder["projector"] = nn.Identity()
    x1 = torch.eye(8)
    x2 = x1[[1, 2, 3, 4, 5, 6, 7, 0]]  # the same view would be found always, the other never
    assert model([x1, x2], 0)["contrastive_top1"].item() == 0
    assert model([x1, x1], 0)["contrastive_top1"].item() == 1


def test_the_momentum_rises_from_its_first_value_to_one():
    model = make(key_momentum=0.9)
    assert model.momentum_at(5) == pytest.approx(0.9)  # before there is a plan
    model.plan(100, 10.0)
    assert model.momentum_at(0) == pytest.approx(0.9)
    assert model.momentum_at(50) == pytest.approx(0.95)
    assert model.momentum_at(100) == 1.0


def test_the_average_uses_the_momentum_of_its_step():
    model = make(key_momentum=0.5)
    model.plan(4, 1.0)
    start = model.key_encoder["backbone"].layer.weight.clone()
    with torch.no_grad():
        model.backbone.layer.weight.zero_()
    model.after_step(2)  # half way, m = 0.75
    ours = model.key_encoder["backbone"].layer.weight
    torch.testing.assert_close(ours, 0.75 * start)
    assert model.meters({})["key_momentum"].item() == 0.75


def test_the_statistics_of_the_key_encoder_are_its_own_unless_copied():
    for buffers, value in (("none", 0.0), ("copy", 8.0), ("ema", 4.0)):
        model = make(key_momentum=0.5, ema_buffers=buffers)
        model.projector[1].running_mean.fill_(8.0)
        model.after_step(0)
        assert (model.key_encoder["projector"][1].running_mean == value).all()


def test_the_key_encoder_takes_no_gradient_and_has_no_predictor():
    model = make()
    assert not [name for name, _ in model.key_encoder.named_modules() if "predictor" in name]
    model(list(torch.randn(2, 6, 6)), 0)["loss"].backward()
    assert all(p.grad is None for p in model.key_encoder.parameters())
    learning = [*model.base_encoder().parameters(), *model.predictor.parameters()]
    assert all(p.grad is not None for p in learning)


def test_frozen_patches_stay_bit_for_bit_and_the_rest_learns():
    model = make(small_vit())
    frozen = {name: p.clone() for name, p in model.backbone.named_parameters()
              if name.startswith("patch_embed") or name == "pos_embed"}  # fmt: skip
    before = model.backbone.blocks[0].attn.qkv.weight.clone()
    groups = optimizers.parameter_groups(model, 0.1)
    optimizer = optimizers.build("adamw", groups, lr=1e-2)
    for step in range(10):
        optimizer.zero_grad()
        model(list(torch.randn(2, 4, 3, 8, 8)), step)["loss"].backward()
        optimizer.step()
        model.after_step(step + 1)
    now = dict(model.backbone.named_parameters())
    assert frozen.keys() == {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"}
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert not torch.equal(model.backbone.blocks[0].attn.qkv.weight, before)


def test_patches_learn_where_they_are_not_frozen():
    model = make(small_vit(), frozen_patch_embed=False)
    assert all(p.requires_grad for p in model.backbone.patch_embed.parameters())
    assert not model.backbone.pos_embed.requires_grad


def test_positions_follow_the_official_mesh():
    """The first half is the row, which its meshgrid calls width; the table is shaped row by row."""
    table = sincos_positions(3, 5, 16, class_token=False, row_first=True)[0].double()
    for row in range(3):
        for column in range(5):
            frequency = [10000 ** (-i / 4) for i in range(4)]
            expected = [f(p * w) for p in (row, column) for f in (math.sin, math.cos)
                        for w in frequency]  # fmt: skip
            ours = table[row * 5 + column].tolist()
            assert ours == pytest.approx(expected, abs=1e-6)


def test_a_vit_starts_as_the_official_code_does():
    model = make(small_vit())
    vit, d = model.backbone, 24
    assert vit.pos_embed[0, 0].abs().max() == 0 and vit.pos_embed.shape == (1, 5, d)
    assert vit.cls_token.abs().max() < 1e-5
    # The patch in row 0 and column 1: the row comes first, sin 0 and cos 0, then sin 1.
    first, second = vit.pos_embed[0, 2].split(d // 2)
    assert first.tolist() == [0.0] * 6 + [1.0] * 6
    assert second[0].item() == pytest.approx(math.sin(1), abs=1e-6)
    bounds = {
        "patch_embed.proj.weight": math.sqrt(6 / (3 * 16 + d)),
        "blocks.0.attn.qkv.weight": math.sqrt(6 / (d + d)),
        "blocks.0.mlp.fc1.weight": math.sqrt(6 / (d + 4 * d)),
    }
    for name, bound in bounds.items():
        largest = vit.get_parameter(name).abs().max().item()
        assert 0.98 * bound < largest <= bound, name
        assert vit.get_parameter(name.replace("weight", "bias")).abs().max() == 0


def layer_names(head):
    return [type(layer).__name__ for layer in head]


def test_heads_are_those_of_vit_and_resnet():
    hidden, last = ["Linear", "BatchNorm1d", "ReLU"], ["Linear", "BatchNorm1d"]
    vit, resnet = make(small_vit()), make(backbones.build("resnet18", image_size=32))
    assert layer_names(vit.projector) == [*hidden, *hidden, *last]
    assert layer_names(vit.predictor) == [*hidden, *last]
    assert layer_names(resnet.projector) == [*hidden, *last]
    assert layer_names(resnet.predictor) == [*hidden, "Linear"]
    for head in (vit.projector, vit.predictor, resnet.projector):
        assert not head[-1].affine and head[1].affine
    assert all(m.bias is None for m in vit.projector if isinstance(m, nn.Linear))
    assert [m.out_features for m in vit.projector if isinstance(m, nn.Linear)] == [8, 8, 4]


def test_the_loss_of_a_new_network_is_near_chance():
    model = make(small_vit(), head_width=64, head_features=32)
    outputs = model(list(torch.randn(2, 64, 3, 8, 8)), 0)
    assert outputs["loss"].item() == pytest.approx(4 * 0.2 * math.log(64), rel=0.1)


def test_gradients_of_the_first_and_last_layer_are_logged():
    model = make()
    model(list(torch.randn(2, 6, 6)), 0)["loss"].backward()
    model.after_backward(0)
    norm = model.backbone.layer.weight.grad.norm().item()
    meters = model.meters({})
    assert meters["first_layer_gradient"].item() == meters["last_layer_gradient"].item() == norm


def test_the_first_layer_of_a_vit_is_one_of_weights_not_its_class_token():
    for frozen, name in ((True, "blocks.0.attn.qkv.weight"), (False, "patch_embed.proj.weight")):
        model = make(small_vit(), frozen_patch_embed=frozen)
        model(list(torch.randn(2, 6, 3, 8, 8)), 0)["loss"].backward()
        model.after_backward(0)
        norm = model.backbone.get_parameter(name).grad.norm().item()
        assert model.gradient_norms["first_layer_gradient"].item() == norm > 0


def test_views_are_asymmetric_as_in_the_paper():
    first, second = moco_v3.views(Config(blur=(1.0, 0.1), crop_min_scale=0.2), 224)
    assert (first.blur, first.solarize) == (1.0, 0.0)
    assert (second.blur, second.solarize) == (0.1, 0.2)
    for view in (first, second):
        strengths = [view.brightness, view.contrast, view.saturation, view.hue]
        assert strengths == [0.4, 0.4, 0.2, 0.1] and view.jitter == 0.8
        assert view.crop_scale == (0.2, 1.0) and view.grayscale == 0.2 and view.flip == 0.5
        assert not view.grayscale_first


@pytest.mark.parametrize("batch, images, m", [(4096, 1_281_167, 0.99), (100, 2000, 0.95)])
def test_the_momentum_averages_over_an_epoch_at_most(batch, images, m):
    chosen, reasons = moco_v3.adapt(Config(), batch, images)
    assert chosen.key_momentum == pytest.approx(m) and len(reasons) == 1
    given = Config(key_momentum=0.7)
    assert moco_v3.adapt(given, batch, images) == (given, [])


@pytest.mark.parametrize("options", [
    {"temperature": 0}, {"key_momentum": 1.0}, {"head_width": 0}
])  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Config(**options)


# Two processes


def without_batch_norm():
    """A method whose heads do not see how the batch was split."""
    torch.manual_seed(0)
    model = MoCoV3(Linear(12, 8), Config(head_width=8, head_features=4)).double()
    for head in (model.projector, model.predictor, model.key_encoder["projector"]):
        head[1] = nn.Identity()
        if len(head) == 5:
            head[4] = nn.Identity()
    return model


def assert_equal_to_one_process(rank):
    def gradients(module, model, views):
        loss = module(list(views), 0)["loss"]
        loss.backward()
        return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    dist.init_process_group("gloo")
    torch.manual_seed(1)
    views = torch.randn(2, 6, 12, dtype=torch.float64)
    model = without_batch_norm()
    share = views[:, 3 * rank : 3 * rank + 3]
    loss, ours = gradients(DistributedDataParallel(model), model, share)
    dist.all_reduce(loss)
    dist.destroy_process_group()
    model = without_batch_norm()
    single, expected = gradients(model, model, views)
    torch.testing.assert_close(loss / 2, single)
    torch.testing.assert_close(ours, expected)
    assert len(ours) == 6


def test_two_processes_have_the_loss_and_gradients_of_one():
    assert forks.run(2, assert_equal_to_one_process) == [0, 0]
