"""Image operations beside those of sslops.augment: fixed crops and grey."""

import torch
from torchvision.transforms.v2 import functional as tv

# Views up to this size show the whole image in evaluation; larger ones the central 7/8.
WHOLE_IMAGE_SIZE = 96


def crop_resize(image, box, size, interpolation="bilinear"):
    """One uint8 image [C, H, W], cropped and resized with antialiasing: uint8 [C, size, size]."""
    box = [int(x) for x in box]
    mode = tv.InterpolationMode(interpolation)
    return tv.resized_crop(image, *box, [size, size], interpolation=mode, antialias=True)


def centre_view(images, size, interpolation="bilinear"):
    """Resize the shorter side, crop the centre: uint8 [..., C, size, size]."""
    H, W = images.shape[-2:]
    side = size if size <= WHOLE_IMAGE_SIZE else round(size * 8 / 7)
    if min(H, W) != side:
        scale = side / min(H, W)
        shape = [max(side, round(H * scale)), max(side, round(W * scale))]
        mode = tv.InterpolationMode(interpolation)
        images = tv.resize(images, shape, interpolation=mode, antialias=True)
    return tv.center_crop(images, [size, size])


def grey(x):
    """Luminance [B, 1, H, W] of [B, C, H, W]: weights of ITU-R 601; a grey image is its own."""
    if x.shape[1] == 1:
        return x
    weights = torch.tensor([0.2989, 0.587, 0.114], dtype=x.dtype).to(x.device, non_blocking=True)
    return (x * weights[:, None, None]).sum(1, keepdim=True)
