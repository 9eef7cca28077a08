"""The Triton kernels of dino_loss, sinkhorn_knopp and koleo, compiled for GPUs that need not be
here: no spills."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from test_compile_ahead import assert_lean, compiled

SCRIPT = Path(__file__).with_name("dino_ahead_of_time.py")


def test_kernels_do_not_spill(tmp_path):
    kernels = compiled("quick", tmp_path, SCRIPT)
    assert len(kernels) == 11
    assert_lean(kernels)


@pytest.mark.slow
def test_every_kernel_dtype_and_chip_does_not_spill(tmp_path):
    kernels = compiled("all", tmp_path, SCRIPT)
    assert len(kernels) > 120
    assert_lean(kernels)
