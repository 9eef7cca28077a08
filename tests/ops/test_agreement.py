"""Every op x backend x case against the specification in float64."""

import importlib
import inspect

import pytest
import torch
from agreement import assert_agrees

import sslops
from sslops import registry

RUNS = [
    pytest.param(op, backend, case, id=f"{op.name}-{backend}-{case.name}")
    for op in registry.OPS.values()
    for backend in op.backends
    if backend != "reference"
    for case in importlib.import_module(f"{op.folder}.cases").CASES
    if getattr(case, "op", op.name) == op.name
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64],
                         ids=lambda d: str(d).removeprefix("torch."))  # fmt: skip
@pytest.mark.parametrize("op, backend, case", RUNS)
def test_backend_agrees_with_the_specification(op, backend, case, dtype, device):
    tensors, options = case.inputs(device, dtype)
    function = getattr(sslops, op.name)
    has_reduction = "reduction" in inspect.signature(function).parameters
    for reduction in ({"reduction": "mean"}, {"reduction": "none"}) if has_reduction else ({},):
        options.update(reduction)
        try:
            function(*tensors, **options, backend=backend)
        except RuntimeError as error:
            if "cannot run here" not in str(error):
                raise
            pytest.skip(str(error))
        assert_agrees(function, tensors, options, backend)
