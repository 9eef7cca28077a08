"""Blocks of logits: every backend against the specification, that against autograd in float64."""

import functools

import pytest
import torch

from sslops.ops import logit_blocks
from sslops.ops.logit_blocks.cases import CASES, Case
from sslops.unit_rows import unit_rows

BACKENDS = ["cpu", "chunked", "reference"]


def statistics(case, backend, dtype, **wanted):
    tensors, options = case.inputs(dtype)
    positive = None
    if case.positive is None:
        positive = torch.randn(case.B, case.N, generator=torch.Generator().manual_seed(3)).to(dtype)
    return logit_blocks.block_statistics(backend, *tensors, positive, **options, **wanted)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_agree_with_logsumexp_in_float64(case, backend):
    wanted = dict(columns=True, key_sums=backend != "cpu", ranks=True)  # which has none
    found = statistics(case, backend, torch.float32, **wanted)
    (q, k, T), options = case.inputs(torch.float64)
    prepare = unit_rows if case.normalize else torch.Tensor.double
    z = prepare(q) @ prepare(k).mT / T
    i = torch.arange(case.N)
    if options["excluded_at"] is not None:
        z[:, i, options["excluded_at"]] = -torch.inf
    tolerance = dict(rtol=3e-5, atol=1e-5 * max(1.0, z[z.isfinite()].abs().max().item()))
    for x, dim in ((found.rows, -1), (found.columns, -2)):
        lse = x[..., 0].double() + x[..., 1].double().log()
        torch.testing.assert_close(lse, z.logsumexp(dim), **tolerance)
    if wanted["key_sums"]:
        mean_key = found.rows[..., 2:] / found.rows[..., 1:2]
        expected = z.softmax(-1) @ prepare(k)
        torch.testing.assert_close(mean_key.double(), expected, rtol=1e-4, atol=1e-4)
    exact = statistics(case, "reference", torch.float64, **wanted)
    torch.testing.assert_close(found.positive.double(), exact.positive, **tolerance)
    assert torch.equal(found.rank, exact.rank)


@functools.cache
def sides(case):
    """Statistics and upstream gradients of both softmaxes, in float64."""
    found = statistics(case, "reference", torch.float64, columns=True)
    generator = torch.Generator().manual_seed(4)
    return [
        torch.cat([x, torch.randn(*x.shape[:2], 1, generator=generator).double()], -1)
        for x in (found.rows, found.columns)
    ]


def pick(rows, columns, which):
    return rows if which != "columns" else None, columns if which != "rows" else None


@functools.cache
def exact_gradients(case, which):
    """Of unit rows, by autograd: cross-entropies of both directions."""
    rows, columns = pick(*sides(case), which)
    (q, k, T), options = case.inputs(torch.float64)
    q, k = (unit_rows(x) if case.normalize else x for x in (q, k))
    q, k = (x.detach().requires_grad_() for x in (q, k))
    z, i = q @ k.mT / T, torch.arange(case.N)
    positive = z[:, i, options["positive_at"]] if case.positive is not None else 0.0
    if options["excluded_at"] is not None:
        is_own = torch.zeros(case.N, case.M, dtype=torch.bool)
        is_own[i, options["excluded_at"]] = True
        z = z.masked_fill(is_own, -torch.inf)
    loss = 0.0
    if rows is not None:
        loss = loss + (rows[..., 2] * (z.logsumexp(-1) - positive)).sum()
    if columns is not None:
        loss = loss + (columns[..., 2] * z.logsumexp(-2)).sum()
        if case.positive is not None:
            loss = loss - (columns[:, options["positive_at"], 2] * positive).sum()
    return torch.autograd.grad(loss, (q, k))


@pytest.mark.parametrize("which", ["rows", "columns", "both"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_agree_with_autograd_in_float64(case, backend, which):
    tensors, options = case.inputs(torch.float32)
    statistics = pick(*(x.float() for x in sides(case)), which)
    found, plain = (
        logit_blocks.block_gradients(b, *tensors, *statistics, **options)
        for b in (backend, "reference")
    )
    exact = exact_gradients(case, which)
    for a, of_plain, b in zip(found, plain, exact, strict=True):
        error, error_of_plain = (torch.linalg.vector_norm(x - b) for x in (a, of_plain))
        # Sums of 30000 terms round more than 2e-6: then no worse than twice plain PyTorch.
        allowed = 2e-6 / case.temperature * torch.linalg.vector_norm(b).clamp(min=1.0)
        assert error < max(allowed, 2 * error_of_plain)
        assert error_of_plain < 10 * allowed


def test_a_block_cut_in_two_merges_to_the_whole():
    case = Case("whole", 5, 12, 7)
    (q, k, T), _ = case.inputs(torch.float64)
    positive = torch.zeros(1, 5).double()
    rows = [
        logit_blocks.block_statistics("reference", q, part, T, positive, normalize=True,
                                      key_sums=True).rows
        for part in (k, k[:, :4], k[:, 4:4], k[:, 4:])
    ]  # fmt: skip
    whole, *parts = rows
    merged = logit_blocks.merged(logit_blocks.merged(parts[1], parts[0]), parts[2])
    torch.testing.assert_close(merged, whole)
    nothing = logit_blocks.merged(parts[1], parts[1])
    assert (nothing[..., 0] == -torch.inf).all() and (nothing[..., 1:] == 0).all()
