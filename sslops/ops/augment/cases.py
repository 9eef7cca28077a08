"""Inputs of augment and what they cost: for tests, benchmarks and sslops.backends()."""

from dataclasses import dataclass, field

import torch

from sslops.ops.augment.parameters import sample_parameters, table_of
from sslops.ops.augment.spec import ViewSpec

SIMCLR = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)
EVERYTHING = dict(**SIMCLR, solarize=0.3, posterize=0.3, erase=0.5, rotate=20.0, translate=0.1,
                  shear=10.0)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """B images of H x W pixels; `options` are those of the ViewSpec."""

    name: str
    B: int
    H: int
    W: int
    size: int
    channels: int = 3
    options: dict = field(default_factory=dict)

    @property
    def spec(self):
        plain = dict(mean=(0.5,) * self.channels, std=(0.25,) * self.channels)
        return ViewSpec(self.size, **{**plain, **self.options})

    @property
    def D(self):
        """Side of a view, where benchmarks print a width."""
        return self.size

    def images(self, device="cpu", seed=0):
        """Smooth noise, uint8 [B, C, H, W]: neighbours are alike, as in photographs."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(self.B, self.channels, 9, 9, generator=generator)
        x = torch.nn.functional.interpolate(coarse, (self.H, self.W), mode="bicubic")
        noise = torch.randn(x.shape, generator=generator)
        return (x * 280 - 12 + 8 * noise).clamp(0, 255).round().to(torch.uint8).to(device)

    def inputs(self, device="cpu", dtype=torch.float32, seed=0):
        """Arguments and keyword arguments of the public function."""
        index = torch.arange(self.B, device=device)
        spec = self.spec
        drawn = sample_parameters(spec, seed, 0, index, height=self.H, width=self.W)
        options = dict(mean=spec.mean, std=spec.std, dtype=dtype, blur_kernel=spec.blur_kernel,
                       interpolation=spec.interpolation,
                       grayscale_first=spec.grayscale_first)  # fmt: skip
        return (self.images(device, seed), drawn, self.size), options

    def bytes_moved(self, element_bytes=4):
        """The least that must be read and written: every image once, every view once."""
        pixels = self.B * self.channels
        return pixels * (self.H * self.W + self.size**2 * element_bytes)


def example(device):
    """Arguments of a backend for a typical call."""
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=device)
    statistics = [0.5] * 3, [0.25] * 3
    table = table_of({}, images)
    return (images, table, "", 4, *statistics, torch.float32, "bilinear", False, 3), {}


CASES = [
    Case("crop and flip", 6, 32, 32, 32, options=dict(jitter=0, grayscale=0)),
    Case("shrunk", 6, 61, 45, 16, options=dict(jitter=0, grayscale=0)),
    Case("simclr, small", 24, 32, 32, 32, options=SIMCLR),
    Case("simclr, shrunk", 6, 75, 100, 40, options=SIMCLR),
    Case("bicubic", 6, 40, 31, 24, options=dict(interpolation="bicubic")),
    Case("bicubic, shrunk", 6, 80, 97, 17, options=dict(interpolation="bicubic")),
    Case("grey first", 12, 20, 24, 16, options=dict(**SIMCLR, grayscale_first=True)),
    Case("padded", 6, 16, 16, 16, options=dict(crop_padding=3)),
    Case("padded and shrunk", 6, 33, 31, 9, options=dict(crop_padding=5)),
    Case("everything but rounding", 12, 40, 40, 33,
         options={**EVERYTHING, "solarize": 0.0, "posterize": 0.0}),
    Case("one channel", 8, 24, 20, 16, 1, options=dict(**SIMCLR, erase=0.5)),
    Case("one pixel", 3, 5, 4, 1, options=dict(brightness=0.4)),
    Case("no images", 0, 5, 4, 8),
    Case("wide blur", 5, 24, 24, 21, options=dict(blur=1.0, blur_kernel=23, blur_sigma=(0.5, 9))),
]  # fmt: skip

MEASURED = [
    Case("SimCLR, 32 x 32", 128, 32, 32, 32, options={**SIMCLR, "blur": 0.0}),
    Case("SimCLR, 224 x 224", 16, 256, 256, 224, options=SIMCLR),
]


def case_of(shape):
    """A case from "512x32x32-32" (images, height, width, side of the views): SimCLR's."""
    sizes, _, side = shape.partition("-")
    B, H, W = map(int, sizes.split("x"))
    return Case(shape, B, H, W, int(side), options=SIMCLR)
