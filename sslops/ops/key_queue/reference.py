"""Writing keys into the queue in plain PyTorch: the specification. Any dtype, any device."""

import torch

from sslops.unit_rows import at_least_float32, unit_rows

# B keys, D width


def unsupported(*arguments):
    return None


def enqueue_(stored, pointer, blocks_done, keys, size, first_slot, normalize):
    """Slot s receives the last key i with (pointer + i) mod size = s, and the pointer moves on."""
    B = len(keys)
    if B == 0:
        return
    rows_BD = (unit_rows if normalize else at_least_float32)(keys)
    slots = first_slot + torch.arange(len(stored), device=stored.device)
    first_i = (slots - pointer) % size  # the first key that comes to a slot; >= B: none does
    last_i = first_i + (B - 1 - first_i).div(size, rounding_mode="floor") * size
    new = rows_BD[last_i.clamp(min=0)].to(stored.dtype)
    stored.copy_(torch.where((first_i < B)[:, None], new, stored))
    pointer.copy_((pointer + B) % size)
