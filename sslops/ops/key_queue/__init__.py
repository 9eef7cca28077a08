"""The queue of keys of MoCo: the keys of earlier batches, as negatives.

What a backend of this folder receives, already checked:

    enqueue_(stored, pointer, blocks_done, keys, size, first_slot, normalize) -> None

    stored       [slots, D]: the slots first_slot ... first_slot + slots - 1 of a ring of `size`
    pointer      0-d int64: the next slot to be written; moved on by the number of keys
    blocks_done  [1] int32, 0 before and after: how the GPU's blocks find the last of them
    keys         [B, D], any floating dtype, on the device of `stored`
    normalize    scale rows to unit length first (sslops.unit_rows)

It writes in place and reads nothing on the host.
"""

import torch

from sslops import distributed, registry
from sslops.arguments import check_rows, describe
from sslops.unit_rows import unit_rows

__all__ = ["KeyQueue"]

_backends = registry.load("key_queue", "cuda", "cpu", "reference", function="enqueue_")


class KeyQueue(torch.nn.Module):
    """A ring of the last `size` keys, which a contrastive loss takes as negatives.

    `queue.enqueue_(keys)` equals, for a batch that does not pass the end of the ring,

        queue.keys[pointer : pointer + B] = F.normalize(keys.float(), dim=-1)
        pointer = (pointer + B) % size

    in one kernel, for any batch size, with the pointer on the device: nothing waits for the GPU,
    and a captured CUDA graph moves the pointer at every replay.

    The keys are state, but no buffers: DistributedDataParallel broadcasts every buffer from rank
    0 before each forward pass, which would overwrite the other ranks' shards. They move with
    `.to(device)`, keep their dtype under `.half()`, and are in the `state_dict`.

    Args:
        size: number of keys, at least 1.
        dim: D, the width of a key.
        dtype: of the stored keys: float32, float16, bfloat16 or float64.
        normalize: scale keys to unit length on their way in; a zero key stays zero.
        group: None (only this process's keys), or a torch.distributed process group: the keys of
            all ranks enter in rank order, and every rank holds the same queue. Ranks start with
            the same keys if they have the same seed.
        sharded: with `group`: each rank stores its share of the slots, `ceil(size / ranks)`
            consecutive ones, so the shards in rank order are the queue.
        backend: force "cuda", "cpu" or "reference"; None takes the first that can run.

    Attributes:
        keys: [size, dim], random unit vectors at first. With `sharded`, reading it gathers the
            shards: all ranks of the group must read it together.
        pointer: 0-d int64 tensor, the slot that the next key goes to.

    State:
        `state_dict()` holds `keys` [size, dim] and `pointer` whether sharded or not, so it loads
        at another number of ranks and with another `sharded`. With `sharded` it gathers: all
        ranks must call it together, even if only one of them writes the file.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or device.
        RuntimeError: the forced backend cannot run here.

    Source:
        He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation
        Learning", CVPR 2020, section 3.2 and algorithm 1.

    Example:
        >>> import torch, sslops
        >>> queue = sslops.KeyQueue(size=3, dim=2)
        >>> queue.enqueue_(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        >>> queue.enqueue_(torch.tensor([[5.0, 0.0], [-1.0, 0.0]]))
        >>> print(queue.keys.tolist(), queue.pointer.item())
        [[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]] 1
    """

    def __init__(
        self,
        size,
        dim,
        *,
        dtype=torch.float32,
        normalize=True,
        group=None,
        sharded=False,
        backend=None,
    ):
        super().__init__()
        _check_options(size, dim, dtype, group, sharded)
        self.size, self.dim, self.normalize = size, dim, normalize
        self.group, self.sharded, self.backend = group, sharded, backend
        rank, ranks = distributed.rank_and_size(group) if sharded else (0, 1)
        share = -(-size // ranks)
        self.shares = [min(share, max(0, size - r * share)) for r in range(ranks)]
        self.slots = slice(sum(self.shares[:rank]), sum(self.shares[: rank + 1]))
        self.stored = unit_rows(torch.randn(size, dim))[self.slots].to(dtype, copy=True)
        self.pointer = torch.zeros((), dtype=torch.int64)
        self._blocks_done = torch.zeros(1, dtype=torch.int32)

    @property
    def keys(self):
        if not self.sharded:
            return self.stored
        return distributed.gather_rows(self.stored[None], self.group, self.shares)[0][0]

    @torch.no_grad()
    def enqueue_(self, keys, batch_sizes=None):
        """Write keys into the queue over the oldest ones; no gradient is tracked.

        Args:
            keys: [B, dim], any floating dtype, on the queue's device. Of more than `size` keys
                the last ones stay, where they would lie if they had come one by one.
            batch_sizes: with `group`, every rank's B, if known. If None they are exchanged, which
                on a GPU waits for the device; batches need not be even.
        """
        _check_keys(keys, self.dim, self.stored)
        if self.group is not None:
            keys = distributed.gather_rows(keys.detach()[None], self.group, batch_sizes)[0][0]
        _backends(
            self.backend, self.stored, self.pointer, self._blocks_done, keys.detach(), self.size,
            self.slots.start, self.normalize,
        )  # fmt: skip

    def extra_repr(self):
        return (
            f"size={self.size}, dim={self.dim}, dtype={self.stored.dtype}, "
            f"normalize={self.normalize}, sharded={self.sharded}"
        )

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        stored = fn(self.stored)
        # A move to another device, but not `.half()`: the queue has the dtype it was given.
        keeps_dtype = stored.dtype == self.stored.dtype
        self.stored = stored if keeps_dtype else self.stored.to(stored.device)
        self.pointer, self._blocks_done = fn(self.pointer), fn(self._blocks_done)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "keys"] = self.keys.detach()
        destination[prefix + "pointer"] = self.pointer.detach()

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        names = [prefix + "keys", prefix + "pointer"]
        missing_keys += [name for name in names if name not in state_dict]
        unexpected_keys += [n for n in state_dict if n.startswith(prefix) and n not in names]
        keys, pointer = map(state_dict.get, names)
        if keys is not None and keys.shape != (self.size, self.dim):
            expected = (self.size, self.dim)
            error_msgs.append(f"{prefix}keys must have shape {expected}; got {describe(keys)}")
        elif keys is not None and pointer is not None:
            with torch.no_grad():
                self.stored.copy_(keys[self.slots])
                self.pointer.copy_(pointer)


def _check_options(size, dim, dtype, group, sharded):
    for name, value in (("size", size), ("dim", dim)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int; got {describe(value)}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype; got {dtype!r}")
    if sharded and group is None:
        raise ValueError("sharded=True needs a group: whose ranks share the slots?")


def _check_keys(keys, dim, stored):
    check_rows("keys", keys)
    if keys.ndim != 2 or keys.shape[1] != dim:
        raise ValueError(f"keys must be [B, {dim}]; got {describe(keys)}")
    if keys.device != stored.device:
        raise ValueError(f"keys must be on {stored.device}, as the queue is; got {describe(keys)}")
