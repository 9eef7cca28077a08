"""Split-brain against the specification: nothing leaks between the halves, widths, losses."""

import math

import pytest
import torch

from sslzoo import backbones
from sslzoo.color_bins import lightness_bins
from sslzoo.lab import rgb_to_lab
from sslzoo.methods import split_brain
from sslzoo.methods.split_brain import Config, SplitBrain


def method(image_size=16, backbone="convnet4", **options):
    torch.manual_seed(0)
    encoder = split_brain.build_backbone(backbone, image_size=image_size, channels=3)
    return SplitBrain(encoder, Config(**options))


def photographs(count=4, size=16):
    """Smooth coloured images."""
    coarse = torch.rand(count, 3, 4, 4)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


@pytest.mark.parametrize("train", [True, False])
def test_each_half_sees_its_own_channels_only(train):
    ours = method().train(train)
    for half, own, other in (("L", slice(0, 1), slice(1, 3)), ("ab", slice(1, 3), slice(0, 1))):
        lab = rgb_to_lab(photographs()).requires_grad_(True)
        maps = ours.backbone.maps(lab)
        outputs = [*maps[half].values(), *ours.backbone.features(maps)[half].values()]
        weights = [torch.randn_like(x) for x in outputs]
        sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)).backward()
        assert lab.grad[:, own].abs().sum() > 0 and not lab.grad[:, other].any()


def test_no_gradient_crosses_between_halves():
    ours = method()
    lab = rgb_to_lab(photographs())
    maps = ours.backbone.maps(lab)
    ours.decoders["ab"](maps["L"]).square().sum().backward()
    assert all(p.grad is None for p in ours.backbone.halves["ab"].parameters())
    assert all(p.grad is None for p in ours.decoders["L"].parameters())
    assert all(p.grad is not None for p in ours.backbone.halves["L"].parameters())


@pytest.mark.parametrize(
    "name, half, whole, millions",
    [("resnet18", 256, 512, 2.8), ("convnet4", 64, 128, 0.06), ("alexnet_bn", 2048, 4096, 14.57)],
)
def test_half_widths_add_up_to_the_whole(name, half, whole, millions):
    encoder = method(32, name).backbone.eval()
    assert encoder.halves["L"].num_features == half and encoder.num_features == whole
    assert encoder(photographs(2, 32)).shape == (2, whole)
    for network in encoder.halves.values():
        size = backbones.count_parameters(network) / 1e6
        assert size == pytest.approx(millions, rel=0.02)


def test_the_half_resnet_has_half_of_every_width():
    half = backbones.build_half("resnet18", image_size=32, channels=2)
    assert half.conv1.weight.shape == (32, 2, 3, 3) and isinstance(half.maxpool, torch.nn.Identity)
    assert [s[-1].conv2.out_channels for s in (half.layer1, half.layer2, half.layer3,
                                               half.layer4)] == [32, 64, 128, 256]  # fmt: skip
    large = backbones.build_half("resnet18", image_size=64, channels=1)
    assert large.conv1.weight.shape == (32, 1, 7, 7) and large.maxpool.stride == 2
    with pytest.raises(ValueError, match="vit_tiny_p4 has no half"):
        backbones.build_half("vit_tiny_p4", image_size=32, channels=1)


def test_the_losses_start_at_chance():
    outputs = method()([photographs()], 0)
    assert outputs["ab_loss"].item() == pytest.approx(math.log(313), abs=0.05)
    assert outputs["lightness_loss"].item() == pytest.approx(math.log(100), abs=0.05)
    total = outputs["ab_loss"] + outputs["lightness_loss"]
    assert outputs["loss"].item() == pytest.approx(total.item())


def test_lightness_is_coded_by_the_two_nearest_bins():
    bins = lightness_bins(100)
    code = bins.encode(torch.tensor([[50.0], [50.5], [100.0], [0.2]]))
    assert code.ids[0].sort().values.tolist() == [49, 50]
    assert code.weights[0].tolist() == pytest.approx([0.5, 0.5])
    near = math.exp(-0.5)  # 50.5 is a centre; the next is one unit away, sigma is 1
    assert code.ids[1, 0] == 50 and code.weights[1, 0].item() == pytest.approx(1 / (1 + near))
    assert code.ids[2].tolist() == [99, 98] and code.ids[3].tolist() == [0, 1]
    assert (bins.weights == 1).all()


def test_grey_images_count_for_lightness_only():
    ours = method()
    outputs = ours([torch.rand(4, 1, 16, 16).expand(-1, 3, -1, -1)], 0)
    assert outputs["ab_loss"] == 0 and outputs["lightness_loss"] > 1


def test_regression_is_the_squared_error_of_scaled_values():
    ours, x = method(objective="reg-reg"), photographs()
    with torch.no_grad():
        for decoder in ours.decoders.values():
            decoder.last.weight.zero_()
    outputs = ours([x], 0)
    lab = rgb_to_lab(x)[:, :, ::2, ::2]
    assert outputs["ab_loss"].item() == pytest.approx(
        (lab[:, 1:] / 110).square().sum(1).mean().item(), rel=1e-4
    )
    expected = (lab[:, 0] / 50 - 1).square().mean().item()
    assert outputs["lightness_loss"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("objective", ["cl-cl", "reg-reg", "cl-reg"])
def test_every_objective_trains_and_draws(objective):
    ours, x = method(objective=objective), photographs()
    ours([x], 0)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
    assert ours.eval().pictures([x])["cross_channel"].dtype == torch.uint8


def test_rare_colours_weigh_more_only_where_asked():
    x = photographs(8)
    for rebalance in (False, True):
        ours = method(rebalance=rebalance)
        ours.survey([x])
        assert (ours.ab_bins.weights.std() > 0.1) == rebalance
        torch.testing.assert_close(ours.l_bins.weights, torch.ones(100))
        lightness = rgb_to_lab(x)[:, 0, ::2, ::2]
        share = torch.histc(lightness, 100, 0, 100) / lightness.numel()
        torch.testing.assert_close(ours.l_bins.prior, share, rtol=0, atol=2 / lightness.numel())


def test_16_images_are_learned_by_heart():
    torch.manual_seed(0)
    ours = method(8, ab_bins=64, ab_neighbours=1, gray_threshold=0)
    x = (photographs(16, 8) * 8).round() / 8
    optimizer = torch.optim.AdamW(ours.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=110)
    for step in range(110):
        outputs = ours([x], step)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        schedule.step()
    assert outputs["ab_top1"] > 0.95 and outputs["lightness_top1"] > 0.95, outputs


def test_features_of_a_layer_are_those_of_both_halves_normalised_apart():
    encoder = method().backbone
    x = photographs(8)
    names = encoder.layers()
    stages = ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    assert names == stages + [f"{half}.{stage}" for half in ("L", "ab") for stage in stages]
    found = encoder.layer_features(x, ["blocks.1", "L.blocks.1", "ab.blocks.1"])
    joint, light, color = found.values()
    assert torch.equal(joint, torch.cat([light, color], 1))
    for half in (light, color):  # in training by the statistics of the batch
        torch.testing.assert_close(half.mean(0), torch.zeros(half.shape[1]), rtol=0, atol=1e-5)
        assert half.var(0, unbiased=False).median().item() == pytest.approx(1, abs=0.01)

    encoder.eval()  # afterwards by those of all batches
    found = encoder.layer_features(x, ["blocks.1", "blocks.3"])
    maps = encoder.maps(rgb_to_lab(x))
    for name, joint in found.items():
        means = [maps[half][name].mean((2, 3)) for half in ("L", "ab")]
        norms = [encoder.norms[half][name.replace(".", "_")] for half in ("L", "ab")]
        expected = [(mean - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
                    for mean, norm in zip(means, norms, strict=True)]  # fmt: skip
        torch.testing.assert_close(joint, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder(x), found["blocks.3"])
    with pytest.raises(ValueError, match=r"no layer 'L\.blocks\.9'"):
        encoder.layer_features(x, ["L.blocks.9"])
    with pytest.raises(ValueError, match="no layer 'blocks'"):
        encoder.layer_features(x, ["blocks"])


def test_meters_tell_the_spread_of_each_half():
    ours, x = method(), photographs()
    outputs = ours([x], 0)
    meters = ours.meters(outputs)
    expected = outputs["ab_map"].mean((2, 3)).std(0).mean()
    assert meters["ab_feature_std"] == expected and meters["L_feature_std"] > 0
    assert outputs["features"].shape == (4, 128) and not outputs["features"].requires_grad


def test_both_halves_see_the_same_view():
    views = split_brain.views(Config(), 32)
    assert len(views) == 1 and views[0].translate == 4 / 32 and views[0].flip == 0.5
    assert not views[0].is_jittered and not views[0].grayscale


@pytest.mark.parametrize("options", [{"uniform_share": 0}, {"lightness_bins": 1},
                                     {"output_stride": 0}])  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Config(**options)
