"""Folders of image files: a folder for each class, or flat and unlabelled."""

import os
from pathlib import Path

import torch

from sslzoo.data.decoding import decode
from sslzoo.data.image_data import DataError, MissingSplit, from_source

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


class Files:
    """Files as a source of samples; what reads one is `read`."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def key(self, index):
        path = self.paths[index]
        return f"{path.parent.name}/{path.name} {path.stat().st_size}"


class ImageFiles(Files):
    """Image files as a source of images."""

    def read(self, index):
        return decode(self.paths[index], self.paths[index])


def open_folder(path, split="train", *, memory_limit_mib=1024, max_unreadable=0, **_):
    """Images below a folder.

    With subfolders train/ and test/ (or val/) each split is its own; without them everything is
    the train split. Subfolders are classes; images at the top level make the folder unlabelled.
    """
    splits = split_folders(path)
    if split not in splits:
        raise MissingSplit(
            f"{path} has no {split} split: it needs subfolders {path.name}/train and "
            f"{path.name}/{split}"
        )
    classes = class_folders(splits)
    files, labels = list_images(splits[split], classes)
    if not files:
        raise DataError(f"{splits[split]} holds no images ({', '.join(sorted(EXTENSIONS))})")
    return from_source(
        f"{path}/{split}",
        ImageFiles(files),
        memory_limit_mib=memory_limit_mib,
        max_unreadable=max_unreadable,
        labels=None if labels is None else torch.tensor(labels),
        class_names=classes,
    )


def split_folders(path):
    """Split name -> folder; {"train": path} where the folder is not divided."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        present = [path / name for name in names if (path / name).is_dir()]
        if present:
            found[split] = present[0]
    return found if "train" in found else {"train": path}


def class_folders(splits):
    """Sorted class names over all splits, so that one class has one number in each; or None."""
    names = set()
    for folder in splits.values():
        entries = visible(folder)
        if any(is_image(entry) for entry in entries):
            return None
        names |= {entry.name for entry in entries if entry.is_dir()}
    return sorted(names)


def list_images(folder, classes):
    """Image paths in sorted order, and their labels (None for an unlabelled folder)."""
    if classes is None:
        return below(folder), None
    files, labels = [], []
    for label, name in enumerate(classes):
        found = below(folder / name) if (folder / name).is_dir() else []
        files += found
        labels += [label] * len(found)
    return files, labels


def below(folder):
    """All image files under a folder, sorted, hidden ones left out."""
    files = []
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        files += [Path(root, name) for name in sorted(names) if is_image(Path(name))]
    return files


def holds_images(folder):
    """Whether an image file lies anywhere under a folder."""
    return any(is_image(Path(name)) for _, _, names in os.walk(folder) for name in names)


def visible(folder):
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        _unreadable(error)
    return [entry for entry in entries if not entry.name.startswith((".", "__"))]


def is_image(path):
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _unreadable(error):
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
