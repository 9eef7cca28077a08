"""Several processes train the model that one trains, and find one another under SLURM."""

import forks
import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from sslzoo import registry
from sslzoo.run_folder import RunFolder
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig

# 20 steps: MoCo's batch norm is by design that of each process, so it gets an encoder without.
METHODS = {
    "simclr": (dict(), dict(backbone="convnet4")),
    "moco": (dict(queue_size=64, bn_splits=1), dict(backbone="vit_tiny_p4")),
    "mae": (dict(decoder_width=32, decoder_depth=1, decoder_heads=2),
            dict(backbone="vit_tiny_p4")),
    "dino": (dict(prototypes=64, head_hidden=32, head_bottleneck=16, drop_path=0.0, local_crops=2),
             dict(backbone="vit_tiny_p4")),
}  # fmt: skip
OPTIONS = dict(image_size=16, epochs=5, batch_size=8, warmup_epochs=0, log_every=20,
               optimizer="sgd", base_lr=0.3, checkpoint_every=20, device="cpu")  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(32):
        smooth = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        smooth.resize((16, 16), Image.BICUBIC).save(folder / f"{i}.png")
    return folder


def run(name, images, out, **changes):
    module = registry.method(name)
    method, training = METHODS[name]
    config = TrainingConfig(**(OPTIONS | training | dict(data=str(images), out=str(out)) | changes))
    return train(set_up(name, module.Config(**method), config))


def learned(folder):
    return RunFolder(folder).load_checkpoint()["method"]


def difference(one, other):
    """The largest difference of two state dicts."""
    assert one.keys() == other.keys() and len(one) > 20
    return max((one[n].double() - other[n].double()).abs().max().item() for n in one)


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """What one process learned, by method."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    folder = tmp_path_factory.mktemp("alone")
    return {name: learned(run(name, images, folder / name).path) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_train_to_the_weights_of_one(images, tmp_path, alone, name, world):
    assert forks.run(world, lambda rank: run(name, images, tmp_path / "run")) == [0] * world
    found = difference(alone[name], learned(tmp_path / "run"))
    print(f"difference {name} {world}: {found:.3g}")
    assert found < 1e-5
