"""Compiles the kernels of dino_loss, sinkhorn_knopp and koleo for GPUs that are not here.

    python tests/ops/dino_ahead_of_time.py quick|all

Prints what each needs, one JSON a line; see ahead_of_time.py.
"""

import json
import sys

import torch
from ahead_of_time import DTYPES, compile_ahead

from sslops import triton_launch as launch
from sslops.ops.dino_loss import _triton as dino
from sslops.ops.koleo import _triton as koleo
from sslops.ops.sinkhorn_knopp import _triton as sinkhorn

_LOSS = dict(SKIP=True, LOGITS=True, CENTERED=True, WEIGHTED=True)


def of_dino(T):
    slots = launch.power_of_two(T)
    views = dict(T=T, SLOTS=slots, BLOCK=dino.CHUNK // slots, CHUNKS=64, **_LOSS)
    yield f"teacher parts, {T}", dino.teacher_parts_kernel, views, dino.WARPS
    yield f"student parts, {T}", dino.student_parts_kernel, views, dino.WARPS
    yield f"gradient, {T}", dino.gradient_kernel, views, dino.WARPS
    if T > 1:
        views = {**views, "LOGITS": False, "WEIGHTED": False}
        yield f"student parts of probabilities, {T}", dino.student_parts_kernel, views, dino.WARPS
        yield f"gradient of probabilities, {T}", dino.gradient_kernel, views, dino.WARPS


def of_sinkhorn():
    columns = dict(ROWS=sinkhorn.COLUMN_ROWS, BLOCK=sinkhorn.COLUMN_BLOCK, CHUNKS=128)
    for first in (True, False):
        name = "prototypes, first" if first else "prototypes"
        yield name, sinkhorn.prototypes_kernel, {**columns, "FIRST": first}, sinkhorn.WARPS
    rows = dict(SPLITS=8, SLOTS=8, BLOCK=sinkhorn.ROW_BLOCK, CHUNKS=128)
    yield "rows", sinkhorn.rows_kernel, rows, sinkhorn.WARPS
    yield "write", sinkhorn.write_kernel, rows, sinkhorn.WARPS


def report(chip, name, kernel, dtype, constants, warps, stages=3):
    constants = {key: constants[key] for key in kernel.arg_names if key in constants}
    needs = compile_ahead(kernel, dtype, chip, constants, False, warps, stages)
    kind = "half" if "nearest" in name and dtype != torch.float32 else "rows"
    about = dict(chip=chip, variant=name, dtype=DTYPES[dtype], kind=kind)
    print(json.dumps({**about, **needs}), flush=True)


def main(extent):
    everything = extent == "all"
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if everything else (torch.bfloat16,)
    for chip in ("sm_80", "sm_90") if everything else ("sm_90",):
        for T in (1, 2, 8) if everything else (2,):
            for dtype in dtypes:
                for name, kernel, constants, warps in of_dino(T):
                    report(chip, name, kernel, dtype, constants, warps)
        finish = dict(ROWS=4, CHUNKS=64, WEIGHTED=True)
        report(chip, "finish", dino.finish_rows_kernel, torch.float32, finish, 1)
        for dtype in dtypes:
            for entry in of_sinkhorn():
                report(chip, *entry[:2], dtype, *entry[2:])
        for kind, (rows, cols, width, warps, stages) in koleo.TILES.items():
            tile = dict(ROWS=rows, COLS=cols, WIDTH=width)
            tile["PRECISION"] = "ieee" if kind == "half" else kind
            of_kind = (
                [d for d in dtypes if d != torch.float32] if kind == "half" else [torch.float32]
            )
            if kind == "half" or everything:
                for dtype in of_kind:
                    report(chip, f"nearest, {kind}", koleo.nearest_kernel, dtype, tile, warps,
                           stages)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
