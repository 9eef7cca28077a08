"""What this machine can do, and whether sslops is right on it: `sslzoo doctor`."""

import importlib.util
import json
import os
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist

from sslops import registry
from sslops.self_test import self_test
from sslzoo.versions import versions

GIB = 2**30


def examine(folder="."):
    """All that is shown, as plain values.

    Args:
        folder: where runs would be written; its disk is looked at.

    Returns:
        dict: versions, compiled, gpus, memory_gib, disk_gib, nccl, backends, self_test, seconds.
    """
    device = registry.default_device()
    start = time.perf_counter()
    results = self_test(device)
    seconds = time.perf_counter() - start
    return {
        "device": device,
        "versions": versions(),
        "compiled": compiled(),
        "gpus": [gpu(i) for i in range(torch.cuda.device_count())],
        "memory_gib": free_memory_gib(),
        "disk_gib": shutil.disk_usage(folder).free / GIB,
        "nccl": nccl(),
        "backends": registry.availability(device),
        "self_test": {r.op: dict(error=r.error, right=r.is_right, message=r.message)
                      for r in results},
        "self_test_seconds": seconds,
    }  # fmt: skip


def compiled():
    """What the extension holds, in words."""
    if importlib.util.find_spec("sslops._C") is None:
        return "no extension: the ops run on PyTorch and Triton alone"
    from sslops.cpu_helpers import has_cuda_kernels

    return "CPU and CUDA kernels" if has_cuda_kernels() else "CPU kernels; nvcc was not found"


def gpu(index):
    """Name, compute capability and memory of a GPU."""
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "free_gib": free / GIB,
        "total_gib": total / GIB,
    }


def nccl():
    """NCCL's version, or why there is none."""
    if not dist.is_available() or not dist.is_nccl_available():
        return "not in this build of torch"
    if not torch.cuda.is_available():
        return "needs a GPU"
    return ".".join(map(str, torch.cuda.nccl.version()))


def free_memory_gib():
    """Memory that programs can still take, or None where the system does not say."""
    file = Path("/proc/meminfo")
    if not file.exists():
        return None
    sizes = dict(line.split(":") for line in file.read_text().splitlines())
    return int(sizes["MemAvailable"].split()[0]) * 1024 / GIB


def is_well(found):
    """Whether every op gives the right numbers."""
    return all(result["right"] for result in found["self_test"].values())


def show(found):
    """Print for people."""
    known = {k: v for k, v in found["versions"].items() if v is not None}
    print("versions   " + ", ".join(f"{name} {value}" for name, value in known.items()))
    print(f"compiled   {found['compiled']}")
    for gpu in found["gpus"]:
        print("GPU        {name}, compute capability {capability}, {free_gib:.1f} of "
              "{total_gib:.1f} GiB free".format(**gpu))  # fmt: skip
    if not found["gpus"]:
        print("GPU        none")
    memory = "not known" if found["memory_gib"] is None else f"{found['memory_gib']:.1f} GiB"
    print(f"free       memory {memory}, disk {found['disk_gib']:.1f} GiB, {os.cpu_count()} "
          "processors")  # fmt: skip
    print(f"NCCL       {found['nccl']}")
    print(f"\nops on {found['device']}: the backend that is taken, and why not the others")
    for op, reasons in found["backends"].items():
        taken = next((b for b, reason in reasons.items() if reason is None), "none")
        others = "; ".join(f"{b}: {reason}" for b, reason in reasons.items() if reason)
        print(f"  {op:<21} {taken:<10} {others}".rstrip())
    print(f"\nself-test, {found['self_test_seconds']:.1f} s: largest relative error of values and "
          "gradients")  # fmt: skip
    for op, result in found["self_test"].items():
        verdict = "right" if result["right"] else f"WRONG {result['message']}"
        print(f"  {op:<21} {result['error']:.1e}  {verdict}".rstrip())


def to_json(found):
    """One JSON object; an error that is no number is null."""
    for result in found["self_test"].values():
        if result["error"] == float("inf"):
            result["error"] = None
    return json.dumps(found, indent=2, allow_nan=False)
