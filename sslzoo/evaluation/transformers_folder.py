"""A folder of Hugging Face's transformers, as timm's model: configuration, weights, normalisation.

ViTs (also as MAE, MSN, DINO, DINOv2 with or without registers publish them) and ResNets. The
library itself is not needed: the tensors have other names, and query, key and value stand apart.
"""

import json
import re
from pathlib import Path

import torch

from sslzoo.run_folder import RunFolderError
from sslzoo.views import IMAGENET_MEAN, IMAGENET_STD
from sslzoo.weights import RESNETS, take_registers_apart

VITS = ("vit", "vit_mae", "vit_msn", "dinov2", "dinov2_with_registers")
KNOWN = (*VITS, "resnet")
# What is no part of an encoder: heads, MAE's decoder, the token of masked patches.
UNUSED = re.compile(r"(.*\.)?(pooler|decoder|classifier|lm_head|embeddings\.mask_token)(\.|$)")
NAMES = (  # in this order
    (r"^(vit|dinov2|dinov2_with_registers|resnet)\.", ""),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
)
OF_STAGES = re.compile(r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.(shortcut|layer\.(\d+))\."
                       r"(convolution|normalization)\.")  # fmt: skip


def is_known(config):
    """Whether a config.json is that of a model of transformers; one that is not read is told."""
    kind = config.get("model_type")
    if kind is None or "architecture" in config:
        return False
    if kind not in KNOWN:
        raise RunFolderError(f"a {kind} of transformers is not read; {', '.join(KNOWN)} are")
    return True


def translate(path, config, state):
    """(what `open_backbone` says about the model, weights by timm's keys).

    Args:
        path: the folder; its preprocessor_config.json holds mean and std.
        config: of its config.json; state: of its weights.

    Raises:
        RunFolderError: the configuration is one that timm's model does not have.
    """
    state = {timm_key(name): value for name, value in state.items() if not UNUSED.match(name)}
    describe = resnet if config["model_type"] == "resnet" else vit
    architecture, arguments, size = describe(config, state)
    about = {"backbone": architecture, "architecture": architecture, "model_args": arguments,
             "image_size": size, "channels": config.get("num_channels", 3),
             "transformers": config["model_type"]} | normalisation(path)  # fmt: skip
    if "layer_norm_eps" in config:
        about["layer_norm_eps"] = config["layer_norm_eps"]
    return about, state


def timm_key(name):
    """timm's name of a tensor; query, key and value are joined later."""
    for pattern, by in NAMES:
        name = re.sub(pattern, by, name)
    found = OF_STAGES.match(name)
    if not found:
        return name
    stage, block, where, number, kind = found.groups()
    is_norm = kind == "normalization"
    if where == "shortcut":
        part = f"downsample.{int(is_norm)}"
    else:
        part = f"{'bn' if is_norm else 'conv'}{int(number) + 1}"
    return f"layer{int(stage) + 1}.{block}.{part}.{name[found.end() :]}"


def vit(config, state):
    """(architecture, arguments, image size) of a ViT; its weights are completed in place."""
    width, act = config["hidden_size"], config.get("hidden_act", "gelu")
    if act != "gelu":
        raise RunFolderError(f"a ViT with the activation {act} is not read, only gelu")
    join_qkv(state)
    take_registers_apart(state)
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    arguments = dict(
        img_size=config["image_size"], patch_size=config["patch_size"], embed_dim=width,
        depth=config["num_hidden_layers"], num_heads=config["num_attention_heads"],
        mlp_ratio=(hidden + 0.5) / width,  # the half: timm rounds down
        qkv_bias=config.get("qkv_bias", True), in_chans=config.get("num_channels", 3),
        reg_tokens=registers, no_embed_class=registers > 0, global_pool="token",
        init_values=1.0 if "blocks.0.ls1.gamma" in state else None,
    )  # fmt: skip
    if config.get("use_swiglu_ffn"):
        return "vit_giant_patch14_dinov2", arguments, config["image_size"]
    return "vit_base_patch16_224", arguments, config["image_size"]


def join_qkv(state):
    """blocks.N.attn.qkv of query, key and value; in place."""
    for name in [name for name in state if ".attn.query." in name]:
        parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        state[name.replace("query", "qkv")] = torch.cat(parts)


def resnet(config, state):
    """(architecture, arguments, image size) of a ResNet."""
    known = (tuple(config["depths"]), config.get("layer_type", "bottleneck") == "bottleneck")
    if known not in RESNETS or config.get("downsample_in_bottleneck"):
        raise RunFolderError(f"a ResNet of the depths {list(known[0])} is not read")
    return RESNETS[known], {"in_chans": config.get("num_channels", 3)}, 224


def normalisation(path):
    """mean and std of preprocessor_config.json; ImageNet's where there is none."""
    file = Path(path) / "preprocessor_config.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    return {"mean": list(found.get("image_mean", IMAGENET_MEAN)),
            "std": list(found.get("image_std", IMAGENET_STD))}  # fmt: skip
