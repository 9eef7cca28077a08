"""The questions that decide the design of the contrastive losses, timed on a GPU.

python benchmarks/engines.py                         all of them, the cheap ones first
python benchmarks/engines.py --question tiles        one
python benchmarks/engines.py --tiny                  anywhere, to see that it runs

tiles        which tile runs a kernel of the tiled engine fastest, at D = 64, 128, 256
epilogue     a product with the exponential in its epilogue against cuBLAS and a second kernel
accumulate   float32 sums of key gradients over chunks: addmm, or a bf16 product and an add
attention    the forward pass of the tiled engine against flash attention with V = K
crossover    the tiled engine against the chunked one over D
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import sslops  # noqa: E402
from benchmarks import gpu_kernels, measure, results, tiles  # noqa: E402
from benchmarks.measure import Variant  # noqa: E402

LOG2_E = math.log2(math.e)


def rows(n, D, device, dtype=torch.bfloat16):
    return F.normalize(torch.randn(n, D, device=device), dim=-1).to(dtype)


def epilogue(device, tiny):
    """Variants for the matrix of exponentials of a chunk of 4096 queries and 65536 keys."""
    for D in (32,) if tiny else (128, 256, 768):
        n, m = (64, 96) if tiny else (4096, 65536)
        q, k = rows(n, D, device), rows(m, D, device)
        E = torch.empty(n, m, device=device, dtype=torch.bfloat16)
        shift = torch.full((m,), -10.0, device=device, dtype=torch.bfloat16)

        def alone(q=q, k=k, E=E):
            torch.mm(q, k.T, out=E)

        def separate(q=q, k=k, E=E, shift=shift):  # scale and shift belong to the product
            torch.addmm(shift, q, k.T, alpha=10.0, out=E).exp_()

        yield (
            f"{n} x {m}, D = {D}",
            [
                Variant("cuBLAS alone", alone),
                Variant("cuBLAS, then exp in place", separate),
                *fused_products(q, k, E, tiny),
            ],
        )


def fused_products(q, k, E, tiny):
    n, D = q.shape
    m = len(k)
    shapes = [(32, 32, 32, 4, 2)] if tiny else [
        (128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 128, 64, 4, 3), (256, 128, 64, 8, 3),
    ]  # fmt: skip
    for row, col, depth, warps, stages in shapes:
        grid = (-(-n // row) * -(-m // col),)
        for exponential in (False, True):

            def run(row=row, col=col, depth=depth, warps=warps, stages=stages, grid=grid,
                    exponential=exponential):  # fmt: skip
                gpu_kernels.exp_product_kernel[grid](
                    q, k, E, n, m, 10 * LOG2_E, D=D, ROWS=row, COLS=col, DEPTH=min(depth, D),
                    GROUP=8, EXP=exponential, num_warps=warps, num_stages=stages,
                )  # fmt: skip

            kind = "with exp" if exponential else "without"
            yield Variant(f"Triton {kind}, {row} x {col} x {depth}, {warps} warps", run)


def accumulate(device, tiny):
    """dK += dS' Q over chunks of queries: where the float32 sum happens."""
    for D in (32,) if tiny else (128, 768):
        n, m = (64, 96) if tiny else (4096, 65536)
        weights = rows(n, m, device)
        q = rows(n, D, device)
        total = torch.zeros(m, D, device=device)
        half = torch.empty(m, D, device=device, dtype=q.dtype)

        def by_library(weights=weights, q=q, total=total):
            torch.addmm(total, weights.T, q, out_dtype=torch.float32, out=total)

        def product_and_add(weights=weights, q=q, total=total):
            total.add_(torch.mm(weights.T, q, out_dtype=torch.float32))

        def half_and_add(weights=weights, q=q, total=total, half=half):
            total.add_(torch.mm(weights.T, q, out=half))

        def only_half(weights=weights, q=q, half=half):
            half.addmm_(weights.T, q)

        yield (
            f"{m} x {n}, D = {D}",
            [
                Variant("addmm, bf16 in, float32 out", by_library),
                Variant("mm with float32 out, then add", product_and_add),
                Variant("mm in bf16, then add to float32", half_and_add),
                Variant("addmm in bf16 (inexact)", only_half),
            ],
        )


def attention(device, tiny):
    """The forward pass with gradients for queries: loss and key sums, against flash attention."""
    for D in (32,) if tiny else (64, 128, 256):
        for n, m in ((32, 96),) if tiny else ((256, 65536), (16384, 16384)):
            q, p, k = (rows(size, D, device) for size in (n, n, m))
            q.requires_grad_()

            def ours(q=q, p=p, k=k):
                sslops.info_nce(q, p, k, 0.1, normalize=False, backend="triton")

            def flash(q=q, k=k):
                with torch.no_grad():
                    keys = k[None, None]
                    F.scaled_dot_product_attention(q[None, None], keys, keys, scale=10.0)

            yield f"{n} x {m}, D = {D}", [
                Variant("sslops forward", ours), Variant("SDPA with V = K", flash),
            ]  # fmt: skip


def crossover(device, tiny):
    """Whole losses, forward and backward, of both engines over D."""
    tiles.tile_every_listed_width()
    for form in ("one-directional", "symmetric", "nt_xent"):
        for n in (32,) if tiny else (4096, 32768):
            for D in (32,) if tiny else (64, 128, 192, 256):
                inputs = [rows(n, D, device).requires_grad_() for _ in range(2)]
                yield f"{form}, {n} rows, D = {D}", [
                    Variant(engine, lambda form=form, inputs=inputs, engine=engine: (
                        both_passes(form, inputs, engine)))
                    for engine in ("triton", "chunked")
                ]  # fmt: skip


def both_passes(form, inputs, backend):
    if form == "nt_xent":
        loss = sslops.nt_xent(*inputs, 0.1, backend=backend)
    else:
        symmetric = form == "symmetric"
        loss = sslops.info_nce(*inputs, temperature=0.1, symmetric=symmetric, backend=backend)
    torch.autograd.grad(loss, inputs)


QUESTIONS = {
    "accumulate": accumulate,
    "attention": attention,
    "epilogue": epilogue,
    "crossover": crossover,
    "tiles": tiles.questions,
}


def ask(question, device, tiny, machine, end):
    """Time the variants of every case of a question and write them; stops when time is up."""
    for case, variants in QUESTIONS[question](device, tiny):
        if time.monotonic() > end:
            print(f"{question}: out of time before {case}", flush=True)
            return
        variants = measure.able(list(variants), [], device)
        present = [v for v in variants if v.absent is None]
        times = measure.time_variants(present, [[]], device, 3 if tiny else 15, 10.0)
        print(f"\n{question}: {case}")
        records = []
        for v in variants:
            ms = None if v.absent else times[v.name]["forward"]
            print(f"  {v.name:<44} " + (v.absent or f"{ms['median']:.4g} ms"), flush=True)
            records.append(dict(question=question, case=case, variant=v.name, absent=v.absent,
                                ms=ms, tiny=tiny))  # fmt: skip
        results.add(machine, "engines", records)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--question", choices=QUESTIONS, help="default: all")
    parser.add_argument("--tiny", action="store_true", help="sizes that any machine can run")
    parser.add_argument("--budget", type=float, default=480, help="seconds")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("no GPU here; --tiny runs the same code on a CPU")
    machine = measure.machine(device)
    end = time.monotonic() + options.budget
    asked = [options.question] if options.question else list(QUESTIONS)
    failed = False
    for i, question in enumerate(asked):
        left = end - time.monotonic()
        until = time.monotonic() + left / (len(asked) - i)
        try:
            ask(question, device, options.tiny, machine, until)
        except measure.failures() as error:  # the others are asked all the same
            failed = True
            print(f"{question}: failed: {measure.in_one_line(error)}", flush=True)
            measure.synchronise(device)  # raises where the device itself is lost
    sys.exit(failed)


if __name__ == "__main__":
    main()
