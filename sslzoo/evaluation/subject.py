"""What is judged: a frozen backbone, the data it is judged on, and its features."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState

from sslzoo import backbones
from sslzoo.data import DataError
from sslzoo.data.annotated import open_annotated
from sslzoo.evaluation import cache
from sslzoo.evaluation.features import encode, evaluation_views, extract_layers
from sslzoo.evaluation.opening import fit_to, open_backbone, random_twin
from sslzoo.kinds import KINDS
from sslzoo.views import normalise

BATCH = 256  # images of a forward pass
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Common:
    """Options of every evaluator."""

    data: str = ""
    """Data set or path with a train and a test split; empty is the one of the run."""
    download: bool = False
    """Fetch a named data set, or with --pretrained a model, where it is missing."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    out: str = ""
    """Folder of evaluation.json and the pictures; empty is the run folder, or runs/NAME."""
    layers: str = ""
    """Layers to judge: names such as blocks.2,blocks.5, or all; last4 or last4+mean joins a
    transformer's last blocks as DINO does; empty is the encoder's output."""
    tokens: Literal["class", "mean"] = "class"
    """What stands for a layer of tokens: the class token, or the mean of the patches."""
    label_column: str = ""
    """Parquet column of the classes, such as speaker; empty is `label`."""
    untrained: bool = False
    """Judge the encoder as it was before training: what training has to beat."""
    raw: bool = False
    """Judge the input itself: the pixels of images, log-mel features of sounds."""
    pretrained: bool = False
    """A name of timm gets its published weights instead of random ones."""
    channels: int = 3
    """Channels of the images, for a backbone given by name: 3, or 1 for grey."""
    image_size: int = 0
    """Side of the views, in pixels; 0 is the backbone's own. A ViT's positions are interpolated."""
    max_train: int = 0
    """Images of the training split that are used, evenly spaced; 0 is all of them."""
    max_test: int = 0
    """Images of the test split that are used, evenly spaced; 0 is all of them."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward passes; features are kept in float32."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    cache: bool = True
    """Keep the features in the folder evaluation/features, to be read by the next evaluation."""
    seed: int = 0
    """Seed of all that is random: draws, orders, layouts, new heads."""


class Subject:
    """A frozen backbone and what it is judged on.

    Args:
        source: see `open_backbone`.
        common: Common.

    Attributes:
        backbone: in eval mode, without gradients, on the device.
        about: its name, channels, mean, std, and the image_size it was made for.
        size: side of the views in pixels.
        layers: names of the layers to judge; [None] is the encoder's output.
        folder: where evaluation.json goes; pictures and features go to its evaluation/.
        notes: lines for the user.
    """

    def __init__(self, source, common):
        self.source, self.common, self.seed = str(source), common, common.seed
        self.device = PartialState(cpu=common.device == "cpu").device
        names = ("channels", "image_size", "pretrained", "download", "untrained", "seed")
        options = {name: getattr(common, name) for name in names}
        backbone, self.about = open_backbone(source, **options)
        # An encoder of videos is judged on still images.
        self.is_sound = self.about.get("kind") == "audio"
        self.kind = KINDS["audio" if self.is_sound else "images"]
        if self.is_sound and common.layers:
            raise ValueError("layers cannot be chosen for sounds: only the output is judged")
        if common.raw:
            backbone = self.kind.untaught()
        self.weights = "raw input" if common.raw else cache.weights_digest(backbone)
        backbone, self.size = fit_to(backbone, self.about, common.image_size)
        self.backbone = backbone.to(self.device).requires_grad_(False)
        if not self.is_sound:
            self.try_out()
        self.layers = chosen_layers(backbone, common.layers)
        self.folder = Path(common.out) if common.out else home(source)
        self.used = {}  # split -> what evaluation.json says about it
        self.notes = []
        self.widths = {}  # layer -> number of features, once they were computed
        self._splits, self._fingerprints = {}, {}

    @torch.no_grad()
    def try_out(self):
        """A DataError where the backbone fails on an image of this size."""
        S = self.size
        try:
            self.backbone(torch.zeros(1, self.about["channels"], S, S, device=self.device))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise DataError(f"{self.about['backbone']} does not take images of {S} x {S} pixels "
                            f"({str(error).splitlines()[0]})") from error  # fmt: skip

    @property
    def spec(self):
        """Name or path of the data."""
        spec = self.common.data or self.about.get("data")
        if not spec:
            raise DataError(f"{self.source} does not say what it was trained on: name --data")
        return spec

    @property
    def view(self):
        """Side, mean and std of the evaluation view."""
        return self.size, self.about["mean"], self.about["std"]

    def data(self, split, spec=None):
        """A split of the data, or of another data set, whose images fit the backbone."""
        spec = str(spec or self.spec)
        if (spec, split) not in self._splits:
            data = self.kind.open(spec, split, download=self.common.download,
                                  label_column=self.common.label_column or None)  # fmt: skip
            if data.channels != self.about["channels"]:
                raise DataError(f"{data.name} has {data.channels} channels; this backbone takes "
                                f"{self.about['channels']}")  # fmt: skip
            most = {"train": self.common.max_train, "test": self.common.max_test}.get(split)
            if most:
                data = data.subset(range(0, len(data), math.ceil(len(data) / most)))
            self._splits[spec, split] = data
            self._fingerprints[spec, split] = data.fingerprint()
        data = self._splits[spec, split]
        self.used[data.name] = dict(images=len(data), fingerprint=self._fingerprints[spec, split])
        return data

    def features(self, split, layer=None, spec=None):
        """(features float32 [N, d], labels int64 [N] or None) of a split, by way of the cache."""
        data = self.data(split, spec)
        fingerprint = self._fingerprints[str(spec or self.spec), split]
        return self.features_of(data, fingerprint, layer), data.labels

    def features_of(self, data, fingerprint, layer=None):
        """Features float32 [N, d] of data with this fingerprint, by way of the cache."""
        layers = self.layers if layer in self.layers else [layer]
        keys = {name: self._key(fingerprint, name) for name in layers}
        found = {name: self._load(key) for name, key in keys.items()}
        if any(value is None for value in found.values()):
            found = self.extract(data, layers)
            for name, key in keys.items() if self.common.cache else ():
                cache.save(self.cache_folder, key, found[name])
        self.widths |= {name: value.shape[1] for name, value in found.items()}
        return found[layer]

    def annotated(self, split, task, name=""):
        """Images with boxes or masks, as many as max_train or max_test allow; see open_annotated.

        Raises:
            DataError: they cannot be read, or the backbone does not take three channels.
        """
        if self.about["channels"] != 3:
            raise DataError(f"the images have 3 channels; this backbone takes "
                            f"{self.about['channels']}")  # fmt: skip
        data = open_annotated(self.spec, split, task, name)
        most = getattr(self.common, f"max_{split}")
        if most:
            data.rows = data.rows[:: math.ceil(len(data) / most)]
        self.used[data.name] = {"images": len(data), "fingerprint": data.fingerprint()}
        return data

    def sets(self, layer=None):
        """Train features and labels, test features and labels: what the probes take."""
        return [*self.features("train", layer), *self.features("test", layer)]

    def is_same_set(self):
        """Whether the test split is the training split; then no image may find itself."""
        names = ("train", "test")
        for name in names:
            self.data(name)
        train, test = (self._fingerprints[str(self.spec), name] for name in names)
        if train == test:
            self.notes.append("training and test images are the same: none is its own neighbour")
        return train == test

    def extract(self, data, layers=(None,), backbone=None):
        """{layer: features} of any images or sounds, past the cache."""
        if self.is_sound:
            model = backbone or self.backbone
            return {None: self.kind.extract(model, data, *self.view, device=self.device)[0]}
        found, _ = extract_layers(
            backbone or self.backbone, data, list(layers), *self.view, device=self.device,
            batch_size=BATCH, workers=self.common.workers, tokens=self.common.tokens,
            dtype=DTYPES[self.common.precision],
        )  # fmt: skip
        return found

    def encode(self, views, layers=(None,), backbone=None):
        """{layer: features} of views, an iterable of uint8 [B, C, S, S]."""
        _, mean, std = self.view
        return encode(
            backbone or self.backbone, views, list(layers), mean, std, device=self.device,
            tokens=self.common.tokens, dtype=DTYPES[self.common.precision],
        )  # fmt: skip

    def views(self, split):
        """The evaluation views of a split, batch by batch."""
        return evaluation_views(self.data(split), self.size, BATCH, self.common.workers)

    def inputs(self, images):
        """What the backbone takes, from uint8 views [B, C, S, S]."""
        _, mean, std = self.view
        return normalise(images.to(self.device).float() / 255, mean, std)

    def trainable(self):
        """A copy of the backbone with gradients; the frozen one stays as it is."""
        return copy.deepcopy(self.backbone).requires_grad_(True)

    def untrained(self):
        """The same architecture with random weights of the seed, on the device."""
        twin, _ = fit_to(random_twin(self.about, self.seed), self.about, self.size)
        return twin.to(self.device)

    @property
    def cache_folder(self):
        return self.folder / "evaluation" / "features"

    def picture(self, name):
        """The path of a picture or a file of numbers beside evaluation.json."""
        path = self.folder / "evaluation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def describe(self, layer=None):
        """The features in words."""
        if self.common.raw:
            what = "log-mel features" if self.is_sound else "pixels"
        else:
            where = f"{layer} ({self.common.tokens})" if layer else "output"
            what = f"{where} of {self.about['backbone']}"
        what += f", {self.widths[layer]} values" if layer in self.widths else ""
        return what if self.is_sound else f"{what}, at {self.size} pixels"

    def _key(self, fingerprint, layer):
        size, mean, std = self.view
        return cache.key_of(
            weights=self.weights, backbone=self.about["backbone"], data=fingerprint,
            built=[self.about.get(name) for name in ("model_args", "backbone_options")],
            size=size, mean=list(mean), std=list(std), layer=layer, tokens=self.common.tokens,
            precision=self.common.precision, device=self.device.type,
        )  # fmt: skip

    def _load(self, key):
        if not self.common.cache:
            return None
        try:
            return cache.load(self.cache_folder, key)
        except cache.DamagedCache as error:
            self.notes.append(f"{error}; the features are computed anew")
            return None


def chosen_layers(backbone, text):
    """The layers of an option: [None], the encoder's output, where there is none."""
    if not text:
        return [None]
    layers = backbones.layers(backbone) if text == "all" else text.split(",")
    backbones.check_layers(backbone, layers)
    return layers


def home(source):
    """The run folder of a source; runs/NAME for a backbone that is of no run."""
    path = Path(source)
    for folder in (path, path.parent):
        if path.exists() and (folder / "config.yaml").is_file():
            return folder
    return Path("runs", path.stem if path.exists() else path.name)
