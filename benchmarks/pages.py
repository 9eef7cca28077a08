"""Writes measured numbers into the README and docs, from results files and from nothing else.

python benchmarks/pages.py

A page holds what is to be quoted between two comments; what is between them is made here:

    <!-- measured: amd-epyc, nt_xent, 4096 pairs -->      one case, from the newest file that has it
    <!-- measured: amd-epyc, headlines -->                the other ops' headline cases
    <!-- measured: amd-epyc, overview -->                 a line for each case of the newest file
    <!-- measured: amd-epyc, steps -->                    whole training steps
    <!-- measured: amd-epyc, views -->                    random views
    <!-- measured: amd-epyc, representations -->          whole runs beside lightly's code
    <!-- measured: nvidia-h200, runs -->                  the recipes on all of CIFAR-10
    <!-- end -->

The first word is the device: the name of its results files without the date. A page in another
language, such as README.zh-CN.md, gets the same numbers with the phrases of data/<language>.json.
"""

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from benchmarks import report, results, run_tables  # noqa: E402

FOLDER = ROOT / "benchmarks" / "results"
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"<!-- measured: ([\w-]+), (.+?) -->\n.*?<!-- end -->", re.DOTALL)


def refreshed(text, page, folder=FOLDER):
    """The text of a page with every block as the results files have it now."""

    def block(match):
        device, what = match.groups()
        found = translated(quotation(device, what, page, folder), page)
        return "\n".join([f"<!-- measured: {device}, {what} -->", *found, "<!-- end -->"])

    return BLOCK.sub(block, text)


def quotation(device, what, page, folder):
    """The lines of a block."""
    op, _, case = what.partition(", ")
    for path in sorted(folder.glob(f"{device}_*.json"), reverse=True):
        content = results.read(path)
        if case:
            lines = case_lines(content, op, case)
        else:
            lines = WHOLE[op](content)
        if lines:
            return [source(content, op, case, path, page), "", *lines]
    return ["Not measured yet."]


def translated(lines, page):
    """Lines in the language of a page, README.zh-CN.md: the longest phrases first."""
    language = page.stem.partition(".")[2]
    if not language:
        return lines
    phrases = json.loads((ROOT / "benchmarks" / "data" / f"{language}.json").read_text())
    for phrase in sorted(phrases, key=len, reverse=True):
        lines = [line.replace(phrase, phrases[phrase]) for line in lines]
    return lines


def case_lines(content, op, case):
    rows = [r for r in content.get("records", []) if (r["op"], r["case"]) == (op, case)]
    if not rows:
        return []
    short = report.in_short(rows[0])
    return report.case_table(rows) + (["", f"{short}."] if short else [])


def overview(content):
    records = content.get("records", [])
    return report.ops_table(records) + report.absent_table(records) if records else []


def steps(content):
    return report.steps_table(content.get("steps", []))[1:]


def views(content):
    return report.views_table(content.get("views", []))


# What the README shows beside NT-Xent.
HEADLINES = [
    ("info_nce", "in-batch"),
    ("info_nce", "symmetric"),
    ("info_nce", "queue"),
    ("masking", "encoder, ViT-B/16"),
    ("masking", "decoder as wide as the encoder"),
    ("color_attention", "loss, 32 x 1024 x 3072"),
]


def headlines(content):
    lines = ["| | sslops: ms, MiB | eager or published code: ms, MiB | fastest peer: ms, MiB |",
             "|---" * 4 + "|"]  # fmt: skip
    for op, case in HEADLINES:
        rows = [r for r in content.get("records", []) if (r["op"], r["case"]) == (op, case)]
        if rows:
            ours, eager, best = rows[0], rows[2], fastest(rows)
            cells = (f"{report.time(report.both_ms(r))}, {report.mib(r)}"
                     for r in (ours, eager, best))  # fmt: skip
            lines.append(f"| {op}, {case} | " + " | ".join(cells) + f" ({best['variant']}) |")
    return lines if lines[2:] else []


def fastest(rows):
    """Of the peers that compute the same; older files do not say that one does not."""
    named = {r["variant"]: r for r in rows}
    if "best_peer" in rows[0]:
        return named[rows[0]["best_peer"]]
    same = [r for r in rows[2:] if not r.get("absent") and "no ids_restore" not in r["variant"]]
    return min(same, key=report.both_ms)


def representations(content):
    records = content.get("representations", [])
    return run_tables.representations_table(records)[1:] + run_tables.curves_table(records)


def runs(content):
    return run_tables.runs_table(content.get("runs", []))[1:]


WHOLE = {
    "headlines": headlines,
    "overview": overview,
    "steps": steps,
    "representations": representations,
    "runs": runs,
    "views": views,
}


def source(content, op, case, path, page):
    """What the numbers depend on, and where they are written."""
    machine = content["machine"]
    records = content.get(op if op in content else "records", [])
    commits = dict.fromkeys(r["commit"] for r in records if not case or r["case"] == case)
    cores = machine["cores"]
    link = f"[results file]({os.path.relpath(path, page.parent)})"
    return (f"{machine['device']}, {cores} core{'s' * (cores != 1)}, torch {machine['torch']}, "
            f"{machine['date']}, commit {' and '.join(commits)} ({link}):")  # fmt: skip


def main():
    for page in PAGES:
        old = page.read_text()
        new = refreshed(old, page)
        if new != old:
            page.write_text(new)
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
