"""python -m sslops.verify: it holds every loss, and it catches wrong ones."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sslops
from sslops import verify

ROOT = Path(__file__).parents[2]


def test_every_loss_holds_at_one_two_and_four_processes(capfd):
    code = verify.main(["--world-size", "4", "--quick"])
    output = capfd.readouterr().out
    assert code == 0, output
    assert "FAILED" not in output
    for name in verify.LOSSES:
        for ranks in (1, 2, 4):
            assert re.search(rf"^{re.escape(name)} +{ranks} ", output, re.MULTILINE), output
    held, total = map(int, re.search(r"(\d+) of (\d+) comparisons held", output).groups())
    # A value and at least one gradient, in two dtypes.
    assert held == total >= len(verify.LOSSES) * 3 * 2 * 2


def test_wrong_losses_are_caught_and_named_under_torchrun():
    """The processes that are there are used, rank 0 reports once, and the code is not 0."""
    names = ["lost_gradients", "local_mean", "right"]
    own = [a for n in names for a in ("--loss", f"wrong_losses:{n}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "2", "-m", "sslops.verify", "--quick", "--backend", "gloo", *own]  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/ops"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
                          text=True, timeout=200)  # fmt: skip
    assert done.returncode == 1 and done.stdout.count("comparisons held") == 1, done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed and all(": 2 processes, uneven batches" in line for line in failed)
    lost = [line for line in failed if "lost_gradients" in line]
    # The value is right; the keys' weights, whose gradient was lost, are not.
    assert lost and all("gradient of second" in line for line in lost)
    assert any("local_mean" in line and "value is off" in line for line in failed)
    assert not any("right" in line for line in failed)


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
