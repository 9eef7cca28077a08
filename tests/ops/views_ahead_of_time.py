"""Compiles the kernels of augment for GPUs that are not here.

    python tests/ops/views_ahead_of_time.py quick|all

Prints what each needs, one JSON a line; see ahead_of_time.py.
"""

import json
import sys

import torch
from ahead_of_time import DTYPES, compile_ahead

from sslops.ops.augment import _triton as augment

PLAIN = dict(C=3, BLOCK=1024, TILES=1, SLOTS=1, CUBIC=False, MOVED=False, JITTERED=True,
             GREY_FIRST=False, MEASURE=False, BLURRED=False)  # fmt: skip
LARGE = {**PLAIN, "TILES": 49, "SLOTS": 64, "BLURRED": True}
VIEWS = {
    "one tile": PLAIN,
    "49 tiles, blurred": LARGE,
    "49 tiles, greys": {**LARGE, "MEASURE": True},
    "bicubic, affine": {**LARGE, "CUBIC": True, "MOVED": True},
    "grey image": {**PLAIN, "C": 1, "GREY_FIRST": True},
    "no colours": {**PLAIN, "JITTERED": False},
}
QUICK = "one tile", "49 tiles, blurred"


def main(extent):
    everything = extent == "all"
    for chip in ("sm_80", "sm_90") if everything else ("sm_90",):
        for dtype in augment.DTYPES if everything else (torch.bfloat16,):
            for name in VIEWS if everything else QUICK:
                report(chip, name, augment.view_kernel, dtype, VIEWS[name])
            for last in (False, True):
                blur = dict(C=3, BLOCK=1024, TILES=49, LAST=last)
                report(chip, f"blur, last {last}", augment.blur_pass_kernel, dtype, blur)


def report(chip, name, kernel, dtype, constants):
    needs = compile_ahead(kernel, dtype, chip, constants, False, augment.WARPS)
    print(json.dumps(dict(chip=chip, variant=name, dtype=DTYPES[dtype], kind="rows", **needs)),
          flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
