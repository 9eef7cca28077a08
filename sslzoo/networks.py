"""Encoders of our own, and of timm with other stems and strides."""

import math
from itertools import pairwise

import timm
from torch import nn

from sslzoo.grid_encoders import WaveEncoder


class MapNet(nn.Module):
    """Blocks one after another; the features are the mean over the last map."""

    def __init__(self, blocks, num_features):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.num_features = num_features

    def forward_features(self, x):
        return self.blocks(x)

    def forward(self, x):
        return self.forward_features(x).mean((2, 3))


class ConvNet(MapNet):
    """Four blocks of 3 x 3 convolution, batch normalisation and ReLU; mean over the last map.

    Args:
        channels: of the images.
        width: channels of the first block; the blocks have 1, 2, 4 and 4 times as many.

    Blocks two and three halve the map: 16, 8, 4, 4 for images of 16 x 16.
    """

    def __init__(self, channels=3, width=32):
        sizes = [channels, width, 2 * width, 4 * width, 4 * width]
        blocks = [conv_block(*pair, stride)
                  for pair, stride in zip(pairwise(sizes), (1, 2, 2, 1), strict=True)]  # fmt: skip
        super().__init__(blocks, sizes[-1])


def conv_block(in_channels, out_channels, stride):
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def convnet4(image_size, channels, **options):
    """The demo's encoder, 0.24 M parameters."""
    return ConvNet(channels, **options)


def vit_p4(embed_dim, num_heads, depth=12):
    """A builder of a ViT for 32 x 32 images, patch 4."""

    def build_vit(image_size, channels, patch_size=4, **options):
        if image_size % patch_size:
            raise ValueError(
                f"image_size {image_size} is no multiple of the patch size {patch_size}"
            )
        sizes = dict(img_size=image_size, patch_size=patch_size, in_chans=channels)
        sizes |= dict(embed_dim=embed_dim, num_heads=num_heads, depth=depth, num_classes=0)
        return timm.models.VisionTransformer(**(sizes | options))

    return build_vit


def nin(image_size, channels):
    """Network in Network with four blocks, as in Gidaris et al., ICLR 2018, for 32 x 32 images."""
    kernels = (5, 5, 3, 3)
    widths = ((channels, 192, 160, 96), (96, *[192] * 3), (192, *[192] * 3), (192, *[192] * 3))
    pools = ([nn.MaxPool2d(3, 2, 1)], [nn.AvgPool2d(3, 2, 1)], [], [])
    blocks = []
    for kernel, width, pool in zip(kernels, widths, pools, strict=True):
        sizes = zip(pairwise(width), (kernel, 1, 1), strict=True)
        layers = [
            layer for (inputs, outputs), k in sizes for layer in nin_layer(inputs, outputs, k)
        ]
        blocks.append(nn.Sequential(*layers, *pool))
    return MapNet(blocks, 192)


def nin_layer(inputs, outputs, kernel):
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / (kernel**2 * outputs)))
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def dcgan_encoder(image_size, channels):
    """Five 4 x 4 convolutions of stride 2, as in Pathak et al., CVPR 2016: 128 pixels to 4 x 4."""
    widths = (channels, 64, 64, 128, 256, 512)
    blocks = []
    for depth, (inputs, outputs) in enumerate(pairwise(widths)):
        convolution = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)
        nn.init.normal_(convolution.weight, std=0.02)
        norm = nn.BatchNorm2d(outputs) if depth else nn.Identity()
        if depth:
            nn.init.normal_(norm.weight, 1.0, 0.02)
        blocks.append(nn.Sequential(convolution, norm, nn.LeakyReLU(0.2, inplace=True)))
    return MapNet(blocks, 512)


def resnet18_s(image_size, channels, **options):
    """timm's ResNet-18 with a 3 x 3 first convolution of stride 1 and no max-pool at any size."""
    model = timm.create_model("resnet18", num_classes=0, in_chans=channels, **options)
    shrink_stem(model)
    return model


def resnet18_dense(stage_strides, small_stem):
    """A builder of a ResNet-18 for dense features: small strides, a last stage of 256 channels."""

    def build_resnet(image_size, channels, **options):
        block, widths = timm.models.resnet.BasicBlock, (64, 128, 256, 256)
        sizes = dict(in_chans=channels, channels=widths, num_classes=0) | options
        model = timm.models.ResNet(block, [2, 2, 2, 2], **sizes)
        for number, stride in enumerate(stage_strides, start=1):
            first = getattr(model, f"layer{number}")[0]
            first.conv1.stride = (stride, stride)
            if first.downsample is not None:
                first.downsample[0].stride = (stride, stride)
        if small_stem:
            shrink_stem(model)
        return model

    return build_resnet


def wave_encoder(width, context_width):
    """A builder of CPC's encoder of sounds."""

    def build_wave_encoder(image_size, channels, **options):
        return WaveEncoder(channels, width, context_width, **options)

    return build_wave_encoder


def shrink_stem(resnet):
    """Replace a 7 x 7 stem of stride 2 and its max-pool by a 3 x 3 convolution of stride 1."""
    old = resnet.conv1
    if not isinstance(old, nn.Conv2d):  # deep stems are 3 x 3 already
        return
    resnet.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.maxpool = nn.Identity()
