"""random_masking and gather_tokens: every backend against mae's algorithm, and by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from masking_helpers import (
    assert_same,
    by_backend,
    by_dtype,
    by_name,
    compiled,
    gradients,
    mae_random_masking,
)

import sslops


@by_backend
@by_name
def test_ids_mask_and_tokens_are_mae_bit_for_bit(case, backend):
    x, noise = case.tokens()
    expected = mae_random_masking(x[:, case.P :], case.mask_ratio, noise)
    x_kept, mask, ids_restore = sslops.random_masking(
        x, case.mask_ratio, noise=noise, num_prefix_tokens=case.P, backend=backend
    )
    assert torch.equal(x_kept[:, : case.P], x[:, : case.P])
    assert_same((x_kept[:, case.P :], mask, ids_restore), expected)


@compiled
@by_dtype
@by_name
def test_random_masking_agrees_with_the_reference_exactly(case, dtype, backend):
    x, noise = case.tokens(dtype=dtype)

    def run(backend):
        def kept(x):
            return sslops.random_masking(
                x, case.mask_ratio, noise=noise, num_prefix_tokens=case.P, backend=backend
            )[0]

        return gradients(kept, [x])

    assert_same(run(backend), run("reference"))


@by_backend
def test_hand_worked_mask(backend):
    x = torch.tensor([[[10.0, 11.0], [20.0, 21.0], [30.0, 31.0], [40.0, 41.0]]]).requires_grad_()
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.1]])  # order: 1, 3 (a tie), 2, 0
    x_kept, mask, ids_restore = sslops.random_masking(x, 0.5, noise=noise, backend=backend)
    assert x_kept.tolist() == [[[20.0, 21.0], [40.0, 41.0]]]
    assert mask.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    assert ids_restore.tolist() == [[3, 0, 2, 1]]
    x_kept.backward(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    assert x.grad.tolist() == [[[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]]


SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), -float("nan"), 1e-45, -1e-45, 1.0]


@compiled
@given(
    noise=st.lists(
        st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False)),
        min_size=1,
        max_size=70,
    ),
    kept=st.floats(0.01, 1.0),
)
def test_order_is_the_stable_argsort_for_any_noise(backend, noise, kept):
    noise = torch.tensor([noise, noise[::-1]])
    x = torch.arange(noise.numel(), dtype=torch.float32).reshape(*noise.shape, 1)
    ratio = 1 - kept
    ours = sslops.random_masking(x, ratio, noise=noise, backend=backend)
    assert_same(ours, mae_random_masking(x, ratio, noise))


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_in_half_precision_has_ties_and_keeps_their_order(backend, dtype):
    noise = torch.rand(3, 500).to(dtype)
    assert len(noise.unique()) < noise.numel()
    x = torch.randn(3, 500, 4)
    ours = sslops.random_masking(x, 0.7, noise=noise, backend=backend)
    assert_same(ours, mae_random_masking(x, 0.7, noise))


@by_backend
@pytest.mark.parametrize("length, ratio", [(10, 0.9), (196, 0.75), (7, 0.0), (1, 0.75), (3, 0.999)])
def test_keep_count_is_that_of_mae(length, ratio, backend):
    # int(10 * (1 - 0.9)) is 0, not 1: 1 - 0.9 is a little less than 0.1.
    x_kept, mask, _ = sslops.random_masking(torch.randn(2, length, 3), ratio, backend=backend)
    n_keep = int(length * (1 - ratio))
    assert x_kept.shape == (2, n_keep, 3)
    assert mask.sum(1).tolist() == [length - n_keep] * 2


@by_backend
def test_ids_restore_is_the_inverse_permutation(backend):
    ids_keep, ids_restore, mask = sslops.sample_mask(4, 99, 0.6, backend=backend)
    places = torch.arange(99).expand(4, -1)
    assert torch.equal(ids_restore.sort(dim=1).values, places)
    assert torch.equal(ids_restore.gather(1, ids_keep), places[:, : ids_keep.shape[1]])
    assert torch.equal(mask, (ids_restore >= ids_keep.shape[1]).float())


@by_backend
def test_same_seed_of_torch_gives_the_mask_of_mae(backend):
    x = torch.randn(3, 50, 4)
    torch.manual_seed(5)
    expected = mae_random_masking(x, 0.75, torch.rand(3, 50))
    torch.manual_seed(5)
    assert_same(sslops.random_masking(x, 0.75, backend=backend), expected)
    generator = torch.Generator().manual_seed(5)
    assert_same(sslops.random_masking(x, 0.75, generator=generator, backend=backend), expected)


@compiled
def test_result_does_not_depend_on_the_number_of_threads(backend):
    x, noise = torch.randn(40, 64, 33), torch.rand(40, 64)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            run = lambda x: sslops.random_masking(x, 0.5, noise=noise, backend=backend)[0]  # noqa: E731
            results.append(gradients(run, [x]))
    finally:
        torch.set_num_threads(threads)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@by_backend
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 1:],  # without the class token: samples lie apart
        lambda x: x[:, ::2],
        lambda x: x[..., 1:],  # rows start at odd addresses
        lambda x: x[..., ::2],
        lambda x: x.transpose(1, 2),
        lambda x: x[:1].expand(4, -1, -1),
        lambda x: x.flip(0)[1:],
    ],
)
def test_any_strides(view, backend):
    base = torch.randn(4, 21, 21)
    noise = torch.rand(4, 21)

    def kept(base):
        x = view(base)
        return sslops.random_masking(x, 0.5, noise=noise[: len(x), : x.shape[1]], backend=backend)[
            0
        ]

    def plain(base):
        x = view(base)
        return mae_random_masking(x, 0.5, noise[: len(x), : x.shape[1]])[0]

    assert_same(gradients(kept, [base]), gradients(plain, [base]))


@by_backend
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty_inputs(shape, backend):
    x = torch.randn(shape, requires_grad=True)
    x_kept, mask, ids_restore = sslops.random_masking(x, 0.5, backend=backend)
    assert x_kept.shape == (shape[0], shape[1] // 2, shape[2])
    assert mask.shape == ids_restore.shape == shape[:2]
    x_kept.sum().backward()
    assert x.grad.shape == shape


@compiled
@by_dtype
@by_name
def test_gather_tokens_agrees_with_the_reference_exactly(case, dtype, backend):
    x, noise = case.tokens(dtype=dtype)
    ids_keep = sslops.sample_mask(*noise.shape, case.mask_ratio, noise=noise).ids_keep

    def run(backend):
        return gradients(
            lambda x: sslops.gather_tokens(x, ids_keep, num_prefix_tokens=case.P, backend=backend),
            [x],
        )

    assert_same(run(backend), run("reference"))


@compiled
def test_gather_tokens_can_be_differentiated_twice(backend):
    x, ids_keep = torch.randn(2, 6, 3, requires_grad=True), torch.tensor([[4, 1], [0, 5]])

    def second(backend):
        kept = sslops.gather_tokens(x, ids_keep, backend=backend)
        (first,) = torch.autograd.grad(kept.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)

    assert_same(second(backend), second("reference"))
