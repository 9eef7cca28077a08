"""The edges of both contrastive losses, on every backend: sizes, ties, zeros, extremes, strides."""

import math

import pytest
import torch
from backends import LAYOUTS

SIZES = [1, 2, 3, 31, 64, 127, 128, 129, 1000, pytest.param(4097, marks=pytest.mark.slow)]
WIDTHS = [1, 8, 63, 64, 128, 200, 768,
          *(pytest.param(D, marks=pytest.mark.slow) for D in (24, 96, 256, 384, 1024))]  # fmt: skip
HALF = [torch.float16, torch.bfloat16]


def pair(N, D, dtype=torch.float32):
    """A query and a noisy copy of it."""
    q = torch.randn(N, D)
    return q.to(dtype), (q + torch.randn(N, D)).to(dtype)


def skip_if_slow(loss, logits):
    if loss.is_interpreted and logits > 200**2:
        pytest.skip("too large for Triton's interpreter")


@pytest.mark.parametrize("N", SIZES)
def test_number_of_rows(loss, N):
    skip_if_slow(loss, N**2)
    loss.assert_agrees(*pair(N, 16), temperature=0.2)


@pytest.mark.parametrize("M", SIZES)
def test_number_of_negatives(info_nce, M):
    skip_if_slow(info_nce, 5 * M)
    info_nce.assert_agrees(*pair(5, 16), torch.randn(M, 16), temperature=0.2)


@pytest.mark.parametrize("D", WIDTHS)
def test_width(loss, D):
    loss.assert_agrees(*pair(19, D), temperature=0.2)


@pytest.mark.parametrize("D", WIDTHS)
def test_width_with_negatives(info_nce, D):
    info_nce.assert_agrees(*pair(5, D), torch.randn(19, D), reduction="none")


def test_one_candidate_gives_zero_loss_and_zero_gradient(loss):
    for dtype in (torch.float32, *HALF):
        z = [x.requires_grad_() for x in pair(1, 8, dtype)]
        for temperature in (0.5, 1e-4):
            value = loss(*z, temperature=temperature)
            assert value.item() == 0.0
            assert all(g.eq(0).all() for g in torch.autograd.grad(value, z))


def test_no_negatives_give_zero_loss_and_zero_gradient(info_nce):
    z = [*pair(5, 8), torch.empty(0, 8)]
    z = [x.requires_grad_() for x in z]
    value = info_nce(*z)
    assert value.item() == 0.0
    assert all(g.eq(0).all() for g in torch.autograd.grad(value, z))


def test_no_rows_give_nan_for_mean_and_zero_for_sum(loss):
    z = [torch.empty(0, 8, requires_grad=True) for _ in range(2)]
    assert loss(*z).isnan()
    assert loss(*z, reduction="sum").item() == 0.0
    assert loss(*z, reduction="none").shape == (0,)
    for reduction in ("mean", "sum"):
        for gradient in torch.autograd.grad(loss(*z, reduction=reduction), z):
            assert gradient.shape == (0, 8)


def test_no_rows_send_no_gradient_to_the_negatives(info_nce):
    negatives = torch.randn(7, 8, requires_grad=True)
    info_nce(torch.empty(0, 8), torch.empty(0, 8), negatives, reduction="sum").backward()
    assert negatives.grad.eq(0).all()


def test_no_batches(info_nce):
    q = torch.empty(0, 3, 8, requires_grad=True)
    assert info_nce(q, q, reduction="none").shape == (0, 3)
    (gradient,) = torch.autograd.grad(info_nce(q, q, reduction="sum"), q)
    assert gradient.shape == (0, 3, 8)


def test_duplicate_rows(loss):
    z0, z1 = pair(20, 16)
    z0[3], z1[7], z1[9] = z0[11], z1[8], z0[9]
    z0[15], z1[15] = z0[14], z1[14]
    loss.assert_agrees(z0, z1, temperature=0.1, reduction="none")


def test_ties_do_not_count_as_more_similar(info_nce):
    """Every candidate is the positive; products of ones are exact in any order of summation."""
    ones = torch.ones(6, 16)
    for negatives in (None, torch.ones(4, 16)):
        _, stats = info_nce(ones, ones, negatives, normalize=False, return_stats=True)
        assert stats.positive_rank.eq(0).all()


def test_zero_vectors_have_finite_losses_and_zero_gradients(loss):
    for dtype in (torch.float32, *HALF):
        z = pair(6, 8, dtype)
        z[0][2] = 0
        z[1][4] = 0
        leaves = [x.clone().requires_grad_() for x in z]
        rows = loss(*leaves, reduction="none")
        assert rows.isfinite().all()
        d0, d1 = torch.autograd.grad(rows.sum(), leaves)
        assert d0.isfinite().all() and d1.isfinite().all()
        assert d0[2].eq(0).all() and d1[4].eq(0).all()
        assert d0[[0, 1, 3, 4, 5]].ne(0).any(1).all()  # the others still learn
        if dtype == torch.float32:
            loss.assert_agrees(*z, temperature=0.3)


def test_zero_negatives_have_zero_gradients(info_nce):
    negatives = torch.randn(9, 8)
    negatives[4] = 0
    negatives.requires_grad_()
    info_nce(*pair(5, 8), negatives).backward()
    assert negatives.grad.isfinite().all() and negatives.grad[4].eq(0).all()
    assert negatives.grad[:4].ne(0).any(1).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_1e4(loss, sign):
    """T = 1e-4: the positive at +-1e4 among candidates between."""
    z0, _ = pair(17, 16)
    loss.assert_agrees(z0, sign * z0, temperature=1e-4, reduction="none")
    rows = loss(z0, -z0, temperature=1e-4, reduction="none")
    assert (rows > 1e4).all() and rows.isfinite().all()


def test_negatives_with_logits_of_1e4(info_nce):
    q, k = pair(5, 16)
    info_nce.assert_agrees(q, k, torch.cat([q, -q]), temperature=1e-4, reduction="none")


def test_unnormalised_logits_of_1e4(loss):
    z0, z1 = pair(17, 16)
    loss.assert_agrees(30 * z0, 30 * z1, temperature=1.0, normalize=False, reduction="none")


@pytest.mark.parametrize("N", [1, 2, 3, 31, 64, 129])
@pytest.mark.parametrize("D", [1, 4, 64, 256])  # unit rows of 1, 1/2, 1/8, 1/16: exact sums
def test_all_logits_equal_gives_the_log_of_the_number_of_candidates(loss, N, D):
    rows = loss(torch.ones(N, D), torch.ones(N, D), temperature=0.07, reduction="none")
    candidates = N if loss.op_name == "info_nce" else 2 * N - 1
    expected = torch.full_like(rows, math.log(candidates))
    # The last bit is that of the logarithm's library; one candidate gives exactly 0.
    torch.testing.assert_close(rows, expected, rtol=torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.parametrize("M", [1, 3, 127, 128])
def test_all_negatives_equal_to_the_positive(info_nce, M):
    rows = info_nce(torch.ones(3, 24), torch.ones(3, 24), torch.ones(M, 24), reduction="none")
    # The positive and the negatives come from different sums: logits of 10 differ by a rounding.
    torch.testing.assert_close(rows, torch.full_like(rows, math.log(1 + M)), rtol=0, atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("negatives", [False, True])
def test_temperature_as_a_tensor_with_gradient(info_nce, dtype, negatives):
    tensors = [*pair(19, 16)] + ([torch.randn(7, 16)] if negatives else [])
    temperature = torch.tensor(0.2, dtype=dtype)
    for reduction in ("mean", "none"):
        info_nce.assert_agrees(*tensors, temperature=temperature, reduction=reduction)
    t = temperature.requires_grad_()
    (gradient,) = torch.autograd.grad(info_nce(*tensors, temperature=t), t)
    assert gradient.dtype == dtype and gradient.shape == ()


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"normalize": False}], ids=str)
def test_temperature_gradient_of_other_forms(info_nce, options):
    temperature = torch.tensor(0.7)
    for reduction in ("mean", "none"):
        info_nce.assert_agrees(*pair(19, 16), temperature=temperature, reduction=reduction,
                               **options)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_temperature_gradient_of_nt_xent(nt_xent, dtype):
    for normalize in (True, False):
        nt_xent.assert_agrees(*pair(19, 16), temperature=torch.tensor(0.7, dtype=dtype),
                              normalize=normalize, reduction="none")  # fmt: skip


def test_temperature_as_a_tensor_equals_the_float(loss):
    z = pair(9, 8)
    for shape in ((), (1,)):
        told, known = loss(*z, temperature=torch.full(shape, 0.25)), loss(*z, temperature=0.25)
        # Triton shifts exponentials by 1/T where it knows T, else by the maximum: other roundings.
        torch.testing.assert_close(
            told, known, rtol=2**-22 if loss.backend == "triton" else 0, atol=0
        )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wanted", range(4))
def test_gradient_of_only_one_argument(info_nce, wanted, reduction):
    tensors = [*pair(9, 8), torch.randn(5, 8), torch.tensor(0.3)]
    every = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(info_nce(*every, reduction=reduction).sum(), every)[wanted]
    single = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
    value = info_nce(*single, reduction=reduction).sum()
    torch.testing.assert_close(torch.autograd.grad(value, single[wanted])[0], expected)


@pytest.mark.parametrize("wanted", range(3))
def test_gradient_of_only_one_view(loss, wanted):
    tensors = [*pair(9, 8), torch.tensor(0.3)]
    z0, z1, T = every = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(loss(z0, z1, temperature=T), every)[wanted]
    z0, z1, T = single = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
    (gradient,) = torch.autograd.grad(loss(z0, z1, temperature=T), single[wanted])
    torch.testing.assert_close(gradient, expected)


def test_the_same_tensor_as_both_views(loss):
    z = torch.randn(9, 8)
    once = z.clone().requires_grad_()
    apart = [z.clone().requires_grad_() for _ in range(2)]
    (gradient,) = torch.autograd.grad(loss(once, once), once)
    torch.testing.assert_close(gradient, sum(torch.autograd.grad(loss(*apart), apart)))


def test_without_gradients_the_values_are_the_same(loss):
    z = [x.requires_grad_() for x in pair(9, 8)]
    for reduction in ("mean", "none"):
        with torch.no_grad():
            value = loss(*z, reduction=reduction)
        assert not value.requires_grad
        torch.testing.assert_close(value, loss(*z, reduction=reduction).detach())
        with torch.inference_mode():
            torch.testing.assert_close(loss(*z, reduction=reduction), value)


def test_permuting_the_batch_permutes_the_rows(loss):
    z = [x.requires_grad_() for x in pair(37, 16)]
    order = torch.randperm(37)
    rows = loss(*z, reduction="none")
    permuted = [x.detach()[order].requires_grad_() for x in z]
    permuted_rows = loss(*permuted, reduction="none")
    both = order if loss.op_name == "info_nce" else torch.cat([order, 37 + order])
    torch.testing.assert_close(permuted_rows, rows[both], rtol=2e-6, atol=4e-6)
    for a, b in zip(torch.autograd.grad(rows.mean(), z),
                    torch.autograd.grad(permuted_rows.mean(), permuted), strict=True):  # fmt: skip
        torch.testing.assert_close(b, a[order], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_twenty_runs_are_bitwise_the_same(loss, reduction):
    z = [x.requires_grad_() for x in pair(129 if not loss.is_interpreted else 40, 24)]

    def run():
        value = loss(*z, reduction=reduction)
        return [value, *torch.autograd.grad(value.sum(), z)]

    first = run()
    for _ in range(19 if not loss.is_interpreted else 3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(loss, layout):
    for reduction in ("mean", "none"):
        loss.assert_agrees(*pair(21, 24), layout=LAYOUTS[layout], reduction=reduction)


def test_expanded_rows(info_nce):
    q, k = pair(7, 8)
    row = torch.randn(1, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(info_nce(row.expand(7, 8), k), row)
    copied = row.detach().repeat(7, 1).requires_grad_()
    (expected,) = torch.autograd.grad(info_nce(copied, k), copied)
    torch.testing.assert_close(gradient, expected.sum(0, keepdim=True), rtol=1e-5, atol=1e-7)
    negatives = torch.randn(1, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(info_nce(q, k, negatives.expand(5, 8)), negatives)
    copied = negatives.detach().repeat(5, 1).requires_grad_()
    (expected,) = torch.autograd.grad(info_nce(q, k, copied), copied)
    torch.testing.assert_close(gradient, expected.sum(0, keepdim=True), rtol=1e-5, atol=1e-7)


def test_strided_leading_dimensions(info_nce):
    q, k = torch.randn(2, 5, 3, 8).unbind()
    rows = info_nce(q.transpose(0, 1), k.transpose(0, 1), reduction="none")
    expected = info_nce(q.transpose(0, 1).contiguous(), k.transpose(0, 1).contiguous(),
                        reduction="none")  # fmt: skip
    torch.testing.assert_close(rows, expected)


def test_sum_of_the_rows_sends_the_gradient_of_the_sum(loss):
    """The upstream gradient of a sum is an expanded scalar: a stride of zero."""
    z = [x.requires_grad_() for x in pair(21, 16)]
    whole = torch.autograd.grad(loss(*z, reduction="sum"), z)
    rows = torch.autograd.grad(loss(*z, reduction="none").sum(), z)
    mean = torch.autograd.grad(loss(*z), z)
    count = loss(*z, reduction="none").numel()
    for a, b, c in zip(whole, rows, mean, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a, c * count, rtol=1e-5, atol=1e-6)


def test_a_nan_query_does_not_poison_the_other_rows(info_nce):
    for negatives in (None, torch.randn(6, 8)):
        q, k = pair(9, 8)
        clean = q.clone().requires_grad_()
        q[4, 3] = torch.nan
        q.requires_grad_()
        others = torch.arange(9) != 4
        rows, expected = (info_nce(x, k, negatives, reduction="none") for x in (q, clean))
        assert rows[4].isnan()
        torch.testing.assert_close(rows[others], expected[others])
        for value, reference in ((rows[others].sum(), expected[others].sum()),
                                 (rows.sum(), expected.sum())):  # fmt: skip
            (gradient,) = torch.autograd.grad(value, q, retain_graph=True)
            (clean_gradient,) = torch.autograd.grad(reference, clean, retain_graph=True)
            torch.testing.assert_close(gradient[others], clean_gradient[others],
                                       rtol=1e-5, atol=1e-6)  # fmt: skip


def test_a_nan_query_does_not_poison_the_mean_s_other_gradients(info_nce):
    q, k = pair(9, 8)
    q[4] = torch.nan
    q.requires_grad_()
    value = info_nce(q, k)
    assert value.isnan()
    (gradient,) = torch.autograd.grad(value, q)
    assert gradient[torch.arange(9) != 4].isfinite().all()


def test_loss_is_float32_and_gradients_have_the_dtype_of_the_inputs(loss):
    for dtype in (torch.float32, *HALF):
        z = [x.requires_grad_() for x in pair(9, 8, dtype)]
        for reduction in ("mean", "sum", "none"):
            value = loss(*z, reduction=reduction)
            assert value.dtype == torch.float32
            assert all(g.dtype == dtype for g in torch.autograd.grad(value.sum(), z))


def test_float64_stays_float64(loss):
    z = [x.requires_grad_() for x in pair(9, 8, torch.float64)]
    value = loss(*z)
    assert value.dtype == torch.float64
    assert all(g.dtype == torch.float64 for g in torch.autograd.grad(value, z))


def test_inputs_are_left_as_they_are(loss):
    z = [x.requires_grad_() for x in pair(9, 8)]
    before = [x.detach().clone() for x in z]
    value = loss(*z)
    value.backward()
    assert all(torch.equal(a, b) for a, b in zip(before, z, strict=True))


def test_memory_is_linear_in_the_rows(loss):
    """At N = 8192 the logits alone would take 256 MiB (nt_xent: 1 GiB at 2N rows)."""
    if loss.backend == "reference" or loss.is_interpreted:
        pytest.skip("stores the logits" if loss.backend == "reference" else "too large")
    N = 8192 if loss.op_name == "info_nce" else 4096
    z = [x.requires_grad_() for x in pair(N, 8)]
    loss(*(x[:256] for x in z)).backward()  # whatever is loaded once

    before = peak_mib(reset=True)
    loss(*z).backward()
    assert peak_mib() - before < 128


def peak_mib(reset=False):
    """Peak memory of the process (Linux); with reset, the peak becomes the present."""
    try:
        if reset:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        with open("/proc/self/status") as file:
            (line,) = (line for line in file if line.startswith("VmHWM"))
    except OSError as error:
        pytest.skip(f"no peak memory here: {error}")
    return int(line.split()[1]) / 1024
