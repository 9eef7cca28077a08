"""A folder of JHMDB: frames of short videos of people, and the places of 15 joints in each.

JHMDB/Rename_Images/ACTION/VIDEO/00001.png
JHMDB/joint_positions/ACTION/VIDEO/joint_positions.mat   pos_img [2, 15, T], x and y from 1
JHMDB/splits/ACTION_test_split1.txt                      VIDEO.avi 1 (train) or 2 (test)
"""

import zlib
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from sslzoo.data import DataError
from sslzoo.data.folder import ImageFiles, below
from sslzoo.data.video import Video, VideoData

FRAMES, JOINTS, LISTS = "Rename_Images", "joint_positions", "splits"
SPLIT = "split1"
OF_TEST = "2"  # in a list; 1 is a training video, 0 neither
NAMES = ["neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip",
         "right elbow", "left elbow", "right knee", "left knee", "right wrist", "left wrist",
         "right ankle", "left ankle"]  # fmt: skip
DAMAGE = (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError, zlib.error)


def is_jhmdb(path):
    """Whether a path is such a folder."""
    return all((Path(path) / name).is_dir() for name in (FRAMES, JOINTS))


def open_jhmdb(path, name="", chosen=()):
    """(VideoData, VIDEO -> Video) of the test videos of a split, or of the chosen ones of them.

    Args:
        path: the folder.
        name: of the split, such as split2; empty is split1.
        chosen: names of videos.

    Raises:
        DataError: there are no lists of the split, or a video is not there.
    """
    path, name = Path(path), name or SPLIT
    places = listed(path, name)
    for video in chosen:
        if video not in places:
            known = ", ".join([*places][:8])
            raise DataError(f"{path} has no test video {video} in {name}; it has {known}")
    videos = {}
    for video in chosen or places:
        folder = path / FRAMES / places[video] / video
        files = below(folder) if folder.is_dir() else []
        if not files:
            raise DataError(f"{folder} holds no frames")
        videos[video] = Video(f"{path}/{places[video]}/{video}", ImageFiles(files))
    return VideoData(f"{path}/{name}", [*videos.values()]), videos


def listed(path, name):
    """VIDEO -> ACTION of the test videos of a split."""
    found, ending = {}, f"_test_{name}"
    for file in sorted((path / LISTS).glob(f"*{ending}.txt")):
        for line in file.read_text().splitlines():
            video, _, part = line.strip().partition(" ")
            if part.strip() == OF_TEST:
                found[Path(video).stem] = file.stem.removesuffix(ending)
    if not found:
        raise DataError(f"{path / LISTS} lists no test videos of {name}: no *{ending}.txt has any")
    return found


def joint_positions(path, videos):
    """VIDEO -> (frame numbers int [T], joints float32 [T, 15, 3]: x and y from 0, visible)."""
    return {name: video_joints(Path(path), name, video) for name, video in videos.items()}


def video_joints(path, name, video):
    """The joints of one video.

    They are marked where they are hidden, too, and beyond the image's edge. All count, as in
    ajabri/videowalk; only in the first frame, where a label is drawn, they must lie inside.
    """
    action = Path(video.name).parent.name
    file = path / JOINTS / action / name / "joint_positions.mat"
    try:
        places = np.asarray(loadmat(file)["pos_img"], np.float32)
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} is no readable file of joints ({reason})") from error
    if places.ndim != 3 or places.shape[:2] != (2, len(NAMES)):
        raise DataError(f"{file}: pos_img must be [2, {len(NAMES)}, frames]; it is {places.shape}")
    if not 1 < places.shape[2] <= len(video):
        raise DataError(f"{file} has joints of {places.shape[2]} frames; the video has "
                        f"{len(video)}")  # fmt: skip
    xy = places.transpose(2, 1, 0) - 1
    visible = np.ones((*xy.shape[:2], 1), np.float32)
    height, width = video.size
    visible[0, :, 0] = ((xy[0] >= 0) & (xy[0] <= (width - 1, height - 1))).all(1)
    return np.arange(len(xy)), np.concatenate([xy, visible], 2)
