"""What the contrastive and self-distilling methods log, against the same in float64, one by one."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sslops
from sslzoo import backbones
from sslzoo.grid_encoders import WaveEncoder
from sslzoo.methods import cpc, dino, dinov2, moco, moco_v3
from sslzoo.self_distillation import vit_tokens


class Linear(nn.Module):
    """A backbone that is one matrix."""

    def __init__(self, inputs=8, outputs=7):
        super().__init__()
        self.num_features = outputs
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.layer(x.flatten(1))


def values(meters):
    return {name: float(value) for name, value in meters.items()}


def unit(x):
    return F.normalize(x.detach().double(), dim=-1)


def test_moco():
    torch.manual_seed(0)
    options = dict(queue_size=32, key_momentum=0.9, temperature=0.2, bn_splits=1, head_features=6)
    model = moco.MoCo(Linear(), moco.Config(**options))
    with torch.no_grad():  # new networks map all samples to nearly the same direction
        for p in model.key_encoder.parameters():
            p.normal_()
        model.query_encoder().load_state_dict(model.key_encoder.state_dict())
    x_q, x_k = torch.randn(2, 16, 8)
    x_k = x_q + x_k
    q, k = unit(model.encode_queries(x_q)[1]), unit(model.encode_keys(x_k, 0))
    before = model.queue.keys.clone().double()
    outputs = model([x_q, x_k], 0)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ before.T], 1)
    rank = (logits[:, 1:] > logits[:, :1]).sum(1)
    assert 0 < (rank < 1).double().mean() < (rank < 5).double().mean() < 1
    assert float(outputs["contrastive_top1"]) == pytest.approx((rank < 1).double().mean().item())
    assert float(outputs["contrastive_top5"]) == pytest.approx((rank < 5).double().mean().item())
    found = values(model.meters(outputs))
    assert found["positive_cosine"] == pytest.approx((q * k).sum(1).mean().item(), abs=1e-6)
    now = (q @ model.queue.keys.double().T).mean().item()  # the queue that the next step reads
    assert found["queue_cosine"] == pytest.approx(now, abs=1e-6) and abs(now) > 1e-3
    assert found["key_momentum"] == pytest.approx(0.9) and found["queue_age"] == 2
    torch.testing.assert_close(outputs["features"], model.backbone(x_q).detach())


def test_moco_v3():
    torch.manual_seed(0)
    config = moco_v3.Config(head_width=16, head_features=6, temperature=0.5)
    model = moco_v3.MoCoV3(Linear(), config)
    x1, x2 = torch.randn(2, 12, 8)
    x2 = x1 + x2
    outputs = model([x1, x2], 0)
    cosines = [unit(model.encode_queries(x)[1]) @ unit(model.encode_keys(y)).T
               for x, y in ((x1, x2), (x2, x1))]  # fmt: skip
    own = torch.stack([c.diagonal().mean() for c in cosines]).mean().item()
    first = torch.stack([(c.argmax(1) == torch.arange(12)).double().mean() for c in cosines]).mean()
    assert float(outputs["positive_cosine"]) == pytest.approx(own, abs=1e-6)
    assert float(outputs["contrastive_top1"]) == pytest.approx(first.item()) and 0 < first < 1
    features = torch.cat([model.backbone(x1), model.backbone(x2)])
    torch.testing.assert_close(outputs["features"], features.detach())


def test_cpc():
    torch.manual_seed(0)
    model = cpc.CPC(WaveEncoder(1, 16, 12), cpc.Config(steps=3, negatives=8))
    x = torch.randn(4, 1, 2400)
    torch.manual_seed(1)
    outputs = model([x], 0)
    z = model.backbone.latents(x)
    c = model.backbone.context(z)
    torch.manual_seed(1)
    losses, stats = model.losses(z, c)
    for k in range(3):
        right = (stats.positive_rank[k] < 1).float().mean().item()
        assert float(outputs[f"loss_{k + 1}"]) == pytest.approx(losses[k].mean().item(), abs=1e-6)
        assert float(outputs[f"accuracy_{k + 1}"]) == pytest.approx(right)
    found = values(model.meters(outputs))
    norms = {"latents_norm": z, "contexts_norm": c}
    for name, vectors in norms.items():
        lengths = vectors.double().square().sum(-1).sqrt().mean().item()
        assert found[name] == pytest.approx(lengths, rel=1e-5)


def entropies(P):
    """Mean entropy of the rows, that of the mean row, prototypes that win some row."""

    def entropy(p):
        return -(p * p.log()).sum(-1)

    return entropy(P).mean().item(), entropy(P.mean(0)).item(), len(P.argmax(1).unique())


def check_teacher(found, P, suffix=""):
    each, mean, used = entropies(P)
    log_K = math.log(P.shape[1])
    assert found[f"teacher_entropy{suffix}"] == pytest.approx(each, rel=1e-5)
    assert found[f"teacher_entropy_share{suffix}"] == pytest.approx(each / log_K, rel=1e-5)
    assert found[f"usage_entropy{suffix}"] == pytest.approx(mean, rel=1e-5)
    assert found[f"used_prototypes{suffix}"] == used > 1


def test_dino():
    torch.manual_seed(0)
    config = dino.Config(prototypes=12, head_hidden=16, head_bottleneck=8, teacher_momentum=0.9)
    model = dino.DINO(Linear(12), config)
    model.center = C = 0.1 * torch.randn(12)
    views = list(torch.randn(3, 6, 3, 2, 2))
    outputs = model(views, 0)
    model.schedule(0, [{"weight_decay": 0.04}])
    found = values(model.meters(outputs))
    g_t = torch.cat([model.teacher_head(model.backbone(x)) for x in views[:2]]).detach().double()
    P = ((g_t - C) / 0.04).softmax(-1)
    check_teacher(found, P)
    g_s = [model.student["head"](model.student["backbone"](x)).detach().double() for x in views]
    P_0, P_1 = P.chunk(2)
    pairs = [(P_0, g_s[1]), (P_0, g_s[2]), (P_1, g_s[0]), (P_1, g_s[2])]
    kl = [(p * (p.log() - (g / 0.1).log_softmax(-1))).sum(-1).mean() for p, g in pairs]
    assert found["kl"] == pytest.approx(torch.stack(kl).mean().item(), rel=1e-4)
    centre = 0.9 * C.double() + 0.1 * g_t.mean(0)
    assert found["center_norm"] == pytest.approx(centre.norm().item(), rel=1e-5)
    assert found["teacher_temperature"] == 0.04 and found["weight_decay"] == pytest.approx(0.04)
    assert found["teacher_momentum"] == 0.9


def test_dinov2():
    torch.manual_seed(0)
    config = dinov2.Config(prototypes=12, patch_prototypes=10, head_hidden=16, head_bottleneck=8,
                           patch_bottleneck=8, layer_scale=0.1, local_crops=1)  # fmt: skip
    sizes = dict(embed_dim=32, num_heads=2, depth=2)
    model = dinov2.DINOv2(backbones.build("vit_tiny_p4", image_size=32, **sizes), config)
    seen = []
    draw_masks = model.draw_masks
    model.draw_masks = lambda x, step: seen.append(draw_masks(x, step)) or seen[-1]
    outputs = model([torch.randn(4, 3, n, n) for n in (32, 32, 16)], 0)
    assert float(outputs["masked_share"]) == pytest.approx(seen[0].double().mean().item())
    assert 0 < float(outputs["masked_share"]) < 0.25 + 1e-6  # half of the crops, 0.1 to 0.5 each
    total = sum(float(outputs[name]) * weight for name, weight in
                (("dino_global", 1), ("dino_local", 1), ("ibot", 1), ("koleo", 0.1)))  # fmt: skip
    assert outputs["loss"].item() == pytest.approx(total, rel=1e-5)
    assert outputs["patch_targets"].shape == (int(seen[0].sum()), 10)
    outputs["loss"].backward()
    parameters = [*model.student["backbone"].parameters(), model.mask_token]
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item()
    model.after_backward(0)
    found = values(model.meters(outputs))
    assert found["gradient_norm_backbone"] == pytest.approx(norm, rel=1e-5)
    check_teacher(found, outputs["targets"].double())
    check_teacher(found, outputs["patch_targets"].double(), "_patch")
    assert found["high_resolution"] == 0 and found["teacher_momentum"] == 0.994


@pytest.mark.parametrize("name", ["dino", "dinov2"])
def test_a_teacher_follows_with_the_momentum_of_the_step_that_is_done(name):
    """The first step has the first momentum, the last one not yet 1."""
    torch.manual_seed(0)
    options = dict(prototypes=12, head_hidden=16, head_bottleneck=8, teacher_momentum=0.5)
    sizes = dict(image_size=16, embed_dim=32, num_heads=2, depth=1)
    vit = backbones.build("vit_tiny_p4", **sizes)
    model = {"dino": lambda: dino.DINO(vit, dino.Config(**options)),
             "dinov2": lambda: dinov2.DINOv2(vit, dinov2.Config(**options))}[name]()  # fmt: skip
    model.plan(4, 1)
    student, teacher = model.student["backbone"].cls_token, model.backbone.cls_token
    expected = teacher.clone()
    for step in range(1, 5):
        with torch.no_grad():
            student.fill_(step)
        model.after_step(step)
        m = 1 - 0.5 * (1 + math.cos(math.pi * (step - 1) / 4)) / 2
        expected = m * expected + (1 - m) * step
        torch.testing.assert_close(teacher.detach(), expected)


def test_the_mask_token_is_clipped_with_the_backbone():
    torch.manual_seed(0)
    config = dinov2.Config(prototypes=12, head_hidden=16, head_bottleneck=8, clip_network=1.0)
    sizes = dict(image_size=16, embed_dim=32, num_heads=2, depth=1)
    model = dinov2.DINOv2(backbones.build("vit_tiny_p4", **sizes), config)
    model.mask_token.grad = torch.full_like(model.mask_token, 3 / 32**0.5)
    vit = model.student["backbone"]
    vit.cls_token.grad = torch.full_like(vit.cls_token, 4 / 32**0.5)
    model.after_backward(0)
    assert model.gradient_norms["backbone"].item() == pytest.approx(5, rel=1e-5)
    assert model.mask_token.grad.norm().item() == pytest.approx(0.6, rel=1e-5)
    assert vit.cls_token.grad.norm().item() == pytest.approx(0.8, rel=1e-5)


def test_targets_are_those_of_the_teacher_s_heads_whatever_the_student_s_are():
    torch.manual_seed(0)
    config = dinov2.Config(prototypes=12, head_hidden=16, head_bottleneck=8, patch_bottleneck=8,
                           layer_scale=0.1)  # fmt: skip
    sizes = dict(image_size=16, embed_dim=32, num_heads=2, depth=1)
    model = dinov2.DINOv2(backbones.build("vit_tiny_p4", **sizes), config)
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(torch.randn_like(p))
    x, seen = torch.randn(8, 3, 16, 16), []
    draw_masks = model.draw_masks
    model.draw_masks = lambda x, step: seen.append(draw_masks(x, step)) or seen[-1]
    outputs = model([*x.chunk(2)], 0)
    tokens = vit_tokens(model.backbone, x)
    g = model.teacher_heads["dino_head"](tokens[:, 0])
    g_patch = model.teacher_heads["ibot_head"](tokens[:, 1:][seen[0]])
    assert len(g_patch) > 1
    for name, logits in (("targets", g), ("patch_targets", g_patch)):
        torch.testing.assert_close(outputs[name], sslops.sinkhorn_knopp(logits, 0.04))
