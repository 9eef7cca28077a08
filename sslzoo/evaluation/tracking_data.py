"""Labelled videos, in Parquet files or a folder of DAVIS or JHMDB: masks of all frames, joints."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from sslzoo.data import DataError
from sslzoo.data.video import open_videos, read_sequences
from sslzoo.evaluation import jhmdb
from sslzoo.evaluation.davis import is_davis, mask_files, open_davis
from sslzoo.masks import number_objects


def labelled_videos(path, chosen=(), list_name=""):
    """(VideoData, name -> Video) of the sequences that were asked for, all of them for ().

    Args:
        path: a Parquet file, or a folder of DAVIS or JHMDB.
        chosen: names of sequences.
        list_name: of DAVIS, such as val; empty is val. Of JHMDB the split; empty is split1.

    Raises:
        DataError: a sequence is not there.
    """
    if is_davis(path):
        return open_davis(path, list_name, chosen)
    if jhmdb.is_jhmdb(path):
        return jhmdb.open_jhmdb(path, list_name, chosen)
    data = open_videos(path, memory_limit_mib=0)
    videos = {Path(video.name).name: video for video in data.videos}
    for name in chosen:
        if name not in videos:
            raise DataError(f"{path} has no sequence {name}; it has {', '.join(videos)}")
    return data, {name: videos[name] for name in chosen or videos}


def true_masks(path, videos):
    """Sequence -> masks of its frames, uint8 [T, H, W]; {} of JHMDB, which has joints alone."""
    if jhmdb.is_jhmdb(path):
        return {}
    if is_davis(path):
        files = {name: mask_files(path, name, video) for name, video in videos.items()}
    else:
        files = {name: encoded_masks(of) for name, of in cells_of(path, "mask").items()}
    missing = next((name for name in videos if name not in files), None)
    if missing is not None:  # of Parquet: the name of a sequence is a path
        raise DataError(f"{path} has no masks of a sequence {missing}")
    return {name: sequence_masks(path, name, files[name], video) for name, video in videos.items()}


def masks_of(path, video):
    """Masks uint8 [T, H, W] of one video, from a folder of PNGs or a Parquet file."""
    name = Path(video.name).name
    if Path(path).is_dir():
        files = sorted(p for p in Path(path).iterdir() if p.suffix.lower() == ".png")
        files = [*enumerate(files)]
    else:
        files = encoded_masks(cells_of(path, "mask").get(name, []))
    if len(files) != len(video):
        raise DataError(f"{path} has {len(files)} masks of {name}, which has {len(video)} frames")
    return sequence_masks(path, name, files, video)


def in_memory(file):
    """A file's content; long videos have more masks than a process may have open files."""
    return io.BytesIO(file.read_bytes()) if isinstance(file, Path) else file


def encoded_masks(cells):
    """(frame number, file in memory or None) of cells with encoded masks."""
    return [(t, cell and cell["bytes"] and io.BytesIO(cell["bytes"])) for t, cell in cells]


def has_masks(path, video):
    """Whether a path is a Parquet file with a mask of every frame of the video."""
    if Path(path).suffix != ".parquet" or "mask" not in pq.read_schema(path).names:
        return False
    cells = cells_of(path, "mask").get(Path(video.name).name, ())
    return bool(cells) and all(cell is not None and cell["bytes"] is not None for _, cell in cells)


def sequence_masks(path, name, files, video):
    """The masks of one sequence; they must be those of all its frames and of their size."""
    if any(file is None for _, file in files):
        raise DataError(f"{path} has frames of {name} without a mask")
    try:
        images = [Image.open(in_memory(file)) for _, file in files]
        arrays = [np.array(image) for image in images]
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} has an unreadable mask of {name} ({error})") from error
    for array in arrays:
        if array.shape != tuple(video.size):
            raise DataError(
                f"masks of another size in {path}: {name} has masks of "
                f"{array.shape} and frames of {tuple(video.size)} (height, width)"
            )
    return number_objects(np.stack(arrays), images[0].mode)


def fingerprint(data, masks, joints):
    """Hexadecimal digest of frames, masks and keypoints."""
    digest = hashlib.blake2b(data.fingerprint().encode(), digest_size=6)
    for name in sorted(masks):
        digest.update(name.encode() + masks[name].numpy().tobytes())
    for name in sorted(joints):
        for part in joints[name]:
            digest.update(name.encode() + part.tobytes())
    return digest.hexdigest()


def keypoints(path, videos):
    """(sequence -> (frame numbers int [A], keypoints float32 [A, K, 3]), names of the joints).

    Args:
        path: a Parquet file, or a folder of JHMDB; empty for none.
    """
    if not path:
        return {}, None
    if jhmdb.is_jhmdb(path):
        return jhmdb.joint_positions(path, videos), jhmdb.NAMES
    if not Path(path).is_file():
        raise DataError(f"no file {path} with keypoints")
    found = {}
    for name, cells in cells_of(path, "keypoints").items():
        if name not in videos:
            continue
        frames = np.array([frame for frame, _ in cells])
        joints = np.array([cell for _, cell in cells], np.float32)
        if joints.ndim != 3 or joints.shape[2] != 3:
            raise DataError(f"the keypoints of {name} in {path} must be [joints][x, y, visible]")
        if frames[-1] >= len(videos[name]):
            raise DataError(
                f"{path} has keypoints of frame {frames[-1]} of {name}, which has "
                f"{len(videos[name])} frames"
            )
        found[name] = frames, joints
    return found, joint_names(path)


def joint_names(path):
    """Names from the schema's metadata `joint_names`, or None."""
    text = (pq.read_schema(path).metadata or {}).get(b"joint_names")
    return json.loads(text) if text else None


def cells_of(path, column):
    """Sequence -> list of (frame number, cell) in the order of frames."""
    table = read_sequences(Path(path), (column,))
    numbers, names = table["frame_index"].to_pylist(), table["sequence"].to_pylist()
    found = {}
    for row in np.argsort(numbers, kind="stable").tolist():
        found.setdefault(names[row], []).append((numbers[row], table[column][row].as_py()))
    return found
