"""What a run leaves on disk, and how it is read again.

config.yaml           every option as used; `sslzoo pretrain --config` takes it
metrics.csv           one row per log step; tensorboard/ holds the same
checkpoint.pt         all that --resume needs; replaced whole or not at all
backbone.safetensors  the backbone's weights under timm's keys
features.png          t-SNE of the features
pictures/             what the method draws, as NAME_EPOCH.png
evaluation.json       what `sslzoo evaluate` found; evaluation/ holds its pictures and features
versions.json         python, packages, device and commit

Nothing is read in a way that can run code: weights_only=True, safetensors, YAML's safe loader.
"""

import csv
import itertools
import json
import os
import pickle
import struct
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from sslzoo import backbones, registry
from sslzoo.versions import versions

# What damaged files and other people's make their readers raise: a changed byte may turn a name
# into another, a number into a text, a length into one that no memory holds.
DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
          AttributeError, OverflowError, ArithmeticError, AssertionError, MemoryError, struct.error,
          ImportError, csv.Error)  # fmt: skip


class RunFolderError(ValueError):
    """A run folder that cannot be written, continued or read."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; made where it does not exist.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.metrics = Metrics(self.path / "metrics.csv")
        self.checkpoint = self.path / "checkpoint.pt"
        self._writer = None

    def prepare(self, options, resume):
        """Make the folder, or refuse one that cannot be written or holds another run.

        Args:
            options: all options of the run by name, for config.yaml.
            resume: whether the folder must hold the checkpoint of this run.
        """
        if resume and not self.checkpoint.exists():
            raise RunFolderError(f"{self.path} holds no checkpoint.pt to resume from")
        if not resume and (self.path / "config.yaml").exists():
            raise RunFolderError(
                f"{self.path} already holds a run: continue it with --resume {self.path}, or "
                "choose another --out"
            )
        with writing(f"to the run folder {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            for stale in self.path.glob("checkpoint.pt.*.tmp"):  # of a run killed while it wrote
                stale.unlink()
            found = json.dumps(versions(), indent=2) + "\n"
            replace_file(self.path / "versions.json", lambda p: p.write_text(found))
            text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
            replace_file(self.path / "config.yaml", lambda p: p.write_text(text))

    def log(self, row):
        """Add a row to metrics.csv, and its values to TensorBoard's files."""
        with writing(f"to the run folder {self.path}"):
            self.metrics.write(row)
            if self._writer is None:
                self._writer = SummaryWriter(self.path / "tensorboard", purge_step=row["step"])
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, row["step"])
            self._writer.flush()

    def save_checkpoint(self, state, kept_step=None):
        """Replace the checkpoint at once: a run killed here keeps the older one.

        Args:
            state: what torch.save takes.
            kept_step: step of the checkpoint that stays where this one cannot be written.
        """
        kept = "" if kept_step is None else (f"; the checkpoint of step {kept_step} is kept, go on "
                                             f"from it with --resume {self.path}")  # fmt: skip
        with writing(self.checkpoint, kept):
            replace_file(self.checkpoint, lambda p: _save_synced(state, p))

    def load_checkpoint(self):
        """The state that save_checkpoint wrote."""
        return _load_checkpoint(self.checkpoint)

    def save_backbone(self, backbone, about):
        """Write the weights under timm's keys; `about` goes into the file's metadata as JSON."""
        state = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
        metadata = {"sslzoo": json.dumps(about)}
        replace_file(self.path / "backbone.safetensors", lambda p: save_file(state, p, metadata))

    def save_picture(self, name, epoch, picture):
        """Write pictures/NAME_EPOCH.png from uint8 [3, H, W]."""
        folder = self.path / "pictures"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}_{epoch:04d}.png"
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        replace_file(path, lambda p: image.save(p, "png"))


class Metrics:
    """A CSV file with one row per log step, which grows a column when a new name appears."""

    def __init__(self, path):
        self.path = path
        self.columns = []

    def cut(self, step):
        """Continue an older file: drop the rows past `step`, which will be written again."""
        if self.path.exists():
            with self.path.open(newline="") as file:
                # A full disk may have cut the last row, even within its step's digits.
                lines = [line for line in file if line.endswith("\n")]
            with reading(self.path, "the metrics of a run"):
                rows = [row for row in csv.DictReader(lines) if int(row["step"]) <= step]
            self._rewrite(rows, ())

    def write(self, row):
        if set(row) <= set(self.columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
            return
        rows = []
        if self.columns:
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        self._rewrite([*rows, row], row)

    def _rewrite(self, rows, first_names):
        names = dict.fromkeys([*self.columns, *first_names, *(k for row in rows for k in row)])
        self.columns = list(names)

        def write(path):
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(rows)

        replace_file(self.path, write)


def free_path(method, data, folder="runs"):
    """runs/METHOD_DATA, with a number where that is taken: no run overwrites another."""
    path = stem = Path(folder, f"{Path(method).stem}_{Path(data).stem}")
    for number in itertools.count(2):
        if not path.exists():
            return path
        path = stem.with_name(f"{stem.name}_{number}")


def load_options(path):
    """The options in the config.yaml of a run folder."""
    file = Path(path) / "config.yaml"
    if not file.is_file():
        raise RunFolderError(f"{path} is no run folder: it holds no config.yaml")
    try:
        options = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, *DAMAGE) as error:
        raise RunFolderError(f"{file} is not valid YAML ({_why(error)})") from error
    if not isinstance(options, dict):
        raise RunFolderError(f"{file} holds no options")
    return options


def load_backbone(path):
    """The trained backbone of a run, and what it expects.

    Args:
        path: a run folder, its backbone.safetensors or its checkpoint.pt.

    Returns:
        (module in eval mode, dict with backbone, image_size, channels, mean, std).
    """
    file = Path(path)
    if file.is_dir():
        done = file / "backbone.safetensors"
        file = done if done.exists() else file / "checkpoint.pt"
    if not file.is_file():
        raise RunFolderError(f"{path} holds no backbone.safetensors and no checkpoint.pt")
    with reading(file, "a backbone of sslzoo"):
        weights, about = _weights_of(file)
        backbone = build_backbone(about)
        backbone.load_state_dict(weights)
    return backbone.eval(), about


def _weights_of(file):
    """The backbone's weights by name, and what it expects."""
    if file.suffix == ".safetensors":
        return _load_safetensors(file)
    state = _load_checkpoint(file)
    prefix = "backbone."
    return {name.removeprefix(prefix): value for name, value in state["method"].items()
            if name.startswith(prefix)}, state["about"]  # fmt: skip


def build_backbone(about):
    """The encoder that `about` describes, with random weights.

    Imported ones have no method; a user's method file is not run, and makes no encoder.
    """
    options = dict(image_size=about["image_size"], channels=about["channels"])
    if "method" not in about or registry.is_method_file(about["method"]):
        return backbones.build(about["backbone"], **options)
    module = registry.method(about["method"])
    options |= about.get("backbone_options", {})
    return registry.build_backbone(module, about["backbone"], **options)


def load_method(path, *, trained=True):
    """The method of a run that embeds videos itself, in eval mode; None where there is none.

    Args:
        path: a run folder or its checkpoint.pt.
        trained: False draws the weights as before the run's first step.
    """
    file = Path(path)
    file = file / "checkpoint.pt" if file.is_dir() else file
    if file.suffix != ".pt" or not file.is_file():
        return None
    with reading(file, "a run of sslzoo"):
        state = _load_checkpoint(file)
        about, options = state["about"], state["options"]
        if registry.is_method_file(about["method"]):
            return None
        module = registry.method(about["method"])
        if not hasattr(registry.method_class(module), "embed_video"):
            return None
        torch.manual_seed(options["seed"])
        method = registry.method_class(module)(
            build_backbone(about), method_config(module, options)
        )
        if trained:
            method.load_state_dict(state["method"])
    return method.eval()


def method_config(module, options):
    """The method's Config of a run; options that came after the run have their defaults."""
    names = {f.name for f in fields(module.Config)}
    return module.Config(**{name: options[name] for name in names & options.keys()})


def load_untrained(path):
    """The encoder of a run folder as it was before training, and what it expects."""
    about = load_backbone(path)[1]
    with reading(path, "a run of sslzoo"):
        options = load_options(path)
        torch.manual_seed(options["seed"])
        backbone = build_backbone(about)
        if registry.is_method_file(about["method"]):
            return backbone.eval(), about
        module = registry.method(about["method"])
        method = registry.method_class(module)(backbone, method_config(module, options))
    return method.backbone.eval(), about


def _load_safetensors(file):
    try:
        with safe_open(file, "pt") as tensors:
            about = (tensors.metadata() or {}).get("sslzoo")
            weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RunFolderError(f"{file} is no safetensors file ({error})") from error
    if about is None:
        raise RunFolderError(f"{file} was not written by sslzoo: it does not say which backbone")
    return weights, json.loads(about)


def _load_checkpoint(file):
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, *DAMAGE) as error:
        raise RunFolderError(f"{file} is no checkpoint of sslzoo ({_why(error)})") from error


def _why(error):
    """The first line of an error, or its name."""
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def reading(file, what):
    """Inside, what a damaged file or a stranger's makes its readers raise is a RunFolderError."""
    try:
        yield
    except (RunFolderError, torch.OutOfMemoryError):
        raise
    except DAMAGE as error:
        raise RunFolderError(f"{file} does not hold {what} ({_why(error)})") from error


@contextmanager
def writing(what, then=""):
    """Inside, a full disk, lost permissions and the like are a RunFolderError of one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunFolderError(f"cannot write {what}: {reason}{then}") from error


def _save_synced(state, path):
    """torch.save, on the disk when it returns; a failed write is an OSError that says why."""
    with path.open("wb") as file:
        target = _Target(file)
        try:
            torch.save(state, target)
        except RuntimeError as error:  # torch's writer hides the reason
            raise target.error or error from error
        file.flush()
        os.fsync(file.fileno())


class _Target:
    """A file that remembers why a write failed."""

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data):
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        self.file.flush()


def replace_file(path, write):
    """Write a file beside `path`, then put it in its place in one step."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(options):
    """Options with tuples as lists, as YAML and JSON hold them."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
