"""Ahead-of-time compile of the colour attention kernels, as they are launched: no spills, no stack,
shared memory within the chip, and on Hopper its own matrix instructions."""

import json
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

from sslops import tuning

# Chip and table of tiles. Chips without a table of their own take that of sm_80.
CHIPS = [(int(table["chip"][3:]), name) for name, table in tuning.TABLES.items()]
CHIPS += [(chip, "sm_80") for chip in (90, 100)]
SHARED_LIMIT = 99 * 1024  # of the smallest chip since sm_80
ELEMENT = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
           torch.int32: "*i32", torch.int64: "*i64"}  # fmt: skip
MATMUL_KERNELS = (
    "softmax_kernel",
    "target_gradient_kernel",
    "reference_gradient_kernel",
    "top_kernel",
)
HARDWARE = [pytest.param(90, "sm_90", "bfloat16", 64, 16, id="sm_90-bfloat16-64-16")] + [
    pytest.param(
        chip, table, dtype, D, C, marks=pytest.mark.slow, id=f"sm_{chip}-{table}-{dtype}-{D}-{C}"
    )
    for chip, table in CHIPS
    for dtype in ("bfloat16", "float16", "float32", "float32-high")
    for D, C in ((64, 16), (64, 64), (128, 64), (384, 16))
]


@pytest.mark.parametrize("chip, table, dtype, D, C", HARDWARE)
def test_kernels_fit_the_chip_without_spills(chip, table, dtype, D, C):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(chip), table, dtype, str(D), str(C)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    kernels = [json.loads(line) for line in child.stdout.splitlines()]
    assert {k["name"] for k in kernels} >= set(MATMUL_KERNELS)
    for kernel in kernels:
        assert kernel["stack"] == 0 and kernel["local"] == 0, kernel
        assert kernel["shared"] <= SHARED_LIMIT, kernel
        if chip == 90 and dtype in ("bfloat16", "float16") and kernel["name"] in MATMUL_KERNELS:
            assert kernel["wgmma"], kernel


def source_of(kernel, args, options):
    """What triton.compile takes, as a launch with these arguments would make it."""
    from triton.compiler import ASTSource

    names = [p.name for p in kernel.params]
    bound = {**dict(zip(names, args, strict=False)), **options}
    signature, constants, attributes = {}, {}, {}
    for n, parameter in enumerate(kernel.params):
        value = bound[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = ELEMENT[value.dtype]
            attributes[(n,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or value == 1:
            signature[parameter.name] = "constexpr"
            constants[(n,)] = value
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[(n,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def report(kernel, args, options, chip):
    """Print the resources of one kernel as a line of JSON."""
    import triton
    from triton.backends.compiler import GPUTarget

    launch = {k: options.pop(k) for k in ("num_warps", "num_stages", "maxnreg") if k in options}
    source = source_of(kernel, args, options)
    compiled = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=launch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    print(json.dumps({
        "name": kernel.__name__, "labels": options.get("LABELS"), "window": options.get("WINDOW"),
        "registers": int(registers), "stack": int(stack), "local": int(local),
        "shared": compiled.metadata.shared, "wgmma": "wgmma.mma_async" in compiled.asm["ptx"],
    }), flush=True)  # fmt: skip


def main(chip, table, dtype, D, C):
    """Run every operator with a launch that compiles instead of running."""
    from sslops.ops.color_attention import _triton

    def compile_instead(kernel, grid, *args, like, **options):
        report(kernel, args, options, chip)

    _triton.launch = compile_instead
    tuning.table_of = lambda tensor: table
    if dtype == "float32-high":
        torch.set_float32_matmul_precision("high")
    dtype = getattr(torch, dtype.removesuffix("-high"))
    f, g = torch.zeros(2, 128, D, dtype=dtype), torch.zeros(2, 256, D, dtype=dtype)
    v, T = torch.zeros(2, 256, C), torch.ones(())
    labels = [torch.zeros(2, n, dtype=torch.int64) for n in (128, 256)]
    window = [8, 16, 2, 2]
    for w in ([], window):
        out, lse = _triton.attention(f, g, v, T, w)
        _triton.attention_backward(out, f, g, v, T, out, lse, w)
    loss, lse, right, wrong = _triton.match(f, g, *labels, T)
    _triton.match_backward(loss, f, g, *labels, T, lse, right, wrong)
    index = _triton.top(f, g, window, 10).zero_()
    out, weights = _triton.gather(f, g, v, T, index)
    _triton.gather_backward(out, f, g, v, T, index, out, weights)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4]), int(sys.argv[5]))
