"""The CUDA backend: csrc/key_queue.cu."""

import torch

import sslops._C as _C
from sslops.ops.key_queue import _kernels
from sslops.ops.key_queue._kernels import enqueue_  # noqa: F401 the function of this backend
from sslops.tracing import constant_when_traced


def unsupported(stored, pointer, blocks_done, keys, *rest):
    if stored.device.type != "cuda":
        return f"runs on CUDA devices; got {stored.device}"
    if not _C.has_cuda:
        return "sslops._C was built without CUDA (nvcc was not found)"
    if not _runs_on(stored.device.index):
        return f"this build holds no code for {stored.device}, or its driver is too old for it"
    return _kernels.why_not_dtype(stored, keys)


@constant_when_traced
def _runs_on(device_index):
    with torch.cuda.device(device_index):  # the call makes it current; afterwards it is as before
        return _C.cuda_runs_on(device_index)


def launch(name, device, fields):
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        getattr(_C, f"cuda_{name}")(fields, device.index, stream)


_kernels.LAUNCH["cuda"] = launch
