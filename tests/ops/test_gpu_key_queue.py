"""The queue's CUDA kernel against the specification, under replayed graphs, without waiting."""

import pytest
import torch
from gpu_helpers import captured, no_waiting

import sslops
from sslops.ops.key_queue.cases import CASES, Case

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LARGE = [
    Case("thousands of blocks", 65536, 128, (40_000, 40_000, 100_000)),
    Case("very wide", 100, 4104, (64, 64)),
]


def queues(case, dtype=torch.float32, **options):
    """The same queue twice: on the GPU with its kernel, on the CPU with the specification."""
    plain = sslops.KeyQueue(case.size, case.D, dtype=dtype, backend="reference", **options)
    ours = sslops.KeyQueue(case.size, case.D, dtype=dtype, backend="cuda", **options).cuda()
    ours.load_state_dict(plain.state_dict())
    return ours, plain


def assert_same_queue(ours, plain):
    assert torch.equal(ours.pointer.cpu(), plain.pointer)
    # The norm is summed in another order: a few roundings of float32, then one of the stored type.
    eps = torch.finfo(ours.keys.dtype).eps
    torch.testing.assert_close(ours.keys.cpu(), plain.keys, rtol=eps, atol=1e-6)


@pytest.mark.parametrize("stored_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES + LARGE, ids=lambda c: c.name)
def test_agrees_with_the_specification(case, key_dtype, stored_dtype):
    ours, plain = queues(case, stored_dtype)
    for keys in case.keys(dtype=key_dtype):
        ours.enqueue_(keys.cuda())
        plain.enqueue_(keys)
        assert_same_queue(ours, plain)
    assert ours._blocks_done.item() == 0


def test_keys_that_are_not_normalised_are_copied_exactly():
    ours, plain = queues(Case("", 10, 24, (4,)), normalize=False)
    for seed in range(5):
        keys = torch.randn(4, 24, generator=torch.Generator().manual_seed(seed))
        ours.enqueue_(keys.cuda())
        plain.enqueue_(keys)
        assert torch.equal(ours.keys.cpu(), plain.keys)


@pytest.mark.parametrize(
    "view",
    [lambda k: k[:, 1:25], lambda k: k[::2, :24], lambda k: k[:, :48:2], lambda k: k[:, 8:32]],
)
def test_keys_of_any_strides(view):
    ours, plain = queues(Case("", 10, 24, (4,)))
    keys = torch.randn(8, 64)
    ours.enqueue_(view(keys.cuda()))
    plain.enqueue_(view(keys))
    assert_same_queue(ours, plain)


def test_a_zero_key_stays_zero():
    queue = sslops.KeyQueue(4, 24, backend="cuda").cuda()
    queue.enqueue_(torch.zeros(2, 24, device="cuda"))
    assert (queue.keys[:2] == 0).all()


@pytest.mark.parametrize("batch", [3, 300, 5000])
def test_the_pointer_moves_at_every_replay(batch):
    ours, plain = queues(Case("", 1000, 16, (batch,)))
    keys = torch.zeros(batch, 16, device="cuda")
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    graph, _ = captured(lambda: ours.enqueue_(keys))
    ours.load_state_dict(start)  # the warm-up wrote too
    for seed in range(7):
        new = torch.randn(batch, 16, generator=torch.Generator().manual_seed(seed))
        keys.copy_(new)
        graph.replay()
        plain.enqueue_(new)
        assert_same_queue(ours, plain)


def test_nothing_waits_for_the_device():
    queue = sslops.KeyQueue(64, 16, backend="cuda").cuda()
    q, k = (torch.randn(8, 16, device="cuda", requires_grad=True) for _ in range(2))
    torch.autograd.grad(sslops.info_nce(q, k, queue, 0.1), (q, k))
    with no_waiting():
        loss = sslops.info_nce(q, k, queue, 0.1)
        queue.enqueue_(k)
        torch.autograd.grad(loss, (q, k))


def test_an_enqueue_is_one_launch():
    queue, keys = sslops.KeyQueue(640, 16).cuda(), torch.randn(100, 16, device="cuda")
    queue.enqueue_(keys)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        queue.enqueue_(keys)
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 1 and "enqueue_kernel" in kernels[0].name


def test_an_odd_pointer_never_leads_outside():
    queue = sslops.KeyQueue(5, 1, normalize=False, backend="cuda").cuda()
    for pointer, first in ((-1, 4), (7, 2), (-(2**62), -(2**62) % 5)):
        queue.pointer.fill_(pointer)
        queue.stored.fill_(-1)
        queue.enqueue_(torch.tensor([[0.0], [1.0]], device="cuda"))
        assert queue.keys[first].item() == 0 and queue.keys[(first + 1) % 5].item() == 1
        assert (queue.keys == -1).sum() == 3
