"""Random views of images by sslops.augment, and the fixed view of evaluation.

A view is a function of (seed, epoch, sample, view number): `sslops.sample_parameters` draws its
parameters by a counter-based generator. No generator has a state, so neither the number of
workers, nor the number of processes, nor an interruption changes what is seen.
"""

import torch

import sslops
from sslops.ops.augment.spec import IMAGENET_MEAN, IMAGENET_STD, ViewSpec  # noqa: F401 shared
from sslzoo import pixels
from sslzoo.data import DataError


def whole_blur(size):
    """A blur kernel's width in pixels that cuts off nothing within 3 deviations of 2 pixels.

    The blur of MoCo and DINO is PIL's, which has no width; SimCLR's is a tenth of the view wide.
    """
    return min(13, 2 * size - 1)


def make_view(images, spec, parameters):
    """One view of each image, with given parameters.

    Args:
        images: uint8 [B, C, H, W], C = 1 or 3, on any device.
        spec: ViewSpec.
        parameters: of `sslops.sample_parameters` for these samples.

    Returns:
        float32 [B, C, size, size], normalised, on the device of `images`.

    Example:
        >>> import torch, sslops
        >>> from sslzoo.views import ViewSpec, make_view
        >>> images, index = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([7, 8])
        >>> spec = ViewSpec(size=16)
        >>> drawn = sslops.sample_parameters(spec, 0, 3, index, height=32, width=32)
        >>> make_view(images, spec, drawn).shape
        torch.Size([2, 3, 16, 16])
    """
    return sslops.augment(images, parameters, spec.size, mean=spec.mean, std=spec.std,
                          interpolation=spec.interpolation, blur_kernel=spec.blur_kernel,
                          grayscale_first=spec.grayscale_first)  # fmt: skip


class HeldViews(torch.utils.data.Dataset):
    """(epoch, sample numbers) -> finished views of images held in memory, [], None.

    Worker processes share that memory: forked ones see it, others get a handle of it from torch.

    Args:
        images: uint8 [N, C, H, W], on the device where the views are made.
        specs: one ViewSpec for each view.
        seed: of the views.
    """

    def __init__(self, images, specs, seed):
        self.images, self.specs, self.seed = images, specs, seed

    def __getitem__(self, item):
        epoch, indices = item
        index = torch.from_numpy(indices).to(self.images.device, non_blocking=True)
        images = self.images[index]
        H, W = images.shape[-2:]
        drawn = [sslops.sample_parameters(spec, self.seed, epoch, index, view, height=H, width=W)
                 for view, spec in enumerate(self.specs)]  # fmt: skip
        views = [make_view(images, *pair) for pair in zip(self.specs, drawn, strict=True)]
        return views, [], None


class FileCrops(torch.utils.data.Dataset):
    """(epoch, sample numbers) -> crops uint8 of every view, what else was drawn, what went wrong.

    An image is decoded once for all of its views. The crops are whole grey levels, as torchvision's
    are on bytes; `make_view` turns them into views on the device.

    Args:
        data: ImageData whose images are decoded one by one.
        specs, seed: as of HeldViews.
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
        crops, drawn = [], []
        for view, spec in enumerate(self.specs):
            parameters = sslops.sample_parameters(spec, self.seed, epoch, index, view, height=H,
                                                  width=W)  # fmt: skip
            boxes = parameters.pop("crop").tolist()
            crops.append(torch.stack([
                pixels.crop_resize(image, box, spec.size, spec.interpolation)
                for image, box in zip(images, boxes, strict=True)
            ]))  # fmt: skip
            drawn.append(parameters)
        return crops, drawn, wrong


def read(data, indices):
    """Decoded images, and what went wrong: in words, or {sample: words} where it was skipped."""
    try:
        images = [data.load(index) for index in indices]
    except DataError as error:  # an exception would arrive wrapped in a worker's traceback
        return [], str(error)
    return images, dict(data.unreadable.found)


def normalise(x, mean, std):
    """(x - mean) / std for each channel of [B, C, H, W]."""
    mean, std = (
        torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (mean, std)
    )
    return (x - mean) / std


def evaluation_view(images, size, mean, std):
    """The fixed view for evaluation: resize the shorter side, crop the centre, normalise.

    As usual, views above 96 pixels show the central 7/8 (256 to 224); smaller ones everything.

    Args:
        images: uint8 [B, C, H, W].
        size: side of the view in pixels.

    Returns:
        float32 [B, C, size, size].
    """
    return normalise(pixels.centre_view(images, size).float() / 255, mean, std)
