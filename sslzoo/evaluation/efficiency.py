"""What an encoder costs: operations, time, memory and energy."""

import contextlib
import csv
import ctypes
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sslzoo.run_folder import load_options, reading

PROBES = ("knn_accuracy", "linear_accuracy")  # columns of metrics.csv


def flops(model, x):
    """Floating-point operations of a forward pass; a multiply-add counts as two.

    Args:
        model: a module; x: its input, whose batch is counted as it stands.

    Returns:
        int: of matrix products, convolutions and attention; norms and activations are not counted.

    Example:
        >>> import torch
        >>> flops(torch.nn.Linear(3, 5), torch.zeros(1, 3))
        30
    """
    counter = FlopCounterMode(display=False)
    # The fused attention of a CPU is not counted; the plain one is made of matrix products.
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(x)
    return counter.get_total_flops()


def training_flops(method, views):
    """Floating-point operations of a training step: forward and backward of all its networks.

    Teachers count with their forward pass, every view with its own; what sslops' kernels do (the
    losses) is not counted, and neither are the optimizer and moving averages.

    Args:
        method: module (views, step) -> {"loss": ...}.
        views: list of batches.
    """
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        method(views, 0)["loss"].backward()
    method.zero_grad()
    return counter.get_total_flops()


def step_seconds(step, device, *, warmup, steps):
    """Seconds of one step, the mean of `steps` after `warmup`, the device waited for."""
    for _ in range(warmup):
        step()
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - start) / steps


def wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def peak_memory(device, found):
    """Write the largest memory allocated and reserved inside into the dict, in MiB."""
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    yield
    if is_cuda:
        found["peak memory allocated"] = torch.cuda.max_memory_allocated(device) / 2**20
        found["peak memory reserved"] = torch.cuda.max_memory_reserved(device) / 2**20


def energy_joules(device):
    """Energy that the device has used since some moment, or None where nothing tells.

    Of an NVIDIA GPU by its driver's library; of a CPU by Linux' powercap, where it may be read.
    """
    if torch.device(device).type == "cuda":
        return _nvidia_joules(device)
    try:
        return int(Path("/sys/class/powercap/intel-rapl:0/energy_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return None


def _nvidia_joules(device):
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    handle, used = ctypes.c_void_p(), ctypes.c_ulonglong()  # used in millijoules
    failed = (
        nvml.nvmlInit_v2()
        or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle))
        or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used))
    )
    return None if failed else used.value / 1000


def training_hours(run, accuracy=None):
    """Hours that a run has trained, by its metrics.csv: pauses and measurements do not count.

    Args:
        run: a run folder.
        accuracy: a share; only until a live probe (kNN or linear) first reached it.

    Returns:
        float, or None where nothing was logged, or the accuracy was not reached.

    Raises:
        RunFolderError: the files of the run do not hold what it takes.
    """
    path = Path(run) / "metrics.csv"
    if not path.is_file():
        return None
    options = load_options(run)
    seconds, last = 0.0, 0
    with reading(path, "usable speeds"), path.open(newline="") as file:
        images = options["batch_size"] * options["accumulate"]
        for row in csv.DictReader(file):
            seconds += (int(row["step"]) - last) * images / float(row["images_per_second"])
            last = int(row["step"])
            if accuracy and any(float(row.get(name) or 0) >= accuracy for name in PROBES):
                return seconds / 3600
    return seconds / 3600 if last and not accuracy else None


def median(values):
    """Median, and the standard deviation where there are several."""
    return float(np.median(values)), float(np.std(values)) if len(values) > 1 else None
