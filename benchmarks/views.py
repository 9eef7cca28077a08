"""Images a second of SimCLR's views on one thread: torchvision on PIL images and sslops.augment.

python benchmarks/views.py
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torchvision import transforms
from torchvision.transforms import functional

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout that is not installed

import sslops
from sslops.ops.augment.cases import MEASURED

ROUNDS = 7
VIEWS_OF_TORCHVISION = 256 * 32**2  # pixels of a round, about a tenth of a second


def pipeline(spec):
    """torchvision's transforms of a ViewSpec."""
    strengths = spec.brightness, spec.contrast, spec.saturation, spec.hue
    jitter, blur = transforms.ColorJitter(*strengths), spec.size // 10 | 1
    return transforms.Compose([
        transforms.RandomResizedCrop(spec.size, spec.crop_scale),
        transforms.RandomHorizontalFlip(spec.flip),
        transforms.RandomApply([jitter], spec.jitter),
        transforms.RandomGrayscale(spec.grayscale),
        transforms.RandomApply([transforms.GaussianBlur(blur, spec.blur_sigma)], spec.blur),
        transforms.ToTensor(),
        transforms.Normalize(spec.mean, spec.std),
    ])  # fmt: skip


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
    """Images a second of both, medians of rounds in turn."""
    images, transform = case.images(), pipeline(case.spec)
    count = max(8, VIEWS_OF_TORCHVISION // case.size**2)
    pictures = [functional.to_pil_image(image) for image in images[:count]]
    times = [(seconds(lambda: torch.stack([transform(p) for p in pictures])) / len(pictures),
              seconds(lambda e=epoch: ours(case, images, e)) / case.B)
             for epoch in range(ROUNDS)]  # fmt: skip
    theirs, own = (1 / statistics.median(t) for t in zip(*times, strict=True))
    print(f"{case.name}: torchvision {theirs:.0f} images/s, sslops {own:.0f}, {own / theirs:.1f}x")
    return {"sslops": own, "torchvision on PIL images": theirs}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in MEASURED:
        measure(case)
