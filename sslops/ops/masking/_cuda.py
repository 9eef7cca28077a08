"""The CUDA backend: csrc/masking.cu."""

import torch

import sslops._C as _C
from sslops.ops.masking import _compiled, _kernels
from sslops.ops.masking._compiled import (  # noqa: F401 the functions of this backend
    gather_patches,
    gather_tokens,
    random_masking,
    restore_tokens,
)
from sslops.tracing import constant_when_traced

# A sample's sort keys and inverse index lie in the shared memory of one block.
MOST_TOKENS = 8192


def unsupported(x, *arguments):
    if x.device.type != "cuda":
        return f"runs on CUDA devices; got {x.device}"
    if not _C.has_cuda:
        return "sslops._C was built without CUDA (nvcc was not found)"
    if _compiled.most_tokens(x, arguments) > MOST_TOKENS:
        return f"takes up to {MOST_TOKENS} tokens; got {_compiled.most_tokens(x, arguments)}"
    if not _runs_on(x.device.index):
        return f"this build holds no code for {x.device}, or its driver is too old for it"
    return _compiled.why_not_dtype(x, arguments)


@constant_when_traced
def _runs_on(device_index):
    with torch.cuda.device(device_index):  # the call makes it current; afterwards it is as before
        return _C.cuda_runs_on(device_index)


def launch(name, device, fields):
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        getattr(_C, f"cuda_{name}")(fields, device.index, stream)
    return -1  # indices out of range show as NaN; looking for them would wait for the device


_kernels.LAUNCH["cuda"] = launch
