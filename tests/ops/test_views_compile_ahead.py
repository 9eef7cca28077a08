"""The Triton kernels of augment, compiled for GPUs that need not be here: no spills."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from test_compile_ahead import assert_lean, compiled

SCRIPT = Path(__file__).with_name("views_ahead_of_time.py")


def test_kernels_do_not_spill(tmp_path):
    kernels = compiled("quick", tmp_path, SCRIPT)
    assert len(kernels) == 4
    assert_lean(kernels)


@pytest.mark.slow
def test_every_kernel_dtype_and_chip_does_not_spill(tmp_path):
    kernels = compiled("all", tmp_path, SCRIPT)
    assert len(kernels) == 2 * 3 * 8
    assert_lean(kernels)
