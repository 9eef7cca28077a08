"""Triton kernels compiled for GPUs that need not be here: no spills, and tensor cores in use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024}  # the list of sm_80 serves every chip
REGISTERS = 65536  # of a multiprocessor


# Prints a line before each script; one process for all, as importing torch takes seconds.
RUN = """
import importlib, sys
for script in sys.argv[2:]:
    print(f'"{script}"', flush=True)
    importlib.import_module(script).main(sys.argv[1])
"""


def compiled(extent, cache, *scripts):
    """{script: what it prints} from a process that does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), str(FOLDER)])
    environment |= {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache)}
    run = subprocess.run([sys.executable, "-c", RUN, extent, *scripts], env=environment, cwd=ROOT,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    found = {}
    for line in map(json.loads, run.stdout.splitlines()):
        if isinstance(line, str):
            kernels = found[line] = []
        else:
            kernels.append(line)
    return found


def assert_lean(kernels):
    for kernel in kernels:
        about = str(kernel)
        assert kernel["stack"] == 0, about
        assert kernel["shared"] <= SHARED_LIMIT[kernel["chip"]], about
        assert kernel["registers"] * 32 * kernel["warps"] <= REGISTERS, about
        is_half_product = kernel["kind"] == "half" and kernel["chip"] == "sm_90"
        assert kernel["wgmma"] or not is_half_product, about


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    scripts = "ahead_of_time", "dino_ahead_of_time", "views_ahead_of_time"
    return compiled("quick", tmp_path_factory.mktemp("cache"), *scripts)


def test_contrastive_kernels_do_not_spill_and_use_tensor_cores(quick):
    kernels = quick["ahead_of_time"]
    assert {k["chip"] for k in kernels} == {"sm_80", "sm_90"}
    assert len(kernels) == 9
    assert_lean(kernels)


def test_kernels_of_dino_loss_sinkhorn_knopp_and_koleo_do_not_spill(quick):
    assert len(quick["dino_ahead_of_time"]) == 11
    assert_lean(quick["dino_ahead_of_time"])


def test_kernels_of_augment_do_not_spill(quick):
    assert len(quick["views_ahead_of_time"]) == 4
    assert_lean(quick["views_ahead_of_time"])


@pytest.mark.slow
@pytest.mark.parametrize("script, least", [
    ("ahead_of_time", 301), ("dino_ahead_of_time", 121), ("views_ahead_of_time", 2 * 3 * 8)
])  # fmt: skip
def test_every_listed_tile_dtype_and_chip_does_not_spill(tmp_path, script, least):
    kernels = compiled("all", tmp_path, script)[script]
    assert len(kernels) >= least
    assert_lean(kernels)
