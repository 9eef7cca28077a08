"""The command `sslzoo`: list, pretrain, evaluate, report, propagate, import, export, doctor, demo.

Exit codes: 0 done, 2 the user can mend it (one line on stderr says what), 130 stopped by Ctrl-C,
75 by SIGTERM: with a checkpoint, to be started again.
Everything heavy is imported by the command that needs it, so that help comes at once.
"""

import os
import sys
from argparse import ArgumentError
from contextlib import contextmanager

from sslzoo import registry

HELP = """\
usage: sslzoo COMMAND ...

  list [methods|backbones|data|evaluators|recipes]   what there is
  pretrain METHOD|FILE.py [--data NAME_OR_PATH] ...  train a method and leave a run folder
  evaluate PROTOCOL|all BACKBONE ...                 judge a run, a checkpoint or a model of timm
  report RUN... [--out FILE]                         one HTML page of a run, or of several
  propagate CHECKPOINT --video PATH --mask PNG ...   carry a mask through a video, and score it
  import FILE --out FOLDER                           official weights to a backbone of ours
  export RUN --to LAYOUT --out PATH                  a backbone for timm, torchvision and others
  doctor [--json]                                    what this machine can do, and a self-test
  demo                                               SimCLR on handwritten digits, in 3 minutes

`sslzoo COMMAND --help` shows the options, each with its unit and default.
`--debug`, anywhere, shows the traceback of an error.
"""


# What `pip install sslops[zoo]` brings, by the names that are imported.
OF_THE_ZOO = {
    *("accelerate", "av", "huggingface_hub", "jinja2", "jsonargparse", "matplotlib", "PIL"),
    *("pyarrow", "rich", "safetensors", "scipy", "sklearn", "soundfile", "tensorboard"),
    *("threadpoolctl", "timm", "torchmetrics", "torchvision", "yaml"),
}


class UserError(ValueError):
    """A command line that cannot be carried out; the message is one line for the user."""


def main(argv=None):
    """Run a command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        return run([word for word in argv if word != "--debug"])
    except ModuleNotFoundError as error:
        name = str(error.name).split(".")[0]
        if debug or name not in OF_THE_ZOO:
            raise
        print(f"sslzoo: error: {name} is not installed: pip install 'sslops[zoo]'", file=sys.stderr)
        return 2
    except user_errors() as error:  # evaluated only once something was raised
        if debug:
            raise
        print("sslzoo: error:", " ".join(str(error).split()), file=sys.stderr)
        return getattr(error, "exit_code", 2)


def user_errors():
    """The error classes whose messages are meant for the user, of the modules in use."""
    classes = [ArgumentError, OSError, UserError, registry.UnknownName, registry.MethodFileError]
    for module, name in (
        ("sslzoo.data", "DataError"),
        ("sslzoo.report", "ReportError"),
        ("sslzoo.run_folder", "RunFolderError"),
        ("sslzoo.failures", "TrainingError"),
        ("sslzoo.weights", "WeightsError"),
        ("torch", "OutOfMemoryError"),
    ):
        if module in sys.modules:
            classes.append(getattr(sys.modules[module], name))
    return tuple(classes)


@contextmanager
def options_checked():
    """Inside, a ValueError comes from the user's options: the parts that take them check them."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def run(argv):
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        raise registry.UnknownName("command", command, list(COMMANDS))
    return COMMANDS[command](rest)


def list_command(argv):
    """Print the names of what there is."""
    kinds = {
        "methods": (registry.methods, ""),
        "backbones": (registry.backbones, "and every model of timm"),
        "data": (
            registry.data_sets,
            "and paths: folders of images, videos or frames, Parquet files, tar archives",
        ),
        "evaluators": (registry.evaluators, ""),
        "recipes": (registry.recipes, ""),
    }
    if argv in (["-h"], ["--help"]):
        print(f"usage: sslzoo list [{'|'.join(kinds)}]")
        return 0
    for kind in argv or kinds:
        if kind not in kinds:
            raise registry.UnknownName("kind of thing", kind, list(kinds))
        names, more = kinds[kind]
        print(f"{kind}: {' '.join(names())} {more}".rstrip())
    return 0


def pretrain_command(argv):
    """Train a method with the options of the command line and of configuration files."""
    from sslzoo import options

    if not argv or argv in (["-h"], ["--help"]):
        names = dict(methods=" ".join(registry.methods()), recipes=" ".join(registry.recipes()))
        print(options.PRETRAIN_HELP.format(**names), end="")
        return 0
    with options_checked():
        chosen = options.parse_pretrain(argv)
    pretrain(chosen)
    return 0


def pretrain(chosen):
    """Set up and train; returns the RunFolder."""
    from rich.console import Console

    from sslzoo import training

    with options_checked():
        setup = training.set_up(chosen.name, chosen.method, chosen.training, Console())
    return training.train(setup, resume=chosen.resume)


def evaluate_command(argv):
    """Judge a backbone by one protocol, or by all that the data allows."""
    if argv in ([], ["-h"], ["--help"]):
        print("usage: sslzoo evaluate PROTOCOL|all BACKBONE [--data NAME_OR_PATH] [options]\n\n"
              f"protocols: {' '.join(registry.evaluators())}\n"
              "`sslzoo evaluate PROTOCOL --help` shows the options of one.")  # fmt: skip
        return 0
    from sslzoo import evaluate, options

    with options_checked():
        name, source, common, config = options.parse_evaluate(argv)
        subject = evaluate.Subject(source, common)
    if name != "all":
        show_result(evaluate.evaluate(name, subject, config))
        return 0
    parts = evaluate.evaluate_all(
        subject, config, announce=lambda part: print(f"[{part}]", flush=True)
    )
    for _, result, reason in parts:
        if reason:
            print(f"left out: {reason}")
        if result:
            show_result(result)
    return 0


def show_result(result):
    """Rows, pictures and notes of one evaluation, a line each."""
    for row in result.rows:
        print(f"{row.metric}: {row.text}")
    for name, path in result.pictures.items():
        print(f"{name}: {path}")
    for note in result.notes:
        print(f"note: {note}")


def report_command(argv):
    """Write one HTML page about a run, or about several side by side."""
    from sslzoo import options

    with options_checked():
        chosen = options.parse_report(argv or ["--help"])
    from sslzoo import report

    report.write(chosen.runs, chosen.out)
    print(f"wrote {chosen.out} ({os.path.getsize(chosen.out) / 2**20:.1f} MiB)")
    return 0


def import_command(argv):
    """Official weights into a run folder's backbone."""
    from sslzoo import options, weights

    with options_checked():
        chosen = options.parse_import(argv)
    for line in weights.report(weights.import_weights(chosen.file, chosen.out, chosen.backbone)):
        print(line)
    return 0


def export_command(argv):
    """A run's backbone in another library's layout."""
    from sslzoo import options, weights

    with options_checked():
        chosen = options.parse_export(argv)
    print(f"wrote {chosen.out}; {weights.export(chosen.run, chosen.to, chosen.out)}")
    return 0


def propagate_command(argv):
    """Carry a mask through a video by the features of an encoder."""
    from sslzoo import options

    if not argv:
        argv = ["--help"]
    with options_checked():
        path, config = options.parse_propagate(argv)
    from sslzoo.track import propagate

    show_result(propagate(path, config))
    print(f"written to {config.out}")
    return 0


def doctor_command(argv):
    """Versions, devices, backends, a self-test; exit code 1 where an op is wrong."""
    if argv not in ([], ["--json"]):
        print("usage: sslzoo doctor [--json]")
        if argv in (["-h"], ["--help"]):
            return 0
        raise UserError(f"doctor knows no {argv[0]!r}")
    from sslzoo import doctor

    found = doctor.examine()
    if argv:
        print(doctor.to_json(found))
    else:
        doctor.show(found)
    return 0 if doctor.is_well(found) else 1


def demo_command(argv):
    """SimCLR on handwritten digits, and the table of what it is good for."""
    from sslzoo import demo, options

    with options_checked():
        chosen = options.parse_pretrain(["--config", demo.RECIPE, *argv], prog="sslzoo demo")
    demo.show(pretrain(chosen))
    return 0


COMMANDS = {
    "list": list_command,
    "pretrain": pretrain_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "propagate": propagate_command,
    "import": import_command,
    "export": export_command,
    "doctor": doctor_command,
    "demo": demo_command,
}

if __name__ == "__main__":
    sys.exit(main())
