"""MoCo beside lightly is one algorithm: from the same weights the losses are equal."""

import itertools

import pytest
import torch

pytest.importorskip("lightly")
from benchmarks import representations

TINY = dict(batch_size=16, epochs=2)


def both_sides(method, folder):
    """Ours and lightly's, and the views of eight steps."""
    (setting,) = [s for s in representations.SLICE if s.method == method]
    config = setting.config | ({"queue_size": 64} if method == "moco" else {})
    setting = representations.replace(setting, training=setting.training | TINY, config=config)
    path = representations.noise(folder / "noise", images=144)
    ours = representations.Ours(setting, path, 0, "cpu", folder)
    lightly = representations.Lightly(setting, ours, 0, "cpu")
    lightly.encoder.load_state_dict(ours.encoder.state_dict())
    return ours, lightly, list(itertools.islice(ours.trainer.loader.epoch(0, 0), 8))


def losses(ours, lightly, batches):
    """[(ours, lightly's) of each step]."""
    ours.batches = iter(batches)
    return [
        (ours.trainer.train_step(ours.batches)["loss"].item(), lightly.train(batch.views).item())
        for batch in batches
    ]


def test_moco_trains_in_the_same_steps_as_lightly(tmp_path):
    """Losses, gradients, momentum encoder, queue and learning rates: eight steps, one of each."""
    ours, lightly, batches = both_sides("moco", tmp_path)
    method, theirs = ours.setup.method, lightly.method
    theirs.head.layers.load_state_dict(method.projector.state_dict())
    backbone, head = theirs.slow
    backbone.load_state_dict(method.key_encoder["backbone"].state_dict())
    head.layers.load_state_dict(method.key_encoder["projector"].state_dict())
    bank = torch.nn.functional.normalize(torch.randn(64, 128), dim=1)
    method.queue.keys.copy_(bank)
    theirs.loss.memory_bank.bank.copy_(bank)
    for one, other in losses(ours, lightly, batches):
        assert one == pytest.approx(other, abs=1e-4)
