"""What a run folder holds, read for the report."""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from sslzoo.run_folder import DAMAGE

LARGEST = 1e300  # of what is drawn; differences of such numbers are still finite
MAIN_FILES = ("config.yaml", "metrics.csv", "evaluation.json")


class ReportError(ValueError):
    """A run folder of which no report can be made; the message is one line for the user."""


@dataclass
class Evaluation:
    """One entry of evaluation.json."""

    protocol: str
    version: int
    backbone: dict
    features: list
    device: str
    seed: int
    data: dict  # name -> {"images": ..., "fingerprint": ...}
    options: dict
    results: list  # of {"metric", "value", "std", "unit", "interval"}
    details: dict
    notes: list
    pictures: dict  # name -> path inside the run folder
    versions: dict

    @property
    def weights(self):
        return str(self.backbone.get("weights", ""))

    @property
    def untrained(self):
        return bool(self.options.get("untrained"))


@dataclass
class Run:
    """A run folder; what it does not hold is empty."""

    path: Path
    name: str
    config: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)  # name -> list of (step, value)
    evaluations: list = field(default_factory=list)
    width: int | None = None  # of the features

    @property
    def trained(self):
        """The evaluations of the trained weights, the newest last."""
        return [e for e in self.evaluations if not e.untrained]


def read_runs(paths):
    """Each folder as a Run, under its last name where that tells them apart."""
    paths = [Path(path) for path in paths]
    names = [path.resolve().name for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ReportError("a run is named twice")
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [read_run(path, name) for path, name in zip(paths, names, strict=True)]


def read_run(path, name):
    """A folder as a Run.

    Raises:
        ReportError: it is no run folder, or one of its files is not what sslzoo writes.
    """
    if not any((path / file).is_file() for file in MAIN_FILES):
        raise ReportError(f"{path} is no run folder: it holds none of {', '.join(MAIN_FILES)}")
    run = Run(path, name)
    readers = {
        "config.yaml": ("config", read_config),
        "versions.json": ("versions", read_object),
        "metrics.csv": ("metrics", read_metrics),
        "evaluation.json": ("evaluations", read_evaluations),
        "backbone.safetensors": ("width", read_width),
    }
    for file, (attribute, read) in readers.items():
        if (path / file).is_file():
            try:
                setattr(run, attribute, read(path / file))
            except (yaml.YAMLError, SafetensorError, *DAMAGE) as error:
                raise ReportError(f"{path / file} is not as sslzoo writes it ({error})") from error
    return run


def read_config(path):
    return checked_dict(yaml.safe_load(path.read_text()))


def read_object(path):
    return checked_dict(json.loads(path.read_text()))


def checked_dict(value):
    if not isinstance(value, dict):
        raise ValueError("names with values were expected")
    return {str(name): one for name, one in value.items()}


def read_metrics(path):
    """Columns of metrics.csv as {name: [(step, value), ...]}; empty cells are left out.

    Values that no chart has room for are infinite.
    """
    columns = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            if not 0 <= step < LARGEST:
                raise ValueError(f"no run has a step {step:.3g}")
            for name, text in row.items():
                if text:
                    value = float(text)
                    value = math.copysign(math.inf, value) if abs(value) > LARGEST else value
                    columns.setdefault(name, []).append((step, value))
    return columns


def read_evaluations(path):
    """The entries of evaluation.json, the newest last, in the types that the page relies on."""
    entries = []
    for one in read_object(path)["evaluations"]:
        one = {name: one[name] for name in Evaluation.__dataclass_fields__}
        one["protocol"] = str(one["protocol"])
        for name in ("backbone", "data", "options", "details", "pictures", "versions"):
            one[name] = checked_dict(one[name])
        for name in ("features", "notes"):
            one[name] = [str(line) for line in one[name]]
        one["data"] = {name: checked_dict(about) for name, about in one["data"].items()}
        one["results"] = [read_row(row) for row in one["results"]]
        entries.append(Evaluation(**one))
    return entries


def read_row(row):
    """A row of results with numbers where the page draws and sorts numbers."""
    low_high, std = row.get("interval"), row.get("std")
    if low_high:
        low, high = low_high
        low_high = [float(low), float(high)]
    return {
        "metric": str(row["metric"]),
        "value": float(row["value"]),
        "std": None if std is None else float(std),
        "unit": str(row["unit"]),
        "interval": low_high or None,
    }


def read_width(path):
    """Number of features that a backbone gives, which its file tells; None in older ones."""
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {}).get("sslzoo", "{}"))
    width = about.get("num_features")
    return int(width) if width else None


def last(run, name):
    """The last logged value of a metric, or None."""
    found = [value for _, value in run.metrics.get(name, ()) if math.isfinite(value)]
    return found[-1] if found else None
