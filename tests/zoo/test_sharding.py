"""Weights divided among processes: what each holds, resuming in any way, and what is refused.

That sharded training ends with the weights of one process is held by test_processes.py.
"""

import csv
import shutil
import signal

import forks
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from stopped_runs import dozen_images
from torch import nn
from torch.distributed.tensor import DTensor

from sslzoo import registry, sharding
from sslzoo.ema import frozen_copy, update_ema
from sslzoo.failures import Interrupted
from sslzoo.optimizers import LARS, parameter_groups
from sslzoo.run_folder import RunFolder
from sslzoo.training import Trainer, set_up, train
from sslzoo.training_config import TrainingConfig

STEPS, STOP = 6, 3
OPTIONS = dict(backbone="vit_micro_p4", image_size=8, epochs=2, batch_size=4, warmup_epochs=0,
               log_every=2, optimizer="adamw", base_lr=0.05, weight_decay=0.1,
               clip_gradient=0.5, device="cpu")  # fmt: skip
TINY = {"mae": dict(decoder_width=32, decoder_depth=1, decoder_heads=2)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return dozen_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module", autouse=True)
def no_features():
    """None for the picture of a finished run: they would be of float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslzoo.watch.Watch.features", lambda *args, **options: (None, None))
        yield


def prepare(images, out, name="mae", method=None, **changes):
    config = TrainingConfig(**(OPTIONS | dict(data=str(images), out=str(out)) | changes))
    return set_up(name, registry.method(name).Config(**(method or TINY.get(name, {}))), config)


def in_float64(setup):
    """Adam makes the rounding of a gradient near 0 as large as the learning rate."""
    method = setup.method.double()
    method.forward = in_double(method.forward)
    method.pictures = lambda views: {}
    return setup


def in_double(forward):
    return lambda views, step: forward([view.double() for view in views], step)


def run(world, images, out, *, resume=False, stop_at=None, **changes):
    """Train in `world` processes; with stop_at, as if Ctrl-C were pressed during that step."""

    def one(rank):
        setup = in_float64(prepare(images, out, **changes))
        if stop_at is None:
            train(setup, resume=resume)
            return
        setup.method.after_step = lambda step: (
            signal.raise_signal(signal.SIGINT) if step == stop_at else None
        )
        with pytest.raises(Interrupted):
            train(setup)

    assert forks.run(world, one) == [0] * world
    return RunFolder(out)


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """A run of one process that was never stopped."""
    return run(1, images, tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """A run of two sharded processes that was stopped half-way."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    return run(2, images, out, shard=True, stop_at=STOP)


def assert_same_state(one, other):
    """Weights and the optimizer's state, of two checkpoints."""
    one, other = one.load_checkpoint(), other.load_checkpoint()
    assert one["step"] == other["step"] == STEPS
    pairs = [(value, other["method"][name]) for name, value in one["method"].items()]
    for index, state in one["optimizer"]["state"].items():
        pairs += [(value, other["optimizer"]["state"][index][key]) for key, value in state.items()]
    assert len(pairs) > 100
    for a, b in pairs:
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("world, shard", [(2, True), *(
    pytest.param(*how, marks=pytest.mark.slow) for how in ((1, False), (2, False), (4, True))
)])  # fmt: skip
def test_a_sharded_run_goes_on_in_any_way(images, tmp_path, alone, stopped, world, shard):
    assert stopped.load_checkpoint()["step"] == STOP
    shutil.copytree(stopped.path, tmp_path / "run")
    assert_same_state(alone, run(world, images, tmp_path / "run", resume=True, shard=shard))


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_sharded(images, tmp_path, alone):
    run(1, images, tmp_path / "run", stop_at=STOP)
    resumed = run(2, images, tmp_path / "run", resume=True, shard=True)
    assert_same_state(alone, resumed)
    one, other = (load_file(folder.path / "backbone.safetensors") for folder in (alone, resumed))
    assert one.keys() == other.keys() and len(one) > 20
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-10)
    once, twice = (rows(folder) for folder in (alone, resumed))
    assert [row["step"] for row in twice] == ["2", "4", "6"]
    for name in ("loss", "gradient_norm", "parameter_norm"):
        assert float(once[-1][name]) == pytest.approx(float(twice[-1][name]), rel=1e-6), name


def rows(folder):
    with (folder.path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_process_holds_its_share(images, tmp_path):
    """Of weights, gradients and both moments of AdamW; one row of a small tensor more at most."""

    def check(rank):
        setup = prepare(images, tmp_path / "run", shard=True)
        whole = {name: value.clone() for name, value in setup.method.named_parameters()}
        trainer = Trainer(setup)
        next_step = trainer.batches()
        trainer.model.train()
        views = next(next_step).views
        trainer.accelerator.backward(trainer.model(views, 0)["loss"])
        optimizer, held = trainer.optimizer, dict(setup.method.named_parameters())
        gradients = [p.grad for p in held.values() if p.requires_grad]
        optimizer.step()
        moments = [value for state in optimizer.state.values() for key, value in state.items()
                   if key != "step"]  # fmt: skip
        assert held.keys() == whole.keys() and len(moments) == 2 * len(gradients) > 100
        for part in (*held.values(), *gradients, *moments):
            assert isinstance(part, DTensor)
            row = part[0].numel() if part.ndim > 1 else 1
            assert part.to_local().numel() <= (part.numel() + row) / 2
        if setup.is_main:  # the copy that is drawn and saved is another module
            assert not any(isinstance(p, DTensor) for p in setup.whole.parameters())

    assert forks.run(2, check) == [0, 0]


def test_norms_averages_and_lars_see_whole_tensors():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1)).double()
    x = torch.randn(4, 5, dtype=torch.float64)

    def steps(model, teacher, x):
        optimizer = LARS(parameter_groups(model, 0.1), lr=0.5)
        for _ in range(3):
            model(x).square().mean().backward()
            found = sharding.norms([p.grad for p in model.parameters()])
            optimizer.step()
            optimizer.zero_grad()
            update_ema(teacher, model, 0.9)
        return found, [*model.parameters(), *teacher.parameters(), *optimizer.state.values()]

    def check(rank):
        dist.init_process_group("gloo")
        models = frozen_copy(network).requires_grad_(), frozen_copy(network)
        models = [sharding.shard(model, torch.device("cpu")) for model in models]
        found, state = steps(*models, x[rank::2])
        torch.testing.assert_close(found, wanted[0], rtol=1e-12, atol=1e-12)
        for one, other in zip(sharding.full(state), wanted[1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    wanted = steps(frozen_copy(network).requires_grad_(), frozen_copy(network), x)
    assert forks.run(2, check) == [0, 0]


@pytest.mark.slow
def test_bf16_is_that_of_whole_processes(images, tmp_path):
    """By SGD: AdamW makes noise of the biases of the attention's keys, which have no gradient."""

    def one(shard):
        def inside(rank):
            train(
                prepare(
                    images, tmp_path / str(shard), optimizer="sgd", precision="bf16", shard=shard
                )
            )

        assert forks.run(2, inside) == [0, 0]
        return RunFolder(tmp_path / str(shard)).load_checkpoint()["method"]

    whole, sharded = one(False), one(True)
    assert whole.keys() == sharded.keys()
    for name in whole:
        assert sharded[name].dtype == torch.float32
        torch.testing.assert_close(whole[name], sharded[name], rtol=0, atol=1e-6)


def test_one_process_trains_as_if_nothing_were_said(images, tmp_path):
    method = train(prepare(images, tmp_path / "run", shard=True)).load_checkpoint()["method"]
    other = train(prepare(images, tmp_path / "other")).load_checkpoint()["method"]
    assert all(torch.equal(method[name], other[name]) for name in method)


def test_what_can_not_be_sharded_says_why(images, tmp_path):
    method, options = dict(adversarial=True), dict(backbone="convnet4", image_size=32, shard=True)
    with pytest.raises(ValueError, match="not for this run: the discriminator has an optimizer"):
        prepare(images, tmp_path, "context_encoder", method, **options)
    with pytest.raises(ValueError, match="take bf16"):
        TrainingConfig(shard=True, precision="fp16")
