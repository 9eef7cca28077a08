"""Images a second of SimCLR's views on one thread: torchvision on PIL images and sslops.augment.

python benchmarks/views.py                                          the views alone; --json keeps it
python benchmarks/views.py --data shared/data/cifar10 --size 32     sslzoo's loader, two views each
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torchvision import transforms
from torchvision.transforms import functional

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout that is not installed

import sslops
from benchmarks import results
from benchmarks.baselines.augment import torchvision
from benchmarks.measure import machine
from sslops.ops.augment.cases import MEASURED, SIMCLR

ROUNDS = 7
VIEWS_OF_TORCHVISION = 256 * 32**2  # pixels of a round, about a tenth of a second


def pipeline(spec):
    """torchvision's transforms of a ViewSpec, for PIL images."""
    return torchvision(spec, transforms, transforms.ToTensor())


def ours(case, images, epoch):
    """Draws parameters and makes the views, as a loader does."""
    spec, index = case.spec, torch.arange(case.B)
    drawn = sslops.sample_parameters(spec, 0, epoch, index, height=case.H, width=case.W)
    return sslops.augment(images, drawn, spec.size, mean=spec.mean, std=spec.std)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(case):
    """Images a second of both, medians of rounds in turn: two records."""
    images, transform = case.images(), pipeline(case.spec)
    count = max(8, VIEWS_OF_TORCHVISION // case.size**2)
    pictures = [functional.to_pil_image(image) for image in images[:count]]
    times = [(seconds(lambda: torch.stack([transform(p) for p in pictures])) / len(pictures),
              seconds(lambda e=epoch: ours(case, images, e)) / case.B)
             for epoch in range(ROUNDS)]  # fmt: skip
    theirs, own = (1 / statistics.median(t) for t in zip(*times, strict=True))
    print(f"{case.name}: torchvision {theirs:.0f} images/s, sslops {own:.0f}, {own / theirs:.1f}x")
    return [dict(case=case.name, by=by, images_per_second=rate)
            for by, rate in (("sslops", own), ("torchvision on PIL images", theirs))]  # fmt: skip


def measure_loader(path, size, batch, memory):
    """Images a second of the loader that trains SimCLR, and of torchvision's views, in turn."""
    from sslzoo.data import open_data
    from sslzoo.loader import ViewLoader

    data = open_data(path, memory_limit_mib=memory)
    spec = sslops.ViewSpec(size, **{**SIMCLR, "blur": 0.5 * (size > 32)})
    batches = {maker: ViewLoader(data, [spec, spec], batch_size=batch, maker=maker).epoch(0)
               for maker in ("sslops", "torchvision")}  # fmt: skip
    batches["PIL"] = pil_batches(data, spec, batch)
    times = [{maker: seconds(lambda i=i: next(i)) for maker, i in batches.items()}
             for _ in range(ROUNDS)]  # fmt: skip
    rates = {maker: batch / statistics.median(t[maker] for t in times) for maker in batches}
    where = "in memory" if data.images is not None else "decoded one by one"
    print(f"loader, {data.name}, {where}, 2 views of {size} x {size}, images/s: "
          f"sslops {rates['sslops']:.0f}; torchvision on PIL images {rates['PIL']:.0f}, "
          f"{rates['sslops'] / rates['PIL']:.1f}x; --views torchvision {rates['torchvision']:.0f}, "
          f"{rates['sslops'] / rates['torchvision']:.1f}x")  # fmt: skip


def pil_batches(data, spec, batch):
    """Both views of the images one by one, as a Dataset of torchvision makes them."""
    transform, order = pipeline(spec), torch.randperm(len(data))
    for rows in order.split(batch):
        pictures = [functional.to_pil_image(data.load(i)) for i in rows]
        yield [torch.stack([transform(p) for p in pictures]) for _ in range(2)]


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder, Parquet or tar files; without it the views alone")
    parser.add_argument("--size", type=int, default=32, help="side of the views in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images of a round")
    parser.add_argument("--memory", type=int, default=1024, help="MiB of decoded images; 0 streams")
    parser.add_argument("--json", action="store_true", help="write the results file")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = parse()
    if chosen.data:
        measure_loader(chosen.data, chosen.size, chosen.batch, chosen.memory)
    else:
        records = [record for case in MEASURED for record in measure(case)]
        if chosen.json:
            print(f"wrote {results.add(machine('cpu'), 'views', records)}")
