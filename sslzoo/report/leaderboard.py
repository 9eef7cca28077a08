"""Runs side by side: the numbers that answer the same question stand in one column.

A question is a protocol with its version, its options and the fingerprints of its data. Numbers of
different questions are not comparable, so they never share a column.
"""

import json
import math
import re
from dataclasses import dataclass

from sslzoo.evaluation.results import spread_text
from sslzoo.report.run import last

# The number of a protocol that stands for it; of several layers or numbers of labels, the last.
# Never that of a control (from scratch, random weights).
HEADLINES = {
    "linear": r"(^|: )all labels, top-1$",
    "knn": r"(^|: )20 nearest neighbours, top-1$",
    "finetune": r"^fine-tuned, top-1$",
    "semi": r"(fine-tuned|probe), top-1$",
    "retrieval": r"(^|: )recall at 1$",
    "cluster": r"test, matched accuracy$",
    "robustness": r"^mean error under corruption$",
    "transfer": r"^(AP|mIoU)$",
    "tracking": r"^J&F$",
    "attention": r"^Jaccard(, best head of each image| of the activation map)$",
    "embedding": r"^silhouette of the features$",
    "efficiency": r"^forward, speed$",
}
ORDER = list(HEADLINES)  # of the columns
# Options that say where things lie or how fast they go; the data has its fingerprint.
PLACES = {"data", "download", "device", "out", "workers", "cache", "untrained", "pretrained"}
LOWER_IS_BETTER = re.compile(r"error|mCE|drop|decay|memory|energy|cost|hours")


@dataclass
class Entrant:
    """A line of the leaderboard: a run with certain weights."""

    run: int  # its number
    name: str
    about: list  # method, backbone, epochs, images per second
    answers: dict  # question -> Evaluation


def entrants(runs):
    """Each run, and besides it the same encoder untrained or with older weights."""
    found = []
    for number, run in enumerate(runs):
        newest = run.trained[-1].weights if run.trained else ""
        groups = {} if run.evaluations and not run.trained else {(newest, False): {}}
        for entry in run.evaluations:
            key = ("", True) if entry.untrained else (entry.weights, False)
            groups.setdefault(key, {})[question(entry)] = entry
        for (weights, untrained), answers in groups.items():
            name = f"{run.name}, untrained" if untrained else run.name
            if not untrained and weights != newest:
                name = f"{run.name}, older weights {weights[:6]}"
            about = summary(run, next(iter(answers.values()), None), not untrained)
            found.append(Entrant(number, name, about, answers))
    return found


def summary(run, entry, trained):
    """Method, backbone, epochs and speed of a run; of an untrained encoder, what is left."""
    backbone = run.config.get("backbone") or (entry.backbone.get("backbone") if entry else None)
    method = run.config.get("method") if trained else None
    epochs = last(run, "epoch") if trained else None
    speed = last(run, "images_per_second") if trained else None
    return [str(method or "–"), str(backbone or "–"), number(epochs), number(speed)]


def number(value):
    return {"text": "–" if value is None else f"{value:,.0f}", "value": value}


def question(entry):
    """What was asked, as text: equal for answers that may be compared."""
    options = {name: value for name, value in entry.options.items() if name not in PLACES}
    machine = [entry.device, entry.details.get("machine")]
    device = machine if entry.protocol == "efficiency" else None
    parts = [entry.protocol, entry.version, fingerprint(entry), device, options]
    return json.dumps(parts, sort_keys=True, default=str)


def short_path(name):
    """The last two parts of the name of a data set, mostly folder and split."""
    return "/".join(name.split("/")[-2:])


def fingerprint(entry):
    """Of all the data of an evaluation."""
    return " ".join(sorted(str(about.get("fingerprint")) for about in entry.data.values()))


def board(runs):
    """Columns and lines of the leaderboard for the template."""
    lines = entrants(runs)
    asked = dict.fromkeys(q for line in lines for q in line.answers)
    columns = [column(q, lines) for q in asked]
    columns = sorted((c for c in columns if c), key=lambda c: rank(c["protocol"]))
    for one in columns:
        alike = [c for c in columns if (c["title"], c["data"]) == (one["title"], one["data"])]
        one["differs"] = differing(one, alike)
    return {
        "columns": columns,
        "lines": [{"run": line.run, "name": line.name, "about": line.about,
                   "cells": [c["cells"][i] for c in columns]} for i, line in enumerate(lines)],
    }  # fmt: skip


def rank(protocol):
    return ORDER.index(protocol) if protocol in ORDER else len(ORDER)


def column(asked, lines):
    """One question's number of every entrant; None where no entrant has one."""
    entries = [line.answers.get(asked) for line in lines]
    first = next(entry for entry in entries if entry)
    rows = [headline(entry) if entry else None for entry in entries]
    row = next((row for row in rows if row), None)
    if row is None:
        return None
    return {
        "protocol": first.protocol,
        "title": row["metric"],
        "data": ", ".join(first.data),
        "short_data": ", ".join(map(short_path, first.data)),
        "options": first.options | {"fingerprint": fingerprint(first)},
        "cells": best_marked([cell(row) if row else None for row in rows], row),
    }


def headline(entry):
    """The row that stands for an evaluation: the last that matches, or else the first."""
    pattern = HEADLINES.get(entry.protocol, "")
    found = [row for row in entry.results if re.search(pattern, row["metric"])]
    return (found[-1:] or entry.results[:1] or [None])[0]


def cell(row):
    """A number as the tables show it: value, spread, interval, and the value to sort by."""
    share = row["unit"] == "share"
    factor, digits = (100, ".1f") if share else (1, ".4g")
    spread = f"± {spread_text(row['std'] * factor, share)}" if row["std"] is not None else ""
    low_high = row["interval"]
    text = " to ".join(f"{factor * bound:{digits}}" for bound in low_high) if low_high else ""
    return {"value": row["value"], "text": f"{factor * row['value']:{digits}}{' %' * share}",
            "spread": spread, "interval": text, "unit": "" if share else row["unit"],
            "bar": [row["value"], *(low_high or [])] if share else None,
            "metric": row["metric"], "best": False}  # fmt: skip


def best_marked(cells, row):
    """The same cells, the best ones marked where there are several to choose from."""
    known = [c for c in cells if c and math.isfinite(c["value"])]
    if len(known) > 1:
        choose = min if LOWER_IS_BETTER.search(row["metric"]) else max
        best = choose(c["value"] for c in known)
        for one in known:
            one["best"] = one["value"] == best
    return cells


def differing(one, alike):
    """The options, as text, in which a column differs from others of the same heading."""
    names = [name for name in one["options"] if name not in PLACES
             and len({repr(c["options"].get(name)) for c in alike}) > 1]  # fmt: skip
    return ", ".join(f"{name} {one['options'][name]}" for name in names)


def compared(runs):
    """Every number of the questions that several entrants answered: metrics down, runs across."""
    lines = entrants(runs)
    asked = dict.fromkeys(q for line in lines for q in line.answers)
    tables = []
    for one in asked:
        entries = [(line, line.answers[one]) for line in lines if one in line.answers]
        if len(entries) < 2:
            continue
        rows = [{row["metric"]: row for row in entry.results} for _, entry in entries]
        metrics = dict.fromkeys(name for found in rows for name in found)
        body = []
        for name in metrics:
            cells = [cell(found[name]) if name in found else None for found in rows]
            body.append((name, best_marked(cells, {"metric": name})))
        first = entries[0][1]
        tables.append({"protocol": first.protocol, "data": ", ".join(map(short_path, first.data)),
                       "names": [line.name for line, _ in entries], "rows": body})  # fmt: skip
    return tables


def settings(runs):
    """Options in which the runs differ: [(name, [value of each run])]."""
    names = dict.fromkeys(name for run in runs for name in run.config if name != "out")
    rows = [(name, [run.config.get(name, "–") for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len({repr(v) for v in values}) > 1]
