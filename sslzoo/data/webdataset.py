"""Images in tar archives in the layout of WebDataset: files of one sample share their name.

`dog/0017.jpg` and `dog/0017.cls` are an image and its class number; `dog/0017.json` may hold it
instead. Archives are read where they lie, at random: their headers are gone through once, at the
start, and give every member's place.
"""

import io
import json
import os
from itertools import groupby

import torch

from sslzoo.data.decoding import decode
from sslzoo.data.folder import EXTENSIONS
from sslzoo.data.image_data import DataError, check_split, from_source, known
from sslzoo.data.splits import split_files
from sslzoo.data.tar import members

LONGEST_LABEL = 2**20  # bytes of a .cls or .json file


class TarImages:
    """Images inside archives as a source of images.

    Args:
        archives: their paths.
        rows: (number of the archive, Member) of each image.
    """

    def __init__(self, archives, rows):
        self.archives, self.rows = archives, rows

    def __len__(self):
        return len(self.rows)

    def read(self, index):
        return decode(io.BytesIO(self.content(*self.rows[index])), self.name(index))

    def content(self, archive, member):
        """The bytes of a member."""
        try:
            with open(self.archives[archive], "rb") as file:
                return os.pread(file.fileno(), member.size, member.offset)
        except OSError as error:
            raise DataError(f"{self.archives[archive]} cannot be read: {error.strerror}") from error

    def name(self, index):
        archive, member = self.rows[index]
        return f"{member.name} of {self.archives[archive]}"

    def key(self, index):
        archive, member = self.rows[index]
        return f"{self.archives[archive].name}/{member.name} {member.size}"


def open_webdataset(
    path, split="train", *, label_column=None, memory_limit_mib=1024, max_unreadable=0, **_
):
    """Images of one split of tar archives.

    Args:
        path: an archive; a folder of them; the start of their names; or a range of numbers, as in
            `train-{000000..000146}.tar`. Compressed archives cannot be read at random.
        split: chosen by the word train, test, val or validation in the archives' names; those
            without such a word are the train split.
        label_column: a field of the .json files that holds class numbers; None takes the .cls files
            or the field `label`, where they exist.
    """
    splits = split_files(path, ".tar")
    check_split(path, split, splits)
    archives = splits[split]
    samples = [(i, sample) for i, file in enumerate(archives) for sample in samples_of(file)]
    source = TarImages(archives, [(i, image_of(sample, archives[i])) for i, sample in samples])
    labels = label_tensor(source, samples, label_column)
    return from_source(
        f"{path}/{split}",
        source,
        memory_limit_mib=memory_limit_mib,
        max_unreadable=max_unreadable,
        labels=labels,
    )


def samples_of(file):
    """{extension: Member} of each sample: neighbours whose names agree up to the first dot."""
    visible = (m for m in members(file) if not os.path.basename(m.name).startswith("."))
    for _, parts in groupby(visible, lambda m: stem_and_extension(m.name)[0]):
        sample = {}
        for member in parts:
            extension = stem_and_extension(member.name)[1]
            if extension in sample:
                raise DataError(f"{file} holds {member.name} twice")
            sample[extension] = member
        yield sample


def stem_and_extension(name):
    """('dog/0017', 'seg.png') of dog/0017.seg.PNG."""
    folder, base = os.path.split(name)
    stem, _, extension = base.partition(".")
    return os.path.join(folder, stem), extension.lower()


def image_of(sample, file):
    """The Member that holds the sample's image."""
    images = [member for extension, member in sample.items() if f".{extension}" in EXTENSIONS]
    if len(images) != 1:
        name = next(iter(sample.values())).name
        raise DataError(f"the sample of {name} in {file} holds {len(images)} images; it needs one "
                        f"({', '.join(sorted(EXTENSIONS))})")  # fmt: skip
    return images[0]


def label_tensor(source, samples, label_column):
    """int64 [N]; None where no sample has a label and none was asked for."""
    labels = [label_of(source, i, sample, label_column) for i, sample in samples]
    without = [number for number, label in enumerate(labels) if label is None]
    if len(without) == len(labels) and label_column is None:
        return None
    if without:
        raise DataError(f"{source.name(without[0])} has no label {label_column or ''}".rstrip())
    return known(torch.tensor(labels), source.archives[0].parent)


def label_of(source, archive, sample, field):
    """The class number of a sample; None where there is none."""
    if field is None and "cls" in sample:
        member, text = sample["cls"], label_text(source, archive, sample["cls"])
        value = int(text) if text.strip().lstrip(b"-").isdigit() else text
    elif "json" in sample:
        member, text = sample["json"], label_text(source, archive, sample["json"])
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{member.name} of {source.archives[archive]} is not valid JSON "
                            f"({error})") from error  # fmt: skip
        value = value.get(field or "label") if isinstance(value, dict) else None
    else:
        return None
    is_label = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    if value is not None and not is_label:
        raise DataError(f"{member.name} of {source.archives[archive]} must hold a class number; "
                        f"it holds {str(value)[:40]!r}")  # fmt: skip
    return value


def label_text(source, archive, member):
    if member.size > LONGEST_LABEL:
        raise DataError(f"{member.name} of {source.archives[archive]} is too long for a label: "
                        f"{member.size} bytes")  # fmt: skip
    return source.content(archive, member)
