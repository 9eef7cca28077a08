"""Random views on the CPU: csrc/cpu/augment.cpp."""

from collections.abc import Sequence

import torch

import sslops._C as _C
from sslops.cpu_helpers import address
from sslops.ops.augment.parameters import WIDTH, split

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # Dtype of csrc/masking.h
LARGEST = 2**15  # of a crop's numbers: beyond, taps alone would fill the memory


def unsupported(images, table, steps, size, mean, std, dtype, *options):
    if images.device.type != "cpu":
        return f"runs on the CPU; got {images.device}"
    return None if dtype in DTYPES else f"it computes in float32; got {dtype}"


def augment(
    images, table, steps, size, mean, std, dtype, interpolation, grayscale_first, blur_kernel
):
    """See sslops.ops.augment for the arguments of a backend."""
    return _augment(images, table, size, mean, std, dtype, interpolation == "bicubic",
                    grayscale_first, blur_kernel)  # fmt: skip


@torch.library.custom_op("sslops::augment_cpu", mutates_args=())
def _augment(
    images: torch.Tensor, table: torch.Tensor, size: int, mean: Sequence[float],
    std: Sequence[float], dtype: torch.dtype, cubic: bool, grayscale_first: bool, blur_kernel: int,
) -> torch.Tensor:  # fmt: skip
    _check(table)
    B, C, H, W = images.shape
    images = images if images.stride(3) == 1 or W == 1 else images.contiguous()
    out = torch.empty(B, C, size, size, dtype=dtype)
    table, statistics = table.contiguous(), torch.tensor([*mean, *(1 / s for s in std)])
    fields = (address(images), *images.stride()[:3], address(table), address(statistics),
              address(out), B, C, H, W, size, int(cubic), int(grayscale_first), blur_kernel,
              DTYPES[dtype])  # fmt: skip
    _C.cpu_augment(fields, torch.get_num_threads())
    return out


@_augment.register_fake
def _(images, table, size, mean, std, dtype, cubic, grayscale_first, blur_kernel):
    return images.new_empty(*images.shape[:2], size, size, dtype=dtype)


def _check(table):
    """Values with which the kernel reads and writes nothing but its arrays."""
    assert table.shape[1] == WIDTH
    p = split(table)
    is_good = {
        "crop": (p["crop"].abs() <= LARGEST).all() and (p["crop"][:, 2:] >= 1).all(),
        "posterize": ((p["posterize"] >= 1) & (p["posterize"] <= 8)).all(),
        "order": ((p["order"] >= 0) & (p["order"] < 4)).all(),
    }
    for name, good in is_good.items():
        if not good:
            raise ValueError(f"parameters[{name!r}] holds values out of range")
    if not table.isfinite().all():
        raise ValueError("parameters must be finite")
