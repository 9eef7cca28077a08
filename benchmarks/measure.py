"""Time and memory of variants of one computation, interleaved in one process."""

import ctypes
import functools
import gc
import itertools
import os
import platform
import random
import re
import statistics
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

MIB = 2**20
MOST_BYTES = 8 * 2**30  # on a CPU, whose memory others use as well
MOST_SECONDS = 8.0  # of one variant at one size, after two runs


# What a variant that cannot run here raises; anything else is a fault of ours.
FAILURES = (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True)
class Variant:
    """One way of computing a loss, or a floor. `loss` is None where the variant is `absent`."""

    name: str
    loss: object = None  # tensors -> loss or other output; None for work that has no backward
    absent: str | None = None  # why it cannot run here
    needs_bytes: float = 0  # what it stores at least, where that may be more than there is
    same_loss: bool = True  # False: another loss of the same cost, or no gradient for all inputs


def peer(name, make, **about):
    """The variant whose function make() imports and returns, or why it cannot run here."""
    try:
        return Variant(name, make(), **about)
    except FAILURES as error:
        return Variant(name, absent=in_one_line(error))


def in_one_line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def available_bytes(device):
    """Memory that a variant may use."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return float("inf")
    kib = re.search(r"MemAvailable: +(\d+)", meminfo.read_text()).group(1)
    return min(MOST_BYTES, 0.8 * 1024 * int(kib))


@functools.cache
def upstream_like(shape, dtype, device):
    """The upstream gradient of an output, made once: 1 for a loss, random for anything larger."""
    return torch.randn(shape, dtype=dtype, device=device) if shape else None


class Clock:
    """Marks in time, on the host or in the stream of the device."""

    def __init__(self, device):
        self.device, self.marks = device, []
        if device == "cuda":
            flushed_cache(torch.cuda.current_device()).zero_()

    def mark(self):
        if self.device == "cuda":
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self):
        """Between one mark and the next."""
        synchronise(self.device)
        pairs = list(itertools.pairwise(self.marks))
        if self.device == "cuda":
            return [1e-3 * a.elapsed_time(b) for a, b in pairs]
        return [b - a for a, b in pairs]


@functools.cache
def flushed_cache(index):
    """Memory that, when written, takes the place of all else in the L2 cache."""
    size = 4 * torch.cuda.get_device_properties(index).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device=f"cuda:{index}")


def differentiate(loss, wanted):
    """The backward pass, where there is one."""
    if loss is not None and wanted:
        torch.autograd.grad(loss, wanted, upstream_like(loss.shape, loss.dtype, loss.device))


def one_run(variant, tensors, device):
    """Seconds of the forward pass and of the backward pass."""
    wanted = [t for t in tensors if t.requires_grad]
    synchronise(device)
    clock = Clock(device)
    clock.mark()
    loss = variant.loss(*tensors)
    clock.mark()
    differentiate(loss, wanted)
    clock.mark()
    return clock.seconds()


def quantiles_ms(seconds):
    """The median and the 20 % and 80 % quantiles, in milliseconds."""
    if len(seconds) == 1:
        seconds = 2 * seconds
    cuts = statistics.quantiles(seconds, n=5, method="inclusive")
    return {"median": 1e3 * statistics.median(seconds), "q20": 1e3 * cuts[0], "q80": 1e3 * cuts[3]}


def time_variants(variants, inputs, device, repeats, seconds_allowed=float("inf")):
    """{name: {"forward", "backward", "both": quantiles in ms}}.

    Every round runs all variants, in an order of its own, on input sets used in turn: what disturbs
    the machine for a while disturbs all of them, and no run finds its data in a cache. There are
    fewer rounds than `repeats`, but at least two, where these would take longer than allowed, and
    two of a variant that takes longer than MOST_SECONDS.
    """
    end = time.perf_counter() + seconds_allowed
    seconds = {v.name: [] for v in variants}
    order = random.Random(0)
    for round_ in range(repeats):
        for variant in order.sample(variants, len(variants)):
            if round_ > 1 and sum(map(sum, seconds[variant.name])) > MOST_SECONDS:
                continue
            seconds[variant.name].append(one_run(variant, inputs[round_ % len(inputs)], device))
        if round_ > 0 and time.perf_counter() > end:
            break
    return {
        name: {
            "forward": quantiles_ms([f for f, _ in runs]),
            "backward": quantiles_ms([b for _, b in runs]),
            "both": quantiles_ms([f + b for f, b in runs]),
        }
        for name, runs in seconds.items()
    }


def able(variants, tensors, device):
    """The variants as they turn out in a first run, which also warms them up."""
    return [v if v.absent else _first_run(v, tensors, device) for v in variants]


def _first_run(variant, tensors, device):
    if variant.needs_bytes > available_bytes(device):
        reason = f"needs {variant.needs_bytes / 2**30:.0f} GiB"
        return replace(variant, absent=reason)
    try:
        one_run(variant, tensors, device)
    except failures() as error:
        if device == "cuda":
            torch.cuda.empty_cache()
        return replace(variant, absent=f"failed: {in_one_line(error)}")
    return variant


def failures():
    """FAILURES, and what Triton raises where a kernel does not compile or fit."""
    if _version_of("triton") == "absent":
        return FAILURES
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import TritonError

    return (*FAILURES, CompilationError, TritonError)


def graph_ms(variant, tensors, device, repeats=20):
    """Forward and backward as one CUDA graph: quantiles in ms, or why it cannot be captured."""
    wanted = [t for t in tensors if t.requires_grad]

    def step():
        differentiate(variant.loss(*tensors), wanted)

    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    try:
        with torch.cuda.stream(side):
            step()
        side.synchronize()
        with torch.cuda.graph(graph):
            step()
    except failures() as error:
        torch.cuda.synchronize()
        # The generator still takes itself for captured and would draw no more: it gets a new state.
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())
        return {"absent": in_one_line(error)}
    replay = Variant("graph", lambda *_: graph.replay())
    return quantiles_ms([one_run(replay, tensors, device)[0] for _ in range(repeats)])


WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def launches(variant, tensors, device):
    """Launches (copies and fills counted) of either pass, and waits for the device; None on a CPU.

    The profiler's own waits at the end of a pass are outside of what it records as ours.
    """
    if device != "cuda":
        return None
    wanted = [t for t in tensors if t.requires_grad]
    result = []
    forward = _profiled(lambda: result.append(variant.loss(*tensors)))
    backward = _profiled(lambda: differentiate(result[0], wanted))
    return {"forward": forward[0], "backward": backward[0], "waits": forward[1] + backward[1]}


def _profiled(function):
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        with torch.profiler.record_function(MEASURED):
            function()
        torch.cuda.synchronize()
    return count_launches(profile.events())


MEASURED = "measured"  # the range of the profile that is ours


def count_launches(events):
    """(work on the device, waits on the host) of a profile's events."""
    on_device, waits = 0, 0
    ours = next(e.time_range for e in events if e.name == MEASURED and not _is_device(e))
    for event in events:
        if _is_device(event):
            # Ranges appear once more on the device's time line.
            on_device += event.name != MEASURED and not getattr(event, "is_user_annotation", False)
        elif event.name in WAITS:
            waits += ours.start <= event.time_range.start <= ours.end
    return on_device, waits


def _is_device(event):
    return event.device_type == torch.autograd.DeviceType.CUDA


def _resident_kib(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_mib(function, device, has_run=False):
    """Peak memory of a call above what was in use before it, in MiB; None where not measurable.

    On a CPU it is the high-water mark of the resident set, which sees the allocations of PyTorch
    and of C++ alike; Linux only. The call runs once before, unless it has run already, so that
    one-time costs are not counted.
    """
    if not has_run:
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
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _driver():
    return _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


@functools.cache
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
        "driver": _driver() if device == "cuda" else "none",
        "commit": _output_of("git", "rev-parse", "--short", "HEAD")
        + ("+changes" if _output_of("git", "status", "--porcelain", "-uno") else ""),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }
