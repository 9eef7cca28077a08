"""Files of one data set by name: which split each holds, and which belong together."""

import re

from sslzoo.data.image_data import DataError

SPLIT_WORDS = dict.fromkeys(("test", "val", "valid", "validation"), "test")
SPLIT_WORDS |= {"train": "train", "unlabeled": "unlabeled", "unlabelled": "unlabeled"}
# cifar10-train, train-00000-of-00002-3f5a, imagenet-val-000017, validation
NAME = re.compile(
    rf"^(?:(?P<prefix>.*)[-_.])?(?P<word>{'|'.join(SPLIT_WORDS)})"
    r"(?:[-_.]\d+(?:[-_]of[-_]\d+.*)?)?$"
)
NUMBER = re.compile(r"[-_.]?\d+$")  # of a shard whose name names no split
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_named(path, suffix):
    """Whether a path names such files: one, a folder holding some, or the start of names."""
    if path.is_dir():
        return bool(inside(path, suffix))
    return (path.suffix == suffix and (path.is_file() or bool(RANGE.search(path.name)))) or any(
        path.parent.glob(f"{path.name}[-_.]*{suffix}")
    )


def inside(folder, suffix):
    """Files of a folder and its subfolders (`data/`, `train/`), sorted."""
    return sorted([*folder.glob(f"*{suffix}"), *folder.glob(f"*/*{suffix}")])


def split_files(path, suffix):
    """Split -> its files, sorted."""
    if path.is_dir():
        files = inside(path, suffix)
    elif RANGE.search(path.name):
        files = in_range(path)
    elif path.suffix == suffix:
        # The other splits are in files of the same prefix; of its own, the named file alone.
        prefix, split = prefix_and_split(path)
        others = sorted(path.parent.glob(f"*{suffix}")) if split else []
        others = [f for f in others if prefix_and_split(f)[0] == prefix]
        files = [path] + [f for f in others if prefix_and_split(f)[1] != split]
    else:
        files = sorted(path.parent.glob(f"{path.name}[-_.]*{suffix}"))
        files = [f for f in files if prefix_and_split(f)[0] == path.name]
    prefixes = {prefix_and_split(file)[0] for file in files if prefix_and_split(file)[1]}
    if len(prefixes) > 1:
        known = ", ".join(sorted(str(path / (prefix or "")) for prefix in prefixes))
        raise DataError(f"{path} holds several data sets; name one of {known}")
    splits = {}
    for file in files:
        splits.setdefault(prefix_and_split(file)[1] or "train", []).append(file)
    return splits


def in_range(path):
    """The files that train-{000000..000146}.tar stands for."""
    first, last = RANGE.search(path.name).groups()
    numbers = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    return [path.with_name(RANGE.sub(number, path.name, count=1)) for number in numbers]


def prefix_and_split(file):
    """('cifar10', 'train') of cifar10-train.parquet; ('shard', None) where no split is named."""
    match = NAME.match(file.stem)
    if match:
        return match["prefix"], SPLIT_WORDS[match["word"]]
    return NUMBER.sub("", file.stem), None
