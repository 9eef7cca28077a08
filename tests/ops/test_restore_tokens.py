"""restore_tokens: every backend against the specification, and numbers worked by hand."""

import pytest
import torch
from masking_helpers import DTYPES, assert_same, by_backend, by_name, compiled, gradients

import sslops
from sslops.ops.masking.cases import CASES

MIXED = [(d, d, d) for d in DTYPES] + [
    (torch.bfloat16, torch.float32, torch.float32),  # what autocast makes of a decoder
    (torch.float16, torch.float32, torch.float16),
    (torch.float16, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16, torch.float16),
]


@compiled
@pytest.mark.parametrize("dtypes", MIXED, ids=lambda d: "-".join(str(t)[6:] for t in d))
@pytest.mark.parametrize("positions", ["none", "shared", "per sample"])
@by_name
def test_restore_tokens_agrees_with_the_reference(case, positions, dtypes, backend):
    x_kept, ids_restore, token, position = case.decoder()
    tensors = [t.to(d) for t, d in zip((x_kept, token, position), dtypes, strict=True)]
    if positions == "per sample":
        tensors[2] = tensors[2] + torch.randn(case.B, 1, 1).to(tensors[2])
    if positions == "none":
        tensors = tensors[:2]

    def run(backend, tensors):
        restore = lambda x, token, *position: sslops.restore_tokens(  # noqa: E731
            x, ids_restore, token, *position, num_prefix_tokens=case.P, backend=backend
        )
        return gradients(restore, tensors)

    ours, plain = run(backend, tensors), run("reference", tensors)
    exact = run("reference", [t.double() for t in tensors])
    # The result is one rounded sum, so it and the gradient of x are those of torch bit for bit.
    assert_same(ours[:2], plain[:2])
    for o, p, e, t in zip(ours[2:], plain[2:], exact[2:], tensors[1:], strict=True):
        assert o.dtype == t.dtype
        # The reference's upstream gradient is the exact one rounded to the type of the result.
        rounding = torch.finfo(ours[0].dtype).eps * e.abs().max()
        allowed = 2 * (p.double() - e).abs().max() + 2 * rounding
        assert (o.double() - e).abs().max() <= allowed


@by_backend
def test_hand_worked_restoration_and_gradients(backend):
    x_kept = torch.tensor([[[5.0], [6.0]], [[7.0], [8.0]]], requires_grad=True)
    ids_restore = torch.tensor([[1, 2, 0], [2, 0, 1]])
    token = torch.tensor([[[100.0]]], requires_grad=True)
    position = torch.tensor([[[0.1], [0.2], [0.3]]], requires_grad=True)
    out = sslops.restore_tokens(x_kept, ids_restore, token, position, backend=backend)
    expected = torch.tensor([[6.1, 100.2, 5.3], [100.1, 7.2, 8.3]])
    torch.testing.assert_close(out[..., 0].detach(), expected)
    out.backward(torch.tensor([[[1.0], [2.0], [4.0]], [[8.0], [16.0], [32.0]]]))
    assert x_kept.grad.flatten().tolist() == [4.0, 1.0, 16.0, 32.0]
    assert token.grad.shape == (1, 1, 1) and token.grad.item() == 2.0 + 8.0
    assert position.grad.flatten().tolist() == [9.0, 18.0, 36.0]


@by_backend
@by_name
def test_kept_tokens_come_back_to_their_places(case, backend):
    x, noise = case.tokens()
    x_kept, mask, ids_restore = sslops.random_masking(
        x, case.mask_ratio, noise=noise, num_prefix_tokens=case.P, backend=backend
    )
    out = sslops.restore_tokens(
        x_kept, ids_restore, torch.full((case.D,), 9.0), num_prefix_tokens=case.P, backend=backend
    )
    removed = torch.cat([torch.zeros(case.B, case.P), mask], dim=1)[..., None] == 1
    assert torch.equal(out, torch.where(removed, 9.0, x))


@compiled
@pytest.mark.parametrize("wanted", ["x", "token", "position", "x token", "token position"])
def test_only_the_wanted_gradients_of_restore_tokens(wanted, backend):
    x_kept, ids_restore, token, position = CASES[6].decoder()
    tensors = {"x": x_kept, "token": token, "position": position}

    def run(backend):
        leaves = {n: t.clone().requires_grad_(n in wanted) for n, t in tensors.items()}
        out = sslops.restore_tokens(
            leaves["x"], ids_restore, leaves["token"], leaves["position"],
            num_prefix_tokens=CASES[6].P, backend=backend,
        )  # fmt: skip
        out.pow(2).sum().backward()
        return {n: t.grad for n, t in leaves.items()}

    ours, plain = run(backend), run("reference")
    for name in tensors:
        assert (ours[name] is None) == (name not in wanted)
        if name in wanted:
            torch.testing.assert_close(ours[name], plain[name])


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_becomes_the_float_that_torch_makes_of_it(dtype, backend):
    halves = torch.arange(2**16).to(torch.uint16).view(dtype).reshape(1, 256, 256)
    ids, token = torch.arange(256)[None], torch.zeros(256)
    ours = sslops.restore_tokens(halves, ids, token, backend=backend)
    assert ours.dtype == torch.float32
    assert torch.equal(ours.nan_to_num(7.0), halves.float().nan_to_num(7.0))


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_floats_are_rounded_to_halves_as_torch_rounds(dtype, backend):
    # All exponents, with mantissas that lie on, just under and just over the ties.
    high = torch.arange(2**16, dtype=torch.int64)[:, None] << 16
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    floats = (high + low).to(torch.uint32).view(torch.float32).reshape(1, 2**16, -1)
    ids = torch.arange(2**16)[None]
    ours = torch.ops.sslops.scatter_rows(floats, ids, 2**16, 0, dtype)
    assert torch.equal(ours.nan_to_num(7.0), floats.to(dtype).nan_to_num(7.0))
    assert torch.equal(ours.isnan(), floats.isnan())
