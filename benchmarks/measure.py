"""Time and memory of variants of one computation, interleaved in one process."""

import ctypes
import functools
import gc
import os
import platform
import random
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20


@dataclass(frozen=True)
class Variant:
    """One way of computing a loss, or a floor. `loss` is None where the variant is `absent`."""

    name: str
    loss: object = None  # tensors -> loss or other output; None for work that has no backward
    absent: str | None = None  # why it cannot run here


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


@functools.cache
def upstream_like(shape, dtype, device):
    """The upstream gradient of an output, made once: 1 for a loss, random for anything larger."""
    return torch.randn(shape, dtype=dtype, device=device) if shape else None


def one_run(variant, tensors, device):
    """Seconds of the forward pass and of the backward pass."""
    wanted = [t for t in tensors if t.requires_grad]
    synchronise(device)
    start = time.perf_counter()
    loss = variant.loss(*tensors)
    upstream = None if loss is None else upstream_like(loss.shape, loss.dtype, loss.device)
    synchronise(device)
    middle = time.perf_counter()
    if loss is not None:
        torch.autograd.grad(loss, wanted, upstream)
    synchronise(device)
    return middle - start, time.perf_counter() - middle


def quantiles_ms(seconds):
    """The median and the 20 % and 80 % quantiles, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=5, method="inclusive")
    return {"median": 1e3 * statistics.median(seconds), "q20": 1e3 * cuts[0], "q80": 1e3 * cuts[3]}


def time_variants(variants, inputs, device, repeats):
    """{name: {"forward", "backward", "both": quantiles in ms}}.

    Every round runs all variants, in an order of its own, on input sets used in turn: what disturbs
    the machine for a while disturbs all of them, and no run finds its data in a cache.
    """
    for variant in variants:
        one_run(variant, inputs[0], device)
    seconds = {v.name: [] for v in variants}
    order = random.Random(0)
    for round_ in range(repeats):
        for variant in order.sample(variants, len(variants)):
            seconds[variant.name].append(one_run(variant, inputs[round_ % len(inputs)], device))
    return {
        name: {
            "forward": quantiles_ms([f for f, _ in runs]),
            "backward": quantiles_ms([b for _, b in runs]),
            "both": quantiles_ms([f + b for f, b in runs]),
        }
        for name, runs in seconds.items()
    }


def _resident_kib(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_mib(function, device):
    """Peak memory of a call above what was in use before it, in MiB; None where not measurable.

    On a CPU it is the high-water mark of the resident set, which sees the allocations of PyTorch
    and of C++ alike; Linux only. The call runs once before, so that one-time costs are not counted.
    """
    function()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # freed memory must go back, or reusing it would look free
    clear.write_text("5")  # resets the high-water mark
    before = _resident_kib("VmRSS")
    function()
    return (_resident_kib("VmHWM") - before) / 1024


def _output_of(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version_of(module):
    try:
        return __import__(module).__version__
    except ModuleNotFoundError:
        return "absent"


def machine(device):
    """What a number depends on."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version_of("triton"),
        "commit": _output_of("git", "rev-parse", "--short", "HEAD")
        + ("+changes" if _output_of("git", "status", "--porcelain", "-uno") else ""),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }
