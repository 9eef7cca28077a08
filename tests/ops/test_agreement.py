"""Every op x backend x case against the specification in float64, and what this check catches."""

import importlib

import pytest
import torch
from agreement import assert_agrees
from backends import Forced, by_dtype

import sslops
from sslops import registry

RUNS = [
    (op, backend, case)
    for op in (registry.OPS["info_nce"], registry.OPS["nt_xent"])
    for backend in op.backends
    if backend != "reference"
    for case in importlib.import_module(f"sslops.ops.{op.name}.cases").CASES
]
HALVES = ("two pairs", "in-batch, odd width", "symmetric, leading dims", "no normalisation",
          "unpaired", "batched negatives", "odd")  # fmt: skip


@pytest.mark.parametrize("op, backend, case, dtype", by_dtype(RUNS, HALVES))
def test_backend_agrees_with_the_specification(op, backend, case, dtype, device):
    tensors, options = case.inputs(device, dtype)
    for reduction in ("mean", "none"):
        Forced(op.name, backend).assert_agrees(*tensors, **{**options, "reduction": reduction})


def scaled_gradient(x, factor):
    """x itself, its gradient times a factor."""
    return x * factor + (x - x * factor).detach()


def same(x):
    return x


# Mistakes of the kinds that kernels make: what each does to the arguments and to the row losses,
# and the reductions that show it.
MISTAKES = {
    "the last key is never read": (
        lambda a: (a[0], torch.cat([a[1][:, :-1], a[1][:, -1:] * 0], 1), *a[2:]),
        same,
        ("mean", "none"),
    ),
    "one row is off by 1e-4": (
        same,
        lambda loss: loss + 1e-4 * (torch.arange(loss.shape[1]) == 7),
        ("none",),
    ),
    "query gradients are 0.1 % too large": (
        lambda a: (scaled_gradient(a[0], 1.001), *a[1:]),
        same,
        ("mean", "none"),
    ),
    "the gradient of one key is lost": (
        lambda a: (a[0], torch.cat([a[1][:, :5], a[1][:, 5:6].detach(), a[1][:, 6:]], 1), *a[2:]),
        same,
        ("mean", "none"),
    ),
    "the temperature is rounded to bfloat16": (
        lambda a: (*a[:3], torch.tensor(a[3]).bfloat16().item()),
        same,
        ("mean", "none"),
    ),
    "every row receives the gradient of the mean": (
        same,
        lambda loss: loss.detach() + loss.mean() - loss.mean().detach(),
        ("none",),
    ),
    "products are computed in bfloat16": (
        lambda a: (a[0] + (a[0].bfloat16().float() - a[0]).detach(), *a[1:]),
        same,
        ("mean", "none"),
    ),
}


def with_a_mistake(monkeypatch, change_arguments, change_loss):
    """Register the specification with a mistake as the backend "wrong"."""
    backends = registry.OPS["info_nce"].backends
    right, unsupported = backends["reference"]

    def wrong(*args, **options):
        rows = right(*change_arguments(args), **options)
        return rows._replace(loss=change_loss(rows.loss))

    monkeypatch.setitem(backends, "wrong", (wrong, unsupported))


def views(dtype=torch.float32):
    q = torch.randn(40, 24, dtype=dtype)
    return q, q + torch.randn_like(q)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_agreement_catches(mistake, monkeypatch):
    *changes, reductions = MISTAKES[mistake]
    with_a_mistake(monkeypatch, *changes)
    for reduction in reductions:
        with pytest.raises(AssertionError, match=r"error .* allowed"):
            assert_agrees(sslops.info_nce, views(), {"reduction": reduction}, "wrong")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_agreement_catches_a_wrong_gradient_of_the_temperature_in_half_precision(
    dtype, reduction, monkeypatch
):
    options = {"reduction": reduction, "temperature": torch.tensor(0.5)}
    with_a_mistake(monkeypatch, same, same)
    assert_agrees(sslops.info_nce, views(dtype), options, "wrong")
    too_large = lambda a: (*a[:3], scaled_gradient(a[3], 1.05))  # noqa: E731
    with_a_mistake(monkeypatch, too_large, same)
    with pytest.raises(AssertionError, match=r"gradient 2: error .* allowed"):
        assert_agrees(sslops.info_nce, views(dtype), options, "wrong")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_agreement_catches_a_lost_key_in_every_dtype(dtype, monkeypatch):
    with_a_mistake(monkeypatch, same, same)
    assert_agrees(sslops.info_nce, views(dtype), {}, "wrong")
    with_a_mistake(monkeypatch, *MISTAKES["the last key is never read"][:2])
    with pytest.raises(AssertionError, match=r"error .* allowed"):
        assert_agrees(sslops.info_nce, views(dtype), {}, "wrong")
