"""Every contrastive loss x backend x case against the specification in float64."""

import importlib

import pytest
import torch
from agreement import assert_agrees

import sslops
from sslops import registry

RUNS = [
    pytest.param(op, backend, case, id=f"{op.name}-{backend}-{case.name}")
    for op in (registry.OPS["info_nce"], registry.OPS["nt_xent"])
    for backend in op.backends
    if backend != "reference"
    for case in importlib.import_module(f"sslops.ops.{op.name}.cases").CASES
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64],
                         ids=lambda d: str(d).removeprefix("torch."))  # fmt: skip
@pytest.mark.parametrize("op, backend, case", RUNS)
def test_backend_agrees_with_the_specification(op, backend, case, dtype, device):
    tensors, options = case.inputs(device, dtype)
    for reduction in ("mean", "none"):
        options["reduction"] = reduction
        try:
            getattr(sslops, op.name)(*tensors, **options, backend=backend)
        except RuntimeError as error:
            if "cannot run here" not in str(error):
                raise
            pytest.skip(str(error))
        assert_agrees(getattr(sslops, op.name), tensors, options, backend)
