"""Methods, backbones, data sets and evaluators by name; nothing is imported before it is asked for.

A method's name is the name of its file in sslzoo/methods, a protocol's that of its file in
sslzoo/evaluators; see there for what the files hold.
"""

import difflib
import importlib
import inspect
import pkgutil
from pathlib import Path


class UnknownName(ValueError):
    """A name that is not registered; the message holds the nearest ones."""

    def __init__(self, kind, name, known):
        near = difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


def methods():
    """Names of all methods."""
    return _files("methods")


def method(name):
    """The module of the method `name`: Config, DEFAULTS, views and the class."""
    if name not in methods():
        raise UnknownName("method", name, methods())
    return importlib.import_module(f"sslzoo.methods.{name}")


def method_class(module):
    """The nn.Module of a method's file, which is called like the file: simclr.py, SimCLR."""
    wanted = module.__name__.rpartition(".")[2].replace("_", "")
    for name, value in vars(module).items():
        if name.lower() == wanted and inspect.isclass(value):
            return value
    raise AttributeError(f"{module.__name__} defines no class called {wanted} in any case")


def build_backbone(module, name, **options):
    """An encoder with random weights for a method: its own, or one of sslzoo.backbones."""
    from sslzoo.backbones import build

    return getattr(module, "build_backbone", build)(name, **options)


def backbones():
    """Names of the backbones that are not timm's; every name of timm works too."""
    from sslzoo.backbones import OWN

    return sorted(OWN)


def data_sets():
    """Names of the data sets; a path of a folder, Parquet files or tar archives works too."""
    from sslzoo.data import DATASETS

    return sorted(DATASETS)


def evaluators():
    """Names of the protocols."""
    return _files("evaluators")


def evaluator(name):
    """The module of the protocol `name`: VERSION, Config and evaluate."""
    if name not in evaluators():
        raise UnknownName("evaluator", name, [*evaluators(), "all"])
    return importlib.import_module(f"sslzoo.evaluators.{name}")


def recipes():
    """Names of the recipes: configurations that come with the package."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def recipe(name):
    """The YAML file of a recipe."""
    if name not in recipes():
        raise UnknownName("recipe", name, recipes())
    return _recipe_folder() / f"{name}.yaml"


def _files(package):
    folder = Path(__file__).with_name(package)
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]))


def _recipe_folder():
    return Path(__file__).with_name("recipes")
