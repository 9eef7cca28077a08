"""MoCo v1 and v2 against the specification: queue, momentum, heads, views, both directions."""

import math

import forks
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sslops
from sslzoo.methods import moco
from sslzoo.methods.moco import Config, MoCo

SMALL = dict(queue_size=16, key_momentum=0.9, temperature=0.2, bn_splits=1, head_features=6)


class Encoder(nn.Module):
    """Eight numbers to seven features that are not negative."""

    def __init__(self):
        super().__init__()
        self.num_features = 7
        self.layer = nn.Linear(8, 7)

    def forward(self, x):
        return self.layer(x).relu()


def method(**options):
    torch.manual_seed(0)
    return MoCo(Encoder(), Config(**{**SMALL, **options}))


def train(model, steps, rows=4, lr=0.5):
    """A few SGD steps; the keys of each step."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    keys = []
    for step in range(steps):
        x_q, x_k = torch.randn(2, rows, 8)
        keys.append(F.normalize(model.encode_keys(x_k, step), dim=1))
        optimizer.zero_grad()
        model([x_q, x_k], step)["loss"].backward()
        optimizer.step()
        model.after_step(step + 1)
    return keys


def test_four_batches_of_four_fill_the_queue_in_order():
    model = method()
    keys = train(model, 4)
    torch.testing.assert_close(model.queue.keys, torch.cat(keys))
    assert model.queue.pointer.item() == 0


def test_a_batch_that_passes_the_end_of_the_queue_goes_on_at_its_start():
    model = method(queue_size=6)
    keys = torch.cat(train(model, 2))
    torch.testing.assert_close(model.queue.keys, torch.cat([keys[6:], keys[2:6]]))
    assert model.queue.pointer.item() == 2


def test_the_loss_reads_the_queue_before_it_takes_the_batch():
    model = method()
    x_q, x_k = torch.randn(2, 4, 8)
    queue, q = model.queue.keys.clone().double(), F.normalize(model.encode_queries(x_q)[1].double())
    k = F.normalize(model.encode_keys(x_k, 0).double())
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
    outputs = model([x_q, x_k], 0)
    expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    assert outputs["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    top1 = (logits.argmax(1) == 0).double().mean().item()
    assert outputs["contrastive_top1"].item() == pytest.approx(top1)
    torch.testing.assert_close(model.queue.keys[:4], k.float())


def test_the_gradient_is_that_of_the_queue_before_the_batch():
    model, copy = method(), method()
    x_q, x_k = torch.randn(2, 4, 8)
    q, k = F.normalize(copy.encode_queries(x_q)[1]), F.normalize(copy.encode_keys(x_k, 0))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ copy.queue.keys.T], 1) / 0.2
    F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)).backward()
    model([x_q, x_k], 0)["loss"].backward()
    for ours, theirs in zip(model.parameters(), copy.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_only_the_query_encoder_learns_by_gradient():
    model = method()
    model([*torch.randn(2, 4, 8)], 0)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.key_encoder.parameters())
    assert all(p.grad.isfinite().all() for p in model.query_encoder().parameters())
    assert not model.queue.keys.requires_grad


def test_the_key_encoder_is_the_closed_form_of_three_averages():
    model = method()
    start = model.backbone.layer.weight.detach().clone()
    weights = []
    for step in range(3):
        torch.manual_seed(step)
        with torch.no_grad():
            model.backbone.layer.weight.normal_()
        weights.append(model.backbone.layer.weight.detach().clone())
        model.after_step(step + 1)
    expected = 0.9**3 * start + 0.1 * (0.81 * weights[0] + 0.9 * weights[1] + weights[2])
    ours = model.key_encoder["backbone"].layer.weight
    torch.testing.assert_close(ours, expected)


def test_a_step_moves_the_pointer_once_and_averages_once_also_in_both_directions():
    model = method(both_ways=True)
    before = model.key_encoder["projector"][0].weight.clone()
    train(model, 1, lr=1.0)
    assert model.queue.pointer.item() == 4
    now, q = model.key_encoder["projector"][0].weight, model.projector[0].weight
    torch.testing.assert_close(now, 0.9 * before + 0.1 * q)


def test_both_directions_are_the_mean_of_each_with_the_same_queue():
    x = list(torch.randn(2, 4, 8))
    both = method(both_ways=True)([*x], 0)["loss"].item()
    one, other = method()([*x], 0)["loss"].item(), method()(x[::-1], 0)["loss"].item()
    assert both == pytest.approx((one + other) / 2, abs=1e-6)
    assert abs(one - other) > 1e-3


@pytest.mark.parametrize("K, T, measured", [
    (65536, 0.07, 0.41), (65536, 0.1, 2.86), (65536, 0.2, 6.79),
    (4096, 0.07, 0.024), (4096, 0.1, 0.56), (4096, 0.2, 3.96),
])  # fmt: skip
def test_the_loss_of_a_random_queue_follows_its_formula(K, T, measured):
    """Queries whose cosine with their keys is 0.88: about that of the new networks, of which the
    measured losses are."""
    torch.manual_seed(0)
    q, other = F.normalize(torch.randn(2, 64, 128), dim=-1)
    other = F.normalize(other - (other * q).sum(1, keepdim=True) * q, dim=-1)
    k = 0.88 * q + math.sqrt(1 - 0.88**2) * other
    loss = sslops.info_nce(q, k, sslops.KeyQueue(K, 128), T).item()
    formula = math.log1p(math.exp(math.log(K) + 1 / (2 * 128 * T**2) - 0.88 / T))
    assert loss == pytest.approx(formula, abs=0.005)
    assert loss == pytest.approx(measured, abs=0.12)


def test_a_queue_of_real_keys_brings_the_loss_to_chance():
    """Keys of random networks are nearly parallel, those of the queue like any other."""
    model = method(queue_size=512, temperature=0.07, head_features=16)
    for _ in range(8):
        model.queue.enqueue_(model.encode_keys(torch.randn(64, 8), 0))
    outputs = model([*torch.randn(2, 64, 8)], 0)  # pairs that share nothing
    assert math.log(513) - 0.1 < outputs["loss"].item() < math.log(513) + 0.5


class Normalised(nn.Module):
    """A backbone with batch norm and no weights to speak of."""

    num_features = 24

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(24)

    def forward(self, x):
        return self.norm(x)


def blanks_that_know_their_key(bn_splits):
    """Share of blank samples whose own key is nearer than every blank key of earlier batches.

    A blank sample shows nothing, and is the same in all batches: only the statistics of those it
    was normalised with can tell its key from others.
    """
    torch.manual_seed(0)
    N, batches = 64, 20
    model = MoCo(Normalised(), Config(**{**SMALL, "bn_splits": bn_splits})).train()
    model.projector = model.key_encoder["projector"] = nn.Identity()
    found, earlier = [], []
    for step in range(batches):
        x = torch.randn(N, 24)
        x[: N // 2] = 0  # query and key view of the others are the same
        q, k = model.encode_queries(x)[1], model.encode_keys(x, step)
        q, k = (F.normalize(v[: N // 2].detach().double()) for v in (q, k))
        if earlier:
            nearest = (q @ torch.cat(earlier).T).max(1).values
            found.append((q * k).sum(1) > nearest + 1e-9)
        earlier.append(k)
    return torch.cat(found).double().mean().item()


def test_batch_norm_leaks_which_key_is_whose_unless_split_and_shuffled():
    assert blanks_that_know_their_key(1) == 1.0
    assert blanks_that_know_their_key(8) < 0.25  # the groups of a batch overlap, shuffled or not


def test_batch_norm_of_the_key_encoder_keeps_the_statistics_of_its_own_batches():
    torch.manual_seed(0)
    model = MoCo(Normalised(), Config(**SMALL)).train()
    norm = model.key_encoder["backbone"].norm
    assert norm.training
    x_q, x_k = torch.randn(8, 24), 5 + torch.randn(8, 24)
    model([x_q, x_k], 0)
    model.after_step(1)
    torch.testing.assert_close(norm.running_mean, 0.1 * x_k.mean(0))
    torch.testing.assert_close(model.backbone.norm.running_mean, 0.1 * x_q.mean(0))
    assert norm.num_batches_tracked.item() == 1 and norm.running_var.isfinite().all()


def test_the_statistics_of_the_key_encoder_may_be_copied_or_averaged():
    for buffers, share in (("copy", 1.0), ("ema", 0.25)):
        torch.manual_seed(0)
        options = {**SMALL, "key_momentum": 0.75, "ema_buffers": buffers}
        model = MoCo(Normalised(), Config(**options))
        model.backbone.norm.running_mean.fill_(8.0)
        model.after_step(1)
        key_mean = model.key_encoder["backbone"].norm.running_mean
        torch.testing.assert_close(key_mean, torch.full((24,), 8.0 * share))


def shapes(module):
    return {name: tuple(p.shape) for name, p in module.state_dict().items()}


def test_versions_differ_by_one_layer_of_the_head():
    v1, v2 = shapes(method(version="v1")), shapes(method(version="v2"))
    heads = {f"{side}projector.{n}" for side in ("", "key_encoder.") for n in ("0", "2")}
    differing = {name.rpartition(".")[0] for name in v1.keys() | v2.keys()
                 if v1.get(name) != v2.get(name)}  # fmt: skip
    assert differing == heads
    assert v1["projector.0.weight"] == (6, 7) and v1["projector.0.bias"] == (6,)
    assert v2["projector.0.weight"] == (7, 7) and v2["projector.2.weight"] == (6, 7)


def test_an_identity_in_the_first_layer_of_v2_gives_v1():
    v1, v2 = method(version="v1"), method(version="v2")
    v2.backbone.load_state_dict(v1.backbone.state_dict())
    v2.queue.load_state_dict(v1.queue.state_dict())
    with torch.no_grad():
        v2.projector[0].weight.copy_(torch.eye(7))
        v2.projector[0].bias.zero_()
        for name in ("weight", "bias"):
            getattr(v2.projector[2], name).copy_(getattr(v1.projector[0], name))
    v2.key_encoder.load_state_dict(v2.query_encoder().state_dict())
    x = list(torch.randn(2, 5, 8))
    assert v1(x, 0)["loss"].item() == pytest.approx(v2(x, 0)["loss"].item(), abs=1e-6)


def test_views_are_those_of_the_papers():
    first, second = moco.views(Config(version="v1"), 224)
    assert first == second and first.crop_scale == (0.2, 1.0)
    assert first.grayscale_first and first.jitter == 1.0 and first.grayscale == 0.2
    strengths = [first.brightness, first.contrast, first.saturation, first.hue]
    assert strengths == [0.4, 0.4, 0.4, 0.4] and first.blur == 0 and first.flip == 0.5
    first, second = moco.views(Config(version="v2", blur=0.5), 224)
    assert first == second and first.crop_scale == (0.2, 1.0)
    assert not first.grayscale_first and first.jitter == 0.8 and first.grayscale == 0.2
    strengths = [first.brightness, first.contrast, first.saturation, first.hue]
    assert strengths == [0.4, 0.4, 0.4, 0.1] and first.blur == 0.5
    assert first.blur_sigma == (0.1, 2.0) and first.solarize == 0


@pytest.mark.parametrize("version, temperature", [("v1", 0.07), ("v2", 0.2)])
def test_the_papers_values_are_chosen_for_the_papers_data(version, temperature):
    chosen, reasons = moco.adapt(Config(version=version), 256, 1_281_167)
    assert (chosen.queue_size, chosen.temperature) == (65536, temperature)
    assert chosen.key_momentum == pytest.approx(0.999, abs=1e-4)
    assert len(reasons) == 4


@pytest.mark.parametrize("batch, images", [(512, 50_000), (128, 5000), (64, 100), (256, 3)])
def test_what_is_chosen_suits_the_data(batch, images):
    chosen, _ = moco.adapt(Config(), batch, images)
    assert chosen.queue_size <= max(images / 4, 1) < 2 * chosen.queue_size
    assert 0.99 <= chosen.key_momentum <= 0.999
    assert batch % chosen.bn_splits == 0 and chosen.bn_splits == 8
    assert chosen.temperature == 0.1


def test_what_the_user_gave_stays():
    given = Config(queue_size=100, key_momentum=0.5, temperature=0.3, bn_splits=2)
    chosen, reasons = moco.adapt(given, 64, 10_000)
    assert chosen == given and reasons == []


def test_queue_and_key_encoder_come_back_from_the_state():
    model = method()
    train(model, 3)
    torch.manual_seed(5)
    fresh = MoCo(Encoder(), Config(**SMALL))
    fresh.load_state_dict(model.state_dict())
    x = list(torch.randn(2, 4, 8))
    assert fresh(x, 3)["loss"].item() == model(x, 3)["loss"].item()
    assert fresh.queue.pointer.item() == model.queue.pointer.item() == 0
    torch.testing.assert_close(fresh.queue.keys, model.queue.keys, rtol=0, atol=0)


def test_meters_say_how_far_the_key_encoder_is_behind():
    model = method(key_momentum=0.5)
    outputs = model([*torch.randn(2, 4, 8)], 0)
    meters = model.meters(outputs)
    assert meters["key_distance"].item() == 0 and meters["queue_age"].item() == 4
    with torch.no_grad():
        for p in model.query_encoder().parameters():
            p.mul_(2)
    assert model.meters(outputs)["key_distance"].item() == pytest.approx(0.5)
    model.after_step(1)  # half way: 1.5 of 2
    assert model.meters(outputs)["key_distance"].item() == pytest.approx(0.25)


@pytest.mark.parametrize("options", [
    {"key_momentum": 1.0}, {"queue_size": -1}, {"version": "v1", "blur": 0.5}
])  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=list(options)[-1]):
        Config(**options)


# Two processes


def after_three_steps(share):
    """The state of a method that took the share of three batches of six."""
    model = method(key_momentum=0.5, head_features=4)
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.manual_seed(1)
    for step in range(3):
        views = torch.randn(2, 6, 8)
        optimizer.zero_grad()
        wrapped(list(views[:, share]), step)["loss"].backward()
        optimizer.step()
        model.after_step(step + 1)
    return model.state_dict()


def assert_equal_to_one_process(rank):
    dist.init_process_group("gloo")
    ours = after_three_steps(slice(3 * rank, 3 * rank + 3))
    dist.destroy_process_group()
    torch.testing.assert_close(ours, after_three_steps(slice(0, 6)))


def test_two_processes_have_weights_and_queue_of_one():
    assert forks.run(2, assert_equal_to_one_process) == [0, 0]
