"""CIFAR-10, CIFAR-100 and STL-10, downloaded and checked by torchvision."""

from pathlib import Path

import torch
from torchvision import datasets

from sslzoo.data.image_data import DataError, ImageData, check_split

DEFAULT_ROOT = Path("~/.cache/sslzoo")


def open_cifar10(split="train", *, download=False, root=None, **_):
    """CIFAR-10: 50,000 + 10,000 colour photographs of 32 x 32 in 10 classes."""
    return _open_cifar(datasets.CIFAR10, "cifar10", split, download, root)


def open_cifar100(split="train", *, download=False, root=None, **_):
    """CIFAR-100: 50,000 + 10,000 colour photographs of 32 x 32 in 100 classes."""
    return _open_cifar(datasets.CIFAR100, "cifar100", split, download, root)


def open_stl10(split="train", *, download=False, root=None, **_):
    """STL-10: 5,000 + 8,000 photographs of 96 x 96 in 10 classes, and 100,000 unlabeled."""
    check_split("stl10", split, ("train", "test", "unlabeled"))
    found = _find(datasets.STL10, "stl10", download, root, split=split)
    labels = None if split == "unlabeled" else torch.from_numpy(found.labels).long()
    images = torch.from_numpy(found.data)
    return ImageData(f"stl10/{split}", images=images, labels=labels, class_names=found.classes)


def _open_cifar(dataset_class, name, split, download, root):
    check_split(name, split, ("train", "test"))
    found = _find(dataset_class, name, download, root, train=split == "train")
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(found.targets)
    return ImageData(f"{name}/{split}", images=images, labels=labels, class_names=found.classes)


def _find(dataset_class, name, download, root, **options):
    root = Path(root or DEFAULT_ROOT).expanduser()
    try:
        return dataset_class(root, download=download, **options)
    except RuntimeError as error:  # torchvision: not found, or damaged by its checksum
        raise DataError(f"{name} is not complete in {root}; download it (--download)") from error
    except OSError as error:
        raise DataError(f"{name} could not be fetched into {root}: {error}") from error
