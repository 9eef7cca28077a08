"""Masking under torch.compile and opcheck, its derivatives, and what bad input gets."""

import pytest
import torch
from masking_helpers import COMPILED, by_backend, compiled

import sslops


@pytest.mark.parametrize("masked", [0, 3, 4])
def test_derivatives_of_the_specification(masked):
    ids_keep, ids_restore, _ = sslops.sample_mask(2, 5, masked / 5, backend="reference")
    K = ids_keep.shape[1]

    def double(*shape):
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    keep = lambda x: sslops.gather_tokens(x, ids_keep, num_prefix_tokens=1)  # noqa: E731
    restore = lambda x, t, p: sslops.restore_tokens(  # noqa: E731
        x, ids_restore, t, p, num_prefix_tokens=1
    )
    patches = lambda x: sslops.gather_patches(x, ids_keep[:, :1] % 4, 2)  # noqa: E731
    assert torch.autograd.gradcheck(keep, [double(2, 6, 3)])
    assert torch.autograd.gradcheck(restore, [double(2, 1 + K, 3), double(3), double(1, 6, 3)])
    if K:
        assert torch.autograd.gradcheck(patches, [double(2, 3, 4, 4)])


def opcheck_arguments():
    """Name of an op and its arguments: B = 2, L = 6, P = 1, D = 5, two patches of four."""
    x, x_kept = torch.randn(2, 7, 5, requires_grad=True), torch.randn(2, 4, 5, requires_grad=True)
    token, position = torch.randn(5, requires_grad=True), torch.randn(1, 7, 5, requires_grad=True)
    images, patches = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 2, 48)
    ids_keep, ids_restore, _ = sslops.sample_mask(2, 6, 0.5)
    ids_patch, noise = torch.tensor([[1, 0], [2, 3]]), torch.rand(2, 6)
    return [
        ("random_masking", x, noise, 0, 0, None, 0, 3, 1),
        ("random_masking", x, None, 5, 0, torch.tensor(3), 2, 3, 1),
        ("select_rows", x, ids_keep, 1, True),
        ("select_rows", x_kept, ids_restore, 1, False),
        ("scatter_rows", x_kept, ids_keep, 6, 1, torch.float32),
        ("restore_tokens", x_kept, ids_restore, token, position, 1),
        ("restore_tokens", x_kept, ids_restore, token, None, 1),
        ("restore_gradients", x.detach(), ids_restore, 3, 1, True, True),
        ("restore_gradients", x.detach(), ids_restore, 3, 1, False, False),
        ("gather_patches", images, ids_patch, 4),
        ("scatter_patches", patches, ids_patch, 3, 8, 8, 4),
    ]


@pytest.mark.skipif(not COMPILED, reason="sslops._C is not built")
@pytest.mark.parametrize("call", opcheck_arguments(), ids=lambda call: call[0])
def test_ops_pass_opcheck(call):
    name, *arguments = call
    torch.library.opcheck(getattr(torch.ops.sslops, name), tuple(arguments))


@by_backend
def test_a_masked_autoencoder_compiles_in_one_graph(backend):
    token, position = torch.randn(8, requires_grad=True), torch.randn(1, 17, 8)

    def step(images, x, noise):
        x_kept, mask, ids_restore = sslops.random_masking(
            x, 0.75, noise=noise, num_prefix_tokens=1, backend=backend
        )
        out = sslops.restore_tokens(
            x_kept * 2, ids_restore, token, position, num_prefix_tokens=1, backend=backend
        )
        ids_keep = ids_restore.argsort(dim=1)[:, :4]
        patches = sslops.gather_patches(images, ids_keep, 2, backend=backend)
        kept = sslops.gather_tokens(x, ids_keep, num_prefix_tokens=1, backend=backend)
        return out.pow(2).sum() + patches.sum() + (mask * noise).sum() + kept.pow(3).sum()

    images, x = torch.randn(2, 3, 8, 8), torch.randn(2, 17, 8, requires_grad=True)
    noise = torch.rand(2, 16)
    compiled_step = torch.compile(step, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(step(images, x, noise), (x, token))
    ours = torch.autograd.grad(compiled_step(images, x, noise), (x, token))
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)


@by_backend
def test_a_new_step_of_the_generator_is_not_baked_into_the_graph(backend):
    def mask(step):
        generator = sslops.CounterGenerator(1, step)
        return sslops.sample_mask(2, 16, 0.5, generator=generator, backend=backend).mask

    compiled_mask = torch.compile(mask, fullgraph=True, backend="aot_eager", dynamic=True)
    for step in (3, 4, 5):
        assert torch.equal(compiled_mask(step), mask(step))


X, IDS = torch.zeros(2, 5, 3), torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: sslops.random_masking([1.0], 0.5), TypeError, "x must be a tensor"),
        (lambda: sslops.random_masking(X[0], 0.5), ValueError, "x must be"),
        (lambda: sslops.random_masking(X.long(), 0.5), TypeError, "floating-point"),
        (lambda: sslops.random_masking(X, 1.0), ValueError, r"in \[0, 1\)"),
        (lambda: sslops.random_masking(X, -0.1), ValueError, r"in \[0, 1\)"),
        (lambda: sslops.random_masking(X, float("nan")), ValueError, r"in \[0, 1\)"),
        (lambda: sslops.random_masking(X, "0.5"), TypeError, "mask_ratio must be a float"),
        (lambda: sslops.random_masking(X, 0.5, num_prefix_tokens=6), ValueError, "num_prefix"),
        (lambda: sslops.random_masking(X, 0.5, num_prefix_tokens=-1), ValueError, "at least 0"),
        (lambda: sslops.random_masking(X, 0.5, noise=torch.rand(2, 4)), ValueError, "noise must"),
        (lambda: sslops.random_masking(X, 0.5, noise=torch.rand(2, 5).double()), TypeError,
         "noise must be float32"),
        (lambda: sslops.random_masking(X, 0.5, noise=torch.rand(2, 5), generator=torch.Generator()),
         ValueError, "not both"),
        (lambda: sslops.random_masking(X, 0.5, generator=7), TypeError, "generator must be"),
        (lambda: sslops.random_masking(X, 0.5, backend="fast"), ValueError, "backend must be"),
        (lambda: sslops.random_masking(X, 0.5, backend="cuda"), RuntimeError, "cannot run here"),
        (lambda: sslops.sample_mask(2, 15, 0.5, strategy="block"), ValueError, "square"),
        (lambda: sslops.sample_mask(2, 16, 0.5, strategy="grid"), ValueError, "0.75"),
        (lambda: sslops.sample_mask(2, 9, 0.75, strategy="grid"), ValueError, "even side"),
        (lambda: sslops.sample_mask(2, 16, 0.5, strategy="rows"), ValueError, "strategy must be"),
        (lambda: sslops.sample_mask(2, 16, 0.5, strategy="block", noise=torch.rand(2, 16)),
         ValueError, "noise is for"),
        (lambda: sslops.sample_mask(2.0, 16, 0.5), TypeError, "batch must be an int"),
        (lambda: sslops.sample_mask(-1, 16, 0.5), ValueError, "batch must be at least 0"),
        (lambda: sslops.CounterGenerator(-1), ValueError, "seed must be in"),
        (lambda: sslops.CounterGenerator(0, 2**32), ValueError, "step must be in"),
        (lambda: sslops.CounterGenerator(0, 0.5), TypeError, "step must be an int"),
        (lambda: sslops.CounterGenerator(0, torch.zeros(1)), ValueError, "0-d int64"),
        (lambda: sslops.gather_tokens(X, IDS.int()), TypeError, "torch.int64"),
        (lambda: sslops.gather_tokens(X, IDS[:1]), ValueError, "B = 2"),
        (lambda: sslops.gather_tokens(X, [[0]]), TypeError, "ids_keep must be a tensor"),
        (lambda: sslops.gather_tokens(X, IDS.to("meta")), ValueError, "must be on cpu"),
        (lambda: sslops.gather_patches(X, IDS, 2), ValueError, "images must be"),
        (lambda: sslops.gather_patches(torch.zeros(2, 3, 8, 8), IDS, 3), ValueError, "divide"),
        (lambda: sslops.gather_patches(torch.zeros(2, 3, 8, 8), IDS, 0), ValueError, "at least 1"),
        (lambda: sslops.restore_tokens(X, IDS, X[0, 0]), ValueError, "at most"),
        (lambda: sslops.restore_tokens(X[:, :1], IDS, X[0, 0, :2]), ValueError, "mask_token"),
        (lambda: sslops.restore_tokens(X[:, :1], IDS, X[0, 0], X), ValueError, "pos_embed"),
        (lambda: sslops.restore_tokens(X[:, :1], IDS, X[0, 0].to("meta")), ValueError, "on cpu"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_any_kernel(call, error, words):
    with pytest.raises(error, match=words):
        call()


@compiled
@pytest.mark.parametrize("bad", [5, -1, 2**40, -(2**63)])
def test_ids_out_of_range_are_reported_and_never_followed(bad, backend):
    x, ids = torch.randn(2, 5, 3), torch.tensor([[0, 1, 2, 3, 4], [4, 3, bad, 1, 0]])
    with pytest.raises(IndexError, match=rf"ids_keep\[1, 2\] must be in \[0, 5\); got {bad}"):
        sslops.gather_tokens(x, ids, backend=backend)
    with pytest.raises(IndexError, match=rf"ids_restore\[1, 2\] must be in \[0, 5\); got {bad}"):
        sslops.restore_tokens(x[:, :2], ids, x[0, 0], backend=backend)
    images = torch.randn(2, 3, 4, 20)
    with pytest.raises(IndexError, match=rf"ids_keep\[1, 2\] must be in \[0, 5\); got {bad}"):
        sslops.gather_patches(images, ids, 4, backend=backend)


@compiled
def test_the_first_bad_id_is_the_one_reported_for_any_number_of_threads(backend):
    ids = torch.zeros(300, 4, dtype=torch.int64)
    ids[17, 3], ids[18, 0], ids[299, 1] = 77, 78, 79
    for _ in range(5):
        with pytest.raises(IndexError, match=r"ids_keep\[17, 3\].*got 77"):
            sslops.gather_tokens(torch.zeros(300, 9, 64), ids, backend=backend)


@compiled
def test_a_token_named_twice_has_no_gradient_and_says_so(backend):
    x = torch.randn(2, 5, 3, requires_grad=True)
    kept = sslops.gather_tokens(x, torch.tensor([[0, 1], [3, 3]]), backend=backend)
    assert torch.equal(kept[1, 0], kept[1, 1])
    with pytest.raises(IndexError, match="token 3 of sample 1 is named twice"):
        kept.sum().backward()
