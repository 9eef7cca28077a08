"""SimCLR against the specification: hand-worked losses, the head of the paper, the two views."""

import math

import forks
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sslzoo.methods import simclr
from sslzoo.methods.simclr import Config, SimCLR


class Features(nn.Module):
    """A backbone that returns its input, or a linear map of it."""

    def __init__(self, width, linear=False):
        super().__init__()
        self.num_features = width
        self.layer = nn.Linear(width, width) if linear else nn.Identity()

    def forward(self, x):
        return self.layer(x)


def loss_of(z0, z1, **options):
    config = Config(projector="none", **options)
    return SimCLR(Features(z0.shape[1]), config)([z0, z1], 0)


def double_loop(z0, z1, temperature):
    """Equation 1 and algorithm 1, one pair at a time, in float64."""
    z = F.normalize(torch.cat([z0, z1]).double(), dim=1)
    N = len(z0)
    total = 0.0
    for i in range(2 * N):
        similarity = [float(z[i] @ z[k]) / temperature for k in range(2 * N)]
        j = (i + N) % (2 * N)
        denominator = sum(math.exp(s) for k, s in enumerate(similarity) if k != i)
        total -= math.log(math.exp(similarity[j]) / denominator)
    return total / (2 * N)


def test_orthogonal_pairs_give_the_loss_worked_by_hand():
    z = torch.eye(8)
    assert loss_of(z, z, temperature=1.0)["loss"].item() == pytest.approx(
        math.log(math.e + 14) - 1, abs=1e-6
    )


def test_equal_embeddings_give_chance_exactly():
    z = torch.ones(12, 5)
    outputs = loss_of(z, z, temperature=0.5)
    assert outputs["loss"].item() == pytest.approx(math.log(23), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_the_papers_mean_over_both_directions(temperature):
    z0, z1 = torch.randn(2, 7, 6)
    ours = loss_of(z0, z1, temperature=temperature)["loss"].item()
    assert ours == pytest.approx(double_loop(z0, z1, temperature), abs=1e-6)


def test_views_may_be_swapped_and_batches_permuted():
    z0, z1 = torch.randn(2, 9, 4)
    order = torch.randperm(9)
    losses = [loss_of(*pair)["loss"].item()
              for pair in ((z0, z1), (z1, z0), (z0[order], z1[order]))]  # fmt: skip
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    assert loss_of(z0, z1[order])["loss"].item() != pytest.approx(losses[0], abs=1e-3)


def test_views_that_share_nothing_stay_at_chance():
    method = SimCLR(Features(64, linear=True), Config(temperature=0.5))
    outputs = method(list(torch.randn(2, 256, 64)), 0)
    # log(511) = 6.236, and a little above it for the spread of the negatives.
    assert 6.2 < outputs["loss"].item() < 6.35
    assert outputs["contrastive_top1"].item() < 0.02


def test_contrastive_accuracy_counts_siblings_that_come_first():
    # Rows 0 to 3 find their sibling; rows 4 and 5 hold swapped siblings, which are never first.
    z = torch.eye(6)
    outputs = loss_of(z, z[[0, 1, 2, 3, 5, 4]])
    assert outputs["contrastive_top1"].item() == pytest.approx(4 / 6)
    assert outputs["contrastive_top5"].item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "options, kinds",
    [
        ({}, ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]),
        ({"head_bn": False}, ["Linear", "ReLU", "Linear"]),
        ({"projector": "linear"}, ["Linear", "BatchNorm1d"]),
        ({"projector": "linear", "head_bn": False}, ["Linear"]),
        ({"projector_layers": 3, "head_bn": False}, ["Linear", "ReLU", "Linear", "ReLU", "Linear"]),
    ],
)
def test_the_head_has_the_layers_of_the_paper(options, kinds):
    head = simclr.projector(16, Config(projector_features=4, projector_width=8, **options))
    assert [type(layer).__name__ for layer in head] == kinds
    linears = [layer for layer in head if isinstance(layer, nn.Linear)]
    hidden = [8] * (len(linears) - 1)
    assert [layer.in_features for layer in linears] == [16, *hidden]
    assert linears[-1].out_features == 4
    assert linears[-1].bias is None
    bn = options.get("head_bn", True)
    assert all((layer.bias is None) == bn for layer in linears[:-1])


def test_the_head_starts_as_torch_or_as_the_papers_code():
    torch.manual_seed(0)
    head = simclr.projector(64, Config(head_bn=False))
    torch.manual_seed(0)
    assert torch.equal(head[0].weight, nn.Linear(64, 64).weight)
    head = simclr.projector(64, Config(head_bn=False, head_std=0.01))
    for linear in head[0], head[2]:
        assert 0.009 < linear.weight.std().item() < 0.011
    assert not head[0].bias.any()


def test_the_last_norm_scales_and_does_not_shift():
    head = simclr.projector(16, Config())
    assert head[-1].weight is not None and head[-1].bias is None
    assert head[1].bias is not None
    z = head(torch.randn(64, 16))
    torch.testing.assert_close(z.mean(0), torch.zeros(128), atol=1e-5, rtol=0)
    z.square().sum().backward()
    assert head[-1].weight.grad is not None


def test_without_a_head_the_loss_acts_on_the_features():
    assert isinstance(simclr.projector(16, Config(projector="none")), nn.Identity)


def test_hidden_width_follows_the_backbone_by_default():
    assert simclr.projector(24, Config())[0].out_features == 24


def test_both_views_pass_batch_norm_together():
    torch.manual_seed(0)
    backbone = nn.BatchNorm1d(5)
    backbone.num_features = 5
    method = SimCLR(backbone, Config(projector="none"))
    x0, x1 = torch.randn(8, 5), 3 + torch.randn(8, 5)
    features = method([x0, x1], 0)["features"]
    torch.testing.assert_close(features, F.batch_norm(torch.cat([x0, x1]), None, None,
                                                      training=True))  # fmt: skip
    assert backbone.num_batches_tracked == 1


def test_features_are_those_before_the_head_and_carry_no_gradient():
    method = SimCLR(Features(6, linear=True), Config())
    x0, x1 = torch.randn(2, 4, 6)
    outputs = method([x0, x1], 0)
    torch.testing.assert_close(outputs["features"], method.backbone(torch.cat([x0, x1])))
    assert not outputs["features"].requires_grad and not outputs["z"].requires_grad
    outputs["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_meters_agree_with_all_pairs_computed_one_by_one():
    z0, z1 = torch.randn(2, 10, 8)
    outputs = loss_of(z0, z1)
    method = SimCLR(Features(8), Config(projector="none"))
    meters = {name: float(value) for name, value in method.meters(outputs).items()}
    z = F.normalize(torch.cat([z0, z1]).double(), dim=1)
    cosine = z @ z.T
    rows = torch.arange(20)
    sibling = torch.zeros(20, 20, dtype=torch.bool)
    sibling[rows, (rows + 10) % 20] = True
    other = ~torch.eye(20, dtype=torch.bool)
    distance = torch.cdist(z, z).square()
    expected = {
        "positive_cosine": cosine[sibling].mean(),
        "negative_cosine": cosine[other & ~sibling].mean(),
        "alignment": distance[sibling].mean(),
        "uniformity": (-2 * distance[other]).exp().mean().log(),
        "mutual_information_bound": math.log(19) - outputs["loss"].item(),
    }
    assert meters == pytest.approx({k: float(v) for k, v in expected.items()}, abs=1e-5)


def test_both_views_are_drawn_alike_with_the_papers_strengths():
    first, second = simclr.views(Config(jitter_strength=1.0, crop_min_scale=0.08, blur=0.5), 224)
    assert first == second
    assert (first.brightness, first.contrast, first.saturation, first.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (first.size, first.crop_scale, first.crop_ratio) == (224, (0.08, 1.0), (3 / 4, 4 / 3))
    assert (first.flip, first.jitter, first.grayscale, first.blur) == (0.5, 0.8, 0.2, 0.5)
    assert first.blur_sigma == (0.1, 2.0)
    assert not first.solarize and not first.is_affine


@pytest.mark.parametrize("options", [{"temperature": 0}, {"projector_layers": 0}, {"head_std": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Config(**options)


# Two processes


def two_views_and_a_method():
    torch.manual_seed(0)
    method = SimCLR(Features(12, linear=True), Config(head_bn=False, projector_features=4)).double()
    nn.init.normal_(method.projector[0].weight)
    nn.init.normal_(method.projector[2].weight)
    return torch.randn(2, 6, 12, dtype=torch.float64), method


def assert_equal_to_one_process(rank):
    views, method = two_views_and_a_method()

    def gradients(module, views):
        method.zero_grad()
        outputs = module(views, 0)
        outputs["loss"].backward()
        return outputs, [p.grad.clone() for p in method.parameters()]

    dist.init_process_group("gloo")
    share = list(views[:, 3 * rank : 3 * rank + 3])
    outputs, ours = gradients(DistributedDataParallel(method), share)
    mean = outputs["loss"].detach().clone()
    dist.all_reduce(mean)
    meters = method.meters(outputs)
    dist.destroy_process_group()
    single, expected = gradients(method, list(views))
    torch.testing.assert_close(mean / 2, single["loss"].detach())
    torch.testing.assert_close(ours, expected)
    chance = meters["mutual_information_bound"] + outputs["loss"].detach()
    torch.testing.assert_close(chance.item(), torch.tensor(11.0).log().item())


def test_two_processes_have_the_loss_and_gradients_of_one():
    assert forks.run(2, assert_equal_to_one_process) == [0, 0]
