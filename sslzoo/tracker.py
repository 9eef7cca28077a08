"""Any encoder as a tracker: embeddings of frames, and labels carried by them."""

import copy
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from sslzoo import backbones
from sslzoo.data import DataError
from sslzoo.evaluation import propagation
from sslzoo.evaluation.subject import DTYPES
from sslzoo.run_folder import load_method
from sslzoo.views import normalise


class Tracker:
    """An encoder and a protocol.

    Args:
        subject: sslzoo.evaluation.subject.Subject.
        layer: name of the layer whose map is taken; None takes the embeddings of a method that
            has some of its own, or else the encoder's last map.
        config: sslzoo.tracking_config.TrackerConfig.
        method: one in training that embeds videos itself; None takes that of the subject's run.
    """

    def __init__(self, subject, layer, config, method=None):
        if subject.about["channels"] != 3 or subject.about.get("kind") == "audio":
            raise DataError(f"{subject.source} takes no RGB images, which videos are made of")
        self.device, self.short_side = subject.device, config.size
        self.is_square = config.square
        self.patch = patch_size(subject.backbone)
        method = method or own_method(subject, layer)
        self.protocol = chosen_protocol(config, method)
        self.embed, self.description = embedding(subject, layer, method)

    def input_size(self, height, width):
        """(height, width) of a frame as the encoder sees it."""
        size = (self.short_side,) * 2
        if not self.is_square:
            size = propagation.frame_size(height, width, self.short_side)
        return tuple(side // p * p for side, p in zip(size, self.patch, strict=True))

    @torch.no_grad()
    def features(self, video):
        """Embeddings of a video's frames one by one, [D, h, w], on the device."""
        size = self.input_size(*video.size)
        frames = (propagation.resize(frame.to(self.device), size) for frame in video)
        yield from self.embed(frames)

    @torch.no_grad()
    def masks(self, features, mask):
        """Masks uint8 [H, W] of all frames; the first is the given one."""
        size = self.input_size(*mask.shape)
        soft = self.carry(features, lambda cells: propagation.mask_to_cells(mask, cells))
        next(soft)
        yield mask
        for labels in soft:
            yield propagation.cells_to_mask(labels, mask.shape, self.protocol, size).cpu()

    @torch.no_grad()
    def keypoints(self, features, keypoints, size):
        """Places [K, 2] of joints in all frames after the first, from [K, 3] in the first."""
        soft = self.carry(
            features, lambda cells: propagation.keypoints_to_cells(keypoints, cells, size)
        )
        next(soft)
        for labels in soft:
            yield propagation.cells_to_keypoints(labels, size).cpu()

    def carry(self, features, labels_of):
        """Soft labels of all frames; labels_of: (h, w) -> labels of the first frame."""
        features = iter(features)
        first = next(features)
        labels = labels_of(first.shape[1:])
        yield from propagation.propagate(chain([first], features), labels, self.protocol)


def own_method(subject, layer):
    """The run's method, where it embeds videos itself and no layer was asked for; else None."""
    if layer is not None or not Path(subject.source).exists():
        return None
    method = load_method(subject.source, trained=not subject.common.untrained)
    return None if method is None else method.to(subject.device)


def chosen_protocol(config, method=None):
    """The protocol of a TrackerConfig, with what it or the method says otherwise."""
    names = ("temperature", "last_frames", "topk", "radius")
    changes = {name: getattr(config, name) for name in names if getattr(config, name)}
    if config.protocol == "paper" and method is not None:
        changes = {"temperature": method.config.test_temperature} | changes
    return replace(propagation.PROTOCOLS[config.protocol], **changes)


def patch_size(backbone):
    """(height, width) that the sides of a frame must be multiples of."""
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", 1)
    return (patch, patch) if isinstance(patch, int) else tuple(patch)


def embedding(subject, layer, method):
    """(frames, an iterator of [3, H, W] -> an iterator of [D, h, w]; the embedding in words)."""
    if method is not None:
        return method.embed_video, f"embeddings of {subject.about['method']}"
    device = subject.device
    dtype = DTYPES[subject.common.precision]
    _, mean, std = subject.view
    fitted = Fitted(subject.backbone)

    def embed(frames):
        for frame in frames:
            x = normalise(frame[None], mean, std)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                yield backbones.dense_features(fitted(frame.shape[-2:]), x, layer)[0]

    where = layer or backbones.last_map(subject.backbone)
    return embed, f"layer {where} of {subject.about['backbone']}"


class Fitted:
    """A backbone for frames of any size: a ViT's positions are interpolated, in a copy.

    Args:
        backbone: an encoder; it stays as it is.
    """

    def __init__(self, backbone):
        self.backbone, self.last = backbone, (None, backbone)

    def __call__(self, size):
        size, embed = tuple(size), getattr(self.backbone, "patch_embed", None)
        if not getattr(embed, "strict_img_size", False) or tuple(embed.img_size) == size:
            return self.backbone
        if self.last[0] != size:
            if not hasattr(self.backbone, "set_input_size"):
                raise DataError(f"this encoder takes images of {embed.img_size} pixels only; "
                                f"the frames are {size}")  # fmt: skip
            copied = copy.deepcopy(self.backbone)
            copied.set_input_size(img_size=size)
            self.last = size, copied
        return self.last[1]
