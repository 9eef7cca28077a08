"""Kinds of data: how each is opened, made into batches and turned into features.

A method's `DATA` names the kind it learns from, or a tuple of those it can learn from, of which the
backbone then takes one; without it, images.
"""

from typing import NamedTuple

from torch import nn

from sslzoo import backbones
from sslzoo.clips import ClipLoader
from sslzoo.data import open_data
from sslzoo.data.audio import open_audio
from sslzoo.data.video import open_videos
from sslzoo.evaluation.audio import LogMel, extract_audio, wave_statistics
from sslzoo.evaluation.features import extract
from sslzoo.loader import ViewLoader, channel_statistics
from sslzoo.waves import WaveLoader


class Kind(NamedTuple):
    """What differs between kinds of data."""

    things: str  # what its samples are called
    open: object  # (name or path, split, download=, label_column=) -> data
    loader: type  # batches of views
    statistics: object  # data -> (mean, std), which views are normalised by
    extract: object  # (backbone, data, size, mean, std, device=) -> (features, labels)
    untaught: object  # () -> the module whose features no learning went into


KINDS = {
    "images": Kind("images", open_data, ViewLoader, channel_statistics, extract, nn.Flatten),
    "audio": Kind("sounds", open_audio, WaveLoader, wave_statistics, extract_audio, LogMel),
    "video": Kind("frames", open_videos, ClipLoader, channel_statistics, extract, nn.Flatten),
}


def kind_of(module, backbone):
    """The kind of data that a method's module learns from with the backbone of this name."""
    known = getattr(module, "DATA", "images")
    if isinstance(known, str):
        return known
    taken = backbones.kind(backbone)
    return taken if taken in known else known[0]


def views_of(module, config, image_size, kind):
    """The method's views; one of several kinds is told which."""
    several = not isinstance(getattr(module, "DATA", "images"), str)
    return module.views(config, image_size, *([kind] if several else []))
