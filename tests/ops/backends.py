"""The backends of the ops as pytest parameters, each skipped with its own reason."""

import pytest
import torch
from agreement import assert_agrees

import sslops
from sslops import registry


def parameters(*op_names):
    """One parameter for each backend of these ops, the specification included."""
    parameters = []
    for op in map(registry.OPS.get, op_names):
        for backend in op.order:
            reason = op.missing.get(backend)
            marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
            name = f"{op.name}-{backend}"
            parameters.append(pytest.param((op.name, backend), marks=marks, id=name))
    return parameters


def is_interpreted(backend):
    """Triton on a CPU runs under its interpreter, hundreds of times slower than on a GPU."""
    return backend == "triton" and not torch.cuda.is_available()


def slow_if(condition):
    """Marks of a parameter that only `make test-all` takes."""
    return [pytest.mark.slow] if condition else []


def slow_interpreted(names):
    """Backends as parameters of a test that the interpreter takes too long for."""
    return [pytest.param(name, marks=slow_if(is_interpreted(name))) for name in names]


def by_dtype(runs, halves):
    """Parameters (*run, case, dtype) of runs (..., backend, case) in four dtypes.

    Under the interpreter only the cases named in `halves` take half precision, bfloat16 alone;
    others are slow.
    """
    parameters = []
    for *run, case in runs:
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            is_quick = dtype in (torch.float32, torch.float64) or (
                dtype == torch.bfloat16 and case.name in halves
            )
            marks = slow_if(is_interpreted(run[-1]) and not is_quick)
            about = [str(getattr(x, "name", x)) for x in (*run, case, str(dtype)[6:])]
            parameters.append(pytest.param(*run, case, dtype, marks=marks, id="-".join(about)))
    return parameters


# Whether torch.compile takes sizes as symbols. Where it does, more can break.
STATIC_IS_SLOW = [pytest.param(False, marks=pytest.mark.slow, id="static"),
                  pytest.param(True, id="dynamic")]  # fmt: skip


class Forced:
    """A public function with one backend forced; where that cannot run, the test is skipped."""

    def __init__(self, op_name, backend):
        self.op_name, self.backend = op_name, backend
        self.public = getattr(sslops, op_name)
        self.is_interpreted = is_interpreted(backend)

    def __call__(self, *args, **options):
        try:
            return self.public(*args, **options, backend=self.backend)
        except RuntimeError as error:
            if "cannot run here" not in str(error):
                raise
            pytest.skip(str(error))

    def assert_agrees(self, *tensors, layout=None, **options):
        """Value and gradients against the specification in float64; see agreement.py."""
        self(*tensors, **options)  # skips where the backend cannot run
        assert_agrees(self.public, tensors, options, self.backend, layout)


# The same values with other strides; differentiable.
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "offset": lambda x: torch.cat([x[:1], x])[1:],
    "every second row": lambda x: x.repeat_interleave(2, -2)[..., ::2, :],
    "every second column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "a slice of wider rows": lambda x: torch.cat([x, x, x], -1)[..., x.shape[-1] : -x.shape[-1]],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}
