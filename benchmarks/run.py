"""Correctness first, then time and memory of ops against the floor and what people run today.

python benchmarks/run.py                              every op at its usual sizes
python benchmarks/run.py --op nt_xent --json          one of them; writes the results file
python benchmarks/run.py --op info_nce --shape 256x65536x128 --dtype bfloat16
python benchmarks/run.py --sweep                      sizes from small to large; writes as it goes
python benchmarks/run.py --sweep info_nce --budget 500
"""

import argparse
import importlib
import os
import sys
import time
import traceback
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

if "--tiny" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported

from benchmarks import floors, measure, report, results, sweeps  # noqa: E402
from benchmarks.peers import Peers  # noqa: E402
from benchmarks.report import both_ms  # noqa: E402
from sslops import registry  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INPUT_SETS = 3
LARGE_BYTES = 2**28  # inputs that no cache holds: one set of them will do
OPS = sorted(p.stem for p in (ROOT / "benchmarks" / "baselines").glob("*.py"))
SWEEP_BUDGET = {"cpu": 250, "cuda": 500}  # seconds, all ops together
GRAPH_MS = 1.0  # calls that take less are also timed as a CUDA graph


def main():
    options = parse()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    machine = measure.machine(device)
    print("\n".join(f"{key:<8} {value}" for key, value in machine.items()), flush=True)
    run = Run(options, device, machine)
    if options.sweep:
        ops = [*sweeps.SWEEPS] if options.sweep == "all" else [options.sweep]
        sys.exit(1 if run.sweep(ops) else 0)
    else:
        for op in options.op or OPS:
            cases = importlib.import_module(f"sslops.ops.{op}.cases")
            shapes = [cases.case_of(options.shape)] if options.shape else cases.MEASURED
            for case in shapes:
                run.case(op, case, options.dtype)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", action="append", choices=OPS, help="default: every op")
    parser.add_argument("--backend", help="force a backend; default: the first that can run")
    parser.add_argument("--shape", help="as in cases.case_of of the op; default: its MEASURED")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: cuda where there is one"
    )
    parser.add_argument("--repeats", type=int, default=9, help="runs of every variant at most")
    parser.add_argument("--json", action="store_true", help="write the results file")
    parser.add_argument(
        "--sweep", nargs="?", const="all", choices=["all", *OPS], help="implies --json"
    )
    parser.add_argument("--budget", type=float, help="seconds that a sweep may take")
    parser.add_argument(
        "--tiny", action="store_true", help="a sweep of the GPU's code in Triton's interpreter"
    )
    parser.add_argument("--skip-done", action="store_true", help="keep records of this commit")
    options = parser.parse_args()
    if options.shape and len(options.op or ()) != 1:
        parser.error("--shape needs one --op")
    return options


class Run:
    """Measures cases and writes what it finds."""

    def __init__(self, options, device, machine):
        self.options, self.device, self.machine = options, device, machine
        self.rates = floors.ceilings(machine) if device == "cuda" else {}
        self.done = self.records_of_this_commit() if options.skip_done else set()

    def records_of_this_commit(self):
        records = results.read(results.path_of(self.machine)).get("records", [])
        return {(r["op"], r["case"], r["dtype"], r["backend"])
                for r in records if r["commit"] == self.machine["commit"]}  # fmt: skip

    def sweep(self, ops):
        """The first entry of every op, then the second of every op, until the time is over.

        Returns:
            The cases that failed; those after them are measured all the same.
        """
        end = time.monotonic() + (self.options.budget or SWEEP_BUDGET[self.device])
        rounds = [[e for e in entries if e] for entries in zip_longest(*map(self.entries, ops))]
        later, missed, failed = sum(map(len, rounds)), [], []
        for entries in rounds:
            later -= len(entries)
            for i, (op, dtype, case) in enumerate(entries):
                left = end - time.monotonic()
                if left <= 0:
                    missed.append(f"{op} {case.name} {dtype}")
                    continue
                # Half of the time goes to checks and first runs. An op alone shares it evenly.
                waiting = len(entries) - i + later / len(ops)
                if not self.succeeds(op, case, dtype, seconds=left / (2 * waiting)):
                    failed.append(f"{op} {case.name} {dtype}")
        if missed:
            print(f"\nout of time, not measured: {', '.join(missed)}", flush=True)
        if failed:
            print(f"\nfailed, not measured: {', '.join(failed)}", flush=True)
        return failed

    def succeeds(self, op, case, dtype, seconds):
        """Measure a case; whether it could be: wrong values and want of memory end it alone."""
        try:
            self.case(op, case, dtype, seconds=seconds)
        except (SystemExit, *measure.failures()) as error:
            print(f"{op}, {case.name}, {dtype}: {measure.in_one_line(error)}", flush=True)
            traceback.print_exc()
            measure.synchronise(self.device)  # raises where the device itself is lost
            return False
        return True

    def entries(self, op):
        """[(op, dtype name, Case)] of a sweep that are not measured yet."""
        return [(op, dtype, case)
                for dtype, case in sweeps.entries(op, self.device, self.options.tiny)
                if (op, case.name, dtype, self.options.backend) not in self.done]  # fmt: skip

    def case(self, op, case, dtype_name, seconds=float("inf")):
        """Gate, measure, print and write one case."""
        dtype, backend = DTYPES[dtype_name], self.options.backend
        if self.options.tiny and "triton" in registry.OPS[registered(op, case)].order:
            backend = "triton"
        peers = Peers(op)
        ours = peers.ours(backend, case)
        torch.compiler.reset()  # else a peer compiled for many shapes falls back to eager code
        variants = peers.baselines(case, self.device, dtype)
        if self.options.sweep and not sweeps.is_compiled(op, case, self.device):
            variants = [without_compiling(v) for v in variants]
        print(f"\n{op}, {case.name}, D = {case.D}, {dtype_name}", flush=True)
        peers.check(backend, ours, variants[1], case, self.device, dtype)
        inputs = self.inputs(peers, case, dtype)
        rows = self.measured([ours, *variants], inputs, seconds)
        add_ratios(rows, floors.floor(peers.form(case), case, dtype, self.rates))
        print_table(rows)
        if self.options.json or self.options.sweep:
            about = dict(op=op, case=case.name, dtype=dtype_name, backend=backend, D=case.D)
            about["size"] = size_of(case)
            path = results.add(self.machine, "records", [{**about, **row} for row in rows])
            print(f"wrote {path}", flush=True)

    def inputs(self, peers, case, dtype):
        """Sets of input tensors that are used in turn."""
        sets = [peers.inputs(case, self.device, dtype)]
        if sum(t.nbytes for t in sets[0]) < LARGE_BYTES:
            sets += [peers.inputs(case, self.device, dtype, seed) for seed in range(1, INPUT_SETS)]
        return sets

    def measured(self, variants, inputs, seconds):
        """One row per variant: times, memory, or why it is absent. Ours first, then the floor."""
        device = self.device
        measure.one_run(variants[0], inputs[0], device)  # a fault of ours must surface
        variants = measure.able(variants, inputs[0], device)
        present = [v for v in variants if v.absent is None]
        times = measure.time_variants(present, inputs, device, self.options.repeats, seconds)
        return [
            dict(variant=v.name, absent=v.absent)
            if v.absent
            else self.row(v, inputs[0], times[v.name])
            for v in variants
        ]

    def row(self, variant, tensors, times):
        """What is known of a variant that ran."""
        device, launches = self.device, measure.launches(variant, tensors, self.device)
        return dict(
            variant=variant.name,
            same_loss=variant.same_loss,
            ms=times,
            peak_mib=measure.peak_mib(
                lambda: measure.one_run(variant, tensors, device), device, has_run=True
            ),
            launches=launches,
            graph_ms=self.graph_ms(variant, tensors, times, launches),
        )

    def graph_ms(self, variant, tensors, times, launches):
        if self.device != "cuda" or times["both"]["median"] > GRAPH_MS:
            return None
        if launches["waits"]:  # a capture that fails leaves traces in the process
            return {"absent": "it waits for the device"}
        return measure.graph_ms(variant, tensors, self.device)


def add_ratios(rows, floor):
    """To ours: the floor, our share of it, the best peer, and how much longer that takes."""
    ours, bare, *others = rows
    if floor is None and not bare.get("absent"):
        floor = {"ms": bare["ms"]["both"]["median"], "algorithm": bare["variant"]}
    time_ms = both_ms(ours)
    if floor is not None:
        ours["floor"] = floor
        ours["share_of_floor"] = floor["ms"] / time_ms
    rivals = [r for r in others if not r.get("absent") and r["same_loss"]]
    if rivals:
        best = min(rivals, key=both_ms)
        ours["best_peer"] = best["variant"]
        ours["ratio_to_best_peer"] = both_ms(best) / time_ms


def registered(op, case):
    """The name under which the registry has what a case calls."""
    name = getattr(case, "function", getattr(case, "op", op))
    return name if name in registry.OPS else "enqueue_"


def without_compiling(variant):
    if not variant.name.startswith(("torch.compile", "flex_attention")) or variant.absent:
        return variant
    return replace(variant, absent="not compiled at this size of the sweep")


def size_of(case):
    """What a plot has on its horizontal axis: rows, cells, samples."""
    for name in ("N", "cells", "B"):
        if hasattr(case, name):
            value = getattr(case, name)
            return value[0] * case.B if name == "cells" else value
    return case.batches[0]


def print_table(rows):
    print("", *report.case_table(rows), sep="\n")
    if short := report.in_short(rows[0]):
        print(f"\n{short}", flush=True)


if __name__ == "__main__":
    main()
