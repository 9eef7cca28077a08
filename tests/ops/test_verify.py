"""python -m sslops.verify: it holds every loss, and it catches wrong ones."""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import processes
import pytest

import sslops
from sslops import verify

ROOT = Path(__file__).parents[2]
OWN = [word for name in ("lost_gradients", "local_mean", "right")
       for word in ("--loss", f"wrong_losses:{name}")]  # fmt: skip


def rank_of_torchrun(rank, world, folder, words):
    """What torchrun starts; leaves the code and what was printed in the folder."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = verify.main(words)
    (folder / f"{rank}.json").write_text(json.dumps([code, output.getvalue()]))


def torchrun(world, folder, monkeypatch, *words):
    """Exit code and output of each rank, without torchrun itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    processes.start(world, rank_of_torchrun, world, folder, ["--backend", "gloo", *words])
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def assert_everything_held(code, output, worlds):
    assert code == 0, output
    assert "FAILED" not in output
    for name in verify.LOSSES:
        for ranks in worlds:
            assert re.search(rf"^{re.escape(name)} +{ranks} ", output, re.MULTILINE), output
    held, total = map(int, re.search(r"(\d+) of (\d+) comparisons held", output).groups())
    # A value and at least one gradient, in two dtypes.
    assert held == total >= len(verify.LOSSES) * len(worlds) * 2 * 2


def assert_wrong_losses_are_named(code, output):
    assert code == 1 and output.count("comparisons held") == 1, output
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    assert failed and all(": 2 processes, uneven batches" in line for line in failed)
    lost = [line for line in failed if "lost_gradients" in line]
    # The value is right; the keys' weights, whose gradient was lost, are not.
    assert lost and all("gradient of second" in line for line in lost)
    assert any("local_mean" in line and "value is off" in line for line in failed)
    assert not any("right" in line for line in failed)


def test_every_loss_holds_at_one_two_and_four_processes(tmp_path, monkeypatch):
    """The processes that are there are used, and rank 0 reports once."""
    (code, output), *others = torchrun(4, tmp_path, monkeypatch, "--quick")
    assert_everything_held(code, output, (1, 2, 4))
    assert others == [[0, ""]] * 3


def test_wrong_losses_are_caught_and_named(tmp_path, monkeypatch):
    (code, output), other = torchrun(2, tmp_path, monkeypatch, "--quick", *OWN)
    assert_wrong_losses_are_named(code, output)
    assert other == [1, ""]


@pytest.mark.slow
def test_it_starts_a_process_of_its_own(capfd):
    code = verify.main(["--world-size", "1", "--quick", "--backend", "gloo", *OWN])
    output = capfd.readouterr().out
    assert code == 0 and re.search(r"(\d+) of \1 comparisons held", output), output
    assert all(f"wrong_losses:{name}" in output for name in ("lost_gradients", "right"))


@pytest.mark.slow
def test_wrong_losses_are_caught_in_processes_of_its_own(capfd):
    code = verify.main(["--world-size", "2", "--quick", "--backend", "gloo", *OWN])
    assert_wrong_losses_are_named(code, capfd.readouterr().out)


@pytest.mark.slow
def test_every_loss_holds_in_processes_of_its_own(capfd):
    code = verify.main(["--world-size", "4", "--quick"])
    assert_everything_held(code, capfd.readouterr().out, (1, 2, 4))


@pytest.mark.slow
def test_wrong_losses_are_caught_under_torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "2", "-m", "sslops.verify", "--quick", "--backend", "gloo", *OWN]  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/ops"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
                          text=True, timeout=200)  # fmt: skip
    assert_wrong_losses_are_named(done.returncode, done.stdout)


def test_every_loss_with_a_group_is_verified():
    source = Path(verify.__file__).read_text()
    with_group = [
        n for n in sslops.__all__ if "        group: " in (getattr(sslops, n).__doc__ or "")
    ]
    assert "nt_xent" in with_group and "KeyQueue" in with_group
    for name in with_group:
        assert f"sslops.{name}" in source, name


def test_a_comparison_that_is_no_number_fails():
    found = verify.Found("loss", 2, "even", "float32", "value", float("nan"), 1.0, 0)
    assert not found.held


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_the_last_batch_is_uneven_or_empty_on_the_last_rank(ranks):
    for batch in verify.BATCHES:
        sizes = verify.sizes_of(batch, ranks)
        assert len(sizes) == ranks and sum(sizes) > 0
    if ranks > 1:
        assert verify.sizes_of("empty", ranks)[-1] == 0
        assert len(set(verify.sizes_of("uneven", ranks))) > 1
