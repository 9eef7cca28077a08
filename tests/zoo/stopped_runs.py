"""A dozen small images, and runs over them that are stopped and go on."""

import signal

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo.training import Interrupted, set_up, train
from sslzoo.training_config import TrainingConfig


def dozen_images(folder):
    """Twelve images of noise, 16 x 16, of two classes, below folder/train."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = folder / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


def run(name, method_config, folder, out, *, stop_at=None, resume=False, **changes):
    """Train for two epochs of three steps; with stop_at, as if Ctrl-C were pressed in that step."""
    values = dict(data=str(folder), out=str(out), image_size=16, epochs=2, batch_size=4,
                  log_every=2, warmup_epochs=1, optimizer="adamw", base_lr=5e-4,
                  weight_decay=0.04)  # fmt: skip
    setup = set_up(name, method_config, TrainingConfig(**{**values, **changes}))
    if stop_at is None:
        train(setup, resume=resume)
        return setup.method
    after_step = setup.method.after_step

    def then_stop(step):
        after_step(step)
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)

    setup.method.after_step = then_stop
    with pytest.raises(Interrupted, match=f"step {stop_at} of"):
        train(setup)
    return setup.method


def assert_stopping_changes_no_bit(name, method_config, tmp_path, stop_at=4, **changes):
    """Returns the method of the run that was not stopped, which is in tmp_path / "whole"."""
    arguments = name, method_config, dozen_images(tmp_path / "images")
    whole = run(*arguments, tmp_path / "whole", **changes)
    run(*arguments, tmp_path / "parts", stop_at=stop_at, **changes)
    resumed = run(*arguments, tmp_path / "parts", resume=True, **changes).state_dict()
    for tensor, value in whole.state_dict().items():
        assert torch.equal(value, resumed[tensor]), tensor
    return whole
