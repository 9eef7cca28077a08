"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil

import pytest

import sslops

PACKAGES = ["sslops"] + (["sslzoo"] if importlib.util.find_spec("sslzoo") else [])
# What may be missing on a machine: each excuses the modules that need it.
OPTIONAL = {
    *("triton", "sslops._C", "torchvision", "timm", "accelerate", "sklearn", "torchmetrics"),
    *("matplotlib", "safetensors", "pyarrow", "jsonargparse", "rich", "tensorboard", "av", "scipy"),
}


def module_names():
    for package in PACKAGES:
        yield package
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, package + "."):
            if not module.name.endswith(("__main__", "._C")):
                yield module.name


@pytest.mark.parametrize("name", [*module_names()])
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in OPTIONAL and error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report = []
    for test in finder.find(module, name):
        runner.run(test, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)


def public_ops():
    """Functions of sslops that run on a backend."""
    functions = {name: getattr(sslops, name) for name in sslops.__all__}
    return [name for name, f in functions.items()
            if inspect.isfunction(f) and "backend" in inspect.signature(f).parameters]  # fmt: skip


@pytest.mark.parametrize("op", public_ops())
def test_every_op_is_documented_whole(op):
    doc = getattr(sslops, op).__doc__
    for section in ("Args:", "Returns:", "Raises:", "Example:", ">>> "):
        assert section in doc, f"{op}: its docstring has no {section}"
