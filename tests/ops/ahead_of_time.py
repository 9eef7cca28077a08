"""Compiles Triton kernels for GPUs that are not here and prints what they need, one JSON a line.

    python tests/ops/ahead_of_time.py quick|all

Runs in a process of its own: kernels decorated under TRITON_INTERPRET cannot be compiled.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sslops import triton_helpers as shared
from sslops import triton_launch as launch
from sslops import tuning
from sslops.ops.info_nce import _triton as info_nce
from sslops.ops.nt_xent import _triton as nt_xent

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def signature(kernel, dtype, learned, constants):
    """The Triton type of every argument, from its name."""
    rows = {f"{name}_ptr" for name in ("q", "p", "k", "x", "y", "z", "dq", "dp", "dx", "dy",
                                       "x_copy", "y_copy", "z_copy", "student", "teacher",
                                       "gradient", "logit", "view")}  # fmt: skip
    number = "*fp32" if learned else "fp32"
    types = {"temperature": number, "student_temperature": number, "teacher_temperature": number,
             "factor": "fp32", "rank_ptr": "*i64", "index_ptr": "*i64", "image_ptr": "*u8",
             **{f"{name}{c}": "fp32" for name in ("mean", "scale") for c in range(3)}}  # fmt: skip
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in rows:
            types[name] = "*" + DTYPES[dtype]
        elif name not in types:
            types[name] = "*fp32" if name.endswith("_ptr") else "i32"
    return {name: types[name] for name in kernel.arg_names}


def compile_ahead(kernel, dtype, chip, constants, learned, num_warps, num_stages=3, maxnreg=None):
    """Registers, stack and shared memory of one kernel, and whether it multiplies with wgmma."""
    types = signature(kernel, dtype, learned, constants)
    aligned = {(i,): [["tt.divisibility", 16]]
               for i, name in enumerate(types) if types[name].startswith("*")}  # fmt: skip
    source = ASTSource(kernel, types, constants, aligned)
    options = dict(num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True,
                   maxnreg=maxnreg)  # fmt: skip
    compiled = triton.compile(source, GPUTarget("cuda", int(chip[3:]), 32), options)
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


# What the launchers pass: the plain case of each kernel and the cases with most live values.
_ROWS = dict(SPLITS=1, NORMALIZE=True, FIXED=False, HEADROOM=0, APART=False, SYMMETRIC=False,
             EXCLUDE=False, RANK=False, KEY_SUM=True)  # fmt: skip
_PAIRS = dict(NORMALIZE=True, FIXED=False, OWN=True, SYMMETRIC=False, PAIRED=True, SECOND=False)
VARIANTS = {
    "one-sided": (info_nce.softmax_rows_kernel, "rows", {**_ROWS, "FIXED": True}),
    "queue": (info_nce.softmax_rows_kernel, "rows",
              {**_ROWS, "FIXED": True, "APART": True, "SPLITS": 8}),
    "learned, ranks, exclusion": (info_nce.softmax_rows_kernel, "rows",
                                  {**_ROWS, "RANK": True, "EXCLUDE": True}),
    "two-sided sums": (info_nce.softmax_rows_kernel, "rows",
                       {**_ROWS, "SYMMETRIC": True, "KEY_SUM": False}),
    "key gradient": (shared.pair_gradient_kernel, "rows", {**_PAIRS, "FIXED": True, "OWN": False}),
    "queue gradient": (shared.pair_gradient_kernel, "rows",
                       {**_PAIRS, "OWN": False, "PAIRED": False}),
    "two-sided gradient": (shared.pair_gradient_kernel, "rows", {**_PAIRS, "SYMMETRIC": True}),
    "view gradient": (shared.pair_gradient_kernel, "rows",
                      {**_PAIRS, "FIXED": True, "SECOND": True}),
    "view gradient, cold": (shared.pair_gradient_kernel, "rows", {**_PAIRS, "SECOND": True}),
    "triangle": (nt_xent.triangle_sums_kernel, "triangle", {"SPLITS": 1, "FIXED": True}),
}  # fmt: skip
# At D = 128 in bfloat16: the kernels with most live values, and one of each kind. Of those
# without products, some for sm_90.
QUICK = {"sm_80": ("two-sided gradient",),
         "sm_90": ("learned, ranks, exclusion", "two-sided sums", "two-sided gradient",
                   "triangle")}  # fmt: skip
QUICK_ROWS = ("norms, float16", "finish, two-sided", "combine", "finish triangle")
KINDS = {"half": (torch.bfloat16, torch.float16), "tf32": (torch.float32,),
         "tf32x3": (torch.float32,), "ieee": (torch.float32,)}  # fmt: skip


# Kernels without products, with the rows a block takes at this width and the number of warps.
_FINISH = dict(OWN=True, OTHER=True, FORWARD=False, X=True, Y=True, Y_SUM=True, ALONG=True)
ROW_KERNELS = {
    "norms": (shared.row_norms_kernel, 4, {"COPY": False}),
    "norms, float16": (shared.row_norms_kernel, 4, {"COPY": True}),
    "finish, two-sided": (shared.finish_gradient_kernel, 8, _FINISH),
    "finish, one-sided": (shared.finish_gradient_kernel, 8,
                          {**_FINISH, "OTHER": False, "FORWARD": True}),
    "finish, positives apart": (shared.finish_gradient_kernel, 8,
                                {**_FINISH, "OTHER": False, "FORWARD": True, "Y_SUM": False}),
    "finish, negatives": (shared.finish_gradient_kernel, 8,
                          {**_FINISH, "OWN": False, "OTHER": False, "Y": False, "ALONG": False}),
    "combine": (info_nce.combine_splits_kernel, 8,
                dict(SPLITS=64, SLOTS=64, FIXED=False, RANK=True, KEY_SUM=True)),
    "finish triangle": (nt_xent.finish_triangle_kernel, 4, {"COLS": 16, "BLOCK": 64}),
}  # fmt: skip


def chip_of(table):
    return tuning.TABLES[table]["chip"]


def report_row_kernel(chip, name, dtype, size):
    """Compile one kernel without products and print what it needs."""
    kernel, warps, flags = ROW_KERNELS[name]
    constants = dict(flags, D=size, WIDTH=size, ROWS=4096 // size, NORMALIZE=True)
    constants = {key: constants[key] for key in kernel.arg_names if key in constants}
    needs = compile_ahead(kernel, dtype, chip, constants, True, warps)
    about = dict(chip=chip, variant=name, dtype=DTYPES[dtype], kind="rows", width=size, tile=None)
    print(json.dumps({**about, **needs}), flush=True)


def listed(table, kinds, widths):
    """Every listed (variant, dtype, kind, WIDTH, tile) of a table of sslops.tuning."""
    for name, (_, kernel, _) in VARIANTS.items():
        for kind in kinds:
            for dtype in KINDS[kind]:
                for size, tile in launch.TILES[table][kernel][kind].items():
                    if size in widths:
                        yield name, dtype, kind, size, tile


def report(table, name, dtype, kind, size, tile):
    """Compile one variant and print what it needs."""
    chip = chip_of(table)
    kernel, _, flags = VARIANTS[name]
    rows, cols, warps, stages = tile
    constants = dict(flags, D=size, WIDTH=size, ROWS=rows, COLS=cols,
                     PRECISION="ieee" if kind == "half" else kind)  # fmt: skip
    learned = not constants["FIXED"]
    if dtype == torch.float16 and flags.get("KEY_SUM"):
        constants.update(HEADROOM=14, FIXED=False)
    constants = {key: constants[key] for key in kernel.arg_names if key in constants}
    needs = compile_ahead(kernel, dtype, chip, constants, learned, warps, stages,
                          launch.MOST_REGISTERS[table])  # fmt: skip
    about = dict(chip=chip, variant=name, dtype=DTYPES[dtype], kind=kind, width=size, tile=tile)
    print(json.dumps({**about, **needs}), flush=True)


def main(extent):
    everything = extent == "all"
    widths = (16, 32, 64, 128, 256) if everything else (128,)
    for table in launch.TILES if everything else ("sm_80", "sm_90"):
        for entry in listed(table, KINDS if everything else ("half",), widths):
            is_quick = entry[1] == torch.bfloat16 and entry[0] in QUICK.get(table, ())
            if everything or is_quick:
                report(table, *entry)
    for chip in {chip_of(t) for t in launch.TILES} if everything else ("sm_90",):
        for name in ROW_KERNELS if everything else QUICK_ROWS:
            dtype = torch.float16 if "float16" in name else torch.bfloat16
            report_row_kernel(chip, name, dtype, 256)


if __name__ == "__main__":
    main(sys.argv[1])
