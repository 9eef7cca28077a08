"""What people run to write keys into a queue today, and the bare copy as the floor."""

import sys

import torch
import torch.nn.functional as F

import sslops
from benchmarks.measure import Variant, peer


class MoCoQueue:
    """The published _dequeue_and_enqueue of facebookresearch/moco, written afresh: keys lie in
    columns, the pointer is read on the host, the size must be a multiple of the batch."""

    def __init__(self, size, dim, device):
        self.queue = F.normalize(torch.randn(dim, size, device=device), dim=0)
        self.pointer = torch.zeros(1, dtype=torch.long, device=device)

    @torch.no_grad()
    def __call__(self, keys):
        keys = F.normalize(keys, dim=1)
        size, pointer = self.queue.shape[1], int(self.pointer)
        assert size % len(keys) == 0
        self.queue[:, pointer : pointer + len(keys)] = keys.T
        self.pointer[0] = (pointer + len(keys)) % size


def ours(op, backend, case):
    queues = {}

    def enqueue(keys):
        if keys.device not in queues:
            queue = sslops.KeyQueue(case.size, case.D, backend=backend)
            queues[keys.device] = queue.to(keys.device)
        queues[keys.device].enqueue_(keys)

    return Variant("sslops", enqueue)


def lightly_bank(case, device):
    def make():
        from lightly.models.modules.memory_bank import MemoryBankModule

        bank = MemoryBankModule(size=(case.size, case.D)).to(device)

        def enqueue(keys):
            bank(F.normalize(keys, dim=1), update=True)

        return enqueue

    return peer("lightly MemoryBankModule (clones the bank)", make)


def baselines(case, device, dtype):
    """The floor first, then the published code, then the other peers."""
    stored = torch.empty(case.batches[0], case.D, device=device)

    def copy(keys):
        stored.copy_(keys)

    published, compiled = (MoCoQueue(case.size, case.D, device) for _ in range(2))
    return [
        Variant("bare copy", copy),
        Variant("facebookresearch/moco", published),
        lightly_bank(case, device),
        Variant("torch.compile of moco", torch.compile(compiled)),
    ]


def check(op, backend, own, published, case, device, dtype):
    """Stop unless both queues hold the same keys after three batches."""
    queue = sslops.KeyQueue(case.size, case.D, backend=backend).to(device)
    moco = MoCoQueue(case.size, case.D, device)
    moco.queue.copy_(queue.keys.T)
    for seed in range(3):
        (keys,), _ = case.inputs(device, dtype, seed)
        queue.enqueue_(keys)
        moco(keys.float())
    error = (queue.keys - moco.queue.T).abs().max().item()
    if not error < 4 * torch.finfo(torch.float32).eps:
        sys.exit(f"wrong: keys are {error:.1e} away from those of moco; no speed is measured")
    print(f"correct against moco: largest difference {error:.1e}")
