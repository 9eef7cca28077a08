"""Encoders that see a part of the colours of RGB images, and decoders from their maps to classes.

Both take images [B, 3, S, S] from 0 to 1, so every evaluation can use them. L is scaled by 50
and shifted to -1 to 1, a and b are scaled by 110.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sslzoo import backbones
from sslzoo.lab import rgb_to_lab


def lightness(lab):
    """The input L [B, 1, H, W] of a network, -1 to 1."""
    return lab[:, :1] / 50 - 1


def color(lab):
    """The input ab [B, 2, H, W] of a network, about -1 to 1."""
    return lab[:, 1:] / 110


def stage_maps(network, x):
    """The maps of all stages, {name: [B, C, h, w]}."""
    maps = {}
    for name, stage in backbones.stages(network).items():
        maps[name] = x = stage(x)
    return maps


@torch.no_grad()
def stage_shapes(network, channels, image_size):
    """{name: (channels, side)} of the maps, by one pass over an empty image."""
    was_training = network.training
    maps = stage_maps(network.eval(), torch.zeros(1, channels, image_size, image_size))
    network.train(was_training)
    return {name: tuple(x.shape[1:3]) for name, x in maps.items()}


def check_color(channels):
    """Grey images have nothing to predict."""
    if channels != 3:
        raise ValueError(f"this method needs colour images; the data has {channels} channel")


class LightnessEncoder(nn.Module):
    """An encoder that sees the lightness L of RGB images.

    Args:
        name: of a convolutional encoder of sslzoo.backbones; its first layer has one channel.
        image_size: side in pixels.
        channels: of the images, which must be 3.
    """

    def __init__(self, name, image_size, channels):
        super().__init__()
        check_color(channels)
        self.net = backbones.build(name, image_size=image_size, channels=1)
        self.shapes = stage_shapes(self.net, 1, image_size)
        self.image_size, self.num_features = image_size, self.net.num_features

    def maps(self, lab):
        """The maps of all stages from a LAB image."""
        return stage_maps(self.net, lightness(lab))

    def forward(self, x):
        return self.net(lightness(rgb_to_lab(x)))

    def layers(self):
        return backbones.layers(self.net)

    def layer_features(self, x, names):
        return backbones.layer_features(self.net, lightness(rgb_to_lab(x)), names)


class SplitEncoder(nn.Module):
    """Two networks of half the width: one sees L, the other ab; nothing passes between them.

    Its features are those of both halves side by side, each normalised by a batch norm without
    affine part, because activations of the halves differ in size. Layers are named as in one half
    (both halves, concatenated), or with a prefix: "L.layer3", "ab.layer3".

    Args:
        name: of a convolutional encoder of sslzoo.backbones that has a half.
        image_size: side in pixels.
        channels: of the images, which must be 3.
    """

    def __init__(self, name, image_size, channels):
        super().__init__()
        check_color(channels)
        sizes = dict(image_size=image_size)
        self.halves = nn.ModuleDict({
            "L": backbones.build_half(name, channels=1, **sizes),
            "ab": backbones.build_half(name, channels=2, **sizes),
        })  # fmt: skip
        self.shapes = stage_shapes(self.halves["L"], 1, image_size)
        self.norms = nn.ModuleDict({
            half: nn.ModuleDict({
                key(stage): nn.BatchNorm1d(width, affine=False)
                for stage, (width, _) in self.shapes.items()
            })
            for half in self.halves
        })  # fmt: skip
        self.image_size, self.num_features = image_size, 2 * self.halves["L"].num_features

    def maps(self, lab):
        """The maps of all stages of each half, from a LAB image."""
        return {
            "L": stage_maps(self.halves["L"], lightness(lab)),
            "ab": stage_maps(self.halves["ab"], color(lab)),
        }

    def features(self, maps):
        """Normalised features of all stages and halves, {"L": {stage: [B, d]}, "ab": ...}."""
        return {
            half: {stage: self.norms[half][key(stage)](x.float().mean((2, 3)))
                   for stage, x in stages.items()}
            for half, stages in maps.items()
        }  # fmt: skip

    def forward(self, x):
        last = list(self.shapes)[-1]
        return self.layer_features(x, [last])[last]

    def layers(self):
        """Both halves together, then each alone: one of them may be of no use for some data."""
        stages = list(self.shapes)
        return stages + [f"{half}.{stage}" for half in self.halves for stage in stages]

    def layer_features(self, x, names):
        backbones.check_layers(self, names)
        found = self.features(self.maps(rgb_to_lab(x)))
        return {name: joined(found, name) for name in names}


def joined(found, name):
    """Features of one half where the name begins with it, else of both."""
    half, _, stage = name.partition(".")
    parts = [found[half][stage]] if half in found else [f[name] for f in found.values()]
    return torch.cat(parts, 1)


def key(stage):
    """The name of a stage as the name of a module, which may hold no dot."""
    return stage.replace(".", "_")


class MapDecoder(nn.Module):
    """From the maps of an encoder to classes, or values, at every place.

    skip     the last map enlarged twofold, 256 channels, plus an earlier map of that size, then
             enlarged with 128 channels until the output's size is reached
    deconv   the paper's: transposed 4 x 4 convolution of stride 2 and two 3 x 3, 256 channels
    linear   a 1 x 1 convolution of the last map

    Args:
        shapes: {stage: (channels, side)} of the encoder.
        side: of the output at least, for "skip".
        outputs: channels.
        kind: "skip", "deconv" or "linear".
    """

    def __init__(self, shapes, side, outputs, kind="skip"):
        super().__init__()
        self.top = list(shapes)[-1]
        width, top_side = shapes[self.top]
        self.earlier, self.lateral = None, None
        if kind == "deconv":
            layers = [nn.ConvTranspose2d(width, 256, 4, 2, 1), nn.ReLU(inplace=True)]
            for _ in range(2):
                layers += [nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(inplace=True)]
            self.first, self.rest, width = nn.Sequential(*layers), nn.ModuleList(), 256
        elif kind == "linear" or top_side >= side:
            self.first, self.rest = nn.Identity(), nn.ModuleList()
        else:
            larger = [name for name, (_, s) in shapes.items() if top_side < s <= 2 * top_side]
            if larger:
                self.earlier = larger[-1]
                self.lateral = nn.Conv2d(shapes[self.earlier][0], 256, 1)
            self.first, width, reached = enlarge(width, 256), 256, 2 * top_side
            self.rest = nn.ModuleList()
            while reached < side:
                self.rest.append(enlarge(width, 128))
                width, reached = 128, 2 * reached
        self.last = nn.Conv2d(width, outputs, 1)
        nn.init.normal_(self.last.weight, std=0.01)  # all classes alike at first
        nn.init.zeros_(self.last.bias)

    def forward(self, maps):
        """{stage: map} to [B, h, w, outputs]."""
        x = self.first(maps[self.top])
        if self.earlier:
            skip = self.lateral(maps[self.earlier])
            x = x[..., : skip.shape[2], : skip.shape[3]] + skip
        for layer in self.rest:
            x = layer(x)
        return self.last(x).permute(0, 2, 3, 1)


def enlarge(inputs, outputs):
    """Twofold by repetition, then a 3 x 3 convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def enlarge_bilinear(x, shape):
    """Predictions [B, h, w, C] at the size of the image, [B, C, H, W]."""
    return F.interpolate(x.permute(0, 3, 1, 2), size=shape, mode="bilinear", align_corners=False)
