"""Colourisation against the specification: bins, codes, weights, loss, and a picture by heart."""

import math

import pytest
import torch

from sslzoo.color_bins import (
    Bins,
    ab_centers,
    class_weights,
    color_bins,
    error_area,
    hits,
    pick,
    smooth,
)
from sslzoo.lab import lab_to_rgb, rgb_to_lab
from sslzoo.methods import colorization
from sslzoo.methods.colorization import Colorization, Config


def method(image_size=16, backbone="convnet4", **options):
    torch.manual_seed(0)
    encoder = colorization.build_backbone(backbone, image_size=image_size, channels=3)
    return Colorization(encoder, Config(**options))


def photographs(count=4, size=16):
    """Smooth coloured images."""
    coarse = torch.rand(count, 3, 4, 4)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


# Bins and codes


def test_there_are_313_bins_and_64():
    centers = ab_centers(313)
    assert centers.shape == (313, 2) and len({tuple(c) for c in centers.tolist()}) == 313
    low, high = centers.aminmax(dim=0)
    assert low.tolist() == [-90, -110] and high.tolist() == [100, 100]
    assert not (centers % 10).any()
    coarse = ab_centers(64)
    assert coarse.shape == (64, 2)
    assert {tuple(c) for c in coarse.tolist()} <= {tuple(c) for c in centers.tolist()}
    with pytest.raises(ValueError, match="313 or 64"):
        ab_centers(100)


def test_52_bins_are_the_nearest_of_no_colour():
    steps = torch.linspace(0, 1, 52)
    cube = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij")).flatten(1)[:, :, None]
    ab = rgb_to_lab(cube)[1:, :, 0].T
    used = torch.cat([color_bins(313, 1).nearest(part) for part in ab.split(50_000)]).unique()
    assert 240 < len(used) <= 261


def test_the_code_of_a_centre_is_worked_by_hand():
    bins = color_bins(313, 10)
    code = bins.encode(torch.tensor([[10.0, 20.0]]))
    # Itself, four at 10, four at 14.1 and one of those at 20 units.
    total = 1 + 4 * math.exp(-2) + 4 * math.exp(-4) + math.exp(-8)
    assert code.weights[0, 0].item() == pytest.approx(1 / total, rel=1e-5)
    assert bins.centers[code.ids[0, 0]].tolist() == [10, 20]
    assert code.weights.sum().item() == pytest.approx(1) and code.ids.shape == (1, 10)
    entropy = -sum(n * w / total * math.log(w / total) for n, w in
                   ((1, 1), (4, math.exp(-2)), (4, math.exp(-4)), (1, math.exp(-8))))  # fmt: skip
    assert code.entropy().item() == pytest.approx(entropy, rel=1e-4)


@pytest.mark.parametrize("neighbours, floor", [(10, 1.44), (5, 1.26)])
def test_the_floor_of_the_loss_is_that_of_the_specification(neighbours, floor):
    torch.manual_seed(0)
    ab = rgb_to_lab(torch.rand(3, 2000, 1))[1:, :, 0].T
    entropy = color_bins(313, neighbours).encode(ab).entropy().mean().item()
    assert entropy == pytest.approx(floor, abs=0.05)


def test_colours_come_back_from_their_codes():
    bins = color_bins(313, 10)
    ab = torch.rand(500, 2) * 60 - 30
    code = bins.encode(ab)
    logits = torch.full((500, 313), -1e4).scatter_(1, code.ids, code.weights.log())
    assert (bins.decode(logits, 1.0) - ab).norm(dim=1).max() < 1
    assert torch.equal(bins.nearest(ab), code.ids[:, 0])


def test_a_low_temperature_divides_logits():
    bins = Bins(torch.tensor([[0.0, 0.0], [10.0, 20.0]]), 1, 5.0)
    logits = torch.tensor([0.0, 0.38 * math.log(3)])
    assert bins.decode(logits, 0.38).tolist() == pytest.approx([7.5, 15])


def test_pixels_are_picked_not_averaged():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(pick(x, (2, 2))[..., 0], x[:, 0, ::4, ::4])
    assert torch.equal(pick(x, (4, 4))[..., 0], x[:, 0, ::2, ::2])
    assert pick(x, (3, 3))[0, :, 0, 0].tolist() == [0, 16, 40]


# Weights


def test_weights_are_one_on_average_over_the_prior():
    prior = torch.rand(313, dtype=torch.float64) ** 4
    prior[:52] = 0
    prior /= prior.sum()
    w = class_weights(prior, 0.5)
    assert (prior * w).sum().item() == pytest.approx(1, abs=1e-6)
    mixed = 0.5 * prior + 0.5 * (prior > 0) / 261
    used = prior > 0
    torch.testing.assert_close((w * mixed)[used], (w * mixed)[used][:1].expand(261))
    assert w.isfinite().all()
    torch.testing.assert_close(class_weights(prior, 1.0)[used], torch.ones(261).double())


def test_the_prior_counts_nearest_bins_and_is_smoothed_by_distance():
    bins = Bins(torch.tensor([[0.0, 0], [10, 0], [100, 0]]), 1, 5.0)
    values = torch.tensor([[1.0, 0], [2, 3], [9, 0], [4, 0]])
    assert bins.count(values).tolist() == [3, 1, 0]
    bins.rebalance(bins.count(values), smoothing=0, uniform_share=0.5)
    assert bins.prior.tolist() == [0.75, 0.25, 0]
    assert (bins.weights[1] / bins.weights[0]).item() == pytest.approx(0.625 / 0.375)
    spread = smooth(torch.tensor([1.0, 0, 0]), bins.centers, 5.0)
    near = math.exp(-2)
    assert spread.tolist() == pytest.approx([1 / (1 + near), near / (1 + near), 0], abs=1e-6)


def test_the_prior_of_the_training_images_is_stored():
    ours = method()
    x = photographs(8)
    ours.survey([x[:4], x[4:]])
    assert ours.bins.prior.sum().item() == pytest.approx(1, abs=1e-5)
    assert (ours.bins.prior * ours.bins.weights).sum().item() == pytest.approx(1, abs=1e-5)
    state = ours.state_dict()
    assert torch.equal(state["bins.weights"], ours.bins.weights) and "bins.prior" in state
    assert ours.bins.weights.std() > 0.1
    even = method(rebalance=False)
    even.survey([x])
    torch.testing.assert_close(even.bins.weights, torch.ones(313))
    assert torch.equal(even.bins.prior, ours.bins.prior)


def test_a_prediction_of_the_prior_costs_its_cross_entropy():
    bins, ab = color_bins(313, 10), torch.rand(50, 2) * 60 - 30
    bins.rebalance(bins.count(ab), smoothing=5.0, uniform_share=1.0)
    code = bins.encode(ab)
    found = bins.cross_entropy(bins.prior.clamp(min=1e-38).log().expand(50, -1), code)
    torch.testing.assert_close(bins.prior_cross_entropy(code), found, rtol=1e-5, atol=1e-5)
    assert code.entropy().mean() < found.mean() < math.log(313)


def test_of_weighed_pixels_the_best_constant_prediction_is_the_weighed_prior():
    torch.manual_seed(0)
    bins, ab = color_bins(64, 1), torch.randn(400, 2) * 20
    bins.rebalance(bins.count(ab), smoothing=0, uniform_share=0.5)
    code = bins.encode(ab)
    ids, v = code.ids[:, 0], bins.weights[code.ids[:, 0]].double()
    q = torch.bincount(ids, v, minlength=64) / v.sum()  # the minimum over all constants
    found = (v * bins.prior_cross_entropy(code, is_weighted=True)).mean()
    assert found.item() == pytest.approx(-(v * q[ids].log()).mean().item(), rel=1e-5)
    assert found < (v * bins.prior_cross_entropy(code)).mean() - 0.1


def test_the_logged_chance_is_the_loss_of_a_constant_prediction():
    ours, x = method(), photographs(3)
    ours.survey([x])
    constant = (ours.bins.prior * ours.bins.weights).clamp(min=1e-38).log()
    with torch.no_grad():
        ours.decoder.last.weight.zero_()
        ours.decoder.last.bias.copy_(constant)
    outputs = ours([x], 0)
    assert outputs["prior_loss"].item() == pytest.approx(outputs["loss"].item(), rel=1e-4)


# The loss


def test_the_loss_starts_at_chance():
    outputs = method()([photographs()], 0)
    assert outputs["loss"].item() == pytest.approx(math.log(313), abs=0.05)
    assert outputs["bin_top1"] < 0.1


@pytest.mark.parametrize("rebalance", [True, False])
def test_the_loss_is_the_papers_sum_over_pixels_and_bins(rebalance):
    ours, x = method(rebalance=rebalance), photographs(3)
    ours.survey([x])
    x[1] = 0.5  # grey: counts among the pixels, adds nothing
    outputs = ours([x], 0)
    lab = rgb_to_lab(x.double())
    log_p = outputs["logits"].double().log_softmax(-1)
    centers, total = ab_centers(313).double(), 0.0
    for image in range(3):
        for h in range(8):
            for w in range(8):
                ab = lab[image, 1:, 2 * h, 2 * w]
                squared = (centers - ab).square().sum(1)
                Z = torch.where(squared <= squared.sort().values[9], (-squared / 50).exp(), 0.0)
                Z /= Z.sum()
                v = ours.bins.weights[Z.argmax()].item() if image != 1 else 0.0
                total -= v * (Z * log_p[image, h, w]).sum().item()
    assert outputs["loss"].item() == pytest.approx(total / (3 * 8 * 8), rel=1e-4)
    assert outputs["gray_images"].item() == pytest.approx(1 / 3)
    floor = ours.bins.encode(pick(lab[:, 1:].float(), (8, 8))).entropy().mean()
    kl = outputs["cross_entropy"] - floor
    assert outputs["kl"].item() == pytest.approx(kl.item(), abs=1e-4)


def test_grey_images_have_no_gradient():
    ours = method()
    outputs = ours([torch.rand(4, 1, 16, 16).expand(-1, 3, -1, -1)], 0)
    outputs["loss"].backward()
    assert outputs["gray_images"] == 1 and outputs["loss"] == 0
    assert all(not p.grad.any() for p in ours.parameters())


@pytest.mark.parametrize("gray_pixels", [255, 256])
def test_one_coloured_pixel_of_an_image_makes_it_count(gray_pixels):
    """Also where the coarse grid of the targets does not pick it."""
    x = torch.full((1, 3, 16, 16), 0.5)
    if gray_pixels == 255:
        x[0, :, 1, 1] = torch.tensor([0.9, 0.2, 0.2])
    assert method()([x], 0)["gray_images"].item() == (gray_pixels == 256)


def test_weights_scale_the_gradient_and_constants_in_logits_do_not_matter():
    ours, x = method(), photographs()
    gradients = []
    for factor in (1, 2):
        ours.zero_grad()
        ours.bins.weights.fill_(factor)
        ours.eval()([x], 0)["loss"].backward()
        gradients.append(ours.decoder.last.weight.grad.clone())
    torch.testing.assert_close(gradients[1], 2 * gradients[0])
    logits, code = torch.randn(5, 313), ours.bins.encode(torch.rand(5, 2) * 40)
    shifted = ours.bins.cross_entropy(logits + torch.randn(5, 1), code)
    torch.testing.assert_close(shifted, ours.bins.cross_entropy(logits, code))


def test_the_network_sees_lightness_only():
    ours, x = method().eval(), photographs()
    lab = rgb_to_lab(x).requires_grad_(True)
    ours.decoder(ours.backbone.maps(lab)).sum().backward()
    assert lab.grad[:, 0].abs().sum() > 0 and not lab.grad[:, 1:].any()


def test_one_image_is_coloured_by_heart():
    torch.manual_seed(0)
    ours = method(8, neighbours=5, rebalance=False)
    x = photographs(1, 8)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=5e-3)
    for step in range(80):
        outputs = ours([x], step)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
    outputs = ours([x], 0)
    decoded = ours.bins.decode(outputs["logits"], 0.38)
    assert (decoded - outputs["ab"]).norm(dim=-1).mean() < 3
    assert outputs["bin_top1"] > 0.8


# Encoders, decoders, meters, pictures


@pytest.mark.parametrize(
    "backbone, image_size, options, side",
    [
        ("resnet18", 32, {}, 16),
        ("convnet4", 32, {}, 16),
        ("vgg_dilated", 32, dict(decoder="deconv"), 8),
        ("alexnet_bn", 64, dict(decoder="linear"), 4),
        ("resnet18", 64, dict(output_stride=4), 16),
    ],
)
def test_maps_of_colours_have_the_stated_size(backbone, image_size, options, side):
    ours = method(image_size, backbone, **options).eval()
    with torch.no_grad():
        x = photographs(2, image_size)
        logits = ours.decoder(ours.backbone.maps(rgb_to_lab(x)))
        assert logits.shape == (2, side, side, 313)
        assert ours.backbone(x).shape == (2, ours.backbone.num_features)


def test_the_decoder_of_the_small_setting_is_that_of_the_specification():
    decoder = method(32, "resnet18").decoder
    assert (decoder.top, decoder.earlier) == ("layer4", "layer3")
    assert decoder.lateral.weight.shape == (256, 256, 1, 1)
    convolutions = [m for m in (*decoder.first, *decoder.rest[0]) if hasattr(m, "kernel_size")]
    assert [c.weight.shape[:2] for c in convolutions] == [(256, 512), (128, 256)]
    assert decoder.last.weight.shape == (313, 128, 1, 1) and len(decoder.rest) == 1


def test_the_papers_network_has_its_layers():
    net = method(32, "vgg_dilated", decoder="deconv").backbone.net
    shapes = [[tuple(c.weight.shape[:2]) for c in stage if hasattr(c, "kernel_size")]
              for stage in net]  # fmt: skip
    assert [len(s) for s in shapes] == [2, 2, 3, 3, 3, 3, 3]
    assert [s[-1][0] for s in shapes] == [64, 128, 256, 512, 512, 512, 512]
    assert net.conv5[0].dilation == net.conv6[0].dilation == (2, 2) and shapes[0][0] == (64, 1)
    assert not net.conv1[-1].affine


def test_layers_of_the_encoder_are_those_of_its_network():
    encoder = method(32, "resnet18").backbone.eval()
    assert encoder.layers() == ["maxpool", "layer1", "layer2", "layer3", "layer4"]
    x = photographs(2, 32)
    found = encoder.layer_features(x, ["layer2", "layer4"])
    assert found["layer2"].shape == (2, 128)
    torch.testing.assert_close(found["layer4"], encoder(x))


def test_meters_are_those_worked_by_hand():
    error = torch.tensor([0.0, 1.5, 200.0, 150.0])
    shares = [(error <= t).float().mean().item() for t in range(151)]
    assert error_area(error).item() == pytest.approx(sum(shares) / 151)
    assert error_area(error, torch.tensor([1.0, 0, 0, 0])).item() == 1
    logits = torch.tensor([[0.0, 3, 2, 1]])
    code = Bins(torch.arange(4.0)[:, None], 2, 1.0).encode(torch.tensor([[2.1]]))
    assert [hits(logits, code, k).item() for k in (1, 2)] == [0, 1]

    ours = method()
    ab = torch.full((1, 2, 2, 2), 30.0)
    bin_ = ours.bins.nearest(torch.tensor([[30.0, 10.0]])).item()
    logits = torch.full((1, 2, 2, 313), -1e4)
    logits[..., bin_] = 0
    meters = ours.meters({"ab": ab, "logits": logits})
    assert meters["ab_rmse"].item() == pytest.approx(20, rel=1e-4)
    assert meters["chroma_ratio"].item() == pytest.approx(math.hypot(30, 10) / math.hypot(30, 30))
    assert meters["error_area"].item() == pytest.approx(131 / 151)


def test_pictures_keep_the_lightness():
    ours, x = method(), photographs(4)
    coloured = ours.eval().colorize(x)
    assert coloured.shape == x.shape
    assert ours.pictures([x])["colorized"].dtype == torch.uint8
    inside = (coloured > 0.01).all(1) & (coloured < 0.99).all(1)
    difference = (rgb_to_lab(coloured)[:, 0] - rgb_to_lab(x)[:, 0]).abs()
    assert difference[inside].max() < 0.1


def test_views_leave_colours_alone():
    (view,) = colorization.views(Config(), 32)
    assert not view.is_jittered and not view.grayscale and view.flip == 0.5
    assert view.crop_scale == view.crop_ratio == (1.0, 1.0)
    (paper,) = colorization.views(Config(crop_min_scale=0.47, crop_max_scale=0.47), 176)
    assert paper.crop_scale == (0.47, 0.47) and paper.crop_ratio == (1.0, 1.0)


@pytest.mark.parametrize(
    "options", [{"uniform_share": 0}, {"temperature": 0}, {"neighbours": 0}, {"output_stride": 0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Config(**options)


def test_grey_data_are_refused():
    with pytest.raises(ValueError, match="colour images; the data has 1 channel"):
        colorization.build_backbone("resnet18", image_size=32, channels=1)


def test_lab_of_pictures_is_a_colour_again():
    x = photographs(1)
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(x)), x, rtol=0, atol=1e-4)
