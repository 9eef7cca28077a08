"""The kernels under the CPU losses: the exponential, and every instruction set of this machine."""

import pytest
import torch

import sslops

_C = pytest.importorskip("sslops._C", exc_type=ModuleNotFoundError)


def exp2(x):
    y = torch.empty_like(x)
    _C.exp2(x.data_ptr(), x.numel(), y.data_ptr())
    return y


def test_exp2_errs_by_less_than_1_25_units_in_the_last_place(instruction_set):
    x = torch.cat([torch.linspace(-126, 127.9, 1_000_003), torch.linspace(-1, 1, 100_003)])
    exact = torch.exp2(x.double())
    unit = torch.exp2(torch.floor(x.double())) * 2.0**-23
    assert ((exp2(x).double() - exact).abs() / unit).max() < 1.25


def test_exp2_at_its_edges(instruction_set):
    special = torch.tensor([0.0, -0.0, 1.0, 10.0, -127.0, -1e30, -torch.inf, torch.nan])
    expected = torch.tensor([1.0, 1.0, 2.0, 1024.0, 0.0, 0.0, 0.0, torch.nan])
    torch.testing.assert_close(exp2(special), expected, rtol=0, atol=0, equal_nan=True)
    payload = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert exp2(payload).isnan().all()


@pytest.mark.parametrize("temperature", [0.2, 0.01])
def test_every_instruction_set_agrees_with_the_specification(instruction_set, temperature):
    a, b, queue = torch.randn(70, 40), torch.randn(70, 40), torch.randn(300, 40)
    losses = [
        lambda backend: sslops.nt_xent(a, b, temperature, backend=backend),
        lambda backend: sslops.info_nce(a, b, temperature=temperature, backend=backend),
        lambda backend: sslops.info_nce(a, b, queue, temperature, backend=backend),
        lambda backend: sslops.info_nce(a, b, None, temperature, symmetric=True, backend=backend),
        lambda backend: sslops.info_nce(a, b, None, temperature, "none", backend=backend).norm(),
    ]
    b += a
    tensors = [t.requires_grad_() for t in (a, b, queue)]
    for loss in losses:
        ours, plain = loss("cpu"), loss("reference")
        torch.testing.assert_close(ours, plain, rtol=2e-5, atol=1e-6)
        for x, y in zip(*(torch.autograd.grad(v, tensors, allow_unused=True)
                          for v in (ours, plain)), strict=True):  # fmt: skip
            if y is not None:
                torch.testing.assert_close(x, y, rtol=1e-4, atol=2e-5 * y.abs().max().item())
