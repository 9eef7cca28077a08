"""Seeds, NaN poisoning of uninitialised memory, and what runs on this machine."""

import functools
import inspect
import os
from importlib.util import find_spec

import pytest
import torch

# Without a GPU the Triton kernels run under their interpreter; the switch is read at import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Small tensors gain nothing from threads, and on a busy machine they wait for one another.
torch.set_num_threads(1)

# The first backward pass counts the devices. After a torch.compile it counts one that is not there,
# starts a thread for it and lets no fork of this process run autograd.
torch.ones(1, requires_grad=True).backward()

if find_spec("hypothesis"):  # a bare machine with a GPU runs the tests for that without it
    from hypothesis import settings

    settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
    settings.load_profile("suite")


def remember_builtins():
    """Triton's interpreter looks through its language for builtins at every call of a helper.

    That is a fifth of the time of an interpreted test; their names stay the same.
    """
    from triton.language import core
    from triton.runtime import interpreter

    @functools.cache
    def names(package):
        return [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]

    def patch_builtin(package, *more):
        for name in names(package):
            member = getattr(package, name)
            if core.is_builtin(member):
                interpreter._patch_attr(package, name, member, *more)

    interpreter._patch_builtin = patch_builtin


if find_spec("triton") and not torch.cuda.is_available():
    remember_builtins()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; none was found"))


@pytest.fixture(autouse=True)
def deterministic():
    """Same seed for every test; torch.empty is filled with NaN, so reading it shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device():
    """The device of agreement tests: CUDA where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
