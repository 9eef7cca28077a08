"""Encoders by name: any of timm's, adapted to small images, and a few of our own.

An encoder maps images [B, C, S, S] to features [B, d]; `num_features` is d. Its state_dict has
timm's keys and shapes, so `timm.create_model(name, num_classes=0)` loads an exported file, with
two exceptions, both at small image sizes, where timm has no such model:
- a ResNet's `conv1.weight` is [64, C, 3, 3] instead of [64, C, 7, 7] (size <= 32, and
  resnet18_s at any size);
- a ViT's `patch_embed.proj.weight` and `pos_embed` follow patch and image size (size <= 64),
  as they do in `timm.create_model(name, img_size=..., patch_size=...)`.
"""

import difflib
from functools import partial

import timm
from timm.layers import global_pool_nlc
from timm.models.resnet import BasicBlock
from torch import nn

from sslzoo import last_blocks
from sslzoo.grid_encoders import PatchGridEncoder
from sslzoo.networks import (
    ConvNet,
    MapNet,
    convnet4,
    dcgan_encoder,
    nin,
    resnet18_dense,
    resnet18_s,
    shrink_stem,
    vit_p4,
    wave_encoder,
)
from sslzoo.staged import Staged, alexnet_bn, vgg_dilated

SMALL_STEM_SIZE = 32
SMALL_PATCH_SIZE = 64
PATCHES_A_SIDE = 8  # of a ViT on small images


def vit_small_moco(image_size, channels, **options):
    """MoCo v3's ViT-S, which has 12 heads instead of 6."""
    return build_timm("vit_small_patch16_224", image_size, channels, {"num_heads": 12} | options)


OWN = {
    "alexnet_bn": alexnet_bn,
    "convnet4": convnet4,
    "convnet4_narrow": partial(convnet4, width=16),  # a quarter of its work
    "cpc_audio": wave_encoder(128, 128),
    "cpc_audio_large": wave_encoder(512, 256),
    "cpc_patches": PatchGridEncoder,
    "cpc_patches_narrow": partial(PatchGridEncoder, width=128),  # a quarter of its work
    "dcgan_encoder": dcgan_encoder,
    "nin": nin,
    "resnet18_s": resnet18_s,
    "resnet18_stride4": resnet18_dense((1, 2, 2, 1), small_stem=True),
    "resnet18_stride8": resnet18_dense((1, 2, 1, 1), small_stem=False),
    "vgg_dilated": vgg_dilated,
    "vit_small_moco": vit_small_moco,
    "vit_micro_p4": vit_p4(128, 4, depth=4),  # for runs of minutes on a CPU
    "vit_nano_p4": vit_p4(64, 2, depth=2),  # an eighth of its work
    "vit_small_p4": vit_p4(384, 6),
    "vit_tiny_p4": vit_p4(192, 3),
}
HALVES = {"convnet4": {"width": 16}, "alexnet_bn": {"width": 0.5}, "vgg_dilated": {"width": 0.5}}
AUDIO = ("cpc_audio", "cpc_audio_large")
LOADING = ("pretrained", "checkpoint", "cache_dir")  # how such options of timm begin


def kind(name):
    """The kind of data that an encoder takes: "audio" or "images"."""
    return "audio" if name in AUDIO else "images"


def build(name, *, image_size, channels=3, **options):
    """An encoder with random weights.

    Args:
        name: one of `sslzoo list backbones`, or any model of timm.
        image_size: side of the images in pixels. Up to 32, ResNets get a 3 x 3 first convolution
            of stride 1 and no max-pool; up to 64, ViTs get 8 x 8 patches.
        channels: of the images.
        **options: passed to the model, e.g. `patch_size=8` or `drop_path_rate=0.1`.

    Returns:
        nn.Module with `num_features`; its output is [B, num_features]. `image_size` and
        `in_channels` are those it was built for.

    Raises:
        ValueError: an unknown name; the message holds the nearest ones. Or an option that loads
            weights (`check_options`).

    Example:
        >>> import torch
        >>> from sslzoo import backbones
        >>> model = backbones.build("resnet18", image_size=32)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """
    check_options(options)
    if name in OWN:
        model = OWN[name](image_size, channels, **options)
    elif timm.is_model(name):
        model = build_timm(name, image_size, channels, options)
    else:
        near = difflib.get_close_matches(name, [*OWN, *timm.list_models()])
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise ValueError(f"unknown backbone {name!r}; {hint}")
    model.image_size, model.in_channels = image_size, channels
    return model


def check_options(options):
    """A ValueError for options of timm that read weights from a file or fetch them.

    Options are read from checkpoints and config.json files, which anybody may have written: they
    describe a network, and must not name what else is to be read.
    """
    loading = [name for name in options if str(name).startswith(LOADING)]
    if loading:
        raise ValueError(f"{loading[0]} is no option of a network: it would load other weights")


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


def build_half(name, *, image_size, channels):
    """An encoder with half as many channels in every layer: a quarter of the weights.

    Raises:
        ValueError: an unknown name, or an encoder of which there is no half.
    """
    sizes = dict(image_size=image_size, channels=channels)
    if name in HALVES:
        return build(name, **sizes, **HALVES[name])
    whole = build(name, **sizes)
    if not isinstance(whole, timm.models.ResNet) or not isinstance(whole.layer1[0], BasicBlock):
        known = ", ".join(HALVES)
        raise ValueError(f"{name} has no half: take resnet18, resnet34 or one of {known}")
    half = timm.create_model(name, num_classes=0, in_chans=channels, channels=(32, 64, 128, 256))
    halve_stem(half, whole.conv1)
    half.maxpool = whole.maxpool
    return half


def halve_stem(resnet, stem):
    """A stem of 32 channels, like `stem` otherwise, and a first block that takes them."""
    channels, kernel = stem.in_channels, stem.kernel_size
    resnet.conv1 = nn.Conv2d(channels, 32, kernel, stem.stride, stem.padding, bias=False)
    resnet.bn1 = nn.BatchNorm2d(32)
    resnet.layer1[0] = BasicBlock(32, 32)
    for module in (resnet.conv1, *resnet.layer1[0].modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def features(model, x, layer=None):
    """Features [B, d] after a layer: the mean over a map, the class token (or mean) of tokens.

    Args:
        model: an encoder.
        x: images [B, C, S, S].
        layer: name of a submodule, such as "layer3" or "blocks.5"; None takes the encoder's output.
    """
    return model(x) if layer is None else layer_features(model, x, [layer])[layer]


def layer_features(model, x, names, *, tokens="class"):
    """Features [B, d] after several layers, from one pass.

    Args:
        model: an encoder. Where it has a method `layer_features` of its own, that is called.
        x: images [B, C, S, S].
        names: of submodules, or such as "last4"; see `sslzoo.last_blocks`.
        tokens: what stands for a layer of tokens: "class" (the mean where there is no class token)
            or "mean", that of the patches.

    Returns:
        {name: [B, d]}.

    Raises:
        ValueError: an unknown name; the message holds the nearest ones.
    """
    if hasattr(model, "layer_features"):
        check_layers(model, names)
        return model.layer_features(x, names)
    blocks = {name: last_blocks.blocks_of(model, name) for name in names}
    seen = outputs_of(model, x, {part for name in names for part in blocks[name] or [name]})
    prefix = getattr(model, "num_prefix_tokens", 0)
    return {name: last_blocks.join(model, name, [seen[part] for part in blocks[name]])
            if blocks[name] else pool(channels_first(model, seen[name]), prefix, tokens)
            for name in names}  # fmt: skip


def channels_first(model, activations):
    """A map as [B, C, H, W], also of models that keep the channels last; others as they are."""
    is_last = activations.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC"
    return activations.permute(0, 3, 1, 2) if is_last else activations


def outputs_of(model, x, names):
    """{name: what the submodule of that name returns} when the model sees x."""
    check_modules(model, names)
    known = dict(model.named_modules())
    seen, handles = {}, []

    def keep(name):
        return lambda module, inputs, output: seen.update({name: output})

    try:
        handles += [known[name].register_forward_hook(keep(name)) for name in names]
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def check_layers(model, names):
    """A ValueError for a name that `layer_features` does not know, in words."""
    check_modules(model, [name for name in names if not last_blocks.blocks_of(model, name)])


def check_modules(model, names):
    """A ValueError for a name that is no layer; the message holds the nearest ones."""
    known = own_layers(model) or list(dict(model.named_modules()))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
            raise ValueError(f"no layer {name!r}; the nearest are {', '.join(near)}")


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
    layer = layer or last_map(model)
    activations = channels_first(model, outputs_of(model, x, [layer])[layer])
    if activations.ndim == 4:
        return activations
    if activations.ndim != 3:
        raise ValueError(f"layer {layer} has no map: its output is {tuple(activations.shape)}")
    tokens = activations[:, getattr(model, "num_prefix_tokens", 0) :]
    (H, W), (p, q) = x.shape[-2:], model.patch_embed.patch_size
    if tokens.shape[1] != (H // p) * (W // q):
        raise ValueError(f"layer {layer} has {tokens.shape[1]} tokens, which are no map of patches")
    return tokens.mT.unflatten(-1, (H // p, W // q))


def last_map(model):
    """The name of the layer with the last map of features or tokens."""
    known = dict(model.named_children())
    for name in ("blocks", "layer4") if isinstance(model, (ConvNet, timm.models.ResNet)) else (
        "norm", "stages", "features"):  # fmt: skip
        if name in known and not isinstance(known[name], nn.Identity):
            return name
    told = of_timm(model)
    if not told:
        raise ValueError(f"{type(model).__name__} has no layer known to be its last map: name one")
    return told[-1]


def layers(model):
    """Names of the layers worth probing, from the first to the last."""
    if own_layers(model):
        return own_layers(model)
    if hasattr(model, "blocks"):
        return [f"blocks.{i}" for i in range(len(model.blocks))]
    if isinstance(model, (timm.models.ResNet, Staged, MapNet)):
        return list(stages(model))
    told = of_timm(model)
    if not told:
        raise ValueError(f"{type(model).__name__} has no known layers: name some")
    return told


def own_layers(model):
    """What an encoder of ours says of its layers; None for others (Swin has a module `layers`)."""
    return model.layers() if callable(getattr(type(model), "layers", None)) else None


def of_timm(model):
    """The layers with a map, as timm tells them for its models; [] where it does not."""
    return [about["module"] for about in getattr(model, "feature_info", None) or ()]


def stages(model):
    """The stages of a convolutional encoder, {name: module}, to be applied one after the other."""
    if isinstance(model, timm.models.ResNet):
        stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
        return {"maxpool": stem} | {f"layer{i}": getattr(model, f"layer{i}") for i in range(1, 5)}
    if isinstance(model, Staged):
        return dict(model.named_children())
    if isinstance(model, MapNet):
        return {f"blocks.{i}": block for i, block in enumerate(model.blocks)}
    raise ValueError(
        f"{type(model).__name__} has no known stages; a ResNet, convnet4 or one of "
        f"{', '.join(OWN)} has"
    )


def pool(activations, num_prefix_tokens, tokens="class"):
    """[B, C, H, W] or tokens [B, L, C] to [B, C]."""
    if activations.ndim == 4:
        return activations.mean((2, 3))
    if activations.ndim == 3:
        kind = "token" if num_prefix_tokens and tokens == "class" else "avg"
        return global_pool_nlc(activations, kind, num_prefix_tokens)
    return activations.flatten(1)


def count_parameters(model):
    """Number of values; those of a moving average are not trained, but are its size."""
    return sum(p.numel() for p in model.parameters())
