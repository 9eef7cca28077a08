"""Several processes train the model that one trains, and find one another under SLURM."""

import copy
import functools
import shutil
import signal

import forks
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from timm.layers import BatchNormAct2d
from torch import nn

from sslzoo import registry
from sslzoo.failures import Interrupted
from sslzoo.methods.relative_patch import Config
from sslzoo.processes import first_host, slurm_variables
from sslzoo.run_folder import RunFolder
from sslzoo.synced_batch_norm import batch_norm_alone, sync_batch_norm
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig

# In float64: ReLU and the batch norm of nearly constant channels make a rounding error of float32
# in SimCLR a thousand times larger within 20 steps (measured: as much by weights that differ by
# 1e-7 on one process). MoCo's batch norm is by design that of each process: an encoder without.
METHODS = {
    "simclr": (dict(), dict(backbone="convnet4", image_size=16)),
    "moco": (dict(queue_size=64, bn_splits=1), dict(backbone="vit_micro_p4")),
    "mae": (dict(decoder_width=32, decoder_depth=1, decoder_heads=2),
            dict(backbone="vit_micro_p4")),
    "dino": (dict(prototypes=64, head_hidden=32, head_bottleneck=16, drop_path=0.0, local_crops=2),
             dict(backbone="vit_micro_p4")),
    "moco_v3": (dict(head_width=32, head_features=16), dict(backbone="vit_micro_p4")),
    "dinov2": (dict(prototypes=64, head_hidden=32, head_bottleneck=16, patch_bottleneck=16,
                    layer_scale=0.1, drop_path=0.0, local_crops=2),
               dict(backbone="vit_micro_p4", image_size=16)),
}  # fmt: skip
OPTIONS = dict(image_size=8, epochs=5, batch_size=8, warmup_epochs=0, log_every=20,
               optimizer="sgd", base_lr=0.3, checkpoint_every=20, device="cpu")  # fmt: skip

QUICK = ("simclr", "moco", "mae")
TOLERANCE = 1e-7

# MoCo's queue of 64 has then taken 112 keys, 8 a step: it has gone round once, its next slot is
# number 48, and at the end, 6 steps on, 16 of its keys are still from before.
STOP = 14
FIRST_SLOT = 48


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(32):
        smooth = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        smooth.resize((16, 16), Image.BICUBIC).save(folder / f"{i}.png")
    return folder


def prepare(name, images, out, **more):
    method, training = METHODS[name]
    given = OPTIONS | training | dict(data=str(images), out=str(out)) | more
    config = TrainingConfig(**given)
    setup = set_up(name, registry.method(name).Config(**method), config)
    forward = setup.method.double().forward
    setup.method.forward = lambda views, step: forward([view.double() for view in views], step)
    return setup


@pytest.fixture(scope="module", autouse=True)
def weights_only():
    """No pictures, which take longer than the 20 steps, and are of float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslzoo.watch.Watch.finish", lambda self: None)
        yield


def learned(folder):
    return RunFolder(folder).load_checkpoint()["method"]


def difference(one, other):
    """The largest difference of two state dicts."""
    assert one.keys() == other.keys() and len(one) > 20
    return max((one[n].double() - other[n].double()).abs().max().item() for n in one)


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """By a method's name what one process learned."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def learn(name):
        setup = prepare(name, images, folder / name)
        before = copy.deepcopy(setup.method.state_dict())
        train(setup)
        found = learned(setup.run.path)
        assert difference(before, found) > 100 * TOLERANCE
        return found

    return learn


def trials(quick, names=METHODS, worlds=(2, 4)):
    """Each method in each number of processes; all but the quick ones are slow."""
    return [pytest.param(name, world, marks=() if (name, world) in quick else pytest.mark.slow)
            for name in names for world in worlds]  # fmt: skip


@pytest.mark.parametrize("name, world", trials([(name, 2) for name in QUICK]))
def test_processes_train_to_the_weights_of_one(images, tmp_path, alone, name, world):
    assert forks.run(world, lambda rank: train(prepare(name, images, tmp_path))) == [0] * world
    assert difference(alone(name), learned(tmp_path)) < TOLERANCE


@pytest.mark.parametrize("name, world", trials([("mae", 2)]))
def test_sharded_processes_train_to_the_weights_of_one(images, tmp_path, alone, name, world):
    def run(rank):
        train(prepare(name, images, tmp_path, shard=True))

    assert forks.run(world, run) == [0] * world
    assert difference(alone(name), learned(tmp_path)) < TOLERANCE


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """By a method's name the folder of a run of two processes that Ctrl-C stopped."""
    folder = tmp_path_factory.mktemp("stopped")

    def run(name, rank):
        setup = prepare(name, images, folder / name)
        after_step = setup.method.after_step

        def then_stop(step):
            after_step(step)
            if (step, rank) == (STOP, 1):
                signal.raise_signal(signal.SIGINT)

        setup.method.after_step = then_stop
        with pytest.raises(Interrupted):
            train(setup)

    @functools.cache
    def stop(name):
        assert forks.run(2, functools.partial(run, name)) == [0, 0]
        return folder / name

    return stop


@pytest.mark.parametrize("name, world", trials([("moco", 1)], ("moco", "dino"), (1, 4)))
def test_another_number_of_processes_goes_on(images, tmp_path, alone, stopped, name, world):
    """To the weights, the queue and the centre of the run that was never stopped."""
    checkpoint = RunFolder(stopped(name)).load_checkpoint()
    assert checkpoint["step"] == STOP
    assert name != "moco" or checkpoint["method"]["queue.pointer"] == FIRST_SLOT
    shutil.copytree(stopped(name), tmp_path / "run")

    def run(rank):
        train(prepare(name, images, tmp_path / "run"), resume=True)

    assert forks.run(world, run) == [0] * world
    assert difference(alone(name), learned(tmp_path / "run")) < TOLERANCE


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_synced_batch_norm_is_that_of_all_samples(kind):
    """Values, running statistics and gradients of 3 processes with 2, 3 and 4 samples."""
    shape = (9, 5) if kind is nn.BatchNorm1d else (9, 5, 3, 2)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 7
    target = torch.randn(shape, dtype=torch.float64)
    norm = kind(5).double()
    nn.init.normal_(norm.weight)
    wanted = outcome(copy.deepcopy(norm), x, target)

    def check(rank):
        torch.distributed.init_process_group("gloo", rank=rank, world_size=3)
        part = slice(*[(0, 2), (2, 5), (5, 9)][rank])
        synced = sync_batch_norm(copy.deepcopy(norm), torch.device("cpu"))
        y, dx, dw, db, mean, var = outcome(synced, x[part], target[part])
        for sums in (dw, db):
            torch.distributed.all_reduce(sums)
        for one, other in zip((y, dx), wanted[:2], strict=True):
            torch.testing.assert_close(one, other[part], rtol=1e-9, atol=1e-9)
        for one, other in zip((dw, db, mean, var), wanted[2:], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)

    assert forks.run(3, check) == [0] * 3


def test_synced_batch_norm_takes_half_precision_and_counts_in_full():
    """bfloat16 has no 301, the samples of each process."""
    x = 8 + torch.randn(602, 5).bfloat16()
    wanted = nn.BatchNorm1d(5)
    y = wanted(x)

    def check(rank):
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        synced = sync_batch_norm(nn.BatchNorm1d(5), torch.device("cpu"))
        part = slice(301 * rank, 301 * rank + 301)
        torch.testing.assert_close(synced(x[part]), y[part], rtol=2**-8, atol=2**-8)
        torch.testing.assert_close(synced.running_mean, wanted.running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(synced.running_var, wanted.running_var, rtol=1e-5, atol=1e-5)

    assert forks.run(2, check) == [0, 0]


def outcome(norm, x, target):
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * target).sum().backward()
    return (y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean,
            norm.running_var)  # fmt: skip


def test_a_batch_norm_that_cannot_be_synced_is_named():
    with pytest.raises(ValueError, match="1 is a BatchNorm2d of a kind that several processes"):
        sync_batch_norm(
            nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2, momentum=None)), torch.device("cpu")
        )


def small_network():
    """timm's norm has its activation inside."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 5, 3),
                         nn.BatchNorm2d(5), nn.Flatten(), nn.BatchNorm1d(20))  # fmt: skip


def test_on_gpus_norms_keep_their_activation():
    network, x = small_network().eval(), torch.randn(2, 3, 6, 6)
    before = network(x)
    synced = sync_batch_norm(network, torch.device("cuda"))
    assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in synced) == 3
    assert torch.equal(synced(x), before) and (before != 0).any()


def test_synced_batch_norm_can_be_that_of_one_process_again():
    """nn.SyncBatchNorm in training mode takes no tensor on the CPU, whatever the group."""
    network, x = small_network(), torch.randn(2, 3, 6, 6)
    alone = batch_norm_alone(sync_batch_norm(copy.deepcopy(network), torch.device("cuda")))
    assert torch.equal(alone(x), network(x))
    state = alone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_one_process_judges_an_encoder_of_parts_while_the_other_waits(photos, tmp_path):
    """Its batch norm is recalibrated for that, in the main process alone."""
    config = TrainingConfig(data=str(photos), backbone="convnet4", image_size=30, batch_size=10,
                            epochs=2, warmup_epochs=0, log_every=1, knn_every=1, timeout=20,
                            device="cpu", out=str(tmp_path / "run"))  # fmt: skip

    def run(rank):
        train(set_up("relative_patch", Config(), config))

    assert forks.run(2, run) == [0, 0]
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 8 and "knn_accuracy" in rows[0]


def test_a_process_that_is_late_takes_the_folder_of_the_main_one(images, tmp_path, monkeypatch):
    """It would find that one taken."""
    monkeypatch.chdir(tmp_path)

    def run(rank):
        if rank:
            monkeypatch.setattr("sslzoo.training.free_path", lambda *names: "runs/mae_2")
        assert prepare("mae", images, "").run.path.name == f"mae_{images.name}"

    assert forks.run(2, run, timeout=30) == [0, 0]


# SLURM

STEP = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[07-08],cpu3", "SLURM_JOB_ID": "10123"}  # fmt: skip


def test_srun_s_variables_become_torchrun_s():
    assert slurm_variables(STEP) == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1",
                                     "MASTER_ADDR": "gpu07", "MASTER_PORT": "20123"}  # fmt: skip
    own = slurm_variables(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"})
    assert own["MASTER_ADDR"] == "10.0.0.1" and own["MASTER_PORT"] == "5"


@pytest.mark.parametrize("environment", [{}, STEP | {"RANK": "0"},
                                         STEP | {"SLURM_STEP_NUM_TASKS": "1"}])  # fmt: skip
def test_nothing_is_translated_where_srun_did_not_start_several(environment):
    assert slurm_variables(environment) == {}


@pytest.mark.parametrize("nodes, first", [("a1", "a1"), ("gpu[3,5-9]", "gpu3"), ("x,y", "x"),
                                          ("n-[001-002]-ib", "n-001-ib")])  # fmt: skip
def test_the_first_node_of_slurm_s_lists(nodes, first):
    assert first_host(nodes) == first
