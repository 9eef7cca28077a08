"""Triton kernels compiled for GPUs that need not be here: no spills, and tensor cores in use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("ahead_of_time.py")
ROOT = SCRIPT.parents[2]
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024}  # the list of sm_80 serves every chip
REGISTERS = 65536  # of a multiprocessor


def compiled(extent, cache, script=SCRIPT):
    """What ahead_of_time.py prints, from a process that does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache)}
    run = subprocess.run([sys.executable, str(script), extent], env=environment, cwd=ROOT,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def assert_lean(kernels):
    for kernel in kernels:
        about = str(kernel)
        assert kernel["stack"] == 0, about
        assert kernel["shared"] <= SHARED_LIMIT[kernel["chip"]], about
        assert kernel["registers"] * 32 * kernel["warps"] <= REGISTERS, about
        is_half_product = kernel["kind"] == "half" and kernel["chip"] == "sm_90"
        assert kernel["wgmma"] or not is_half_product, about


def test_kernels_do_not_spill_and_use_tensor_cores(tmp_path):
    kernels = compiled("quick", tmp_path)
    assert {k["chip"] for k in kernels} == {"sm_80", "sm_90"}
    assert len(kernels) == 20
    assert_lean(kernels)


@pytest.mark.slow
def test_every_listed_tile_does_not_spill(tmp_path):
    kernels = compiled("all", tmp_path)
    assert len(kernels) > 300
    assert_lean(kernels)
