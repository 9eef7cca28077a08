"""torch.library.opcheck of every custom op of every backend, on arguments seen in real calls."""

import pytest
import torch
from backends import is_interpreted, slow_if
from torch.utils._python_dispatch import TorchDispatchMode

import sslops
from sslops import registry


class Recorder(TorchDispatchMode):
    """Remembers the first few calls of each op in the namespace sslops."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "sslops":
            self.calls.setdefault(function.name(), []).append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


def every_form(backend):
    """Calls that together reach every branch of the forward and backward passes of a backend."""
    q, k, negatives, own = leaf(5, 4), leaf(5, 4), leaf(3, 4), leaf(5, 3, 4)
    T = torch.tensor(0.3, requires_grad=True)
    calls = [
        (sslops.info_nce, (q, k), {}),
        (sslops.info_nce, (q, k), {"symmetric": True}),
        (sslops.info_nce, (q, k, negatives), {}),
        (sslops.info_nce, (q, k, own), {"negative_mode": "paired"}),
        (sslops.nt_xent, (q, k), {}),
    ]
    for op, tensors, options in calls:
        for reduction in ("mean", "none"):
            for temperature in (0.3, T):
                options = {**options, "reduction": reduction, "temperature": temperature}
                yield op, tensors, {**options, "return_stats": True, "backend": backend}


def record(backend):
    with Recorder() as recorder:
        for op, tensors, options in every_form(backend):
            try:
                loss, _ = op(*tensors, **options)
            except RuntimeError as error:
                if "cannot run here" not in str(error):
                    raise
                continue  # a form that this backend leaves to the next
            loss.sum().backward()
    return recorder.calls


def own_copies(args, wants_gradient):
    """Detached copies of recorded tensors, leaves where the op has a gradient."""
    return torch.utils._pytree.tree_map_only(
        torch.Tensor,
        lambda t: t.detach().clone().requires_grad_(wants_gradient and t.dtype.is_floating_point),
        args,
    )


def recorded_backends():
    op = registry.OPS["info_nce"]
    return [
        pytest.param(b, marks=pytest.mark.skip(reason=op.missing[b]))
        if b in op.missing
        else pytest.param(b, marks=slow_if(is_interpreted(b)))
        for b in op.order
        if b != "reference"
    ]


@pytest.mark.parametrize("backend", recorded_backends())
def test_opcheck(backend):
    calls = record(backend)
    assert calls, f"{backend} calls no custom op: torch.compile would look inside it"
    for name, seen in calls.items():
        is_backward = "backward" in name  # has no gradient of its own
        # Four calls for each form, in order: every fifth meets each form and each option.
        for function, args, kwargs in seen[::5]:
            args, kwargs = own_copies((args, kwargs), wants_gradient=not is_backward)
            torch.library.opcheck(function, args, kwargs)


def test_every_registered_op_is_checked():
    """Ops of these two losses that no call above reaches would go unchecked."""
    registered = {n.split(".")[0] for n in torch._C._dispatch_get_all_op_names()
                  if n.startswith(("sslops::info_nce", "sslops::nt_xent"))}  # fmt: skip
    seen = set()
    for backend in registry.OPS["info_nce"].backends:
        seen |= {name.split(".")[0] for name in record(backend)}
    assert registered <= seen
