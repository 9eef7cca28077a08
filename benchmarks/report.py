"""Results files -> a Markdown table and one picture per op.

python benchmarks/report.py                        every file in benchmarks/results/
python benchmarks/report.py A.json B.json          these; of equal records the last one counts
python benchmarks/report.py --merge A.json B.json  also writes what they hold together, under the
                                                   name of the last one, into the results folder

A picture shows, over the number of rows, how much longer the best peer takes than sslops, and the
share of the floor: the least time that the device needs for the work.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from benchmarks import results, run_tables  # noqa: E402


def by_device(paths):
    """{device's file name without the date: content}, files of a device merged by date."""
    contents = {}
    for path in sorted(paths, key=lambda p: p.stem.rsplit("_", 1)[-1]):
        content = results.read(path)
        if "machine" in content:
            contents.setdefault(path.stem.rsplit("_", 1)[0], []).append(content)
    return {device: results.merge(files) for device, files in contents.items()}


def both_ms(record):
    """Forward and backward: the median, as a graph where that was captured and is faster."""
    graph = record.get("graph_ms") or {}
    return min(record["ms"]["both"]["median"], graph.get("median", float("inf")))


def number(value, unit=""):
    return "" if value is None else f"{value:.3g}{unit}"


def time(ms):
    """Three digits, and never a power of ten."""
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}" if ms >= 0.001 else "0"


def mib(row):
    return "not measured" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"


def case_table(rows):
    """Every variant of one case, ours first; times are medians, their ratios of both passes."""
    has_launches = any(row.get("launches") for row in rows)
    head = ["", "forward ms", "backward ms", "both ms (20 % .. 80 %)", "× sslops", "× floor",
            "peak MiB"] + ["launches"] * has_launches  # fmt: skip
    floor_ms = floor_of(rows)
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = variant_cells(row, both_ms(rows[0]), floor_ms)[: len(head)]
        cells += [""] * (len(head) - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    return [re.sub(r"\|  (?=\|)", "| ", line) for line in lines]


def floor_of(rows):
    """The floor's ms: what was worked out for the device, else the bare work beside ours."""
    if "floor" in rows[0]:
        return rows[0]["floor"]["ms"]
    bare = [r for r in rows if "bare" in r["variant"] and not r.get("absent")]
    return both_ms(bare[0]) if bare else None


def variant_cells(row, own_ms, floor_ms):
    if row.get("absent"):
        return [row["variant"], f"absent: {row['absent']}"]
    f, b, both = (row["ms"][part] for part in ("forward", "backward", "both"))
    counts = row.get("launches")
    return [
        row["variant"],
        time(f["median"]),
        time(b["median"]),
        f"{time(both['median'])} ({time(both['q20'])} .. {time(both['q80'])})",
        f"{both_ms(row) / own_ms:.2f}",
        "" if floor_ms is None else f"{both_ms(row) / floor_ms:.2f}",
        mib(row),
        f"{counts['forward']} + {counts['backward']}" if counts else "",
    ]


def in_short(ours):
    """Our share of the floor and the best peer, as far as they are known."""
    found = []
    if "floor" in ours:
        floor = ours["floor"]
        found.append(f"{ours['share_of_floor']:.0%} of the floor ({floor['algorithm']}, "
                     f"{time(floor['ms'])} ms)")  # fmt: skip
    if "best_peer" in ours:
        ratio = ours["ratio_to_best_peer"]
        found.append(f"best peer {ours['best_peer']}: {ratio:.2f} times our time")
    return "; ".join(found)


def ops_table(records):
    """One line for each case: ours, the floor, the best peer, memory."""
    lines = ["| op | case | dtype | ms | of the floor | best peer | its time / ours | peak MiB: "
             "ours, peer | launches |", "|---" * 9 + "|"]  # fmt: skip
    for (op, case, dtype, backend), group in results.grouped("records", records).items():
        ours = next((r for r in group if r["variant"] == "sslops"), None)
        if ours is None or ours.get("absent"):
            continue
        best = next((r for r in group if r["variant"] == ours.get("best_peer")), {})
        counts = ours.get("launches")
        counts = f"{counts['forward']} + {counts['backward']}" if counts else ""
        share = ours.get("share_of_floor")
        lines.append(
            f"| {op}{f' ({backend})' if backend else ''} | {case} | {dtype} "
            f"| {time(both_ms(ours))} | {'' if share is None else f'{share:.0%}'} "
            f"| {ours.get('best_peer', '')} | {number(ours.get('ratio_to_best_peer'))} "
            f"| {mib(ours)}{', ' + mib(best) if best else ''} | {counts} |"
        )
    return lines


def absent_table(records):
    """Which peers are absent, where and why."""
    reasons = {}
    for r in records:
        if r.get("absent"):
            reasons.setdefault((r["op"], r["variant"], r["absent"]), []).append(r["case"])
    if not reasons:
        return []
    lines = ["", "Absent peers:", ""]
    for (op, variant, reason), cases in reasons.items():
        lines.append(f"- {op}: {variant}: {reason} ({len(cases)} cases)")
    return lines


def ceilings_table(records):
    if not records:
        return []
    lines = ["", "| ceiling | median | best |", "|---|---|---|"]
    return lines + [f"| {r['name']} | {r['rate']:.4g} | {r['best']:.4g} |" for r in records]


def engines_table(records):
    if not records:
        return []
    lines = ["", "| question | case | variant | ms |", "|---|---|---|---|"]
    for r in records:
        ms = f"absent: {r['absent']}" if r["absent"] else f"{r['ms']['median']:.4g}"
        lines.append(f"| {r['question']} | {r['case']} | {r['variant']} | {ms} |")
    return lines


def views_table(records):
    """Random views: images a second of each way, and how many times torchvision's that is."""
    if not records:
        return []
    lines = ["| case | by | images/s | × torchvision |", "|---" * 4 + "|"]
    for group in results.grouped("views", records).values():
        theirs = group[-1]["images_per_second"]
        for r in group:
            rate = r["images_per_second"]
            lines.append(f"| {r['case']} | {r['by']} | {rate:.0f} | {rate / theirs:.1f} |")
    return lines


def steps_table(records):
    if not records:
        return []
    lines = ["", "| step | model | by | images/s | waiting for data | peak MiB |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for r in records:
        if r.get("absent"):
            cells = f"absent: {r['absent']} | | "
        else:
            cells = (f"{r['images_per_second']:.4g} | {r['share_waiting']:.0%} "
                     f"| {number(r['step_peak_mib'])}")  # fmt: skip
        lines.append(f"| {r['method']} | {r['model']} | {r['variant']} | {cells} |")
    return lines


def machine_files(machine):
    return results.path_of(machine).name.rpartition("_")[0] + "_*.json"


def markdown(content):
    machine = content["machine"]
    head = ", ".join(f"{key} {value}" for key, value in machine.items() if key != "device")
    return "\n".join([
        f"# {machine['device']}", "", head, "",
        "Forward and backward together, medians; of small sizes on a GPU the time as a CUDA graph.",
        f"Every number is in {machine_files(machine)}, with 20 % and 80 % quantiles.", "",
        *ops_table(content.get("records", [])),
        *absent_table(content.get("records", [])),
        *ceilings_table(content.get("ceilings", [])),
        *engines_table(content.get("engines", [])),
        *steps_table(content.get("steps", [])),
        *run_tables.representations_table(content.get("representations", [])),
        *run_tables.runs_table(content.get("runs", [])), "",
    ])  # fmt: skip


def lines_of(op, records):
    """{label: [(size, ratio, share)]}: a line for each dtype and width."""
    lines = {}
    for r in records:
        if r["op"] == op and r["variant"] == "sslops" and r.get("size"):
            form = r["case"].split()[0] if not r["case"][0].isdigit() else ""
            label = " ".join(filter(None, [form, f"D = {r['D']}", r["dtype"]]))
            point = (r["size"], r.get("ratio_to_best_peer"), r.get("share_of_floor"))
            lines.setdefault(label, []).append(point)
    return {label: sorted(points, key=lambda p: p[0]) for label, points in lines.items()}


def plot(op, records, path):
    """Both pictures of an op, one above the other, in one file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (ratio, share) = plt.subplots(2, 1, figsize=(6, 6), sharex=True, layout="constrained")
    for label, points in lines_of(op, records).items():
        for axes, column in ((ratio, 1), (share, 2)):
            known = [(p[0], p[column]) for p in points if p[column] is not None]
            if known:
                axes.plot(*zip(*known, strict=True), marker="o", label=label)
    ratio.axhline(1, color="gray", linewidth=1)
    ratio.set(ylabel="best peer's time / ours", xscale="log", title=op)
    share.axhline(1, color="gray", linewidth=1)
    share.set(ylabel="share of the floor", xlabel="rows", xscale="log", ylim=(0, None))
    if ratio.lines[1:]:
        ratio.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(device, content, folder):
    """DEVICE.md and DEVICE_OP.png; returns the paths."""
    table = folder / f"{device}.md"
    table.write_text(markdown(content))
    paths = [table]
    for op in dict.fromkeys(r["op"] for r in content.get("records", [])):
        paths.append(folder / f"{device}_{op}.png")
        plot(op, content["records"], paths[-1])
    if content.get("representations"):
        paths.append(folder / f"{device}_representations.png")
        run_tables.plot_curves(content["representations"], paths[-1])
    return paths


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="default: all of the results folder")
    parser.add_argument("--merge", action="store_true", help="write one results file of them")
    options = parser.parse_args()
    folder = results.folder()
    files = options.files or sorted(folder.glob("*_*-*-*.json"))
    if not files:
        parser.error(f"no results in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if options.merge:
        whole = results.merge([results.read(path) for path in files])
        target = folder / files[-1].name
        target.write_text(json.dumps(whole, indent=1) + "\n")
        print(f"wrote {target}")
    for device, content in by_device(files).items():
        for path in write(device, content, folder):
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
