"""The queue's kernel as a torch.library op that says what it mutates; shared by CPU and GPU."""

import torch

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
LAUNCH = {}  # device type -> launch(kernel, device, fields)

SCHEMA = (
    "(Tensor(a!) stored, Tensor(b!) pointer, Tensor(c!) blocks_done, Tensor keys, SymInt size, "
    "SymInt first_slot, bool normalize) -> ()"
)


@torch.library.custom_op(
    "sslops::enqueue_",
    mutates_args=("stored", "pointer", "blocks_done"),
    device_types=("cpu", "cuda"),
    schema=SCHEMA,
)
def _enqueue(stored, pointer, blocks_done, keys, size, first_slot, normalize):
    keys = keys if keys.stride(-1) == 1 or keys.shape[-1] == 1 else keys.contiguous()
    fields = (
        keys.data_ptr(), DTYPES[keys.dtype], keys.stride(0) * keys.element_size(), *keys.shape,
        stored.data_ptr(), DTYPES[stored.dtype], len(stored),
        pointer.data_ptr(), blocks_done.data_ptr(), size, first_slot, int(normalize),
    )  # fmt: skip
    LAUNCH[stored.device.type]("enqueue", stored.device, fields)


@_enqueue.register_fake
def _(stored, pointer, blocks_done, keys, size, first_slot, normalize):
    return None


def enqueue_(stored, pointer, blocks_done, keys, size, first_slot, normalize):
    _enqueue(stored, pointer, blocks_done, keys, size, first_slot, normalize)


def why_not_dtype(stored, keys):
    """None, or the dtype that the kernels do not take."""
    for dtype in (stored.dtype, keys.dtype):
        if dtype not in DTYPES:
            return f"takes float32, float16 and bfloat16; got {dtype}"
    return None
