"""Any encoder as a tracker: embeddings of frames, and labels carried by them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from accelerate import PartialState
from PIL import Image

from sslzoo import backbones
from sslzoo.data import DataError
from sslzoo.evaluation import propagation
from sslzoo.run_folder import load_backbone, load_method
from sslzoo.views import IMAGENET_MEAN, IMAGENET_STD, normalise

VOID = 255  # of indexed masks: neither object nor background
OBJECT_COLORS = ((220, 50, 47), (38, 139, 210), (133, 153, 0), (211, 54, 130), (181, 137, 0),
                 (42, 161, 152), (108, 113, 196), (203, 75, 22))  # fmt: skip


class Tracker:
    """An encoder and a protocol.

    Args:
        path: a run folder, a checkpoint.pt, a backbone.safetensors, or the name of an encoder.
        config: sslzoo.tracking_config.TrackerConfig.
    """

    def __init__(self, path, config):
        self.config = config
        self.device = PartialState(cpu=config.device == "cpu").device
        self.embed, self.description = load_embedding(path, config, self.device)
        self.protocol = propagation.PROTOCOLS[config.protocol]
        if config.temperature:
            self.protocol = replace(self.protocol, temperature=config.temperature)

    @torch.no_grad()
    def features(self, video):
        """Embeddings of a video's frames one by one, [D, h, w], on the device."""
        size = propagation.frame_size(*video.size, self.config.size)
        frames = (
            propagation.resize(video.frames([t])[0].to(self.device), size)
            for t in range(len(video))
        )
        yield from self.embed(frames)

    @torch.no_grad()
    def masks(self, features, mask):
        """Masks int64 [H, W] of all frames; the first is the given one."""
        features = iter(features)
        first = next(features)
        objects = int(mask.max())
        labels = propagation.mask_to_cells(mask, first.shape[1:], objects)
        size = propagation.frame_size(*mask.shape, self.config.size)
        soft = propagation.propagate(chain_one(first, features), labels, self.protocol)
        for number, cells in enumerate(soft):
            if number == 0:
                yield mask
            else:
                yield propagation.cells_to_mask(cells, mask.shape, self.protocol, size).cpu()

    @torch.no_grad()
    def keypoints(self, features, keypoints, size):
        """Places [K, 2] of joints in all frames after the first, from [K, 3] in the first."""
        features = iter(features)
        first = next(features)
        labels = propagation.keypoints_to_cells(keypoints, first.shape[1:], size)
        soft = propagation.propagate(chain_one(first, features), labels, self.protocol)
        next(soft)
        for cells in soft:
            yield propagation.cells_to_keypoints(cells, size).cpu()


def chain_one(first, others):
    yield first
    yield from others


def load_embedding(path, config, device):
    """(frames, an iterator of [3, H, W] -> an iterator of [D, h, w]; the embedding in words)."""
    layer = config.layer or None
    if not Path(path).exists():
        backbone, mean, std = named_backbone(path, config)
        name = f"{path}, {'pretrained' if config.pretrained else 'untrained'}"
    else:
        method = None if layer else load_method(path, trained=not config.untrained)
        if method is not None:
            method.to(device)
            return method.embed_video, f"embeddings of {path}"
        backbone, about = load_backbone(path)
        if config.untrained:
            draw_anew(backbone)
        mean, std, name = about["mean"], about["std"], f"{path}"
    backbone.to(device).eval()

    def embed(frames):
        for frame in frames:
            fit_input(backbone, frame.shape[-2:])
            x = normalise(frame[None], mean, std)
            yield backbones.dense_features(backbone, x, layer)[0]

    return embed, f"layer {layer or backbones.last_map(backbone)} of {name}"


def named_backbone(name, config):
    """An encoder by its name, and the mean and standard deviation that it expects."""
    if name not in backbones.OWN and not timm.is_model(name):
        raise DataError(f"{name} is neither a run, a checkpoint nor an encoder of timm")
    torch.manual_seed(0)
    options = {"pretrained": True} if config.pretrained else {}
    backbone = backbones.build(name, image_size=config.size, **options)
    about = getattr(backbone, "pretrained_cfg", None) or {}
    return backbone, about.get("mean", IMAGENET_MEAN), about.get("std", IMAGENET_STD)


def draw_anew(module):
    """Give every layer new random weights."""
    torch.manual_seed(0)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


def fit_input(backbone, size):
    """Let a ViT take frames of this size: its positions are interpolated."""
    embed = getattr(backbone, "patch_embed", None)
    if isinstance(backbone, timm.models.VisionTransformer) and tuple(embed.img_size) != tuple(size):
        backbone.set_input_size(img_size=tuple(size))


def read_mask(path, size):
    """A mask as int64 [H, W] with 0 for the background and 1, 2, ... for objects.

    Args:
        path: an indexed, grey or bilevel PNG; 255 is void in an indexed one.
        size: (height, width) that it must have.
    """
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is no readable mask ({error})") from error
    if values.ndim != 2:
        raise DataError(f"{path} must be an indexed or grey PNG; its mode is {mode}")
    if values.shape != tuple(size):
        raise DataError(f"the mask {path} is {values.shape[1]} x {values.shape[0]} pixels; "
                         f"the video is {size[1]} x {size[0]}")  # fmt: skip
    numbers = mask_numbers(values, mode)
    if not numbers.any():
        raise DataError(f"the mask {path} holds no object: all pixels are background")
    return numbers


def mask_numbers(values, mode):
    """Objects numbered from 1: indices as they are, greys in rising order."""
    values = torch.from_numpy(values.astype(np.int64))
    if mode == "P":
        return values.masked_fill(values == VOID, 0)
    levels = values.unique()
    levels = levels[levels > 0]
    return torch.searchsorted(levels, values, right=True) * (values > 0)


def save_mask(path, mask):
    """Write an indexed PNG."""
    image = Image.fromarray(mask.numpy().astype(np.uint8), mode="P")
    image.putpalette(np.array(palette(), np.uint8).tobytes())
    image.save(path)


def palette():
    """256 colours: black, then those of the objects again and again."""
    return [(0, 0, 0), *(OBJECT_COLORS[i % len(OBJECT_COLORS)] for i in range(255))]


def overlay(frame, mask):
    """A frame with its objects tinted, uint8 [H, W, 3], from uint8 [3, H, W] and int64 [H, W]."""
    frame, mask = frame.permute(1, 2, 0).numpy(), mask.numpy()
    tint = np.array(palette())[mask]
    return np.where(mask[..., None] > 0, (frame.astype(int) + tint) // 2, frame).astype(np.uint8)
