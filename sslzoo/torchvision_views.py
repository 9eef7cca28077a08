"""Random views by torchvision's functions, image by image.

What `sslops.augment` is held to: the same parameters give the same view within a grey level.
"""

import math

import torch
from torchvision.transforms.v2 import functional as tv

import sslops
from sslzoo.views import read

JITTER = tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue


class TorchvisionViews(torch.utils.data.Dataset):
    """(epoch, sample numbers) -> finished views, [], what went wrong.

    Args:
        data: ImageData.
        specs: one ViewSpec for each view.
        seed: of the views.
    """

    def __init__(self, data, specs, seed):
        self.data, self.specs, self.seed = data, specs, seed

    def __getitem__(self, item):
        epoch, indices = item
        images, wrong = read(self.data, indices)
        if not images:
            return [], [], wrong
        index = torch.from_numpy(indices)
        H, W = (torch.tensor([image.shape[side] for image in images]) for side in (-2, -1))
        drawn = [sslops.sample_parameters(spec, self.seed, epoch, index, view, height=H, width=W)
                 for view, spec in enumerate(self.specs)]  # fmt: skip
        views = [make_views(images, spec, p) for spec, p in zip(self.specs, drawn, strict=True)]
        return views, [], wrong


def make_views(images, spec, parameters):
    """`sslzoo.views.make_view` by torchvision; the images [C, H, W] may differ in size."""
    rows = ({name: value[b] for name, value in parameters.items()} for b in range(len(images)))
    return torch.stack([view(x, spec, p) for x, p in zip(images, rows, strict=True)])


def view(image, spec, p):
    """One view float32 [C, size, size] of uint8 [C, H, W] with the parameters of one sample."""
    box, mode = p["crop"].int().tolist(), tv.InterpolationMode(spec.interpolation)
    x = tv.resized_crop(image / 255, *box, [spec.size] * 2, mode, antialias=True).clamp(0, 1)
    if p.get("flip"):
        x = tv.horizontal_flip(x)
    if "affine" in p:
        x = affine(x, p["affine"])
    if "posterize" in p:
        x = tv.posterize((x * 255).round().to(torch.uint8), int(p["posterize"])) / 255
    colours = (grey, jitter) if spec.grayscale_first else (jitter, grey)
    for colour in colours:
        x = colour(x, p)
    if "blur_sigma" in p and p["blur_sigma"] > 0:
        kernel = [spec.blur_kernel or spec.size // 10 | 1] * 2
        x = tv.gaussian_blur(x, kernel, [float(p["blur_sigma"])] * 2)
    if p.get("solarize"):
        x = tv.solarize(x, 128 / 255)
    x = tv.normalize(x, spec.mean, spec.std)
    return tv.erase(x, *p["erase"].int().tolist(), x.new_zeros(1)) if "erase" in p else x


def grey(x, p):
    is_grey = "grayscale" in p and p["grayscale"]
    return tv.rgb_to_grayscale(x, len(x)) if is_grey else x


def jitter(x, p):
    for turn in p["order"].tolist() if "order" in p else ():
        factor = float(p["factors"][turn])
        # A factor that changes nothing: torchvision would turn to HSV and back all the same.
        if factor != (0 if JITTER[turn] is tv.adjust_hue else 1):
            x = JITTER[turn](x, factor)
    return x


def affine(x, matrix):
    """By the angle, shear and shift of [2, 3], which maps a pixel of the view to its source."""
    forward = torch.linalg.inv(matrix[:, :2].double())
    angle = math.degrees(math.atan2(-matrix[1, 0], matrix[1, 1]))
    shear = math.degrees(math.atan(-(forward[:, 0] @ forward[:, 1])))
    shift = -(forward @ matrix[:, 2].double()) * (x.shape[-1] / 2)
    return tv.affine(x, angle, shift.round().tolist(), 1.0, [shear, 0.0],
                     interpolation=tv.InterpolationMode.BILINEAR)  # fmt: skip
