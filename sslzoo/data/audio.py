"""Sounds: Parquet files with a column of encoded files, and folders of WAV or FLAC."""

import hashlib
import io
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from sslzoo.data.folder import Files, class_folders, split_folders
from sslzoo.data.image_data import Chained, DataError, MissingSplit, Picked, check_split
from sslzoo.data.parquet import class_names, label_tensor
from sslzoo.data.splits import is_named, split_files

EXTENSIONS = {".wav", ".flac"}
AUDIO_COLUMN = "audio"
GROUP_COLUMN = "speaker"
SPLITS = ("train", "test", "all")


class AudioData:
    """One split of a data set of sounds.

    Attributes:
        name: the name or path the data came from, with its split.
        rate: samples per second, the same for all sounds.
        labels: int64 [N], or None; class_names: list of str, or None.
        groups: int64 [N], the speaker of each sound, or None.
        channels: 1; several channels of a file are averaged.

    Example:
        >>> import torch
        >>> data = AudioData("tones", Waves([torch.zeros(400)], rate=8000))
        >>> len(data), data.load(0).shape, data.rate
        (1, torch.Size([1, 400]), 8000)
    """

    images = None
    channels = 1

    def __init__(self, name, source, *, labels=None, class_names=None, groups=None, rate=None):
        self.name, self.source = name, source
        self.labels, self.class_names, self.groups = labels, class_names, groups
        if len(source) == 0:
            raise DataError(f"{name} holds no sounds")
        self.rate = rate or source.read(0)[1]

    def __len__(self):
        return len(self.source)

    def load(self, index):
        """Sound `index` as float32 [1, samples], between -1 and 1."""
        wave, rate = self.source.read(int(index))
        if rate != self.rate:
            raise DataError(f"{self.name}: sound {int(index)} has {rate} samples per second, the "
                            f"first one {self.rate}; bring all to one rate")  # fmt: skip
        return wave[None]

    def require_labels(self, purpose):
        """The labels; a DataError where there are none."""
        if self.labels is None:
            raise DataError(f"{self.name} has no labels, which {purpose} needs")
        return self.labels

    def subset(self, indices):
        """The sounds at `indices`, in that order."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        of = {name: None if getattr(self, name) is None else getattr(self, name)[indices]
              for name in ("labels", "groups")}  # fmt: skip
        return AudioData(self.name, Picked(self.source, indices), class_names=self.class_names,
                         rate=self.rate, **of)  # fmt: skip

    def fingerprint(self):
        """Hexadecimal digest of names and sizes."""
        digest = hashlib.blake2b(digest_size=6)
        for index in range(len(self)):
            digest.update(self.source.key(index).encode() + b"\n")
        return digest.hexdigest()


class Waves:
    """Sounds in memory as a source: float32 [samples] each."""

    def __init__(self, waves, rate):
        self.waves, self.rate = waves, rate

    def __len__(self):
        return len(self.waves)

    def read(self, index):
        return self.waves[index], self.rate

    def key(self, index):
        return f"{zlib.crc32(self.waves[index].numpy())}"


class SoundFiles(Files):
    """WAV and FLAC files as a source."""

    def read(self, index):
        return decode(self.paths[index], self.paths[index])


class EncodedSounds:
    """A column of encoded files as a source; the encoded bytes stay in memory."""

    def __init__(self, column, file):
        self.column, self.file = column, file

    def __len__(self):
        return len(self.column)

    def bytes(self, index):
        cell = self.column[index].as_py()
        return cell["bytes"] if isinstance(cell, dict) else cell

    def read(self, index):
        where = f"row {index} of {self.file}"
        content = self.bytes(index)
        if content is None:
            raise DataError(f"{where} holds no sound")
        return decode(io.BytesIO(content), where)

    def key(self, index):
        return f"{zlib.crc32(self.bytes(index) or b'')}"


def decode(file, where):
    """(float32 [samples], samples per second) of a sound file, channels averaged."""
    import soundfile  # images train where it is not installed

    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{where} is not a readable sound ({reason})") from error
    if not len(samples):
        raise DataError(f"{where} is an empty sound")
    return torch.from_numpy(samples.mean(1)), rate


def open_audio(spec, split="train", *, label_column=None, **_):
    """Open one split of a set of sounds.

    Args:
        spec: a Parquet file with a column `audio`, whose column `split`, if it has one, or whose
            name says which split; or a folder of WAV and FLAC files, with train/ and test/ below
            it or not, whose subfolders are classes.
        split: "train", "test" or "all".
        label_column: the Parquet column of class numbers or names, such as `speaker`; None takes
            `label` where it exists. A column `speaker` also groups the sounds.

    Returns:
        AudioData.

    Raises:
        DataError: nothing usable is there; the message says what and where.
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    path = Path(spec).expanduser()
    if not is_named(path, ".parquet") and not path.is_dir():
        what = "is neither a folder of WAV or FLAC files nor a" if path.exists() else "is no"
        raise DataError(f"{spec} {what} Parquet file of sounds")
    opener = open_table if is_named(path, ".parquet") else open_folder
    if split != "all":
        return opener(path, split, label_column)
    parts = [opener(path, "train", label_column)]
    try:
        parts.append(opener(path, "test", label_column))
    except MissingSplit:
        return parts[0]
    return concatenate(f"{spec}/all", parts)


def concatenate(name, parts):
    """The sounds of all parts in their order."""
    of = {field: torch.cat([getattr(p, field) for p in parts])
          for field in ("labels", "groups")
          if all(getattr(p, field) is not None for p in parts)}  # fmt: skip
    return AudioData(name, Chained([p.source for p in parts]), rate=parts[0].rate,
                     class_names=parts[0].class_names, **of)  # fmt: skip


def open_table(path, split, label_column):
    """One split of a Parquet file or of a folder of them."""
    splits = split_files(path, ".parquet")
    tables = {name: read_table(files) for name, files in splits.items()}
    table = tables[next(iter(tables))]
    if len(tables) == 1 and "split" in table.column_names:
        named = sorted(set(table["split"].to_pylist()))
        check_split(path, split, named)
        rows = pc.equal(table["split"], split)
        whole, table = table, table.filter(rows)
    else:
        check_split(path, split, splits)
        table = tables[split]
        whole = pa.concat_tables([t.select(table.column_names) for t in tables.values()])
    labels, names = column_classes(table, whole, label_column, path)
    groups = None
    if GROUP_COLUMN in table.column_names:
        groups, _ = column_classes(table, whole, GROUP_COLUMN, path)
    source = EncodedSounds(table[AUDIO_COLUMN], path)
    return AudioData(f"{path}/{split}", source, labels=labels, class_names=names, groups=groups)


def read_table(files):
    """All columns of the files of a split."""
    try:
        table = pa.concat_tables([pq.read_table(file) for file in files])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{files[0]} is not a readable Parquet file ({reason})") from error
    if AUDIO_COLUMN not in table.column_names:
        columns = ", ".join(table.column_names)
        raise DataError(f"{files[0]} has no column {AUDIO_COLUMN}; it has {columns}")
    return table


def column_classes(table, whole, column, file):
    """Class numbers of a column and their names; words are numbered in alphabetical order."""
    name = column or "label"
    if name in table.column_names and pa.types.is_string(table.schema.field(name).type):
        names = sorted(set(whole[name].to_pylist()))
        numbers = {word: number for number, word in enumerate(names)}
        return torch.tensor([numbers[word] for word in table[name].to_pylist()]), names
    labels = label_tensor(table, column, file)
    return labels, None if labels is None else class_names(table.schema, name)


def open_folder(path, split, label_column):
    """One split of a folder of sound files."""
    if label_column:
        raise DataError(f"{path} is a folder, which has no column {label_column}")
    splits = split_folders(path)
    if split not in splits:
        raise MissingSplit(f"{path} has no {split} split: it needs subfolders {path.name}/train "
                           f"and {path.name}/{split}")  # fmt: skip
    files = sound_files(splits[split])
    if not files:
        raise DataError(f"{splits[split]} holds no sounds ({', '.join(sorted(EXTENSIONS))})")
    classes = class_folders(splits)
    above = [file.relative_to(splits[split]).parts[0] for file in files]
    is_flat = any(len(file.relative_to(splits[split]).parts) == 1 for file in files)
    labels = None if is_flat else torch.tensor([classes.index(name) for name in above])
    return AudioData(f"{path}/{split}", SoundFiles(files), labels=labels,
                     class_names=None if is_flat else classes)  # fmt: skip


def sound_files(folder):
    """All sound files below a folder, sorted, hidden ones left out."""
    files = (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
    return sorted(
        p for p in files if not any(part[0] == "." for part in p.relative_to(folder).parts)
    )
