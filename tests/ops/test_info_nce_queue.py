"""info_nce against a KeyQueue, on every backend: the values, and MoCo's order of writing."""

import pytest
import torch

import sslops

N, D, M = 6, 8, 21


def inputs(dtype=torch.float32, queue_dtype=torch.float32, **options):
    torch.manual_seed(2)
    queue = sslops.KeyQueue(M, D, dtype=queue_dtype, **options)
    queue.enqueue_(3 * torch.randn(M, D))
    query = torch.randn(N, D)
    key = query + torch.randn(N, D)
    return query.to(dtype).requires_grad_(), key.to(dtype).requires_grad_(), queue


def plain(query, key, keys, temperature, normalize=True):
    """Row losses of MoCo's eager code in float64."""
    if normalize:
        query, key = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (query, key))
    query, key = query.double(), key.double()
    logits = torch.cat([(query * key).sum(-1, keepdim=True), query @ keys.double().T], dim=1)
    target = torch.zeros(len(query), dtype=torch.int64)
    return torch.nn.functional.cross_entropy(logits / temperature, target, reduction="none")


def gradients(loss, tensors):
    return torch.autograd.grad(
        loss, tensors, torch.arange(1.0, 1 + loss.numel()).reshape(loss.shape)
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_equals_the_eager_loss_with_gradients(info_nce, reduction):
    query, key, queue = inputs()
    temperature = torch.tensor(0.2, requires_grad=True)
    tensors = (query, key, temperature)
    loss = info_nce(query, key, queue, temperature, reduction)
    expected = plain(query, key, queue.keys, temperature)
    expected = expected.mean() if reduction == "mean" else expected
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    ours, exact = gradients(loss, tensors), gradients(expected, tensors)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("queue_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_writing_before_backward_does_not_change_the_gradient(info_nce, reduction, queue_dtype):
    # MoCo's order: logits, then enqueue, then backward.
    query, key, queue = inputs(queue_dtype=queue_dtype)
    temperature = torch.tensor(0.2, requires_grad=True)
    tensors = (query, key, temperature)

    def loss():
        return info_nce(query, key, queue, temperature, reduction)

    before = gradients(loss(), tensors)
    value = loss()
    queue.enqueue_(torch.randn(2 * M, D))
    after = gradients(value, tensors)
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(loss(), value)


def test_a_key_enters_the_queue_after_the_loss_and_is_no_negative_of_its_own_query(info_nce):
    # stable-pretraining writes first: every positive is a negative too and its probability is
    # at most 1/2 (pytorch-metric-learning #24 is the same fault).
    query, _, queue = inputs()
    loss, stats = info_nce(query, query, queue, 0.01, "none", return_stats=True)
    queue.enqueue_(query)
    assert (loss.exp() < 2).all()  # the probability of the positive is e^-loss > 1/2
    assert (stats.positive_rank == 0).all()
    late = info_nce(query, query, queue, 0.01, "none")
    assert (late.exp() >= 2 - 1e-3).all()


def test_rows_of_a_normalising_queue_are_taken_as_they_are(info_nce):
    query, key, queue = inputs()
    queue.stored.mul_(0.5)  # not unit rows: normalising again would show
    loss = info_nce(query, key, queue, 0.2, "none")
    expected = plain(query, key, queue.keys, 0.2)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_of_a_queue_that_does_not_normalise(info_nce, normalize):
    query, key, queue = inputs(normalize=False)
    assert queue.keys.norm(dim=1).max() > 2
    loss = info_nce(query, key, queue, 5.0, "none", normalize=normalize)
    keys = torch.nn.functional.normalize(queue.keys, dim=-1) if normalize else queue.keys
    expected = plain(query, key, keys, 5.0, normalize)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "dtype, queue_dtype",
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
)
def test_the_dtype_of_the_queue_may_be_another(info_nce, dtype, queue_dtype):
    query, key, queue = inputs(dtype, queue_dtype)
    loss = info_nce(query, key, queue, 0.2)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = plain(query, key, queue.keys, 0.2).mean()
    # Unit rows are rounded to the common type, which 1/T magnifies; gradients to that of the query.
    common = torch.finfo(torch.promote_types(dtype, queue_dtype)).eps
    allowed = 2 * max(common, torch.finfo(torch.float32).eps) / 0.2
    assert abs(loss.item() - exact.item()) <= allowed
    ours = torch.autograd.grad(loss, (query, key))
    expected = torch.autograd.grad(exact, (query, key))
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == dtype
        largest = (allowed + torch.finfo(dtype).eps) * b.double().abs().max()
        assert (a.double() - b.double()).abs().max() <= largest


def test_a_training_step_with_its_queue_compiles_in_one_graph(info_nce):
    query, key, queue = inputs()
    _, _, other = inputs()

    def step(queue, query, key):
        loss = info_nce.public(query, key, queue, 0.2, backend=info_nce.backend)
        queue.enqueue_(key)
        return loss

    info_nce(query, key, queue, 0.2)  # skips where the backend cannot run
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        ours, eager = compiled(queue, query, key), step(other, query, key)
        torch.testing.assert_close(ours, eager)
        for a, b in zip(
            torch.autograd.grad(ours, (query, key)), torch.autograd.grad(eager, (query, key)),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(a, b)
    assert torch.equal(queue.keys, other.keys)


def test_leading_dimensions_share_the_queue(info_nce):
    query, key, queue = inputs()
    loss = info_nce(query.view(2, 3, D), key.view(2, 3, D), queue, 0.2, "none")
    torch.testing.assert_close(loss.flatten(), info_nce(query, key, queue, 0.2, "none"))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(negative_mode="paired"), "paired"),
        (dict(symmetric=True), "needs negative_keys=None"),
    ],
)
def test_bad_options_are_named(options, words):
    query, key, queue = inputs()
    with pytest.raises(ValueError, match=words):
        sslops.info_nce(query, key, queue, **options)


def test_another_width_is_named():
    query, key, _ = inputs()
    with pytest.raises(ValueError, match="KeyQueue of width 5, must have the width of query"):
        sslops.info_nce(query, key, sslops.KeyQueue(4, 5))


def test_another_device_is_named():
    query, key, queue = inputs()
    with pytest.raises(ValueError, match="device of query"):
        sslops.info_nce(query, key, queue.to("meta"))
