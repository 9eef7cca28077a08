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
    """{"ms", "algorithm"} of the fastest algorithm for a case; None where a rate is not known."""
    element_bytes = dtype.itemsize
    if hasattr(case, "bytes_moved"):
        if "copy" not in rates:
            return None
        moved = case.bytes_moved(element_bytes)
        return {"ms": 1e3 * moved / (rates["copy"] * 1e12), "algorithm": "every byte moved once"}
    if form is None:
        return None
    flops = rates.get(str(dtype).removeprefix("torch."))
    if not flops or not {"copy", "exp"} <= rates.keys():
        return None
    ends = case.floor(element_bytes)["bytes"]  # what is read and written in any case
    times = {}
    for work in algorithms(form):
        seconds = 0.0
        for products, exps, moved in work["passes"]:
            seconds += case.logits * max(
                products * 2 * case.D / (flops * 1e12),
                exps / (rates["exp"] * 1e12),
                moved / (rates["copy"] * 1e12),
            )
        times[work["algorithm"]] = 1e3 * max(seconds, ends / (rates["copy"] * 1e12))
    best = min(times, key=times.get)
    return {"ms": times[best], "algorithm": best}
