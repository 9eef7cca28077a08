"""KeyQueue: every backend against keys written one by one in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sslops
from sslops import registry
from sslops.ops.key_queue.cases import CASES

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BACKENDS = [b for b in registry.OPS["enqueue_"].backends if b != "cuda"]
COMPILED = [b for b in BACKENDS if b != "reference"]
by_backend = pytest.mark.parametrize("backend", BACKENDS)


def write_one_by_one(stored, pointer, keys):
    """The queue as a list: what every enqueue must equal, in float64."""
    for key in keys.double():
        norm = key.norm()
        stored[pointer] = torch.zeros_like(key) if norm <= 1e-12 else key / norm
        pointer = (pointer + 1) % len(stored)
    return pointer


@by_backend
@pytest.mark.parametrize("stored_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_agrees_with_keys_written_one_by_one(case, key_dtype, stored_dtype, backend):
    queue = sslops.KeyQueue(case.size, case.D, dtype=stored_dtype, backend=backend)
    exact, pointer = queue.keys.double().clone(), 0
    for keys in case.keys(dtype=key_dtype):
        queue.enqueue_(keys)
        pointer = write_one_by_one(exact, pointer, keys)
        assert queue.pointer.item() == pointer
        # One rounding to the stored type, and a few of float32 in the norm and the division.
        allowed = torch.finfo(stored_dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps
        assert queue.keys.dtype == stored_dtype
        assert (queue.keys.double() - exact).abs().max() <= allowed


@by_backend
def test_hand_worked_wrap(backend):
    queue = sslops.KeyQueue(3, 2, backend=backend)
    queue.enqueue_(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    last = queue.keys[2].clone()
    assert queue.pointer.item() == 2
    torch.testing.assert_close(queue.keys[:2], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert torch.equal(queue.keys[2], last)
    queue.enqueue_(torch.tensor([[-5.0, 0.0], [6.0, -8.0]]))
    assert queue.pointer.item() == 1
    expected = torch.tensor([[0.6, -0.8], [0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(queue.keys, expected)


@by_backend
@given(size=st.integers(1, 12), batches=st.lists(st.integers(0, 30), max_size=6))
def test_any_sequence_of_batches_equals_one_by_one(backend, size, batches):
    queue = sslops.KeyQueue(size, 2, normalize=False, backend=backend)
    expected, pointer = queue.keys.clone(), 0
    for number, batch in enumerate(batches):
        keys = 100.0 * number + torch.arange(2.0 * batch).reshape(batch, 2)
        queue.enqueue_(keys)
        for key in keys:
            expected[pointer] = key
            pointer = (pointer + 1) % size
    assert torch.equal(queue.keys, expected)
    assert queue.pointer.item() == pointer


# ------------------------------------------------------------------ faults seen elsewhere


@by_backend
def test_no_key_is_dropped_at_the_wrap(backend):
    # lightly's memory bank of 10 with batches of 4 loses two keys of the third batch.
    queue = sslops.KeyQueue(10, 1, normalize=False, backend=backend)
    for first in (0, 4, 8):
        queue.enqueue_(torch.arange(first, first + 4.0)[:, None])
    assert queue.keys[:, 0].tolist() == [10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


@by_backend
def test_size_need_not_be_a_multiple_of_the_batch(backend):
    # MoCo, solo-learn and mmselfsup assert K % batch == 0.
    queue = sslops.KeyQueue(7, 1, normalize=False, backend=backend)
    for step in range(5):
        queue.enqueue_(torch.full((3, 1), float(step)))
    assert queue.keys[:, 0].tolist() == [4, 2, 3, 3, 3, 4, 4]
    assert queue.pointer.item() == 15 % 7


@by_backend
def test_a_resumed_queue_is_the_queue_that_was_saved(backend):
    # lightly's bank is not in the state_dict: a resumed run starts with random negatives.
    batches = [torch.randn(5, 4) for _ in range(6)]
    through = sslops.KeyQueue(12, 4, backend=backend)
    for keys in batches[:3]:
        through.enqueue_(keys)
    saved = {name: value.clone() for name, value in through.state_dict().items()}
    resumed = sslops.KeyQueue(12, 4, backend=backend)
    resumed.load_state_dict(saved)
    for queue in (through, resumed):
        for keys in batches[3:]:
            queue.enqueue_(keys)
    assert torch.equal(resumed.keys, through.keys)
    assert torch.equal(resumed.pointer, through.pointer)


def test_ddp_sees_no_buffer_that_it_would_overwrite():
    # DistributedDataParallel broadcasts rank 0's buffers before every forward pass.
    model = torch.nn.ModuleDict({"queue": sslops.KeyQueue(4, 2)})
    assert list(model.named_buffers()) == [] and list(model.parameters()) == []
    assert set(model.state_dict()) == {"queue.keys", "queue.pointer"}


# ------------------------------------------------------------------ values


@by_backend
def test_a_zero_key_stays_zero_and_a_nan_key_stays_alone(backend):
    queue = sslops.KeyQueue(4, 3, backend=backend)
    keys = torch.randn(4, 3)
    keys[1] = 0
    keys[2] = 1e-13  # a norm below 1e-12 counts as zero, as in sslops.unit_rows
    keys[3, 1] = float("nan")
    queue.enqueue_(keys)
    assert queue.keys[1].tolist() == [0.0, 0.0, 0.0]
    assert queue.keys[2].tolist() == [0.0, 0.0, 0.0]
    assert queue.keys[3].isnan().all()
    torch.testing.assert_close(queue.keys[0], keys[0] / keys[0].norm())


@by_backend
def test_half_keys_do_not_overflow_in_the_norm(backend):
    queue = sslops.KeyQueue(2, 8, dtype=torch.float16, backend=backend)
    queue.enqueue_(torch.full((2, 8), 60000.0, dtype=torch.float16))
    torch.testing.assert_close(queue.keys.float(), torch.full((2, 8), 8**-0.5), atol=2e-4, rtol=0)


@by_backend
@pytest.mark.parametrize(
    "view", [lambda k: k[:, 1:6], lambda k: k[::2, :5], lambda k: k.T[:5].T, lambda k: k[:1, :5]]
)
def test_keys_of_any_strides(view, backend):
    keys = view(torch.randn(8, 8))
    queue, plain = (sslops.KeyQueue(6, 5, backend=b) for b in (backend, "reference"))
    plain.load_state_dict(queue.state_dict())
    queue.enqueue_(keys)
    plain.enqueue_(keys.clone(memory_format=torch.contiguous_format))
    torch.testing.assert_close(queue.keys, plain.keys)


@by_backend
def test_an_odd_pointer_never_leads_outside(backend):
    queue = sslops.KeyQueue(5, 1, normalize=False, backend=backend)
    for pointer, first in ((-1, 4), (7, 2), (-(2**62), -(2**62) % 5)):
        queue.pointer.fill_(pointer)
        queue.stored.fill_(-1)
        queue.enqueue_(torch.tensor([[0.0], [1.0]]))
        assert queue.keys[first].item() == 0 and queue.keys[(first + 1) % 5].item() == 1
        assert (queue.keys == -1).sum() == 3
        assert queue.pointer.item() == (first + 2) % 5


def test_initial_keys_are_random_unit_rows_of_the_seed():
    def make(seed):
        torch.manual_seed(seed)
        return sslops.KeyQueue(1000, 16).keys

    keys = make(3)
    assert torch.equal(make(3), keys) and not torch.equal(make(4), keys)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(1000))
    assert keys.mean(0).abs().max() < 5 / (16 * 1000) ** 0.5  # five standard errors


@by_backend
def test_no_gradient_is_tracked(backend):
    queue = sslops.KeyQueue(4, 3, backend=backend)
    keys = torch.randn(2, 3, requires_grad=True)
    queue.enqueue_(keys * 2)
    assert not queue.keys.requires_grad and queue.keys.grad_fn is None
    assert keys.grad is None


@by_backend
def test_autograd_notices_that_the_queue_was_written(backend):
    queue, query = sslops.KeyQueue(4, 3, backend=backend), torch.randn(2, 3, requires_grad=True)
    logits = query @ queue.keys.T
    queue.enqueue_(torch.randn(1, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_double_queues_run_the_specification():
    queue = sslops.KeyQueue(4, 3, dtype=torch.float64)
    keys = torch.randn(2, 3, dtype=torch.float64)
    queue.enqueue_(keys)
    torch.testing.assert_close(queue.keys[:2], keys / keys.norm(dim=1, keepdim=True))


# ------------------------------------------------------------------ module, compile, bad input


def test_dtype_survives_half_and_device_moves_with_the_module():
    queue = sslops.KeyQueue(4, 3)
    assert queue.half().keys.dtype == torch.float32
    assert queue.to("meta").keys.device.type == queue.pointer.device.type == "meta"
    assert queue.to_empty(device="cpu").keys.device.type == "cpu"


@by_backend
def test_compiles_in_one_graph(backend):
    queue, plain = (sslops.KeyQueue(5, 3, backend=b) for b in (backend, backend))
    plain.load_state_dict(queue.state_dict())

    def step(queue, keys):
        queue.enqueue_(keys)
        return queue.keys.sum() + queue.pointer

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        keys = torch.randn(2, 3)
        torch.testing.assert_close(compiled(queue, keys), step(plain, keys))
    assert torch.equal(queue.keys, plain.keys) and torch.equal(queue.pointer, plain.pointer)


@pytest.mark.skipif(not COMPILED, reason="sslops._C is not built")
def test_op_passes_opcheck():
    stored, keys = torch.randn(5, 3), torch.randn(2, 3)
    pointer, blocks_done = torch.tensor(4), torch.zeros(1, dtype=torch.int32)
    arguments = (stored, pointer, blocks_done, keys, 5, 0, True)
    torch.library.opcheck(torch.ops.sslops.enqueue_, arguments)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: sslops.KeyQueue(0, 3), ValueError, "size must be at least 1"),
        (lambda: sslops.KeyQueue(4, 2.0), TypeError, "dim must be an int"),
        (lambda: sslops.KeyQueue(4, 3, dtype=torch.int32), TypeError, "dtype must be"),
        (lambda: sslops.KeyQueue(4, 3, sharded=True), ValueError, "needs a group"),
        (lambda: sslops.KeyQueue(4, 3).enqueue_([1.0]), TypeError, "keys must be a tensor"),
        (lambda: sslops.KeyQueue(4, 3).enqueue_(torch.zeros(2, 4)), ValueError, r"\[B, 3\]"),
        (lambda: sslops.KeyQueue(4, 3).enqueue_(torch.zeros(3)), ValueError, "dimensions"),
        (lambda: sslops.KeyQueue(4, 3).enqueue_(torch.zeros(2, 3).long()), TypeError, "floating"),
        (lambda: sslops.KeyQueue(4, 3).enqueue_(torch.zeros(2, 3, device="meta")), ValueError,
         "must be on cpu"),
        (lambda: sslops.KeyQueue(4, 3, backend="cuda").enqueue_(torch.zeros(2, 3)), RuntimeError,
         "cannot run here"),
        (lambda: sslops.KeyQueue(4, 3).load_state_dict(sslops.KeyQueue(5, 3).state_dict()),
         RuntimeError, r"keys must have shape \(4, 3\)"),
        (lambda: sslops.KeyQueue(4, 3).load_state_dict({}), RuntimeError, "Missing key"),
        (lambda: sslops.KeyQueue(4, 3).load_state_dict(
            {**sslops.KeyQueue(4, 3).state_dict(), "bank": torch.zeros(1)}),
         RuntimeError, "Unexpected key"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
