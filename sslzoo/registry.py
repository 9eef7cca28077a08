"""Methods, backbones, data sets and evaluators by name; nothing is imported before it is asked for.

A method's name is the name of its file in sslzoo/methods, or the path of a file of your own that
ends in .py; a protocol's is that of its file in sslzoo/evaluators. See there for what they hold.
"""

import difflib
import importlib
import inspect
import pkgutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_METHOD_FILES = {}  # path -> module, of the users' files that were run


class MethodFileError(ValueError):
    """A file of a method that is not there or lacks a part; the message is for the user."""


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
    """The module of a method: Config, DEFAULTS, views and the class.

    Args:
        name: of a file in sslzoo/methods, or the path of a file of the same parts, which is run.
    """
    if is_method_file(name):
        return _method_file(Path(name).resolve())
    if name not in methods():
        raise UnknownName("method", name, methods())
    return importlib.import_module(f"sslzoo.methods.{name}")


def is_method_file(name):
    """Whether a method's name is the path of a file instead."""
    return str(name).endswith(".py")


def method_class(module):
    """The nn.Module of a method's file, which is called like the file: simclr.py, SimCLR."""
    wanted = Path(module.__file__).stem.replace("_", "").lower()
    for name, value in vars(module).items():
        if name.lower() == wanted and inspect.isclass(value):
            return value
    raise MethodFileError(
        f"{module.__file__} defines no class called like the file: {wanted}, in any case"
    )


def _method_file(path):
    """The module of a user's file, which is run once."""
    if path in _METHOD_FILES:
        return _METHOD_FILES[path]
    if not path.is_file():
        raise MethodFileError(f"there is no method file {path}")
    name = f"method_file_{len(_METHOD_FILES)}_{path.stem}"
    spec = spec_from_file_location(name, path)
    module = sys.modules[name] = module_from_spec(spec)  # where dataclasses look for their types
    spec.loader.exec_module(module)
    for part in ("Config", "views"):
        if not hasattr(module, part):
            raise MethodFileError(f"{path} defines no {part}; examples/barlow_twins.py shows how")
    if hasattr(module, "build_backbone") or hasattr(module, "backbone_options"):
        # Its weights could only be read again by running the file.
        raise MethodFileError(f"{path} makes a backbone: only methods of the package may")
    method_class(module)
    _METHOD_FILES[path] = module
    return module


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
