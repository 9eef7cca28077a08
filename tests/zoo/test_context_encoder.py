"""Inpainting: nothing leaks out of the hole, no gradient crosses between G and D."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sslzoo import backbones, optimizers
from sslzoo.methods import context_encoder
from sslzoo.methods.context_encoder import (
    Config,
    ContextEncoder,
    Discriminator,
    decoder,
    discriminator,
    errors,
    random_blocks,
)
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig


def method(size=32, width=8, **options):
    torch.manual_seed(0)
    backbone = backbones.build("convnet4", image_size=size, width=width)
    model = ContextEncoder(backbone, Config(**options))
    model.normalised_by((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    return model


def images(B, S=32):
    """Smooth colours, as photographs have them; the normalised view."""
    x = torch.rand(B, 3, 4, 4)
    pixels = F.interpolate(x, (S, S), mode="bilinear")
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.3, 0.25]])[:, :, None, None]
    return (pixels - mean) / std


def test_pixels_inside_the_hole_do_not_matter_and_those_around_do():
    model, x = method(overlap=1).eval(), images(2)
    _, hidden, _ = model.task(x, 0)
    assert hidden[0, 0].nonzero().amin(0).tolist() == [9, 9]
    assert hidden[0, 0].nonzero().amax(0).tolist() == [22, 22]
    with torch.no_grad():
        before = model.paint(x, hidden)[1]
        inside, border = x.clone(), x.clone()
        inside[..., 9:23, 9:23] = torch.randn(2, 3, 14, 14)
        border[..., 8, 15] += 1  # in the predicted region, but shown
        assert torch.equal(model.paint(inside, hidden)[1], before)
        assert not torch.equal(model.paint(border, hidden)[1], before)


def test_the_target_is_the_central_crop_in_minus_one_to_one():
    model, x = method(), images(2)
    y, hidden, _ = model.task(x, 0)
    pixels = x * torch.tensor([0.2, 0.3, 0.25])[:, None, None]
    pixels = pixels + torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    torch.testing.assert_close(y, 2 * pixels[..., 8:24, 8:24] - 1)
    kept = y.clone()
    x.masked_fill_(hidden, 0)
    assert torch.equal(y, kept)


def test_pixels_of_the_border_weigh_ten_times_as_much():
    model, x = method(overlap=2, adversarial=False), images(3)
    y, _, weight = model.task(x, 0)
    G = (y + 0.5).requires_grad_()
    (weight * (G - y).square()).mean().backward()
    assert torch.allclose(G.grad[..., 2:-2, 2:-2], torch.tensor(2 * 0.5 / y.numel()))
    assert torch.allclose(G.grad[..., :2, :], torch.tensor(10 * 2 * 0.5 / y.numel()))
    assert torch.allclose(G.grad[..., 5, -1], torch.tensor(10 * 2 * 0.5 / y.numel()))


def test_no_gradient_crosses_between_generator_and_discriminator():
    model, x = method(), images(4)
    y, hidden, _ = model.task(x, 0)
    D = list(model.discriminator.parameters())
    G = [*model.backbone.parameters(), *model.decoder.parameters()]
    painted = model.paint(x, hidden)[1]
    before = [p.clone() for p in D]
    model.discriminator.learn(y, painted)  # even where it is not detached
    assert not any(map(torch.equal, before, D)) and all(p.grad is None for p in [*G, *D])
    L_adv = model.discriminator.judge(painted)
    assert not any(p.requires_grad for p in D)
    gradients = torch.autograd.grad(L_adv, G)
    assert sum(g.abs().sum() for g in gradients) > 0
    model([x], 0)["loss"].backward()
    assert all(p.grad is None for p in D) and all(p.grad is not None for p in G)


def plain_steps(model, x, steps, lr_G, lr_D):
    """Two optimizers in the paper's order, in plain code: first D by L_D, then G by L_G."""
    D = model.discriminator.network.requires_grad_(True)
    of_G = torch.optim.Adam([*model.backbone.parameters(), *model.decoder.parameters()], lr_G,
                            betas=(0.5, 0.999))  # fmt: skip
    of_D = torch.optim.Adam(D.parameters(), lr_D, betas=(0.5, 0.999))
    w = model.config.reconstruction_weight
    for step in range(steps):
        y, hidden, weight = model.task(x, step)
        G = model.paint(x, hidden)[1]
        real, fake = D(y).sigmoid(), D(G.detach()).sigmoid()
        of_D.zero_grad()
        (-real.log().mean() - (1 - fake).log().mean()).backward()
        of_D.step()
        L_adv = -D(G).sigmoid().log().mean()
        of_G.zero_grad()
        (w * (weight * (G - y).square()).mean() + (1 - w) * L_adv).backward()
        of_G.step()


def test_both_optimizers_step_as_in_the_paper_discriminator_first():
    x = images(6)
    model, plain = (method(reconstruction_weight=0.5, discriminator_lr=1e-3) for _ in range(2))
    groups = optimizers.parameter_groups(model, 0.0)
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in (*model.backbone.parameters(), *model.decoder.parameters())}
    optimizer = optimizers.build("adamw", groups, lr=5e-3, betas=(0.5, 0.999))
    for step in range(3):
        optimizer.zero_grad()
        model([x], step)["loss"].backward()
        optimizer.step()
    plain_steps(plain, x, 3, lr_G=5e-3, lr_D=1e-3)
    start = dict(method().named_parameters())
    for (name, found), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        moved = (expected - start[name]).abs().max()
        # Adam divides by the gradient's size: rounding is as large as a gradient of nearly 0.
        assert moved > 1e-4 and (found - expected).abs().mean() < 0.02 * moved, name


def test_outside_training_the_discriminator_stays_as_it_is():
    model, x = method(), images(4)
    before = [p.clone() for p in model.discriminator.parameters()]
    with torch.no_grad():
        model.eval().test_scores([x], 0)
        model.train()([x], 0)
    assert all(map(torch.equal, before, model.discriminator.parameters()))


def test_processes_average_the_gradients_of_their_discriminators(monkeypatch):
    def learn(rows, mean):
        monkeypatch.setattr(context_encoder, "default_group", lambda: "two processes")
        monkeypatch.setattr(
            context_encoder, "mean_over_ranks", lambda gradient, group: mean(gradient)
        )
        D = method(16).discriminator  # small enough to have no batch norm
        D.learn(y[rows], G[rows])
        return [p.detach() for p in D.parameters()]

    y, G, sent = torch.rand(6, 3, 8, 8), torch.rand(6, 3, 8, 8), []
    learn(slice(0, 3), lambda gradient: sent.append(gradient) or gradient)
    of_two = learn(slice(3, 6), lambda gradient: (gradient + sent.pop(0)) / 2)
    of_one = learn(slice(0, 6), lambda gradient: gradient)
    start = method(16).discriminator.parameters()
    for found, expected, p in zip(of_two, of_one, start, strict=True):
        assert (expected - p).abs().mean() > 1e-4
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_the_losses_are_those_of_the_paper():
    options = dict(overlap=0, reconstruction_weight=0.9, discriminator_lr=0.0)
    model, x = method(**options), images(4)
    y, hidden, _ = model.task(x, 0)
    outputs = model([x], 0)
    again = method(**options)
    G = again.paint(x, hidden)[1]
    real, fake = (again.discriminator.network(region).sigmoid() for region in (y, G))
    L_rec, L_adv = (G - y).square().mean(), -fake.log().mean()
    L_D = -real.log().mean() - (1 - fake).log().mean()
    total = 0.9 * L_rec + 0.1 * L_adv
    expected = dict(reconstruction=L_rec, adversarial=L_adv, discriminator=L_D, loss=total,
                    d_real=real.mean(), d_fake=fake.mean())  # fmt: skip
    for name, value in expected.items():
        assert outputs[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_real_and_fake_pass_batch_norm_apart_and_only_once():
    model = method(size=64)
    model([images(4, 64)], 0)
    norms = [m for m in model.discriminator.network if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all(m.num_batches_tracked == 2 for m in norms)


def test_the_start_is_where_theory_puts_it():
    model, x = method(overlap=0), images(16)
    outputs = model([x], 0)
    # A painting near 0 that knows nothing: its mean square comes on top of that of the pixels.
    y, hidden, _ = model.task(x, 0)
    G = model.paint(x, hidden)[1].detach()
    power, painted = y.square().mean().item(), G.square().mean().item()
    assert painted < 0.1
    assert outputs["reconstruction"].item() == pytest.approx(power + painted, rel=0.1)
    # A new D sends all regions to about one number, of standard deviation 0.65 between Ds.
    losses = []
    for seed in range(16):
        torch.manual_seed(seed)
        D = Discriminator(discriminator(3, 16), lr=0.0)
        L_D = D.learn(y, G)["discriminator"].item()
        losses.append((L_D, D.judge(G).item()))
    discriminator_loss, adversarial_loss = torch.tensor(losses).mean(0).tolist()
    assert discriminator_loss == pytest.approx(2 * math.log(2), abs=0.25)
    assert adversarial_loss == pytest.approx(math.log(2), abs=0.25)
    undecided = method(discriminator_lr=0.0)
    torch.nn.init.zeros_(undecided.discriminator.network[-2].weight)
    outputs = undecided([x], 0)
    assert outputs["discriminator"].item() == pytest.approx(2 * math.log(2), abs=1e-6)
    assert outputs["adversarial"].item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.slow
def test_32_images_are_learnt_by_heart():
    model, x = method(16, 16, adversarial=False, reconstruction_weight=1.0), images(32, 16)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, betas=(0.5, 0.999))
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 200)
        outputs = model([x], step)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
    assert outputs["mse"].item() < 1e-3


def test_both_terms_report_their_gradients():
    options = dict(reconstruction_weight=0.5, discriminator_lr=0.0)
    model, x = method(**options), images(4)
    outputs = model([x], 0)
    outputs["loss"].backward()
    meters = model.meters(outputs)
    again = method(**options)
    y, hidden, weight = again.task(x, 0)
    G = again.paint(x, hidden)[1].detach().requires_grad_()
    for name, loss in (("reconstruction", (weight * (G - y).square()).mean()),
                       ("adversarial", again.discriminator.judge(G))):  # fmt: skip
        (expected,) = torch.autograd.grad(0.5 * loss, G)
        assert meters[f"{name}_gradient"].item() == pytest.approx(expected.norm().item(), rel=1e-3)


def test_random_blocks_cover_a_quarter_and_depend_on_step_and_sample_alone():
    model, x = method(region="random"), images(64)
    _, hidden, weight = model.task(x, 3)
    share = hidden.float().mean((1, 2, 3))
    assert ((share >= 0.2) & (share <= 0.3)).float().mean() > 0.95
    assert share.min() > 0.1 and share.max() < 0.4
    assert torch.equal(model.task(x[:5], 3)[1], hidden[:5])
    assert not torch.equal(model.task(x, 4)[1], hidden)
    assert len({h.numpy().tobytes() for h in hidden}) > 60
    error = torch.randn(64, 3, 32, 32)
    expected = error[hidden.expand_as(error)].mean().item()
    assert (weight * error).mean().item() == pytest.approx(expected, rel=1e-4)
    outputs = model([x], 3)
    outputs["loss"].backward()
    assert random_blocks(model.draws(0, 2), 2, 16, "cpu").shape == (2, 1, 16, 16)


def test_errors_are_on_the_scales_they_say():
    y = torch.zeros(2, 3, 4, 4)
    y[1] = 1.0
    removed = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    removed[..., :2] = True
    G = y.clone()
    G[..., :2] += 0.2  # 0.1 in the range 0 to 1
    G[..., 2:] += 9
    found = errors(G, y, removed)
    expected = dict(mse=0.04, mean_image_mse=0.25, l1_percent=10.0, l2_percent=1.0, psnr=20.0)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-4)


def test_the_official_networks_have_the_official_shapes():
    backbone = backbones.build("dcgan_encoder", image_size=128)
    h = backbone.forward_features(torch.randn(2, 3, 128, 128))
    assert h.shape == (2, 512, 4, 4)
    config = Config(bottleneck="dense", bottleneck_features=40)
    G = decoder(512, 4, 64, 3, config)
    ups = [m for m in G if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [m.out_channels for m in ups] == [512, 256, 128, 64, 3]
    assert G(h).shape == (2, 3, 64, 64) and G(h).abs().max() <= 1
    D = discriminator(3, 64)
    assert [m.out_channels for m in D if isinstance(m, torch.nn.Conv2d)] == [64, 128, 256, 512, 1]
    assert D(G(h)).shape == (2,)
    assert [m.out_channels for m in discriminator(3, 16)
            if isinstance(m, torch.nn.Conv2d)] == [64, 128, 1]  # fmt: skip


def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(photos, tmp_path):
    """Both networks and the state of both optimizers are in the checkpoint."""
    config = TrainingConfig(**{
        **context_encoder.DEFAULTS, "data": str(photos), "backbone": "convnet4",
        "image_size": 16, "epochs": 1, "batch_size": 8, "checkpoint_every": 2, "test_every": 1,
        "out": str(tmp_path / "whole"),
    })  # fmt: skip
    whole = train(set_up("context_encoder", Config(region="random"), config))
    cut = set_up("context_encoder", Config(region="random"),
                 replace(config, out=str(tmp_path / "cut")))  # fmt: skip

    class Stop(Exception):
        pass

    def stop(step):
        if step == 3:
            raise Stop

    cut.method.after_step = stop
    with pytest.raises(Stop):
        train(cut)
    resumed = train(set_up("context_encoder", Config(region="random"),
                           replace(config, out=str(tmp_path / "cut"))), resume=True)  # fmt: skip
    expected, found = (run.load_checkpoint()["method"] for run in (whole, resumed))
    state, again = (m.pop("discriminator._extra_state")["state"] for m in (expected, found))
    assert state[0]["step"] == 5 and any(name.startswith("discriminator") for name in expected)
    assert all(torch.equal(again[i][name], value)
               for i, moments in state.items() for name, value in moments.items())  # fmt: skip
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert "test_psnr" in (whole.path / "metrics.csv").read_text()
    assert (whole.path / "pictures" / "inpainting_0001.png").exists()


def test_sizes_and_backbones_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_size"):
        context_encoder.views(Config(), 30)
    backbone = backbones.build("vit_tiny_p4", image_size=32, depth=1)
    with pytest.raises(ValueError, match="map"):
        ContextEncoder(backbone, Config())
