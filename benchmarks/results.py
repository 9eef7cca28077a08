"""The results file of a device and a day: benchmarks/results/<device>_<date>.json.

{"machine": what the numbers depend on, "records": times of ops, "ceilings": ..., "engines": ...,
 "steps": whole training steps, "views": random views}

Records are written as they come, so that a run cut short leaves those it has.
"""

import json
import os
import re
from pathlib import Path

KEPT = Path(__file__).parent / "results"  # of the project
# What was measured together: it replaces an older measurement as a whole, as ratios are of one run.
KEYS = {
    "records": ("op", "case", "dtype", "backend"),
    "ceilings": ("name",),
    "engines": ("question", "case"),
    "steps": ("method", "model"),
    "representations": ("method", "model", "images", "epochs", "seed"),
    "runs": ("recipe", "seed", "tiny"),
    "views": ("case",),
}


def folder():
    """Where results go: $OUT, or benchmarks/results/."""
    return Path(os.environ.get("OUT") or KEPT)


def path_of(machine):
    device = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    return folder() / f"{device}_{machine['date']}.json"


def read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def add(machine, section, records):
    """Write records, each with the commit and the load under which it was taken."""
    path = path_of(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    at = {key: machine[key] for key in ("commit", "load")}
    content = {**read(path), "machine": machine}
    content[section] = merged(section, content.get(section, []), [{**r, **at} for r in records])
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)  # never half a file
    return path


def merged(section, old, new):
    """Both lists, the new records alone where a key is in both."""
    together = {**grouped(section, old), **grouped(section, new)}
    return [r for group in together.values() for r in group]


def grouped(section, records):
    """{key: the records measured together}, in their order."""
    groups = {}
    for record in records:
        groups.setdefault(tuple(record.get(key) for key in KEYS[section]), []).append(record)
    return groups


def merge(contents):
    """One content of several, later files over earlier ones."""
    whole = {}
    for content in contents:
        whole["machine"] = content["machine"]
        for section in KEYS:
            if section in content:
                whole[section] = merged(section, whole.get(section, []), content[section])
    return whole


def known_ceilings(machine):
    """{name: rate} of this device, here or in the project's results, the latest; {} without any."""
    rates = {}
    name = path_of(machine).name.rsplit("_", 1)[0]
    paths = {path for place in (KEPT, folder()) for path in place.glob(f"{name}_*.json")}
    for path in sorted(paths, key=lambda p: (p.name, p.parent == folder())):
        for record in read(path).get("ceilings", []):
            if not record["tiny"]:
                rates[record["name"]] = record["rate"]
    return rates
