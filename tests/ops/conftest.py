"""The ops as fixtures: a test that takes `info_nce` runs once for each of its backends."""

import backends
import pytest


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
