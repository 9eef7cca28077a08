"""Correctness first, then time and memory of an op against the floor and what people run today.

python benchmarks/run.py --op nt_xent
python benchmarks/run.py --op info_nce --shape 256x65536x128 --json
"""

import argparse
import functools
import importlib
import json
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

import sslops  # noqa: E402
from benchmarks import measure  # noqa: E402
from benchmarks.measure import Variant  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest error of the loss and of a gradient, relative to the largest value.
ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
INPUT_SETS = 3
OPS = ["color_attention", "info_nce", "key_queue", "masking", "nt_xent"]


def main():
    options = parse()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[options.dtype]
    cases = importlib.import_module(f"sslops.ops.{options.op}.cases")
    machine = measure.machine(device)
    print("\n".join(f"{key:<8} {value}" for key, value in machine.items()))
    records = []
    for case in [cases.case_of(options.shape)] if options.shape else cases.MEASURED:
        peers = importlib.import_module(f"benchmarks.baselines.{options.op}")
        # Some ops say themselves how they are called and what makes them correct.
        make = getattr(peers, "ours", own_variant)
        ours = make(options.op, options.backend, case)
        variants = peers.baselines(case, device, dtype)
        correct = getattr(peers, "check", functools.partial(check, make))
        correct(options.op, options.backend, ours, variants[1], case, device, dtype)
        rows = measured(ours, variants, case, device, dtype, options.repeats)
        print_table(options, case, rows)
        records += [dict(op=options.op, case=case.name, dtype=options.dtype, **row) for row in rows]
    if options.json:
        write(machine, records)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", required=True, choices=OPS)
    parser.add_argument("--backend", help="force a backend; default: the first that can run")
    parser.add_argument("--shape", help="as in cases.case_of of the op; default: its MEASURED")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: cuda where there is one"
    )
    parser.add_argument("--repeats", type=int, default=9, help="runs of every variant")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/")
    return parser.parse_args()


def own_variant(op, backend, case):
    function = getattr(sslops, op)
    return Variant("sslops", lambda *tensors: function(*tensors, **case.options, backend=backend))


def values(loss, tensors):
    """The output and the gradients, in float64."""
    out = loss(*tensors)
    upstream = measure.upstream_like(out.shape, torch.float32, out.device)
    upstream = None if upstream is None else upstream.to(out.dtype)
    gradients = torch.autograd.grad(out, [t for t in tensors if t.requires_grad], upstream)
    return [x.detach().double() for x in (out, *gradients)]


def check(make, op, backend, ours, eager, case, device, dtype):
    """Stop unless the op agrees with the specification in float64 and, at size, with eager code."""
    small = case.small()
    tensors, _ = small.inputs(device, dtype)
    doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    own, exact = (make(op, name, small).loss for name in (backend, "reference"))
    compare(values(own, tensors), values(exact, doubles), dtype, "float64, small")
    tensors, _ = case.inputs(device, dtype)
    compare(values(ours.loss, tensors), values(eager.loss, tensors), dtype, "eager, at size")


def compare(ours, expected, dtype, what):
    errors = [
        ((o - e).abs().max() / e.abs().max()).item() for o, e in zip(ours, expected, strict=True)
    ]
    print(f"correct against {what}: relative errors " + " ".join(f"{e:.1e}" for e in errors))
    if not max(errors) <= ALLOWED[dtype]:
        sys.exit(f"wrong: more than {ALLOWED[dtype]} away from {what}; no speed is measured")


def measured(ours, variants, case, device, dtype, repeats):
    """One row per variant: times, memory, or why it is absent. Ours first, then the floor."""
    inputs = [case.inputs(device, dtype, seed)[0] for seed in range(INPUT_SETS)]
    variants = [ours, *variants]
    present = [v for v in variants if v.absent is None]
    times = measure.time_variants(present, inputs, device, repeats)
    return [
        dict(variant=v.name, absent=v.absent)
        if v.absent
        else dict(
            variant=v.name,
            ms=times[v.name],
            peak_mib=measure.peak_mib(lambda v=v: measure.one_run(v, inputs[0], device), device),
        )
        for v in variants
    ]


def print_table(options, case, rows):
    """Markdown; the ratios are of medians of forward and backward together."""
    ours, floor = (row["ms"]["both"]["median"] for row in rows[:2])
    print(f"\n{options.op}, {case.name}, D = {case.D}, {options.dtype}\n")
    print("| | forward ms | backward ms | both ms (20 % .. 80 %) | × sslops | × floor | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        if row.get("absent"):
            print(f"| {row['variant']} | absent: {row['absent']} | | | | | |")
            continue
        f, b, both = (row["ms"][part] for part in ("forward", "backward", "both"))
        print(
            f"| {row['variant']} | {f['median']:.1f} | {b['median']:.1f} "
            f"| {both['median']:.1f} ({both['q20']:.1f} .. {both['q80']:.1f}) "
            f"| {both['median'] / ours:.2f} | {both['median'] / floor:.2f} "
            f"| {'not measured' if row['peak_mib'] is None else round(row['peak_mib'])} |"
        )


def write(machine, records):
    """Put the records into <device>_<date>.json, replacing older ones of the same cases."""
    device = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    path = ROOT / "benchmarks" / "results" / f"{device}_{machine['date']}.json"
    path.parent.mkdir(exist_ok=True)
    new = {(r["op"], r["case"], r["dtype"]) for r in records}
    old = json.loads(path.read_text())["records"] if path.exists() else []
    kept = [r for r in old if (r["op"], r["case"], r["dtype"]) not in new]
    path.write_text(json.dumps({"machine": machine, "records": kept + records}, indent=1) + "\n")
    print(f"\nwrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
