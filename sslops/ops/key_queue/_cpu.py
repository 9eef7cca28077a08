"""The CPU backend: csrc/cpu/key_queue.cpp."""

import torch

import sslops._C as _C
from sslops.ops.key_queue import _kernels
from sslops.ops.key_queue._kernels import enqueue_  # noqa: F401 the function of this backend


def unsupported(stored, pointer, blocks_done, keys, *rest):
    if stored.device.type != "cpu":
        return f"runs on the CPU; got {stored.device}"
    return _kernels.why_not_dtype(stored, keys)


def launch(name, device, fields):
    getattr(_C, f"cpu_{name}")(fields, torch.get_num_threads())


_kernels.LAUNCH["cpu"] = launch
