"""Command lines and configuration files to dataclasses, by jsonargparse.

The options of a method and of the training stand side by side, in one flat YAML file or on the
command line; the later one wins. `method:` in a file is the method's name.
"""

import re
from argparse import ArgumentError
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from sslzoo import registry

# Meaning and unit of an option stand below its field, where a reader of the code sees them.
set_parsing_settings(docstring_parse_attribute_docstrings=True)
# An option is never guessed from its first letters: --k would be --keypoints to some protocols.
Parser = partial(ArgumentParser, allow_abbrev=False, exit_on_error=False)

PRETRAIN_HELP = """\
usage: sslzoo pretrain METHOD [options]
       sslzoo pretrain MY_METHOD.py [options]
       sslzoo pretrain --config FILE_OR_RECIPE [options]
       sslzoo pretrain --resume RUN

methods: {methods}
recipes: {recipes}

`sslzoo pretrain METHOD --help` shows the options of a method, each with its unit and default.
MY_METHOD.py is a method of your own: examples/barlow_twins.py shows its parts. The file is run, and
only where it is named here: to resume, `sslzoo pretrain MY_METHOD.py --resume RUN`.
"""


@dataclass
class PretrainOptions:
    """What to train."""

    name: str  # of the method
    method: object  # its Config
    training: object  # TrainingConfig
    resume: bool


def parse_pretrain(argv, prog=None):
    """PretrainOptions from a command line, which names a method or has --config or --resume.

    Raises:
        ArgumentError, ValueError, OSError: the message is for the user.
    """
    from sslzoo.training_config import TrainingConfig

    words, resume = find_files(argv)
    if words and not words[0].startswith("-"):
        named, *words = words
    else:
        named = method_in_file(words)
    # A method file by its whole path, so that it is found from another folder.
    name = str(Path(named).resolve()) if registry.is_method_file(named) else named
    module = registry.method(name)
    parser = Parser(
        prog=prog or f"sslzoo pretrain {named}",
        description=(module.__doc__ or named).splitlines()[0],
        print_config="--print_config",
    )
    parser.add_argument("--config", action="config", help="YAML file, or the name of a recipe")
    parser.add_argument("--method", choices=[name, named], default=name,
                        help="name in a YAML file")  # fmt: skip
    parser.add_class_arguments(module.Config)
    parser.add_class_arguments(TrainingConfig)
    parser.set_defaults(getattr(module, "DEFAULTS", {}))
    values = parse(parser, words)
    method, training = (
        cls(**{f.name: values[f.name] for f in fields(cls)})
        for cls in (module.Config, TrainingConfig)
    )
    return PretrainOptions(name, method, training, resume)


def find_files(argv):
    """Turn recipes' names into paths, and `--resume RUN` into the options of that run.

    Returns:
        (words, whether --resume was among them).
    """
    words, resumes = [], False
    words_left = [part for word in argv for part in split_option(word)]
    while words_left:
        word = words_left.pop(0)
        if word in ("--config", "--resume"):
            if not words_left:
                raise ValueError(f"{word} needs a value")
            value = words_left.pop(0)
            if word == "--resume":
                resumes = True
                words += ["--config", str(run_config(value)), "--out", value]
            else:
                words += ["--config", str(recipe_or_file(value))]
        else:
            words.append(word)
    return words, resumes


def split_option(word):
    """--config=FILE as two words."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and name in ("--config", "--resume") else [word]


def run_config(run):
    """The config.yaml of a run folder."""
    file = Path(run, "config.yaml")
    if not file.is_file():
        raise ValueError(f"{run} is no run folder: it holds no config.yaml")
    return file


def recipe_or_file(value):
    """A file as it stands, or the recipe of that name."""
    if Path(value).exists():
        return value
    if value not in registry.recipes():
        raise registry.UnknownName("file or recipe", value, registry.recipes())
    return registry.recipe(value)


def method_in_file(words):
    """The `method:` of the first --config among the words."""
    if "--config" not in words:
        raise ValueError(f"no method was named; known: {', '.join(registry.methods())}")
    file = Path(words[words.index("--config") + 1])
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or "method" not in content:
        raise ValueError(f"{file} names no method: it needs a line like `method: simclr`")
    if registry.is_method_file(content["method"]):  # a configuration does not run code
        raise ValueError(f"{file} is of the method file {content['method']}: name it, as in "
                         f"`sslzoo pretrain {content['method']} ...`")  # fmt: skip
    return content["method"]


def parse_evaluate(argv):
    """(protocol, backbone, Common, the protocol's Config) from a command line."""
    from sslzoo.evaluate import AllConfig, Common

    if not argv or argv[0].startswith("-"):
        names = ", ".join(registry.evaluators())
        raise ValueError(f"evaluate needs one of {names}, or all, and a backbone")
    name, *words = argv
    cls = AllConfig if name == "all" else registry.evaluator(name).Config
    parser = Parser(prog=f"sslzoo evaluate {name}", description=cls.__doc__)
    parser.add_argument("run", help="run folder, backbone.safetensors, checkpoint.pt, a folder "
                        "with config.json and model.safetensors, or a name of timm")  # fmt: skip
    parser.add_class_arguments(cls)
    parser.add_class_arguments(Common)
    values = parse(parser, words)
    config, common = (cls_(**{f.name: values[f.name] for f in fields(cls_)})
                      for cls_ in (cls, Common))  # fmt: skip
    return name, values["run"], common, config


def parse_report(argv):
    """The options of `sslzoo report`: runs, out."""
    parser = Parser(
        prog="sslzoo report",
        description="One HTML file about a run, or about several side by side, without a network.",
    )
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--out", default="", help="HTML file, which is replaced; empty is "
                        "report.html in the run folder, or here for several runs")  # fmt: skip
    chosen = parse(parser, argv)
    if not chosen.out:
        chosen.out = str(Path(chosen.runs[0] if len(chosen.runs) == 1 else "", "report.html"))
    return chosen


def parse_import(argv):
    """The options of `sslzoo import`: file, out, backbone."""
    parser = Parser(
        prog="sslzoo import",
        description="Official weights of MoCo, MAE, DINO or DINOv2 into a backbone of ours.",
    )
    parser.add_argument("file", help=".safetensors, or a checkpoint that torch.save wrote")
    parser.add_argument("--out", required=True, help="folder for the backbone and the report")
    parser.add_argument("--backbone", default="", help="its name; empty is found from the shapes")
    return parse(parser, argv)


def parse_export(argv):
    """The options of `sslzoo export`: run, to, out."""
    parser = Parser(
        prog="sslzoo export", description="A run's backbone in another library's layout."
    )
    layouts = ["timm", "torchvision", "safetensors", "huggingface"]
    parser.add_argument("run", help="run folder, backbone.safetensors or checkpoint.pt")
    parser.add_argument("--to", choices=layouts, required=True, help="layout")
    parser.add_argument("--out", required=True, help="file; for huggingface a folder")
    return parse(parser, argv)


def parse_propagate(argv):
    """(run, checkpoint or encoder, its options) from a command line."""
    from sslzoo.tracking_config import PropagateConfig

    parser = Parser(prog="sslzoo propagate", description=PropagateConfig.__doc__)
    parser.add_argument(
        "run", help="run folder, backbone.safetensors, checkpoint.pt or a name of timm"
    )
    parser.add_class_arguments(PropagateConfig)
    values = parse(parser, argv)
    config = PropagateConfig(**{f.name: values[f.name] for f in fields(PropagateConfig)})
    return values["run"], config


def parse(parser, words):
    """Parse; errors name options as they are typed, and the nearest one where one is unknown."""
    switches = {f"--{a.dest}" for a in parser._actions if getattr(a, "_typehint", None) is bool}
    try:
        return parser.parse_args(list(switched_on(words, switches)))
    except ArgumentError as error:
        message = re.sub(r"<class '(\w+)'>", r"\1", str(error))
        message = re.sub(r'Parser key "(\w+)":', r"--\1:", message)
        unknown = re.search(r"unrecognized arguments: --(\w+)|Option '(\w+)' is not", message)
        if not unknown:
            raise ValueError(message) from error
        known = [name.lstrip("-") for name in parser._option_string_actions]
        raise registry.UnknownName("option", unknown[1] or unknown[2], known) from error


def switched_on(words, switches):
    """A switch without a value is on: --download means --download=true."""
    for word, following in pairwise([*words, "--"]):
        yield f"{word}=true" if word in switches and following.startswith("--") else word
