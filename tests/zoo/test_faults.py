"""Bad days: disks, signals, images and processes fail, and a run says so and can go on."""

import io
import os
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo import cli, run_folder
from sslzoo.data import DataError, open_data
from sslzoo.failures import REQUEUE, TrainingError
from sslzoo.methods.simclr import Config, SimCLR
from sslzoo.run_folder import Metrics, RunFolder, RunFolderError
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig

OPTIONS = dict(backbone="convnet4", image_size=8, epochs=3, batch_size=4, warmup_epochs=1,
               base_lr=0.12, weight_decay=5e-4,
               log_every=100, checkpoint_every=4, device="cpu")  # fmt: skip
LAST_STEP = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """17 images of different sizes, which are decoded one by one."""
    return write_images(tmp_path_factory.mktemp("images"), 17)


def write_images(folder, count, corrupt=()):
    """PNG files of two classes; the corrupt ones are cut off."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8 + i % 4, 9, 3), dtype=np.uint8)).save(path)
        if i in corrupt:
            path.write_bytes(path.read_bytes()[:60])
    return folder


def prepare(images, out, at=None, **changes):
    """A run that is set up; `at` maps steps to what happens after them."""
    config = TrainingConfig(**(OPTIONS | dict(data=str(images), out=str(out)) | changes))
    setup = set_up("simclr", Config(), config)
    setup.method.after_step = lambda step: (at or {}).get(step, lambda: None)()
    return setup


def weights(run):
    return run.load_checkpoint()["method"]


def assert_same_weights(one, two, atol=0.0):
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys() and len(one) > 20
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=atol)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run on which no bad day fell."""
    return train(prepare(images, tmp_path_factory.mktemp("runs") / "whole"))


def resumed(images, out, **changes):
    return train(prepare(images, out, **changes), resume=True)


# Checkpoints


def test_a_run_killed_in_the_middle_of_a_write_resumes_with_the_same_bits(images, tmp_path, whole):
    def die_half_way(state, target):
        buffer = io.BytesIO()
        save(state, buffer)
        half = buffer.getvalue()[: len(buffer.getvalue()) // 2 * (state["step"] == 8) or None]
        target.write(half)
        if state["step"] == 8:
            target.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def run(rank):
        torch.save = die_half_way
        train(prepare(images, tmp_path / "run"))

    save = torch.save
    assert forks.run(1, run) == [-signal.SIGKILL]
    folder = RunFolder(tmp_path / "run")
    half, whole_one = ([p.stat().st_size for p in folder.path.glob(name)]
                       for name in ("checkpoint.pt.*.tmp", "checkpoint.pt"))  # fmt: skip
    assert 0 < half[0] < whole_one[0] and folder.load_checkpoint()["step"] == 4
    assert_same_weights(whole, resumed(images, tmp_path / "run"))
    assert not list(folder.path.glob("*.tmp"))


@pytest.mark.parametrize("key, value", [("method", {}), ("optimizer", {"state": {}}), ("step", "x"),
                         ("options", []), ("scaler", 3), ("step", None)])  # fmt: skip
def test_a_checkpoint_with_other_content_is_refused(images, tmp_path, whole, key, value):
    shutil.copytree(whole.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.save_checkpoint(run.load_checkpoint() | {key: value})
    with pytest.raises(RunFolderError, match=r"checkpoint\.pt does not hold the checkpoint"):
        resumed(images, tmp_path / "run")


@contextmanager
def files_limited_to(size):
    """As a full disk: the kernel refuses to write past `size` bytes of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint_and_says_so(images, tmp_path, whole):
    setup = prepare(images, tmp_path / "run")
    limit = files_limited_to(whole.checkpoint.stat().st_size // 2)
    setup.method.after_step = lambda step: limit.__enter__() if step == 6 else None
    message = r"cannot write .*checkpoint\.pt.*: File too large; the checkpoint of step 4 is kept"
    try:
        with pytest.raises(RunFolderError, match=message):
            train(setup)
    finally:
        limit.__exit__(None, None, None)
    assert not list(setup.run.path.glob("*.tmp"))
    assert_same_weights(whole, resumed(images, tmp_path / "run"))


@pytest.mark.parametrize("kept", [1, 2, 8, 9])
def test_a_row_of_the_metrics_that_a_full_disk_cut_is_dropped(tmp_path, kept):
    path = tmp_path / "metrics.csv"
    row = b"12,0.25\r\n"
    path.write_bytes(b"step,loss\r\n1,0.5\r\n" + row[:kept])
    metrics = Metrics(path)
    metrics.cut(step=20)
    metrics.write({"step": 13, "loss": 0.125})
    lines = path.read_text().split()
    assert lines == ["step,loss", "1,0.5", *(["12,0.25"] if kept == len(row) else []), "13,0.125"]


def test_no_space_left_is_named_as_such():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        run_folder._save_synced({"x": torch.zeros(100_000)}, Path("/dev/full"))


def test_a_run_folder_that_loses_its_permissions_is_named(tmp_path):
    few = dict(batch_size=700, epochs=5)
    setup = prepare("digits", tmp_path / "run", **few)
    folder = setup.run.path

    def lose(step):
        if step == 6:
            folder.chmod(0o500)
            if os.getuid() == 0:  # whom no permission stops
                os.seteuid(65534)

    setup.method.after_step = lose
    try:
        with pytest.raises(RunFolderError, match=r"cannot write .*: Permission denied.*step 4"):
            train(setup)
    finally:
        os.seteuid(os.getuid())
        folder.chmod(0o700)
    assert resumed("digits", folder, **few).load_checkpoint()["step"] == 10


# Signals


def command(images, out, **changes):
    words = OPTIONS | dict(data=images, out=out) | changes
    return ["pretrain", "simclr", *(f"--{name}={value}" for name, value in words.items())]


def stopped(world, images, out, rank_told, number, **changes):
    """Exit codes of a run of which one process gets a signal after step 6."""

    def run(rank):
        SimCLR.after_step = lambda self, step: (
            os.kill(os.getpid(), number) if (rank, step) == (rank_told, 6) else None
        )
        raise SystemExit(cli.main(command(images, out, **changes)))

    return forks.run(world, run)


def test_sigterm_saves_and_ends_with_the_code_that_requeues(images, tmp_path):
    assert stopped(1, images, tmp_path / "run", 0, signal.SIGTERM) == [REQUEUE]
    assert RunFolder(tmp_path / "run").load_checkpoint()["step"] == 6


def test_two_processes_stop_at_one_step_and_one_process_goes_on(images, tmp_path):
    """Either number of processes ends where the other would have, within float error."""
    short = dict(base_lr=0.02)  # ReLU turns rounding errors into steps of other length
    assert stopped(2, images, tmp_path / "run", 1, signal.SIGTERM, **short) == [REQUEUE] * 2
    assert RunFolder(tmp_path / "run").load_checkpoint()["step"] == 6
    whole = train(prepare(images, tmp_path / "whole", **short))
    assert_same_weights(whole, resumed(images, tmp_path / "run", **short), atol=1e-6)


# Loss and data


def test_a_loss_that_is_nan_names_step_inputs_and_checkpoint(images, tmp_path):
    setup = prepare(images, tmp_path / "run", checkpoint_every=2, log_every=7)
    poison = next(setup.method.parameters()).data.fill_
    setup.method.after_step = lambda step: poison(torch.nan) if step == 4 else None
    with pytest.raises(TrainingError) as raised:
        train(setup)
    message = str(raised.value)
    assert "loss is nan at step 5 of 12; its inputs: view 0 from -" in message
    assert "0 values not finite" in message and "view 1 from" in message
    # The weights of step 4 were written with a finite loss, so the one before is no better.
    assert f"of step 4, is {setup.run.checkpoint}" in message


@pytest.mark.parametrize("workers", [0, 2])
def test_one_corrupt_image_in_a_thousand_is_named_and_skipped(tmp_path, workers):
    (tmp_path / "data").mkdir()
    data = write_images(tmp_path / "data", 1000, corrupt=[501])
    few = dict(batch_size=500, epochs=1, workers=workers, log_every=1)
    run = train(prepare(data, tmp_path / "run", max_unreadable=1, **few))
    lines = (run.path / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 1 and "b/0501.png is not a readable image" in lines[0]
    assert (run.path / "metrics.csv").read_text().splitlines()[0].count("unreadable_images") == 1


def test_one_corrupt_image_too_many_stops(tmp_path):
    write_images(tmp_path, 40, corrupt=[7, 20])
    with pytest.raises(
        DataError, match=r"2 unreadable images are more than max_unreadable 1.*0007"
    ):
        prepare(tmp_path, tmp_path / "run", max_unreadable=1)
    with pytest.raises(DataError, match=r"0007\.png is not a readable image|0020\.png is not"):
        prepare(tmp_path, tmp_path / "run")


def test_the_next_image_of_its_class_stands_in_for_a_corrupt_one(tmp_path):
    write_images(tmp_path, 9, corrupt=[3])
    data = open_data(tmp_path, max_unreadable=1)
    names = [path.name for path in data.source.source.paths]
    missing, neighbour = names.index("0003.png"), names.index("0005.png")
    assert torch.equal(data.load(missing), data.load(neighbour))
    assert list(data.unreadable.found) == [missing]


def test_a_data_loader_worker_that_is_killed_is_named(images, tmp_path):
    setup = prepare(images, tmp_path / "run", workers=1)

    def kill_worker():
        os.kill(setup.loader._make.batches._iterator._workers[0].pid, signal.SIGKILL)

    setup.method.after_step = lambda step: kill_worker() if step == 5 else None
    with pytest.raises(DataError, match=r"data loader worker died .*fewer --workers and --resume"):
        train(setup)
    assert setup.run.load_checkpoint()["step"] == 4


# Processes


@pytest.mark.parametrize("world, dying", [pytest.param(3, 1, marks=pytest.mark.slow), (2, 0)])
def test_the_others_name_the_process_that_died(images, tmp_path, capfd, world, dying):
    def run(rank):
        SimCLR.after_step = lambda self, step: os._exit(9) if (rank, step) == (dying, 6) else None
        words = command(images, tmp_path / "run", batch_size=6, timeout=20, checkpoint_every=2)
        raise SystemExit(cli.main(words))

    start = time.monotonic()
    codes = forks.run(world, run)
    assert time.monotonic() - start < 60
    assert codes.pop(dying) == 9 and set(codes) == {2}
    lines = [line for line in capfd.readouterr().err.splitlines() if "sslzoo: error:" in line]
    assert len(lines) == world - 1
    print(*lines, sep="\n")
    assert all(f"process {dying} of {world}" in line and "--resume" in line for line in lines)
