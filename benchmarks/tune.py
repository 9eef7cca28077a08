"""Writes the table of a GPU (sslops/tuning/<device>.json) from measurements.

python benchmarks/tune.py                    from results of engines.py for this machine's GPU
python benchmarks/tune.py FILE.json          from results taken elsewhere
python benchmarks/tune.py FILE.json --out X  to another place than sslops/tuning/

Measured first: benchmarks/gpu.sh engines tiles, and crossover. A tile replaces the one of the
compute capability only where it is at least 2 % faster; what was not measured stays as it was.
Compile what came out: pytest tests/ops/test_compile_ahead.py -m "" (no spills, tensor cores).
"""

import argparse
import copy
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from benchmarks import results  # noqa: E402
from sslops import tuning  # noqa: E402

GAIN = 0.98  # a tile must take at most this share of the old one's time
CASE = re.compile(r"(?P<what>[a-z_-]+), (?P<rows>\d+) rows, D = (?P<width>\d+)")
OPS = {"one-directional": "info_nce", "symmetric": "info_nce", "nt_xent": "nt_xent"}


def answers(content, question):
    """{(what, rows, width): {variant: ms}} of the measured cases of a question."""
    found = {}
    for r in content.get("engines", []):
        if r["question"] == question and r["ms"] and not r["tiny"]:
            match = CASE.fullmatch(r["case"])
            key = match["what"], int(match["rows"]), int(match["width"])
            found.setdefault(key, {})[r["variant"]] = r["ms"]["median"]
    return found


def tiles_from(measured, before):
    """The tiles of half precision by kernel and width: the fastest for all kernels that share it.

    The forward and the gradient kernel have one tile ("rows"), that of the least sum of times.
    """
    tiles = copy.deepcopy(before)
    for kernel, parts in (("rows", ("forward", "gradient")), ("triangle", ("triangle",))):
        for width in {w for what, _, w in measured if what in parts}:
            times = [ms for (what, _, w), ms in measured.items() if what in parts and w == width]
            if len(times) < len(parts):
                continue
            common = set.intersection(*(set(ms) for ms in times))
            total = {tile: sum(ms[tile] for ms in times) for tile in common}
            old = before[kernel]["half"].get(width)
            best = min(total, key=total.get, default=None)
            if best and total[best] <= GAIN * total.get(name_of(old), float("inf")):
                tiles[kernel]["half"][width] = [int(n) for n in best.split(" x ")]
    return tiles


def name_of(tile):
    return None if tile is None else " x ".join(map(str, tile))


def widths_from(measured, before):
    """tiled_up_to, for half precision: up to the largest width at which the tiled engine is the
    faster one at every size measured, and at all smaller widths too."""
    limits = copy.deepcopy(before)
    for op in set(OPS.values()):
        verdicts = {}
        for (what, _, width), ms in measured.items():
            if OPS[what] == op and {"triton", "chunked"} <= ms.keys():
                faster = ms["triton"] <= ms["chunked"]
                verdicts[width] = verdicts.get(width, True) and faster
        won = []
        for width in sorted(verdicts):
            if not verdicts[width]:
                break
            won.append(width)
        if verdicts:
            limits[op]["half"] = max(won, default=0)
    return limits


def table_from(content, capability, file_name):
    """The new table: that of the capability with what the measurements change."""
    base = tuning.TABLES[capability]
    tiles, cross = answers(content, "tiles"), answers(content, "crossover")
    if not tiles and not cross:
        raise ValueError(f"{file_name} has no answers to tiles or crossover: run gpu.sh engines")
    machine = content["machine"]
    return {
        "device": machine["device"],
        "chip": base["chip"],
        "max_registers": base["max_registers"],
        "source": f"measured: {file_name}, commit {machine['commit']}",
        "tiled_up_to": widths_from(cross, base["tiled_up_to"]),
        "color_attention": base["color_attention"],
        "tiles": tiles_from(tiles, base["tiles"]),
    }


def as_json(table):
    """Indented, a tile on one line."""
    text = json.dumps(table, indent=1)
    on_one_line = re.compile(r"\[[\d,\s]+\]")
    return on_one_line.sub(lambda m: "[" + ", ".join(re.findall(r"\d+", m[0])) + "]", text) + "\n"


def capability_of(device):
    """Of this machine's GPU if it is the one measured, else from the name."""
    hopper = re.search(r"\bG?H(100|200|20|800)\b", device)
    return "sm_90" if hopper else "sm_80"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help="default: the newest of this GPU")
    parser.add_argument("--out", type=Path, default=tuning.FOLDER, help="folder of the table")
    options = parser.parse_args()
    path = options.file or newest()
    if path is None:
        parser.error("no results of this machine's GPU: give a file")
    content = results.read(path)
    device = content["machine"]["device"]
    table = table_from(content, capability_of(device), path.name)
    target = options.out / f"{tuning.file_name(device)}.json"
    target.write_text(as_json(table))
    print(f"wrote {target}")


def newest():
    import torch

    if not torch.cuda.is_available():
        return None
    name = tuning.file_name(torch.cuda.get_device_name())
    return max(results.folder().glob(f"{name}_*.json"), default=None)


if __name__ == "__main__":
    main()
