"""The least time that a call can take on a GPU, from what its device can do at best.

On a CPU the floor is measured beside the variants: the bare matrix products, or the bare copy.
"""

import json
from pathlib import Path

from benchmarks import results

DATA = Path(__file__).with_name("data")


def ceilings(machine):
    """{"bfloat16": TFLOP/s, ..., "copy": TB/s, "exp": 1e12/s}: measured, else modelled, else {}."""
    modelled = json.loads((DATA / "devices.json").read_text())
    return {**modelled.get(machine["device"], {}), **results.known_ceilings(machine)}


def algorithms(form):
    """What is known of the work of an op, or None for those that only move bytes."""
    return json.loads((DATA / "floors.json").read_text()).get(form)


def floor(form, case, dtype, rates):
    """{"ms", "algorithm"} of the fastest algorithm for a case; None where a rate is not known.

    form: a key of data/floors.json; an op that is not there has the work that its case states;
    None for a case whose least work is not known.
    """
    rates = {**rates, "flops": rates.get(str(dtype).removeprefix("torch."))}
    if form is None:
        return None
    work = stated_work(case, dtype.itemsize)
    found = [(w["algorithm"], w["passes"]) for w in algorithms(form) or ()]
    times = {}
    for name, passes in found:
        parts = [dict(flops=p * 2 * case.D * case.logits, exps=e * case.logits,
                      bytes=b * case.logits) for p, e, b in passes]  # fmt: skip
        times[name] = [seconds(part, rates) for part in parts]
    if not found:
        times["the work stated in cases.py"] = [seconds(work, rates)]
    if any(t is None for parts in times.values() for t in parts) or "copy" not in rates:
        return None
    ends = seconds({"bytes": work["bytes"]}, rates)  # what is read and written in any case
    times = {name: 1e3 * max(sum(parts), ends) for name, parts in times.items()}
    best = min(times, key=times.get)
    return {"ms": times[best], "algorithm": best}


def stated_work(case, element_bytes):
    """{"bytes", perhaps "exps" and "flops"} that a case says are the least."""
    if hasattr(case, "bytes_moved"):
        return {"bytes": case.bytes_moved(element_bytes)}
    return case.floor(element_bytes)


def seconds(work, rates):
    """Of the slowest of the three, which overlap; None where a rate is not known."""
    units = {"flops": "flops", "exps": "exp", "bytes": "copy"}
    times = []
    for kind, amount in work.items():
        if amount:
            rate = rates.get(units[kind])
            if rate is None:
                return None
            times.append(amount / (rate * 1e12))
    return max(times, default=0.0)
