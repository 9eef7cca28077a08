"""Image data by name or path: `open_data("digits")`, `open_data("photos/", "test")`."""

import difflib
from functools import partial
from pathlib import Path

from sslzoo.data.digits import open_digits
from sslzoo.data.folder import holds_images, open_folder
from sslzoo.data.image_data import DataError, ImageData, MissingSplit, concatenate
from sslzoo.data.parquet import open_parquet
from sslzoo.data.splits import is_named
from sslzoo.data.torchvision_sets import open_cifar10, open_cifar100, open_stl10
from sslzoo.data.webdataset import open_webdataset

__all__ = ["DATASETS", "SPLITS", "DataError", "ImageData", "open_data"]

DATASETS = {
    "digits": open_digits,
    "cifar10": open_cifar10,
    "cifar100": open_cifar100,
    "stl10": open_stl10,
}
SPLITS = ("train", "test", "all", "unlabeled")


def open_data(
    spec,
    split="train",
    *,
    download=False,
    root=None,
    label_column=None,
    memory_limit_mib=1024,
    max_unreadable=0,
):
    """Open one split of a data set.

    Args:
        spec: "digits", "cifar10", "cifar100", "stl10", or a path: a folder of class folders; a
            folder with train/ and test/ (or val/) subfolders; a flat folder of images, which has
            no labels; Parquet files or tar archives (WebDataset): one, a folder of them, or a
            folder and the start of their names.
        split: "train", "test", "all" (train and test) or "unlabeled".
        download: fetch cifar10, cifar100 or stl10 where they are missing.
        root: where these are kept; None for ~/.cache/sslzoo.
        label_column: the Parquet column, or the field of WebDataset's .json files, that holds class
            numbers; None takes `label` where it exists, and WebDataset's .cls files before it.
        memory_limit_mib: images of one size are decoded at once into memory up to this, in MiB.
        max_unreadable: unreadable images of a folder or Parquet file that are skipped: another of
            the same class stands in their place; the data's `unreadable.found` names them.

    Returns:
        ImageData.

    Raises:
        DataError: nothing usable is there; the message says what and where.

    Example:
        >>> from sslzoo.data import open_data
        >>> train, test = open_data("digits"), open_data("digits", "test")
        >>> len(train), len(test), tuple(train.images.shape)
        (1437, 360, (1437, 1, 8, 8))
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    open_split = _opener(spec)
    options = dict(download=download, root=root, label_column=label_column,
                   memory_limit_mib=memory_limit_mib, max_unreadable=max_unreadable)  # fmt: skip
    if split != "all":
        return open_split(split, **options)
    parts = [open_split("train", **options)]
    try:
        parts.append(open_split("test", **options))
    except MissingSplit:  # a folder that is not divided is all there is
        return parts[0]
    return concatenate(f"{spec}/all", parts)


def _opener(spec):
    """The function that opens a split of a named data set or of a path."""
    if str(spec) in DATASETS:
        return DATASETS[str(spec)]
    path = Path(spec).expanduser()
    try:
        if is_named(path, ".parquet"):
            return partial(open_parquet, path)
        if is_named(path, ".tar") and not holds_images(path):
            return partial(open_webdataset, path)
        if path.is_dir():
            return partial(open_folder, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if path.exists():
        raise DataError(f"{path} is neither a folder nor a Parquet file nor a tar archive")
    near = difflib.get_close_matches(str(spec), DATASETS)
    hint = f"did you mean {' or '.join(near)}?" if near else f"named sets: {', '.join(DATASETS)}"
    raise DataError(f"no data set or path {str(spec)!r}; {hint}")
