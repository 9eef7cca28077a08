"""What training asks of a method besides forward, and when."""

from dataclasses import replace

import pytest
import torch

from sslzoo import registry
from sslzoo.methods.simclr import Config
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig


def options(tmp_path, **changes):
    """Three epochs of four steps on 1437 digits with a tiny encoder."""
    return TrainingConfig(backbone="convnet4", image_size=8, epochs=3, batch_size=359, log_every=3,
                          warmup_epochs=1, out=str(tmp_path / "run"), **changes)  # fmt: skip


def test_hooks_of_a_method_are_called_in_order(tmp_path):
    changes = dict(pictures_every=2, clip_gradient=1e-3)
    setup = set_up("simclr", Config(flip=0.5), options(tmp_path, **changes))
    method, calls = setup.method, []

    def schedule(step, groups):
        calls.append(f"schedule {step}")
        groups[0].update(weight_decay=step / 10, lr_scale=0.5)

    def after_backward(step):
        norms = torch.stack([p.grad.norm() for p in method.parameters()])
        assert 0 < norms.norm() < 1.1e-3  # clipped before
        calls.append(f"gradient {step}")

    def pictures(views):
        assert not method.training and not torch.is_grad_enabled() and len(views[0]) == 64
        calls.append("picture")
        return {"square": torch.zeros(3, 8, 8, dtype=torch.uint8)}

    method.plan = lambda *numbers: calls.append(f"plan {numbers}")
    method.schedule, method.after_backward, method.pictures = schedule, after_backward, pictures
    method.after_step = lambda step: calls.append(f"step {step}")
    folder = train(setup)
    assert calls[:4] == ["plan (12, 4.0)", "schedule 0", "gradient 0", "step 1"]
    assert calls[-4:] == ["schedule 11", "gradient 11", "step 12", "picture"]
    assert calls.index("picture") == calls.index("step 8") + 1
    names = sorted(p.name for p in (folder.path / "pictures").iterdir())
    assert names == ["square_0002.png", "square_0003.png"]
    groups = folder.load_checkpoint()["optimizer"]["param_groups"]
    assert groups[0]["weight_decay"] == 1.1 and groups[1]["weight_decay"] == 0
    assert groups[0]["lr"] == 0.5 * groups[1]["lr"]


def test_a_method_adapts_its_options_and_says_why(tmp_path, monkeypatch):
    def adapt(config, batch, count):
        return replace(config, temperature=batch / count), [f"temperature follows {batch}"]

    monkeypatch.setattr(registry.method("simclr"), "adapt", adapt, raising=False)
    setup = set_up("simclr", Config(), options(tmp_path, accumulate=2))
    assert setup.method.temperature == 718 / 1437 == setup.options["temperature"]
    assert setup.reasons == ["temperature follows 718"]


@pytest.mark.slow
def test_pictures_leave_the_batches_of_training_as_they_are(tmp_path):
    """Workers are at the next epoch when the first ends within an accumulated step."""
    learned = []
    for pictures in (0, 1):
        config = options(tmp_path / str(pictures), accumulate=3, workers=1, pictures_every=pictures)
        setup = set_up("simclr", Config(), config)
        setup.method.pictures = lambda views: {}
        learned.append(train(setup).load_checkpoint()["method"])
    assert all(torch.equal(value, learned[1][name]) for name, value in learned[0].items())
