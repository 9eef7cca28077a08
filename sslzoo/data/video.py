"""Videos by path: a Parquet file of frames, folders of frames, video files. No labels."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sslzoo.data.folder import ImageFiles, below, is_image, visible
from sslzoo.data.image_data import DataError, ImageData, decode_all
from sslzoo.data.parquet import IMAGE_COLUMNS, EncodedImages
from sslzoo.data.video_file import EXTENSIONS, VideoFile

# Frames that stand for all videos where a method or a picture wants single images.
STILLS = 1000
FEWEST_STILLS = 4  # of each video, where there are very many


class Video:
    """The frames of one video.

    Args:
        name: what an error calls it.
        source: the frames: len(), and read(index) to uint8 [3, H, W].
    """

    def __init__(self, name, source):
        self.name, self.source = name, source
        self.memory = None  # uint8 [T, 3, H, W] once decoded
        self._size = None

    def __len__(self):
        return len(self.source)

    def frames(self, indices):
        """The frames at `indices`, a list of uint8 [3, H, W]."""
        if self.memory is not None:
            return [self.memory[int(i)] for i in indices]
        if hasattr(self.source, "frames"):  # a file, which is cheaper to read in one go
            return self.source.frames(indices)
        return [self.source.read(int(i)) for i in indices]

    def __iter__(self):
        """All frames in order, uint8 [3, H, W]; a file is decoded once, from its start."""
        if self.memory is not None:
            return iter(self.memory)
        if hasattr(self.source, "every"):
            return self.source.every()
        return (self.source.read(index) for index in range(len(self)))

    @property
    def size(self):
        """(height, width) in pixels."""
        if self._size is None:
            self._size = tuple(self.frames([0])[0].shape[-2:])
        return self._size

    def hold(self, limit_bytes):
        """Decode into memory if the frames fit; returns the bytes taken."""
        self.memory = decode_all(self.source, limit_bytes)
        return 0 if self.memory is None else self.memory.numel()


class Stills:
    """Evenly spaced frames of all videos, as a source of images."""

    def __init__(self, videos):
        self.rows = []
        each = max(FEWEST_STILLS, math.ceil(STILLS / len(videos)))
        for video in videos:
            # The length of a file is read from it: only where there are few.
            count = min(each, len(video)) if len(videos) <= STILLS else each
            self.rows += [(video, (k + 0.5) / count) for k in range(count)]

    def __len__(self):
        return len(self.rows)

    def read(self, index):
        video, place = self.rows[index]
        return video.frames([int(place * len(video))])[0]


class VideoData(ImageData):
    """Videos; as image data, an evenly spaced choice of their frames.

    Args:
        name: the path that the videos came from.
        videos: list of Video.
    """

    def __init__(self, name, videos):
        super().__init__(name, source=Stills(videos))
        self.videos = videos
        self._fingerprint = None

    @property
    def description(self):
        return f"{len(self.videos)} videos of {self.name}"

    def fingerprint(self):
        """Hexadecimal digest of the videos' names and the sizes of their files."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=6)
            for video in self.videos:
                digest.update(video.name.rpartition("/")[2].encode() + b"\n")
                is_file = isinstance(video.source, VideoFile)
                keys = [video.source.key()] if is_file else map(video.source.key, range(len(video)))
                for key in keys:
                    digest.update(key.encode() + b"\n")
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def open_videos(spec, split="train", *, memory_limit_mib=1024, **_):
    """Open the videos of a path.

    Args:
        spec: a Parquet file with a column of encoded images, and columns `sequence` and
            `frame_index`; a folder of images, which is one video; a folder of folders of images;
            a video file; a folder of video files, at any depth.
        split: "train"; videos have no other.
        memory_limit_mib: frames stored one by one are decoded at once into memory up to this.

    Returns:
        VideoData.

    Raises:
        DataError: nothing usable is there; the message says what and where.
    """
    if split != "train":
        raise DataError(f"{spec}: videos have no {split} split")
    path = Path(spec).expanduser()
    if not path.exists():
        raise DataError(f"no video at {str(spec)!r}: there is no such file or folder")
    if path.suffix == ".parquet":
        videos = parquet_videos(path)
    elif path.is_dir():
        videos = folder_videos(path)
    elif path.suffix.lower() in EXTENSIONS:
        videos = [Video(str(path), VideoFile(path))]
    else:
        raise DataError(f"{path} is no video: it is none of {', '.join(sorted(EXTENSIONS))}, "
                        "no folder and no Parquet file")  # fmt: skip
    left = memory_limit_mib * 2**20
    for video in videos:
        if not isinstance(video.source, VideoFile):
            left -= video.hold(left)
    return VideoData(str(path), videos)


def folder_videos(path):
    """A folder of frames, of folders of frames or of video files."""
    entries = visible(path)
    if any(is_image(entry) for entry in entries):
        return [Video(str(path), ImageFiles([e for e in entries if is_image(e)]))]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if files:
        return [Video(str(file), VideoFile(file)) for file in files]
    folders = {}
    for image in below(path):
        folders.setdefault(image.parent, []).append(image)
    if not folders:
        known = ", ".join(sorted(EXTENSIONS))
        raise DataError(f"no video in {path}: neither frames nor video files ({known})")
    return [Video(str(folder), ImageFiles(images)) for folder, images in folders.items()]


def parquet_videos(path):
    """One video for each `sequence` of a Parquet file, its frames in the order of `frame_index`."""
    table = read_sequences(path, IMAGE_COLUMNS)
    names = np.array(table["sequence"].to_pylist())
    order = table["frame_index"].to_numpy()
    column = next(table[name] for name in IMAGE_COLUMNS if name in table.column_names)
    videos = []
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        rows = rows[np.argsort(order[rows], kind="stable")]
        images = EncodedImages(column.take(pa.array(rows)), [(f"{path}, {name}", 0)], path.parent)
        videos.append(Video(f"{path}/{name}", images))
    return videos


def read_sequences(path, wanted):
    """The columns sequence, frame_index and those of `wanted` that a Parquet file has."""
    needed = ("sequence", "frame_index")
    try:
        columns = pq.read_schema(path).names
        present = [name for name in wanted if name in columns]
        missing = [name for name in needed if name not in columns]
        if missing or not present:
            missing = missing or [" or ".join(wanted)]
            raise DataError(f"{path} has no column {missing[0]}; it has {', '.join(columns)}")
        return pq.read_table(path, columns=[*needed, *present])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a readable Parquet file ({reason})") from error
