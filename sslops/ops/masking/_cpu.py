"""The CPU backend: csrc/cpu/masking.cpp."""

import torch

import sslops._C as _C
from sslops.ops.masking import _compiled, _kernels
from sslops.ops.masking._compiled import (  # noqa: F401 the functions of this backend
    gather_patches,
    gather_tokens,
    random_masking,
    restore_tokens,
)


def unsupported(x, *arguments):
    if x.device.type != "cpu":
        return f"runs on the CPU; got {x.device}"
    return _compiled.why_not_dtype(x, arguments)


def launch(name, device, fields):
    return getattr(_C, f"cpu_{name}")(fields, torch.get_num_threads())


_kernels.LAUNCH["cpu"] = launch
