"""The chunked backend beyond agreement: many chunks, half-precision products, little memory."""

import pytest
import torch
from agreement import assert_agrees

import sslops
from sslops.ops.info_nce import _chunked
from sslops.ops.info_nce.cases import CASES
from sslops.ops.nt_xent.cases import CASES as NT_XENT_CASES

RUNS = [(op, case) for op, cases in ((sslops.info_nce, CASES), (sslops.nt_xent, NT_XENT_CASES))
        for case in cases]  # fmt: skip
NAMES = [f"{op.__name__}-{case.name}" for op, case in RUNS]


@pytest.fixture
def tiny_chunks(monkeypatch):
    """Chunks of five rows, so that small inputs have many, and a last one that is shorter."""
    monkeypatch.setattr(_chunked, "SMALLEST_CHUNK", 5)
    monkeypatch.setattr(_chunked, "chunk_logits", lambda query: 64)


@pytest.fixture
def half_products(monkeypatch):
    """What CUDA does with half precision: products of half-precision rows come out in float32."""

    def product(a, b, out=None):
        wide = _chunked.wide(a.dtype)
        return torch.bmm(a.to(wide), b.to(wide), out=out)

    monkeypatch.setattr(_chunked, "operand_dtype", lambda x: x.dtype)
    monkeypatch.setattr(_chunked, "product", product)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("op, case", RUNS, ids=NAMES)
def test_many_chunks_agree_with_the_specification(op, case, reduction, tiny_chunks):
    tensors, options = case.inputs()
    assert_agrees(op, tensors, {**options, "reduction": reduction}, "chunked")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op, case", RUNS, ids=NAMES)
def test_half_precision_products_agree_with_the_specification(op, case, dtype, half_products):
    tensors, options = case.inputs(dtype=dtype)
    for reduction in ("mean", "none"):
        assert_agrees(op, tensors, {**options, "reduction": reduction}, "chunked")


def test_float16_keeps_softmax_weights_below_its_smallest_number(half_products):
    """20000 negatives of weight 1.5e-8 each: flushed to zero they would leave no gradient."""
    q, negatives = torch.eye(2, 8).half(), torch.full((20000, 8), 0.1).half()

    def gradient(dtype):
        query = q.to(dtype, copy=True).requires_grad_()
        loss = sslops.info_nce(query, q.to(dtype), negatives.to(dtype), 1 / 20,
                               normalize=False, backend="chunked")  # fmt: skip
        return torch.autograd.grad(4096 * loss, query)[0].double()  # as a loss scaler does

    torch.testing.assert_close(gradient(torch.half), gradient(torch.double), rtol=1e-2, atol=0)


def test_gradients_in_the_forward_pass_equal_recomputed_ones():
    q, k = torch.randn(2, 40, 16).requires_grad_().unbind()
    uniform = sslops.info_nce(q, k, backend="chunked").mul(40)
    rows = sslops.info_nce(q, k, reduction="none", backend="chunked").sum()
    for a, b in zip(torch.autograd.grad(uniform, (q, k)), torch.autograd.grad(rows, (q, k)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
