"""One split of an image data set, held in memory or decoded image by image."""

import hashlib

import torch


class DataError(ValueError):
    """The data cannot be used as asked; the message is one line for the user."""


class MissingSplit(DataError):
    """The data set has no such split."""


class ImageData:
    """One split of a data set of images.

    Attributes:
        name: the name or path the data came from, with its split.
        images: uint8 [N, C, H, W], or None where images are decoded one by one.
        labels: int64 [N], or None.
        class_names: list of str, or None.
        channels: 3, or 1 for greyscale sets such as the digits.

    Example:
        >>> import torch
        >>> from sslzoo.data import ImageData
        >>> data = ImageData("squares", images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
        >>> len(data), data.load(2).shape, data.labels
        (4, torch.Size([3, 8, 8]), None)
    """

    def __init__(self, name, *, images=None, source=None, labels=None, class_names=None):
        if (images is None) == (source is None):
            raise ValueError("exactly one of images and source must be given")
        self.name = name
        self.images = images
        self.source = source
        self.labels = labels
        self.class_names = class_names
        self.channels = 3 if images is None else images.shape[1]
        if len(self) == 0:
            raise DataError(f"{name} holds no images")
        if labels is not None and len(labels) != len(self):
            raise ValueError(f"{name}: {len(self)} images but {len(labels)} labels")

    def __len__(self):
        return len(self.source if self.images is None else self.images)

    @property
    def description(self):
        """How much of what, in words."""
        return f"{len(self)} images of {self.name}"

    def load(self, index):
        """Image `index` as uint8 [C, H, W]."""
        return self.source.read(int(index)) if self.images is None else self.images[index]

    def require_labels(self, purpose):
        """The labels; a DataError where there are none."""
        if self.labels is None:
            raise DataError(f"{self.name} has no labels, which {purpose} needs")
        return self.labels

    def subset(self, indices):
        """The images at `indices`, in that order."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return ImageData(
            self.name,
            images=None if self.images is None else self.images[indices],
            source=None if self.source is None else Picked(self.source, indices),
            labels=None if self.labels is None else self.labels[indices],
            class_names=self.class_names,
        )

    def fingerprint(self):
        """Hexadecimal digest of the content: pixels where held in memory, else names and sizes."""
        digest = hashlib.blake2b(digest_size=6)
        if self.images is None:
            for index in range(len(self)):
                digest.update(self.source.key(index).encode() + b"\n")
        else:
            digest.update(str(tuple(self.images.shape)).encode())
            digest.update(self.images.contiguous().numpy())
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy())
        return digest.hexdigest()


class Picked:
    """Some rows of a source of images, in any order."""

    def __init__(self, source, indices):
        self.source = source
        self.indices = indices

    def __len__(self):
        return len(self.indices)

    def read(self, index):
        return self.source.read(int(self.indices[index]))

    def key(self, index):
        return self.source.key(int(self.indices[index]))


class Chained:
    """Several sources of images, one after the other."""

    def __init__(self, sources):
        self.rows = [(source, i) for source in sources for i in range(len(source))]

    def __len__(self):
        return len(self.rows)

    def read(self, index):
        source, row = self.rows[index]
        return source.read(row)

    def key(self, index):
        source, row = self.rows[index]
        return source.key(row)


class InMemory:
    """Images in memory, read one by one (beside images on disk in one data set)."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def read(self, index):
        return self.images[index]

    def key(self, index):
        return hashlib.blake2b(self.images[index].contiguous().numpy(), digest_size=6).hexdigest()


def concatenate(name, parts):
    """One data set of the parts' images, in their order; labelled if all parts are."""
    labelled = all(part.labels is not None for part in parts)
    labels = torch.cat([part.labels for part in parts]) if labelled else None
    same_size = all(p.images is not None and p.images.shape[1:] == parts[0].images.shape[1:]
                    for p in parts)  # fmt: skip
    options = dict(labels=labels, class_names=parts[0].class_names)
    if same_size:
        return ImageData(name, images=torch.cat([part.images for part in parts]), **options)
    sources = [InMemory(p.images) if p.images is not None else p.source for p in parts]
    return ImageData(name, source=Chained(sources), **options)


def from_source(name, source, *, memory_limit_mib, **options):
    """Image data that is decoded now if all images have one size and fit, else one by one."""
    images = decode_all(source, memory_limit_mib * 2**20) if len(source) else None
    if images is not None:
        return ImageData(name, images=images, **options)
    return ImageData(name, source=source, **options)


def decode_all(source, limit_bytes):
    """All images as uint8 [N, C, H, W]; None if they differ in size or exceed the limit."""
    first = source.read(0)
    if len(source) * first.numel() > limit_bytes:
        return None
    images = torch.zeros((len(source), *first.shape), dtype=torch.uint8)
    for index in range(len(source)):
        image = source.read(index)
        if image.shape != first.shape:
            return None
        images[index] = image
    return images


def check_split(name, split, available):
    """A MissingSplit unless the data set has this split."""
    if split not in available:
        raise MissingSplit(f"{name} has no {split} split; it has {', '.join(sorted(available))}")
