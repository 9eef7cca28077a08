"""Features of a whole data set from a frozen encoder."""

import math

import torch
from torch.utils.data import DataLoader

from sslzoo import backbones
from sslzoo.data import DataError
from sslzoo.pixels import centre_view
from sslzoo.progress import with_bar
from sslzoo.views import normalise


def extract(backbone, data, size, mean, std, device="cpu", batch_size=256, workers=0, layer=None):
    """Features of every image under the evaluation view, without augmentation.

    The encoder runs in eval mode, so its buffers do not change, and returns to its mode after.

    Args:
        backbone: a module, images [B, C, size, size] to features [B, d].
        data: ImageData.
        size: side of the view in pixels.
        mean, std: normalisation, one value for each channel.
        device: where the encoder is.
        batch_size: images at a time.
        workers: processes that decode images that are not held in memory.
        layer: name of a submodule whose output is taken instead; see `backbones.features`.

    Returns:
        (features float32 [N, d], labels int64 [N] or None), on the CPU.
    """
    sets, labels = extract_layers(backbone, data, [layer], size, mean, std, device=device,
                                  batch_size=batch_size, workers=workers)  # fmt: skip
    return sets[layer], labels


def extract_layers(backbone, data, layers, size, mean, std, *, device="cpu", batch_size=256,
                   workers=0, tokens="class", dtype=None):  # fmt: skip
    """Features after several layers, from one pass; [None] is the encoder's output.

    Args:
        layers: names of submodules, or [None].
        tokens: see `backbones.layer_features`.
        dtype: of the forward pass where it is not float32: torch.bfloat16 or torch.float16.

    Returns:
        ({layer: features float32 [N, d]}, labels int64 [N] or None), on the CPU.
    """
    views = evaluation_views(data, size, batch_size, workers)
    views = with_bar(views, math.ceil(len(data) / batch_size), "features")
    features = encode(backbone, views, layers, mean, std, device=device, tokens=tokens, dtype=dtype)
    return features, data.labels


@torch.no_grad()
def encode(backbone, views, layers, mean, std, *, device="cpu", tokens="class", dtype=None):
    """{layer: features float32 [N, d]} of views, an iterable of uint8 [B, C, S, S]."""
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    rows = {layer: [] for layer in layers}
    try:
        for view in views:
            x = normalise(view.to(device).float() / 255, mean, std)
            with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
                found = outputs(backbone, x, layers, tokens)
            for layer, value in found.items():
                rows[layer].append(value.float().cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    return {layer: torch.cat(values) for layer, values in rows.items()}


def outputs(backbone, x, layers, tokens):
    """{layer: features} of one batch, the encoder's output (None) among them if asked."""
    if layers == [None]:
        return {None: backbone(x)}
    if None not in layers:
        return backbones.layer_features(backbone, x, layers, tokens=tokens)
    return {layer: backbones.features(backbone, x, layer) for layer in layers}


def evaluation_views(data, size, batch_size, workers=0):
    """The evaluation view of every image, uint8 [B, C, size, size], batch by batch, in order."""
    if data.images is not None:
        for images in data.images.split(batch_size):
            yield centre_view(images, size)
        return
    loader = DataLoader(
        _Views(data, size),
        sampler=torch.arange(len(data)).split(batch_size),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # an evaluation leaves the random state of training alone
    )
    for views, fault in loader:
        if fault:
            raise DataError(fault)
        yield views


class _Views(torch.utils.data.Dataset):
    """Rows -> their views, and what went wrong (an exception would come with a traceback)."""

    def __init__(self, data, size):
        self.data, self.size = data, size

    def __getitem__(self, rows):
        try:
            return torch.stack([centre_view(self.data.load(i), self.size) for i in rows]), None
        except DataError as error:
            return None, str(error)
