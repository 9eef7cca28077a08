"""Compiles Triton kernels for GPUs that are not here and prints what they need, one JSON a line.

    python tests/ops/ahead_of_time.py quick|all [sm_80 sm_90 ...]

Runs in a process of its own: kernels decorated under TRITON_INTERPRET cannot be compiled.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def signature(kernel, dtype, learned, constants):
    """The Triton type of every argument, from its name."""
    rows = {f"{name}_ptr" for name in ("q", "p", "k", "x", "y", "z", "dq", "dp", "dx", "dy",
                                       "x_copy", "y_copy", "z_copy")}  # fmt: skip
    types = {"temperature": "*fp32" if learned else "fp32", "factor": "fp32", "rank_ptr": "*i64"}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in rows:
            types[name] = "*" + DTYPES[dtype]
        elif name not in types:
            types[name] = "*fp32" if name.endswith("_ptr") else "i32"
    return {name: types[name] for name in kernel.arg_names}


def compile_ahead(kernel, dtype, capability, constants, learned, num_warps, num_stages=3):
    """Registers, stack and shared memory of one kernel, and whether it multiplies with wgmma."""
    types = signature(kernel, dtype, learned, constants)
    aligned = {(i,): [["tt.divisibility", 16]]
               for i, name in enumerate(types) if types[name].startswith("*")}  # fmt: skip
    source = ASTSource(kernel, types, constants, aligned)
    options = dict(num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)
    compiled = triton.compile(source, GPUTarget("cuda", capability, 32), options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.check_output([CUOBJDUMP, "-res-usage", cubin.name], text=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return {
        "registers": int(registers),
        "stack": int(stack),
        "shared": compiled.metadata.shared,
        "wgmma": "wgmma.mma_async" in compiled.asm["ptx"],
        "warps": num_warps,
    }
