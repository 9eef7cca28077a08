"""What people run for SimCLR's views today, and the bare copy as the floor.

Parameters are drawn within the time, anew in every call, on both sides. On a CPU everything runs on
one thread, as in a worker of a data loader.
"""

import functools
import sys
from dataclasses import replace

import torch

import sslops
from benchmarks.measure import Variant, peer

LEVEL = 1 / 255
CHECKED = 16  # images of the comparison at size: a view depends on no other image


def inputs(case, device, dtype, seed=0):
    """The images, their indices, and an empty tensor whose dtype that of the views shall be."""
    index = torch.arange(case.B, device=device) + 10**6 * seed
    return [case.images(device, seed), index, torch.empty(0, dtype=dtype, device=device)]


def small(case):
    side = min(case.size, 40)
    return replace(case, B=min(case.B, 8), H=case.H * side // case.size,
                   W=case.W * side // case.size, size=side)  # fmt: skip


def ours(op, backend, case):
    def views(images, index, like):
        spec = case.spec
        drawn = sslops.sample_parameters(spec, 0, 0, index, height=case.H, width=case.W)
        return sslops.augment(images, drawn, spec.size, mean=spec.mean, std=spec.std,
                              dtype=like.dtype, backend=backend)  # fmt: skip

    return Variant("sslops", on_one_thread(views))


def on_one_thread(function):
    """The function, with one of torch's threads while it runs."""

    @functools.wraps(function)
    def run(*args):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args)
        finally:
            torch.set_num_threads(threads)

    return run


def torchvision(spec, module, as_floats):
    """One module's transforms of a single image, which end with as_floats and the normalisation."""
    strengths = spec.brightness, spec.contrast, spec.saturation, spec.hue
    steps = [
        module.RandomResizedCrop(spec.size, spec.crop_scale, antialias=True),
        module.RandomHorizontalFlip(spec.flip),
        module.RandomApply([module.ColorJitter(*strengths)], spec.jitter),
        module.RandomGrayscale(spec.grayscale),
    ]
    if spec.blur:
        blur = module.GaussianBlur(spec.size // 10 | 1, spec.blur_sigma)
        steps.append(module.RandomApply([blur], spec.blur))
    return module.Compose([*steps, as_floats, module.Normalize(spec.mean, spec.std)])


def on_pil_images(case):
    from PIL import Image
    from torchvision import transforms

    transform = torchvision(case.spec, transforms, transforms.ToTensor())

    def views(images, index, like):
        arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        return torch.stack([transform(Image.fromarray(x)) for x in arrays]).to(like)

    return on_one_thread(views)


def on_tensors(case):
    from torchvision.transforms import v2

    transform = torchvision(case.spec, v2, v2.ToDtype(torch.float32, scale=True))

    def views(images, index, like):
        return torch.stack([transform(image) for image in images]).to(like)

    return on_one_thread(views)


def kornia(case):
    """A whole batch at once, every image with parameters of its own, as here."""
    from kornia import augmentation as K

    spec = case.spec
    strengths = spec.brightness, spec.contrast, spec.saturation, spec.hue
    steps = [
        K.RandomResizedCrop((spec.size, spec.size), spec.crop_scale),
        K.RandomHorizontalFlip(p=spec.flip),
        K.ColorJitter(*strengths, p=spec.jitter),
        K.RandomGrayscale(p=spec.grayscale),
    ]
    if spec.blur:
        width = spec.size // 10 | 1
        steps.append(K.RandomGaussianBlur((width, width), spec.blur_sigma, p=spec.blur))
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    transform = K.AugmentationSequential(*steps, K.Normalize(mean, std), data_keys=["input"])

    def views(images, index, like):
        return transform(images / 255).to(like)

    return on_one_thread(views)


def floor(case, device, dtype):
    """Every image read once, every view written once."""
    views = torch.empty(case.B, case.channels, case.size, case.size, device=device, dtype=dtype)
    read = torch.empty(case.B, case.channels, case.H, case.W, device=device, dtype=torch.uint8)

    def copy(images, *_):
        read.copy_(images)
        views.copy_(read[..., : case.size, : case.size])

    return Variant("bare copy", on_one_thread(copy))


def baselines(case, device, dtype):
    """The floor first, then the transforms of torchvision, then the peers."""
    variants = [floor(case, device, dtype)]
    if device == "cpu":  # of tensors on a GPU nobody makes PIL images
        variants.append(peer("torchvision on PIL images", lambda: on_pil_images(case)))
    return [
        *variants,
        peer("torchvision v2 on tensors", lambda: on_tensors(case)),
        peer("kornia (no antialiasing)", lambda: kornia(case)),
    ]


def check(op, backend, own, eager, case, device, dtype):
    """Stop unless views equal the specification's in float64, small and at size."""
    for what, one in (("small", small(case)), ("at size", replace(case, B=min(case.B, CHECKED)))):
        images, index, like = inputs(one, device, dtype)
        views, exact = (
            ours(op, name, one).loss(images, index, x.to(kind)).double()
            for name, x, kind in ((backend, like, dtype), ("reference", like, torch.float64))
        )
        unit = LEVEL / min(one.spec.std)
        levels = (views - exact).abs().max().item() / unit
        # A hundredth of a grey level, and the rounding to the dtype of the views.
        allowed = 0.01 + exact.abs().max().item() * torch.finfo(dtype).eps / unit
        print(f"correct against float64, {what}: largest difference {levels:.1e} grey levels")
        if not levels < allowed:
            sys.exit(f"wrong: {levels:.1e} grey levels away from float64; no speed is measured")
