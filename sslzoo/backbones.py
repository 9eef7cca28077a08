"""Encoders by name: any of timm's, adapted to small images, and a few of our own.

An encoder maps images [B, C, S, S] to features [B, d]; `num_features` is d. Its state_dict has
timm's keys and shapes, so `timm.create_model(name, num_classes=0)` loads an exported file, with
two exceptions, both at small image sizes, where timm has no such model:
- a ResNet's `conv1.weight` is [64, C, 3, 3] instead of [64, C, 7, 7] (size <= 32);
- a ViT's `patch_embed.proj.weight` and `pos_embed` follow patch and image size (size <= 64),
  as they do in `timm.create_model(name, img_size=..., patch_size=...)`.
"""

import difflib

import timm
from timm.layers import global_pool_nlc
from torch import nn

SMALL_STEM_SIZE = 32
SMALL_PATCH_SIZE = 64
PATCHES_A_SIDE = 8  # of a ViT on small images


class ConvNet(nn.Module):
    """Four blocks of 3 x 3 convolution, batch normalisation and ReLU; mean over the last map.

    Args:
        channels: of the images.
        width: channels of the first block; the blocks have 1, 2, 4 and 4 times as many.

    Blocks two and three halve the map: 16, 8, 4, 4 for images of 16 x 16.
    """

    def __init__(self, channels=3, width=32):
        super().__init__()
        sizes = [channels, width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.Sequential(*(
            conv_block(c, d, stride)
            for c, d, stride in zip(sizes[:-1], sizes[1:], (1, 2, 2, 1), strict=True)
        ))  # fmt: skip
        self.num_features = sizes[-1]

    def forward_features(self, x):
        return self.blocks(x)

    def forward(self, x):
        return self.forward_features(x).mean((2, 3))


def conv_block(in_channels, out_channels, stride):
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def convnet4(image_size, channels, **options):
    """The demo's encoder, 0.24 M parameters."""
    return ConvNet(channels, **options)


def vit_p4(embed_dim, num_heads):
    """A builder of a ViT for 32 x 32 images: patch 4, depth 12."""

    def build_vit(image_size, channels, patch_size=4, **options):
        if image_size % patch_size:
            raise ValueError(
                f"image_size {image_size} is no multiple of the patch size {patch_size}"
            )
        sizes = dict(img_size=image_size, patch_size=patch_size, in_chans=channels)
        options = dict(embed_dim=embed_dim, num_heads=num_heads, depth=12, num_classes=0) | options
        return timm.models.VisionTransformer(**sizes, **options)

    return build_vit


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


OWN = {
    "convnet4": convnet4,
    "vit_tiny_p4": vit_p4(192, 3),
    "vit_small_p4": vit_p4(384, 6),
    "resnet18_stride4": resnet18_dense((1, 2, 2, 1), small_stem=True),
    "resnet18_stride8": resnet18_dense((1, 2, 1, 1), small_stem=False),
}


def build(name, *, image_size, channels=3, **options):
    """An encoder with random weights.

    Args:
        name: one of OWN or any model of timm.
        image_size: side of the images in pixels. Up to 32, ResNets get a 3 x 3 first convolution
            of stride 1 and no max-pool; up to 64, ViTs get 8 x 8 patches.
        channels: of the images.
        **options: passed to the model, e.g. `patch_size=8` or `drop_path_rate=0.1`.

    Returns:
        nn.Module with `num_features`; its output is [B, num_features].

    Raises:
        ValueError: an unknown name; the message holds the nearest ones.

    Example:
        >>> import torch
        >>> from sslzoo import backbones
        >>> model = backbones.build("resnet18", image_size=32)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """
    if name in OWN:
        return OWN[name](image_size, channels, **options)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*OWN, *timm.list_models()])
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise ValueError(f"unknown backbone {name!r}; {hint}")
    return build_timm(name, image_size, channels, options)


def build_timm(name, image_size, channels, options):
    """A model of timm, adapted to the image size."""
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        options.setdefault("img_size", image_size)
        if (
            "patch_size" not in options
            and name.startswith("vit")
            and image_size <= SMALL_PATCH_SIZE
        ):
            options["patch_size"] = max(1, image_size // PATCHES_A_SIDE)
    model = timm.create_model(name, num_classes=0, in_chans=channels, **options)
    if isinstance(model, timm.models.ResNet) and image_size <= SMALL_STEM_SIZE:
        shrink_stem(model)
    return model


def shrink_stem(resnet):
    """Replace a 7 x 7 stem of stride 2 and its max-pool by a 3 x 3 convolution of stride 1."""
    old = resnet.conv1
    if not isinstance(old, nn.Conv2d):  # deep stems are 3 x 3 already
        return
    resnet.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.maxpool = nn.Identity()


def features(model, x, layer=None):
    """Features [B, d] after a layer: the mean over a map, the class token (or mean) of tokens.

    Args:
        model: an encoder.
        x: images [B, C, S, S].
        layer: name of a submodule, such as "layer3" or "blocks.5"; None takes the encoder's output.
    """
    if layer is None:
        return model(x)
    return pool(output_of(model, x, layer), getattr(model, "num_prefix_tokens", 0))


def dense_features(model, x, layer=None):
    """A map of features [B, d, h, w]: of a convolutional stage, or of a ViT's patch tokens.

    Args:
        model: an encoder.
        x: images [B, C, H, W].
        layer: name of a submodule, such as "layer3" or "blocks.5"; None takes the last map.

    Example:
        >>> import torch
        >>> from sslzoo import backbones
        >>> model = backbones.build("vit_tiny_p4", image_size=32)
        >>> backbones.dense_features(model, torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 192, 8, 8])
    """
    activations = output_of(model, x, layer or last_map(model))
    if activations.ndim == 4:
        is_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return activations.permute(0, 3, 1, 2) if is_last else activations
    if activations.ndim != 3:
        raise ValueError(f"layer {layer} has no map: its output is {tuple(activations.shape)}")
    tokens = activations[:, getattr(model, "num_prefix_tokens", 0) :]
    (H, W), (p, q) = x.shape[-2:], model.patch_embed.patch_size
    return tokens.mT.unflatten(-1, (H // p, W // q))


def last_map(model):
    """The name of the layer with the last map of features or tokens."""
    for kind, name in ((ConvNet, "blocks"), (timm.models.ResNet, "layer4"),
                       (timm.models.VisionTransformer, "norm")):  # fmt: skip
        if isinstance(model, kind):
            return name
    raise ValueError(f"{type(model).__name__} has no layer known to be its last map: name one")


def output_of(model, x, layer):
    """What the submodule called `layer` returns when the model sees x."""
    known = dict(model.named_modules())
    if layer not in known:
        near = difflib.get_close_matches(layer, known, n=5, cutoff=0.4)
        raise ValueError(f"no layer {layer!r}; the nearest are {', '.join(near)}")
    seen = []
    handle = known[layer].register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        model(x)
    finally:
        handle.remove()
    return seen[-1]


def pool(activations, num_prefix_tokens):
    """[B, C, H, W] or tokens [B, L, C] to [B, C]."""
    if activations.ndim == 4:
        return activations.mean((2, 3))
    if activations.ndim == 3:
        kind = "token" if num_prefix_tokens else "avg"
        return global_pool_nlc(activations, kind, num_prefix_tokens)
    return activations.flatten(1)


def count_parameters(model):
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
