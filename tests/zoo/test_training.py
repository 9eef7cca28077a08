"""The loop: it resumes bit for bit, sees the same data with any workers, and leaves its folder."""

import csv
import io
import json
import math
import signal
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from sslzoo import registry, run_folder
from sslzoo.evaluation import knn_accuracy, plot_embedding
from sslzoo.failures import Interrupted, TrainingError
from sslzoo.methods.simclr import Config
from sslzoo.run_folder import RunFolderError, free_path, load_backbone
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig
from sslzoo.watch import Watch, collapse_warning

ROOT = Path(__file__).resolve().parents[2]
STEPS_PER_EPOCH = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """17 images of three classes and different sizes, which are decoded one by one."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(17):
        path = folder / "train" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (8 + i % 4, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def options(images, out, **changes):
    """Three epochs of four steps with a tiny encoder."""
    values = dict(data=str(images), out=str(out), backbone="convnet4", image_size=8, epochs=3,
                  batch_size=4, warmup_epochs=1, log_every=3, weight_decay=1e-3)  # fmt: skip
    return TrainingConfig(**{**values, **changes})


def run(images, out, *, resume=False, stop_at=None, method=None, **changes):
    """Train; with stop_at, as if Ctrl-C were pressed during that step."""
    setup = set_up("simclr", method or Config(flip=0.5), options(images, out, **changes))
    if stop_at is not None:
        setup.method.after_step = lambda step: (
            signal.raise_signal(signal.SIGINT) if step == stop_at else None
        )
        with pytest.raises(Interrupted, match=f"step {stop_at} of"):
            train(setup, resume=resume)
        return setup.run
    return train(setup, resume=resume)


def state(folder):
    return torch.load(Path(folder.path) / "checkpoint.pt", weights_only=True)


def tensors(value, prefix=""):
    """All tensors of a nested state, by path."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ())  # fmt: skip
    return {k: t for key, v in items for k, t in tensors(v, f"{prefix}/{key}").items()}


def assert_same_bits(one, two):
    one, two = tensors(state(one)), tensors(state(two))
    assert one.keys() == two.keys() and len(one) > 30
    for name in one:
        assert torch.equal(one[name], two[name]), name


def rows(folder):
    with (folder.path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run that was never stopped, with the picture of its features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslzoo.watch.plot_embedding", plot_embedding)
        return run(images, tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.parametrize("stop_at", [STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2, 9])
def test_a_resumed_run_ends_with_the_same_bits(images, tmp_path, whole, stop_at):
    run(images, tmp_path / "run", stop_at=stop_at)
    resumed = run(images, tmp_path / "run", resume=True)
    assert_same_bits(whole, resumed)
    once, twice = rows(whole), rows(resumed)
    assert [r["step"] for r in once] == [r["step"] for r in twice] == ["3", "6", "9", "12"]
    for name in ("lr", "gradient_norm", "parameter_norm", "feature_std", "alignment"):
        assert [r[name] for r in once] == [r[name] for r in twice], name


def test_a_killed_run_resumes_from_its_last_checkpoint(images, tmp_path, whole):
    def die(*args):
        raise KeyboardInterrupt

    setup = set_up("simclr", Config(), options(images, tmp_path / "run", checkpoint_every=5))
    setup.method.after_step = lambda step: die() if step == 8 else None
    with pytest.raises(KeyboardInterrupt):
        train(setup)
    assert state(setup.run)["step"] == 5
    resumed = run(images, tmp_path / "run", resume=True)
    assert_same_bits(whole, resumed)
    assert [r["step"] for r in rows(resumed)] == ["3", "6", "9", "12"]


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"optimizer": "adamw", "base_lr": 1e-3},
                                     {"optimizer": "lars"}])  # fmt: skip
def test_every_optimizer_and_accumulation_resume(images, tmp_path, changes):
    once = run(images, tmp_path / "once", **changes)
    run(images, tmp_path / "twice", stop_at=3, **changes)
    assert_same_bits(once, run(images, tmp_path / "twice", resume=True, **changes))


def test_the_number_of_workers_does_not_change_the_weights(images, tmp_path, whole):
    assert_same_bits(whole, run(images, tmp_path / "run", workers=2))


def test_the_run_folder_holds_all_that_was_promised(images, whole):
    names = {p.name for p in whole.path.iterdir()}
    assert {"config.yaml", "metrics.csv", "tensorboard", "checkpoint.pt", "backbone.safetensors",
            "features.png", "versions.json"} <= names  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp")]
    config = yaml.safe_load((whole.path / "config.yaml").read_text())
    assert config["method"] == "simclr" and config["data"] == str(images)
    assert config["temperature"] == 0.5 and config["betas"] == [0.9, 0.999]
    assert (whole.path / "features.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list((whole.path / "tensorboard").glob("events.*"))
    versions = json.loads((whole.path / "versions.json").read_text())
    assert torch.__version__.startswith(versions["torch"]) and versions["python"] in sys.version
    assert versions["commit"] is None or len(versions["commit"]) >= 40


def test_metrics_hold_loss_speed_and_collapse_meters(whole):
    last = {name: float(value) for name, value in rows(whole)[-1].items()}
    assert {"loss", "lr", "contrastive_top1", "contrastive_top5", "images_per_second",
            "data_wait_share", "gradient_norm", "parameter_norm", "feature_std", "effective_rank",
            "positive_cosine", "negative_cosine", "alignment", "uniformity",
            "mutual_information_bound"} <= set(last)  # fmt: skip
    assert all(math.isfinite(value) for value in last.values())
    assert 0 <= last["data_wait_share"] <= 1
    assert 0 < last["feature_std"] <= 1 / math.sqrt(128) + 1e-6
    assert 1 <= last["effective_rank"] <= 8
    # 8 views: 7 candidates. The bound is of the last step, the loss the mean of three.
    assert last["mutual_information_bound"] < math.log(7)


def test_the_learning_rate_is_scaled_and_scheduled_per_step(images, tmp_path):
    folder = run(images, tmp_path / "run", base_lr=0.64, log_every=1)
    lr = [float(r["lr"]) for r in rows(folder)]
    # 0.64 x 4 / 256 = 0.01 at the end of a warm-up of 4 steps; then a cosine over 8 steps
    assert lr[:5] == pytest.approx([0.0, 0.0025, 0.005, 0.0075, 0.01])
    assert lr[8] == pytest.approx(0.005)


def test_metrics_average_between_log_steps(images, tmp_path, whole):
    every = [float(r["loss"]) for r in rows(run(images, tmp_path / "run", log_every=1))]
    third = [float(r["loss"]) for r in rows(whole)]
    assert third == pytest.approx([sum(every[i : i + 3]) / 3 for i in (0, 3, 6, 9)], rel=1e-5)


def test_the_backbone_loads_into_timm(images, tmp_path):
    folder = run(images, tmp_path / "run", backbone="resnet10t", image_size=32, epochs=1)
    weights = load_file(folder.path / "backbone.safetensors")
    model = timm.create_model("resnet10t", num_classes=0)
    model.load_state_dict(weights)
    ours, about = load_backbone(folder.path)
    x = torch.randn(2, 3, 32, 32)
    assert about["backbone"] == "resnet10t"
    assert torch.equal(model.eval()(x), ours(x))


def test_run_safetensors_and_checkpoint_give_the_same_backbone(whole):
    x = torch.randn(2, 3, 8, 8)
    paths = (whole.path, whole.path / "backbone.safetensors", whole.path / "checkpoint.pt")
    first, *others = (load_backbone(path)[0](x) for path in paths)
    assert all(torch.equal(first, other) for other in others)


def test_a_checkpoint_cannot_run_code(tmp_path, whole):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"method": Payload()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunFolderError, match="no checkpoint of sslzoo"):
        load_backbone(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


def test_a_loss_that_is_not_finite_stops_with_advice(images, tmp_path):
    setup = set_up("simclr", Config(), options(images, tmp_path / "run", log_every=2))

    def poison(step):
        if step == 5:
            with torch.no_grad():
                next(setup.method.parameters()).fill_(torch.nan)

    setup.method.after_step = poison
    with pytest.raises(TrainingError, match=r"loss is nan at step 6 .*--base_lr"):
        train(setup)
    weights = state(setup.run)["method"].values()
    assert state(setup.run)["step"] == 4 and all(w.isfinite().all() for w in weights)


def test_a_finished_run_is_not_overwritten(images, whole):
    with pytest.raises(RunFolderError, match=r"already holds a run.*--resume"):
        run(images, whole.path)


def test_resuming_with_other_options_is_refused(images, tmp_path):
    run(images, tmp_path / "run", stop_at=2)
    with pytest.raises(RunFolderError, match="seed 0, not 1"):
        run(images, tmp_path / "run", resume=True, seed=1)
    with pytest.raises(RunFolderError, match=r"temperature 0\.5, not 0\.1"):
        run(images, tmp_path / "run", resume=True, method=Config(temperature=0.1))


def test_resuming_on_other_data_is_refused(images, tmp_path):
    run(images, tmp_path / "run", stop_at=2)
    with pytest.raises(RunFolderError, match="not the data"):
        run(images / "train" / "a", tmp_path / "run", resume=True)


def test_resuming_without_a_checkpoint_is_refused(images, tmp_path):
    with pytest.raises(RunFolderError, match=r"no checkpoint\.pt"):
        run(images, tmp_path / "run", resume=True)


def test_run_folders_are_numbered(tmp_path):
    first = free_path("simclr", "some/digits.parquet", tmp_path)
    assert first.name == "simclr_digits"
    first.mkdir()
    second = free_path("simclr", "digits", tmp_path)
    second.mkdir()
    assert [second.name, free_path("simclr", "digits", tmp_path).name] == [
        "simclr_digits_2", "simclr_digits_3"]  # fmt: skip


@pytest.mark.parametrize("start, skips", [(2.0**10, False), (2.0**127, True)])
def test_scale_and_skipped_steps_of_float16_are_logged(images, tmp_path, start, skips):
    """A scale at which gradients overflow is halved, and the step is left out."""
    setup = set_up("simclr", Config(), options(images, tmp_path / "run", epochs=1, log_every=1))
    setup.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=start)
    logged = rows(train(setup))
    assert [float(row["skipped_steps"]) for row in logged] == [
        float(skips * n) for n in (1, 2, 3, 4)
    ]
    scales = [float(row["loss_scale"]) for row in logged]
    assert scales == [start / 2 ** (skips * n) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "row, words",
    [
        ({"feature_std": 1 / 16, "effective_rank": 40.0, "mutual_information_bound": 2.0}, None),
        ({}, None),
        ({"feature_std": 1e-4}, "hardly differ"),
        ({"feature_std": 1 / 16, "effective_rank": 1.3}, "1.3 directions of 256"),
        ({"mutual_information_bound": 0.0}, "at chance"),
    ],
)
def test_collapse_is_said_in_words(row, words):
    warning = collapse_warning(row, 256)
    assert warning is None if words is None else words in warning


def test_a_collapsed_run_warns_once(images, tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    setup = set_up("simclr", Config(), options(images, tmp_path / "run", base_lr=0.64), console)
    setup.method.after_step = lambda step: setup.method.backbone.blocks[3][1].weight.data.zero_()
    train(setup)
    text = console.export_text()
    assert text.count("warning:") == 1 and "collapse?" in text
    assert "learning rate 0.01 = 0.64 x 4 / 256 (linear rule)" in text


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps one precision per process; forget it before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bf16_keeps_weights_in_float32(images, tmp_path, fresh_accelerator):
    seen = []
    setup = set_up("simclr", Config(), options(images, tmp_path / "run", precision="bf16"))
    setup.method.backbone.blocks[0][0].register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    run_ = train(setup)
    assert seen[0] == torch.bfloat16
    assert all(w.dtype != torch.bfloat16 for w in state(run_)["method"].values())
    assert math.isfinite(float(rows(run_)[-1]["loss"]))


@pytest.mark.parametrize("field, value", [("epochs", 0), ("batch_size", 0), ("base_lr", -1.0),
                                          ("weight_decay", math.nan)])  # fmt: skip
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        TrainingConfig(**{field: value})


def test_options_of_method_and_training_never_share_a_name():
    for name in registry.methods():
        module = registry.method(name)
        own = {f.name for f in fields(module.Config)}
        shared = {f.name for f in fields(TrainingConfig)}
        assert not own & shared, name
        assert set(module.DEFAULTS) <= shared, name
        assert registry.method_class(module) is not None


def test_checkpoints_are_written_when_asked(images, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(run_folder.RunFolder, "save_checkpoint",
                        lambda self, state, kept: steps.append(state["step"]))  # fmt: skip
    run(images, tmp_path / "epochs")
    assert steps == [4, 8, 12]
    steps.clear()
    run(images, tmp_path / "steps", checkpoint_every=5)
    assert steps == [5, 10, 12]


def test_knn_accuracy_is_logged_by_the_epoch(tmp_path):
    config = TrainingConfig(backbone="convnet4", image_size=8, epochs=2, batch_size=700,
                            log_every=1, knn_every=1, warmup_epochs=0,
                            out=str(tmp_path / "run"))  # fmt: skip
    folder = train(set_up("simclr", Config(flip=0), config))
    accuracy = [r["knn_accuracy"] for r in rows(folder)]
    assert [bool(a) for a in accuracy] == [False, True, False, True]
    assert 0.5 < float(accuracy[-1]) <= 1


@pytest.mark.slow
def test_five_epochs_on_photographs_raise_the_knn_accuracy(shared_data, tmp_path):
    """Specification, discriminating test 6: 10,000 CIFAR-10 images, more than 10 points."""
    for split, count in (("train", 10_000), ("test", 2_000)):
        table = pq.read_table(shared_data / f"cifar10-{split}.parquet").slice(0, count)
        pq.write_table(table, tmp_path / f"cifar-{split}.parquet")
    # A CPU takes two hours for ResNet-18 at 32 pixels, two minutes for this.
    small = dict(backbone="convnet4", image_size=16, optimizer="adamw", base_lr=4e-3,
                 weight_decay=1e-4, batch_size=128)  # fmt: skip
    full = dict(backbone="resnet18", base_lr=0.12, weight_decay=5e-4)
    config = TrainingConfig(
        data=str(tmp_path / "cifar"), out=str(tmp_path / "run"), epochs=5, warmup_epochs=1,
        **(full if torch.cuda.is_available() else small),
    )  # fmt: skip
    setup = set_up("simclr", Config(), config)
    watch = Watch(setup)

    def knn():
        sets = (*watch.features(setup.data), *watch.features(watch.test_data()))
        return knn_accuracy(*sets, k=20).top1[20]

    before = knn()
    train(setup)
    assert knn() > before + 0.1
    chance = math.log(2 * config.batch_size - 1)
    assert float(rows(setup.run)[-1]["loss"]) < chance - 0.7
