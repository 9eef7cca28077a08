"""A folder of DAVIS: JPEGImages/ and Annotations/ with a folder of each sequence, and ImageSets/.

    DAVIS/JPEGImages/480p/SEQUENCE/00000.jpg    frames
    DAVIS/Annotations/480p/SEQUENCE/00000.png   indexed masks, 255 is void
    DAVIS/ImageSets/2017/val.txt                a sequence in each line (2016: the paths of a frame)

The folder of the resolution (480p, or else the only one there is) may be left out.
"""

from pathlib import Path

from sslzoo.data import DataError
from sslzoo.data.folder import ImageFiles, below, visible
from sslzoo.data.video import Video, VideoData

FRAMES, MASKS, LISTS = "JPEGImages", "Annotations", "ImageSets"
RESOLUTION = "480p"


def is_davis(path):
    """Whether a path is such a folder."""
    return all((Path(path) / name).is_dir() for name in (FRAMES, MASKS))


def open_davis(path, name="", chosen=()):
    """(VideoData, sequence -> Video) of the sequences of a list, or of the chosen ones.

    Args:
        path: the folder.
        name: of the list, such as val; empty is val, or all sequences where there are no lists.
        chosen: names of sequences, which need not be in the list.

    Raises:
        DataError: a list or a sequence is not there.
    """
    path = Path(path)
    frames = resolution(path / FRAMES)
    videos = {}
    for sequence in chosen or listed(path, name):
        if not (frames / sequence).is_dir():
            known = ", ".join(entry.name for entry in visible(frames)[:8])
            raise DataError(f"{path} has no sequence {sequence}; it has {known}")
        files = below(frames / sequence)
        if not files:
            raise DataError(f"{frames / sequence} holds no frames")
        videos[sequence] = Video(f"{path}/{sequence}", ImageFiles(files))
    return VideoData(f"{path}/{name or 'val'}", [*videos.values()]), videos


def mask_files(path, sequence, video):
    """The mask of each frame of a sequence, (frame number, path)."""
    folder = resolution(Path(path) / MASKS) / sequence
    files = [folder / f"{frame.stem}.png" for frame in video.source.paths]
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        raise DataError(f"{path} has frames of {sequence} without a mask: no {missing.name}")
    return [*enumerate(files)]


def resolution(folder):
    """The folder of the sequences: 480p, the only one of folders alone, or the folder itself."""
    folders = [entry for entry in visible(folder) if entry.is_dir()]
    if folder / RESOLUTION in folders:
        return folder / RESOLUTION
    has_sequences = any(not entry.is_dir() for one in folders[:1] for entry in visible(one))
    return folder if has_sequences or len(folders) != 1 else folders[0]


def listed(path, name):
    """The sequences of a list, the newest year's; all of them where there are no lists."""
    files = sorted((path / LISTS).glob(f"**/{name or 'val'}.txt"))
    of_2017 = [file for file in files if file.parent.name == "2017"]
    if files:
        lines = (of_2017 or files)[0].read_text().split("\n")
        first = [line.split()[0] for line in lines if line.strip()]
        names = (Path(word).parent.name if "/" in word else word for word in first)
        return [*dict.fromkeys(names)]
    if name:
        raise DataError(f"{path / LISTS} has no list {name}.txt")
    return [entry.name for entry in visible(resolution(path / FRAMES)) if entry.is_dir()]
