"""The kinds of data that methods learn from: how each is opened, and what makes its batches."""

from typing import Any, NamedTuple

from sslzoo.clips import ClipLoader
from sslzoo.data import open_data
from sslzoo.data.video import open_videos
from sslzoo.loader import ViewLoader


class Kind(NamedTuple):
    """One kind of data."""

    open: Any  # (name or path, download=) -> an ImageData
    loader: Any  # the ViewLoader that makes batches of it


# A method's DATA names its kind; without it, a method learns from images.
KINDS = {
    "image": Kind(open_data, ViewLoader),
    "video": Kind(open_videos, ClipLoader),
}
