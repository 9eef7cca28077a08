"""What a GPU can do at best: copies, matrix products, exponentials. Floors are made of these.

python benchmarks/ceilings.py             on a GPU
python benchmarks/ceilings.py --tiny      anywhere, to see that it runs; its rates mean nothing
"""

import argparse
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from benchmarks import gpu_kernels, measure, results  # noqa: E402
from benchmarks.measure import Variant  # noqa: E402


def copy_variant(device, tiny):
    """(variant, amount, unit): bytes read and written, in TB/s."""
    n = 2**12 if tiny else 2**29
    x = torch.randn(n, device=device)
    y = torch.empty_like(x)
    block = 2048

    def run():
        gpu_kernels.copy_kernel[(n // block,)](x, y, n, BLOCK=block, num_warps=8)

    return Variant("copy", run), 8 * n / 1e12


def exp_variant(device, tiny):
    n, steps = (2**12, 4) if tiny else (2**26, 64)
    x = torch.rand(n, device=device)
    y = torch.empty_like(x)
    block = 1024

    def run():
        gpu_kernels.exp_kernel[(n // block,)](x, y, n, STEPS=steps, BLOCK=block, num_warps=4)

    return Variant("exp", run), n * steps / 1e12


def product_variant(device, tiny, dtype):
    """A square product by the vendor's library, in 1e12 operations/s."""
    n = 64 if tiny else (8192 if dtype.itemsize == 2 else 4096)
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    c = torch.empty_like(a)

    def run():
        torch.mm(a, b.T, out=c)  # by rows on both sides, as in a loss

    return Variant(str(dtype).removeprefix("torch."), run), 2 * n**3 / 1e12


def rates(device, tiny):
    """A record for every ceiling; the median rate, and the best."""
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    made = [copy_variant, exp_variant]
    made += [lambda d, t, dtype=dtype: product_variant(d, t, dtype) for dtype in dtypes]
    for make in made:
        variant, amount = make(device, tiny)
        measure.one_run(variant, [], device)
        repeats = 3 if tiny else 30
        ms = measure.time_variants([variant], [[]], device, repeats)[variant.name]["forward"]
        yield {"name": variant.name, "rate": 1e3 * amount / ms["median"],
               "best": 1e3 * amount / ms["q20"], "tiny": tiny}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that any machine can run")
    tiny = parser.parse_args().tiny
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny:
        parser.error("no GPU here; --tiny runs the same code on a CPU")
    machine = measure.machine(device)
    units = {"copy": "TB/s", "exp": "1e12 exponentials/s"}
    for record in rates(device, tiny):
        unit = units.get(record["name"], "TFLOP/s")
        print(f"{record['name']:<10} {record['rate']:.4g} {unit}", flush=True)
        results.add(machine, "ceilings", [record])


if __name__ == "__main__":
    main()
