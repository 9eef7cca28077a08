"""What the CUDA compiler made of the kernels: read from the built extension, without a GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ARCHITECTURES = {"sm_80", "sm_90", "sm_100"}
MOST_REGISTERS = 128  # 256 threads of 128 registers: two blocks a multiprocessor
KERNELS = {
    "random_masking_kernel", "select_rows_kernel", "scatter_rows_kernel", "restore_kernel",
    "restore_gradients_kernel", "gather_patches_kernel", "scatter_patches_kernel",
}  # fmt: skip


def find_cuobjdump():
    """nvcc's own, or the one in triton's package."""
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton")
        found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if not found.exists():
            pytest.skip("cuobjdump was not found")
    return str(found)


@pytest.fixture(scope="module")
def usage():
    """(architecture, kernel) -> what it uses: REG, STACK, LOCAL, ..."""
    extension = pytest.importorskip("sslops._C")
    if not extension.has_cuda:
        pytest.skip("sslops._C was built without CUDA (nvcc was not found)")
    command = [find_cuobjdump(), "-res-usage", extension.__file__]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage, architecture, kernel = {}, None, None
    for line in report.splitlines():
        if match := re.match(r"arch = (sm_\d+)", line):
            architecture = match.group(1)
        elif match := re.match(r"\s*Function (\S+):", line):
            kernel = match.group(1)
        elif kernel and "REG:" in line:
            numbers = re.findall(r"([A-Z]+)(?:\[\d\])?:(\d+)", line)
            usage[architecture, kernel] = {name: int(value) for name, value in numbers}
            kernel = None
    return usage


def test_every_kernel_is_compiled_for_every_architecture(usage):
    for kernel in KERNELS:
        compiled_for = {architecture for architecture, name in usage if kernel in name}
        assert compiled_for == ARCHITECTURES, kernel


def test_no_kernel_spills_or_uses_a_stack(usage):
    for key, numbers in usage.items():
        assert numbers["STACK"] == 0 and numbers["LOCAL"] == 0, key
        assert numbers["REG"] <= MOST_REGISTERS, key
