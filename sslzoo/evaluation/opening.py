"""A backbone from wherever it lies: a run, a file, a folder of Hugging Face, or timm by name."""

import json
from pathlib import Path

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sslzoo import backbones
from sslzoo.data import DataError
from sslzoo.evaluation import transformers_folder
from sslzoo.run_folder import DAMAGE, RunFolderError, build_backbone, load_backbone, load_untrained
from sslzoo.views import IMAGENET_MEAN, IMAGENET_STD

SMALL_IMAGE_SIZE = 32  # of our own backbones where nothing says more
IMAGE_SIZE = 224


def open_backbone(source, *, channels=3, image_size=0, pretrained=False, download=False,
                  untrained=False, seed=0):  # fmt: skip
    """The encoder that a command line names, in eval mode.

    Args:
        source: a run folder; its backbone.safetensors or checkpoint.pt; a folder with config.json
            and model.safetensors, as timm or transformers write them for the Hugging Face hub; or
            a name of
            `sslzoo list backbones` or of timm, which has random weights of `seed`.
        channels, image_size: of the images, for a name; an image_size of 0 is the model's own.
        pretrained: a name of timm gets its published weights, from the cache of the hub.
        download: these may be fetched where they are not in the cache.
        untrained: the encoder as it was before training.

    Returns:
        (module, dict with backbone, image_size, channels, mean, std and what else is known).

    Raises:
        RunFolderError, DataError, ValueError: with one line for the user.
    """
    path = Path(source)
    if path.is_dir() and (path / "config.json").is_file():
        backbone, about = _hub_folder(path)
    elif path.exists() or not _is_name(source):
        backbone, about = load_backbone(path)
        if untrained and "method" in about:
            backbone = load_untrained(path)[0]
    else:
        backbone, about = _named(source, channels, image_size, pretrained, download, seed)
    check_about(about, path)
    if untrained and "method" not in about:
        backbone = random_twin(about, seed)
    return backbone.eval(), about


def check_about(about, path):
    """A RunFolderError where a file says of its encoder what no views can be made by."""
    size, channels = about.get("image_size"), about.get("channels")
    if not all(isinstance(number, int) and number > 0 for number in (size, channels)):
        raise RunFolderError(f"{path} tells no image_size and channels of its encoder")
    for name in ("mean", "std"):
        values = about.get(name)
        is_list = isinstance(values, (list, tuple)) and len(values) == channels
        if not is_list or not all(isinstance(value, (int, float)) for value in values):
            raise RunFolderError(f"{path} tells no {name} of its {channels} channels")


def random_twin(about, seed):
    """The same architecture with random weights."""
    torch.manual_seed(seed)
    if "method" in about:
        return build_backbone(about).eval()
    if "architecture" in about:
        backbones.check_options(about["model_args"])
        model = timm.create_model(about["architecture"], num_classes=0, **about["model_args"])
        return with_eps(model, about.get("layer_norm_eps")).eval()
    sizes = dict(image_size=about["image_size"], channels=about["channels"])
    return backbones.build(about["backbone"], **sizes).eval()


def with_eps(model, eps):
    """The model, whose layer norms have this eps; None leaves them."""
    for module in model.modules() if eps is not None else ():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    return model


def _is_name(source):
    return str(source) in backbones.OWN or timm.is_model(str(source)) or "/" not in str(source)


def _named(name, channels, image_size, pretrained, download, seed):
    config = {}
    if name not in backbones.OWN and timm.is_model(name):
        found = timm.get_pretrained_cfg(name)
        config = found.to_dict() if found is not None else {}
    own_size = SMALL_IMAGE_SIZE if name in backbones.OWN else IMAGE_SIZE
    size = image_size or config.get("input_size", (0, own_size, own_size))[-1]
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    if backbones.kind(name) == "audio":
        channels, mean, std = 1, (0.0,), (1.0,)
    if channels != len(mean):  # a grey image is the mean of its colours
        mean, std = ([sum(v) / len(v)] * channels for v in (mean, std))
    about = {"backbone": name, "kind": backbones.kind(name), "image_size": size,
             "channels": channels, "mean": list(mean), "std": list(std)}  # fmt: skip
    if not pretrained:
        return random_twin(about, seed), about
    check_published(name, config, download)
    options = {"img_size": size} if config.get("fixed_input_size") else {}
    model = timm.create_model(name, pretrained=True, num_classes=0, in_chans=channels, **options)
    return model, about | {"pretrained": config.get("hf_hub_id") or config.get("url")}


def check_published(name, config, download):
    """A DataError unless the published weights of a model of timm are in the hub's cache."""
    hub = config.get("hf_hub_id")
    if not hub and not config.get("url"):
        raise DataError(f"timm has no published weights of {name}")
    files = ("model.safetensors", "pytorch_model.bin")
    cached = [try_to_load_from_cache(hub, file) for file in files] if hub else []
    if not download and not any(isinstance(file, str) for file in cached):
        raise DataError(f"the weights of {name} are not in the cache of {hub or config['url']}: "
                        "--download fetches them")  # fmt: skip


def _hub_folder(path):
    """A folder with config.json and model.safetensors as timm or transformers write them."""
    weights = path / "model.safetensors"
    if not weights.is_file():
        raise RunFolderError(f"{path} holds config.json but no model.safetensors")
    try:
        config = json.loads((path / "config.json").read_text())
        state, classifier = load_file(weights), ()
        if transformers_folder.is_known(config):
            about, state = transformers_folder.translate(path, config, state)
        else:
            about, classifier = _of_timm(path, config)
        model = random_twin(about, 0)
    except RunFolderError:
        raise
    except KeyError as error:
        raise RunFolderError(f"{path} is no model of transformers: no {error}") from error
    except (SafetensorError, *DAMAGE) as error:
        raise RunFolderError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    _load(model, state, path, classifier)
    return model, about


def _of_timm(path, config):
    """(what `open_backbone` says of a model of timm, the names of its classifier)."""
    if "architecture" not in config or not timm.is_model(config["architecture"]):
        raise RunFolderError(
            f"{path / 'config.json'} names no architecture of timm and "
            "no model_type of transformers"
        )
    expected = config.get("pretrained_cfg", {})
    channels, size, _ = expected.get("input_size", (3, IMAGE_SIZE, IMAGE_SIZE))
    arguments = {"in_chans": channels} | config.get("model_args", {})
    arguments.pop("num_classes", None)
    about = {
        "backbone": config["architecture"], "architecture": config["architecture"],
        "model_args": arguments, "image_size": size, "channels": channels,
        "mean": list(expected.get("mean", IMAGENET_MEAN)),
        "std": list(expected.get("std", IMAGENET_STD)),
    }  # fmt: skip
    classifier = expected.get("classifier") or ()
    return about, [classifier] if isinstance(classifier, str) else list(classifier)


def _load(model, state, path, classifier):
    """Load all but the layers of the classifier; nothing else may be missing or too much."""
    state = {name: value for name, value in state.items()
             if not any(name.startswith(f"{layer}.") for layer in classifier)}  # fmt: skip
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(
            f"the weights in {path} do not fit its config.json: {reason}"
        ) from None
    if missing or unexpected:
        raise RunFolderError(f"the weights in {path} do not fit its config.json: "
                             f"{len(missing)} missing, {len(unexpected)} unknown, such as "
                             f"{(missing + unexpected)[0]}")  # fmt: skip


def fit_to(backbone, about, image_size):
    """(backbone, side of the evaluation view): a side that was asked, where it can be taken.

    A transformer with a position for each patch gets them interpolated, in place, as its authors
    do to look at larger images; anything else that is made for one size takes no other.
    """
    size = image_size or about["image_size"]
    embed = getattr(backbone, "patch_embed", None)
    made_for = (
        getattr(embed, "img_size", None) if getattr(embed, "strict_img_size", False) else None
    )
    if made_for is None or tuple(made_for) == (size, size):
        return backbone, size
    has_positions = getattr(backbone, "pos_embed", None) is not None
    patch = embed.patch_size[0]
    if not has_positions or not hasattr(backbone, "set_input_size") or size % patch:
        more = f", or of a multiple of {patch}" * has_positions
        raise DataError(f"{about['backbone']} takes images of {made_for[0]} x {made_for[1]} "
                        f"pixels{more}; image_size is {size}")  # fmt: skip
    backbone.set_input_size(img_size=(size, size))
    return backbone, size
