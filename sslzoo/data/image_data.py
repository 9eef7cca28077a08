"""One split of an image data set, held in memory or decoded image by image."""

import hashlib
from itertools import chain

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
        unreadable: Unreadable, the images that were skipped so far.

    Example:
        >>> import torch
        >>> from sslzoo.data import ImageData
        >>> data = ImageData("squares", images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
        >>> len(data), data.load(2).shape, data.labels
        (4, torch.Size([3, 8, 8]), None)
    """

    def __init__(self, name, *, images=None, source=None, labels=None, class_names=None,
                 unreadable=None):  # fmt: skip
        if (images is None) == (source is None):
            raise ValueError("exactly one of images and source must be given")
        self.name = name
        self.images = images
        self.source = source
        self.labels = labels
        self.class_names = class_names
        self.unreadable = unreadable or Unreadable()
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
            unreadable=self.unreadable,
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


class Unreadable:
    """The images that could not be read, counted and named; one too many stops.

    Args:
        limit: how many are skipped.

    Attributes:
        found: sample number -> what is wrong with it.
    """

    def __init__(self, limit=0):
        self.limit, self.found = limit, {}

    def add(self, found):
        """Take in what was met here or by a worker process."""
        self.found |= found
        if len(self.found) > self.limit:
            raise DataError(f"{len(self.found)} unreadable images are more than max_unreadable "
                            f"{self.limit}; the last: {list(self.found.values())[-1]}")  # fmt: skip


class Tolerant:
    """A source that skips unreadable images.

    In the place of one stands the next readable image of its class: batches keep their size in
    every process, and which image it is does not depend on the order of reading.

    Args:
        source: of images.
        unreadable: Unreadable.
        labels: list of class numbers, or None.
    """

    def __init__(self, source, unreadable, labels=None):
        self.source, self.unreadable, self.labels = source, unreadable, labels

    def __len__(self):
        return len(self.source)

    def read(self, index):
        for candidate in chain(range(index, len(self)), range(index)):
            alike = self.labels is None or self.labels[candidate] == self.labels[index]
            if not alike or candidate in self.unreadable.found:
                continue
            try:
                return self.source.read(candidate)
            except DataError as error:
                self.unreadable.add({candidate: str(error)})
        raise DataError(f"nothing can stand in for: {self.unreadable.found[index]}")

    def key(self, index):
        return self.source.key(index)


def from_source(name, source, *, memory_limit_mib, max_unreadable=0, **options):
    """Image data that is decoded now if all images have one size and fit, else one by one."""
    unreadable, labels = Unreadable(max_unreadable), options.get("labels")
    if max_unreadable:
        source = Tolerant(source, unreadable, None if labels is None else labels.tolist())
    images = decode_all(source, memory_limit_mib * 2**20) if len(source) else None
    held = dict(source=source) if images is None else dict(images=images)
    return ImageData(name, unreadable=unreadable, **held, **options)


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


def known(labels, where):
    """The labels, int64 [N]; None where all are negative, which stands for withheld ones."""
    if (labels < 0).all():  # as the Hugging Face hub marks them
        return None
    if (labels < 0).any():
        raise DataError(f"{where} has negative labels beside others")
    return labels
