"""The ops as fixtures: a test that takes `info_nce` runs once for each of its backends."""

import backends
import pytest


@pytest.fixture(params=["avx512", "avx2", "vector4", "scalar"])
def instruction_set(request):
    """The kernels of the CPU in each instruction set that this machine has."""
    kernels = pytest.importorskip("sslops._C", exc_type=ModuleNotFoundError)
    before = kernels.select_instruction_set("")
    if kernels.select_instruction_set(request.param) != request.param:
        pytest.skip(f"{request.param} kernels do not run on this machine")
    yield request.param
    kernels.select_instruction_set(before)


@pytest.fixture(params=backends.parameters("info_nce"))
def info_nce(request):
    return backends.Forced(*request.param)


@pytest.fixture(params=backends.parameters("nt_xent"))
def nt_xent(request):
    return backends.Forced(*request.param)


@pytest.fixture(params=backends.parameters("info_nce", "nt_xent"))
def loss(request):
    """Either loss of two views, `loss(z0, z1, temperature=..., ...)`."""
    return backends.Forced(*request.param)
