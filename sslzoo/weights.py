"""Weights in and out: official checkpoints into our backbones, ours into other libraries' layouts.

Nothing is read in a way that can run code: safetensors, or torch.load with weights_only=True.
"""

import argparse
import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sslzoo import backbones
from sslzoo.run_folder import RunFolder, load_backbone
from sslzoo.views import IMAGENET_MEAN, IMAGENET_STD


class WeightsError(ValueError):
    """A file that cannot be read as weights, or a backbone that a layout cannot hold."""


class Format(NamedTuple):
    """Where an official checkpoint keeps its backbone."""

    name: str
    wrapper: str | None  # key of the dict of tensors, None where the file is that dict
    prefix: str  # of the backbone's keys
    heads: tuple  # starts of keys below the prefix that are no part of the backbone


# The first whose wrapper and prefix are there; what lies outside the prefix is not used.
FORMATS = (
    Format("MoCo v1 or v2", "state_dict", "module.encoder_q.", ("fc.",)),
    Format("MoCo v3", "state_dict", "module.base_encoder.", ("head.", "fc.")),
    Format("DINO or DINOv2 training", "teacher", "backbone.", ("mask_token",)),
    Format("MAE", "model", "", ("decoder_", "mask_token", "head.", "fc_norm.")),
    Format("state_dict", "state_dict", "", ("head.", "fc.", "mask_token")),
    Format("plain", None, "", ("head.", "fc.", "mask_token")),
)
# (width, patch side): the ViT of timm; MoCo v3's ViT-S is told apart by its format.
VITS = {
    (384, 16): "vit_small_patch16_224",
    (384, 8): "vit_small_patch8_224",
    (768, 16): "vit_base_patch16_224",
    (768, 8): "vit_base_patch8_224",
    (1024, 16): "vit_large_patch16_224",
    (1280, 14): "vit_huge_patch14_224",
    (192, 16): "vit_tiny_patch16_224",
}
DINOV2 = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
SHOWN_KEYS = 12


class Imported(NamedTuple):
    """What came of a file."""

    format: str
    backbone: str
    used: dict  # key of the file -> key of the backbone
    unused: list  # keys of the file


def import_weights(file, out, backbone=""):
    """Turn an official checkpoint into a run folder's backbone.

    Args:
        file: a checkpoint of MoCo v1 to v3, MAE, DINO or DINOv2, or a file of timm's or
            torchvision's keys; .safetensors or what torch.save wrote.
        out: the folder for backbone.safetensors and import.json, which names every key.
        backbone: its name; empty finds it from names and shapes.

    Returns:
        Imported.

    Raises:
        WeightsError: the file is damaged or no known layout, or its tensors do not fit.
    """
    run = RunFolder(out)
    if (run.path / "backbone.safetensors").exists():
        raise WeightsError(f"{run.path} already holds a backbone: choose another --out")
    layout, tensors = find_format(read(file), file)
    weights, used = backbone_weights(layout, tensors)
    check_sizes(weights, file)
    take_registers_apart(weights)
    name = backbone or find_backbone(layout, weights, file)
    about = {
        "imported": layout.name, "data": "", "kind": "images", "backbone": name,
        "image_size": image_size(weights), "channels": 3,
        "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD),
    }  # fmt: skip
    try:
        model = backbones.build(name, image_size=about["image_size"])
    except ValueError as error:
        raise WeightsError(str(error)) from error
    fill(model, weights, name, file)
    run.path.mkdir(parents=True, exist_ok=True)
    run.save_backbone(model, about)
    result = Imported(layout.name, name, used, sorted(tensors.keys() - used.keys()))
    (run.path / "import.json").write_text(json.dumps(result._asdict(), indent=2) + "\n")
    return result


def read(file):
    """What a file holds: tensors by name, in dicts."""
    file = Path(file)
    if not file.is_file():
        raise WeightsError(f"there is no file {file}")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        # The options of a run, which DINO and MAE keep beside the weights, are plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
            KeyError) as error:  # fmt: skip
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{file} cannot be read as weights ({reason})") from error


def find_format(content, file):
    """The Format of a file's content, and its tensors by name."""
    for layout in FORMATS:
        inside = content if layout.wrapper is None else dict_in(content, layout.wrapper)
        if not isinstance(inside, dict):
            continue
        tensors = {str(k).removeprefix("module.") if layout.wrapper == "teacher" else str(k): v
                   for k, v in inside.items() if isinstance(v, torch.Tensor)}  # fmt: skip
        if any(key.startswith(layout.prefix) for key in tensors):
            return layout, tensors
    raise WeightsError(f"{file} holds no weights of a known layout "
                       f"({', '.join(layout.name for layout in FORMATS)})")  # fmt: skip


def dict_in(content, name):
    return content.get(name) if isinstance(content, dict) else None


def backbone_weights(layout, tensors):
    """The backbone's tensors under timm's keys, and the key of the file that each came from."""
    weights, used = {}, {}
    for key, tensor in tensors.items():
        inner = key.removeprefix(layout.prefix)
        if not key.startswith(layout.prefix) or inner.startswith(layout.heads):
            continue
        name = timm_key(inner)
        weights[name], used[key] = tensor, name
    return weights, used


SIZES = {"patch_embed.proj.weight": 4, "pos_embed": 3, "cls_token": 3}


def check_sizes(weights, file):
    """A WeightsError where a tensor that tells which backbone it is has no usable shape."""
    for name, number in SIZES.items():
        if name in weights and (weights[name].ndim != number or 0 in weights[name].shape):
            raise WeightsError(f"{file}: {name} has the shape {tuple(weights[name].shape)} instead "
                               f"of {number} sizes above 0")  # fmt: skip
    lacking = {"cls_token", "pos_embed"} - weights.keys()
    if "reg_token" in weights and lacking:
        raise WeightsError(f"{file} has register tokens but no {' and no '.join(sorted(lacking))}")


def take_registers_apart(weights):
    """Where there are registers, timm's class token holds its position; in place."""
    if "reg_token" in weights:
        places = weights["pos_embed"]
        weights["cls_token"] = weights["cls_token"] + places[:, :1]
        weights["pos_embed"] = places[:, 1:]


def timm_key(key):
    """timm's name for a tensor: DINOv2 groups blocks in chunks and calls some layers otherwise."""
    key = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key)
    key = key.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")
    return "reg_token" if key == "register_tokens" else key


def find_backbone(layout, weights, file):
    """The name of the backbone that has these tensors."""
    if "patch_embed.proj.weight" in weights:
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        if "blocks.0.ls1.gamma" in weights and width in DINOV2:
            registers = "reg4_" if "reg_token" in weights else ""
            return f"vit_{DINOV2[width]}_patch{patch}_{registers}dinov2"
        if layout.name == "MoCo v3" and width == 384:
            return "vit_small_moco"
        found = VITS.get((width, patch))
    else:
        blocks = Counter(m[1] for m in (re.match(r"layer(\d)\.\d+\.conv1\.weight", key)
                                        for key in weights) if m)  # fmt: skip
        depths = tuple(blocks[str(stage)] for stage in range(1, 5))
        found = RESNETS.get((depths, "layer1.0.conv3.weight" in weights))
    if found is None:
        raise WeightsError(f"{file} fits no backbone by its names and shapes; say which with "
                           "--backbone")  # fmt: skip
    return found


def image_size(weights):
    """Side of the images in pixels, from the number of positions; 224 where there are none."""
    if "pos_embed" not in weights or "patch_embed.proj.weight" not in weights:
        return 224
    tokens = weights["pos_embed"].shape[1] - ("reg_token" not in weights)
    return max(1, round(tokens**0.5)) * weights["patch_embed.proj.weight"].shape[-1]


def fill(model, weights, name, file):
    """Load the weights; every tensor of the model must be there in its shape, and no other."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    surplus = sorted(weights.keys() - expected.keys())
    wrong = [f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
             for key, value in expected.items()
             if key in weights and weights[key].shape != value.shape]  # fmt: skip
    faults = [f"{what} {', '.join(keys[:3])}" + ", ..." * (len(keys) > 3)
              for what, keys in (("it lacks", missing), ("it has besides", surplus),
                                 ("it has", wrong)) if keys]  # fmt: skip
    if faults:
        raise WeightsError(f"{file} does not fit {name}: {'; '.join(faults)}")
    model.load_state_dict(weights)


def report(result):
    """Lines for people: what was used and what was not."""
    yield f"{result.format} checkpoint: {result.backbone}"
    yield f"used {len(result.used)} keys, all that the backbone has"
    more = len(result.unused) - SHOWN_KEYS
    shown = ", ".join(result.unused[:SHOWN_KEYS]) + (f" and {more} more" if more > 0 else "")
    yield f"not used {len(result.unused)} keys" + (f": {shown}" if shown else "")
    yield "every key is named in import.json"


def export(run, to, out):
    """Write a run's backbone in another library's layout.

    Args:
        run: run folder, backbone.safetensors or checkpoint.pt.
        to: "timm" (safetensors of timm's keys), "torchvision" (a state_dict that torch.save wrote;
            ResNets and ViTs), "safetensors" (as the run has it) or "huggingface" (a folder that
            `timm.create_model("local-dir:...")` and, once uploaded, "hf-hub:..." take).
        out: the file, or for huggingface the folder.

    Returns:
        A line of Python that loads what was written.

    Raises:
        WeightsError: the layout has no place for this backbone.
    """
    model, about = load_backbone(run)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    out = Path(out)
    (out if to == "huggingface" else out.parent).mkdir(parents=True, exist_ok=True)
    if to == "safetensors":
        save_file(weights, out, {"sslzoo": json.dumps(about)})
        return f"safetensors.torch.load_file({str(out)!r})"
    if to == "torchvision":
        torch.save(torchvision_weights(weights, about), out)
        return f"model.load_state_dict(torch.load({str(out)!r}, weights_only=True), strict=False)"
    architecture, arguments = timm_model(weights, about)
    if to == "timm":
        save_file(weights, out, {"format": "pt"})
        options = "".join(f", {k}={v!r}" for k, v in arguments.items())
        return f"timm.create_model({architecture!r}{options}, checkpoint_path={str(out)!r})"
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    config = hub_config(architecture, arguments, about, model.num_features)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return f"timm.create_model({'local-dir:' + str(out)!r})"


OWN_VITS = {"vit_tiny_p4": "vit_tiny_patch16_224", "vit_small_p4": "vit_small_patch16_224",
            "vit_small_moco": "vit_small_patch16_224"}  # fmt: skip


def timm_model(weights, about):
    """The name and arguments of timm's model of these keys and shapes."""
    name = about["backbone"]
    if name in backbones.OWN and name not in OWN_VITS:
        raise WeightsError(f"timm has no model like {name}; export it to safetensors")
    arguments = {"num_classes": 0}
    if about["channels"] != 3:
        arguments["in_chans"] = about["channels"]
    if "patch_embed.proj.weight" in weights and "pos_embed" in weights:
        patch = weights["patch_embed.proj.weight"].shape[-1]
        arguments |= {"img_size": about["image_size"], "patch_size": patch}
        if name == "vit_small_moco":
            arguments["num_heads"] = 12
    stem = weights.get("conv1.weight")
    if stem is not None and stem.shape[-1] == 3:
        raise WeightsError(f"this {name} begins with a 3 x 3 convolution for small images, which "
                           "timm's does not; export it to safetensors")  # fmt: skip
    return OWN_VITS.get(name, name), arguments


def hub_config(architecture, arguments, about, num_features):
    """config.json in the layout of timm's models on the Hugging Face hub."""
    side = about["image_size"]
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": num_features,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [about["channels"], side, side],
            "fixed_input_size": "img_size" in arguments,
            "mean": about["mean"],
            "std": about["std"],
            "num_classes": 0,
        },
        "model_args": {k: v for k, v in arguments.items() if k != "num_classes"},
    }


# timm's names of a ViT's tensors and torchvision's, in the order they are tried.
TORCHVISION_VIT = (
    (r"cls_token", "class_token"),
    (r"pos_embed", "encoder.pos_embedding"),
    (r"patch_embed\.proj\.", "conv_proj."),
    (r"norm\.", "encoder.ln."),
    (r"blocks\.(\d+)\.norm([12])\.", r"encoder.layers.encoder_layer_\1.ln_\2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_"),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.encoder_layer_\1.self_attention.out_proj."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layers.encoder_layer_\1.mlp.0."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layers.encoder_layer_\1.mlp.3."),
)


def torchvision_weights(weights, about):
    """The state_dict under torchvision's keys, without its classifier."""
    if about["backbone"] in RESNETS.values():
        return weights  # timm's names are torchvision's
    renamed = {}
    for key, value in weights.items():
        rule = next((r for r in TORCHVISION_VIT if re.match(r[0], key)), None)
        if rule is None:
            raise WeightsError(f"torchvision has no model like {about['backbone']} (its {key}); "
                               "export it to timm or safetensors")  # fmt: skip
        renamed[re.sub(rf"^{rule[0]}", rule[1], key)] = value
    return renamed
