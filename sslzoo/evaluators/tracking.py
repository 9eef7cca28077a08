"""How well a video's first labels are carried on: J and F of masks, PCK of keypoints."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslzoo.data import DataError
from sslzoo.data.video import read_sequences
from sslzoo.data.video_file import write_video
from sslzoo.evaluation.davis import is_davis
from sslzoo.evaluation.jhmdb import is_jhmdb
from sslzoo.evaluation.layers import prefix
from sslzoo.evaluation.results import Result
from sslzoo.evaluation.tracking import score_sequence
from sslzoo.evaluation.tracking_data import fingerprint, keypoints, labelled_videos, true_masks
from sslzoo.evaluation.tracking_rows import copied_rows, follow, mask_rows, pck_rows, pooled
from sslzoo.masks import SHEET_COLUMNS, joint_tiles, overlay, save_mask, save_sheet, tile
from sslzoo.progress import with_bar
from sslzoo.tracker import Tracker
from sslzoo.tracking_config import TrackerConfig

VERSION = 1
MOST_ROWS = 30  # of the sheet of joints


@dataclass
class Config(TrackerConfig):
    """Options of the tracking of masks and keypoints."""

    keypoints: str = ""
    """Parquet file with columns sequence, frame_index and keypoints; empty is JHMDB's own."""
    test_list: str = ""
    """List of a folder of DAVIS, such as train; empty is val. Of JHMDB split2 or split3; empty is
    split1."""
    sequences: tuple[str, ...] = ()
    """Only these sequences, such as [dog,cows]; empty for all."""
    masks: bool = False
    """Also keep the predicted masks, as indexed PNGs."""
    videos: bool = True
    """Write an overlay video of each sequence."""
    rate: int = 24
    """Frames per second of the overlay videos."""


def unsuitable(subject):
    """Masks or joints of videos are needed, and an encoder of RGB images."""
    if subject.about["channels"] != 3 or subject.about.get("kind") == "audio":
        return "tracking needs an encoder of RGB images"
    try:
        if is_davis(subject.spec) or is_jhmdb(subject.spec):
            return None
        if not subject.spec.endswith(".parquet"):
            return ("tracking needs a Parquet file with sequences of frames and masks, or a folder "
                    "of DAVIS or JHMDB")  # fmt: skip
        read_sequences(Path(subject.spec), ("mask",))
    except DataError as error:
        return str(error)
    return None


def evaluate(subject, config):
    """Rows of J, F, J&F and PCK of each layer, and of the first frame's labels copied."""
    has_joints = is_jhmdb(subject.spec)
    if not has_joints and not is_davis(subject.spec) and not str(subject.spec).endswith(".parquet"):
        raise DataError(f"{subject.spec} is neither a Parquet file with frames and masks nor a "
                        "folder of DAVIS (JPEGImages/ and Annotations/) or of JHMDB "
                        "(Rename_Images/ and joint_positions/)")  # fmt: skip
    data, videos = labelled_videos(subject.spec, config.sequences, config.test_list)
    truth = true_masks(subject.spec, videos)
    joints, names = keypoints(config.keypoints or (subject.spec if has_joints else ""), videos)
    subject.used[data.name] = dict(images=sum(map(len, videos.values())),
                                   fingerprint=fingerprint(data, truth, joints))  # fmt: skip
    rows, pictures, details = [], {}, {}
    for layer in subject.layers:
        tracker = Tracker(subject, layer, config)
        sheets = Sheets(subject, layer, config)
        scores, places = {}, {}
        for name, video in with_bar(videos.items(), len(videos), "videos"):
            true = truth.get(name)
            mask = None if true is None else true[0]
            masks, tracked = follow(tracker, video, mask, joints.get(name))
            if masks is not None:
                sheets.add_masks(name, video, masks, true)
                scores[name] = score_sequence(masks.numpy(), true.numpy())
            if tracked is not None:
                frames, marks = joints[name]
                places[name] = tracked, marks[1:]
                sheets.add_joints(video, frames[1:], tracked, marks[1:])
        found = list(places.values())
        rows += mask_rows(prefix(layer), scores) if scores else []
        rows += pck_rows(prefix(layer), found)
        details[tracker.description] = per_sequence(scores) | per_joint(found, names)
        pictures |= sheets.save()
    return Result(rows + copied_rows(truth, joints), pictures, details)


def per_sequence(scores):
    """J&F of each sequence, for evaluation.json."""
    return {"J&F": {name: float(np.mean([(J.mean + F.mean) / 2 for J, F in pairs]))
                    for name, pairs in scores.items() if pairs}}  # fmt: skip


def per_joint(places, names):
    """PCK of each joint, where all sequences have the same ones."""
    counts = {truth.shape[1] for _, truth in places}
    if len(counts) != 1:
        return {}
    names = names or [f"joint {k}" for k in range(*counts)]
    return {"PCK of joints": {name: pooled(places, joint=k).strict
                              for k, name in enumerate(names)}}  # fmt: skip


class Sheets:
    """Pictures of one layer's tracking, written as they come."""

    def __init__(self, subject, layer, config):
        self.subject, self.config = subject, config
        kind = "untrained_" * subject.common.untrained + f"{layer}_" * (layer is not None)
        self.stem = f"tracking_{kind}"
        self.words = prefix(layer)
        self.masks, self.joints, self.files = [], [], {}

    def add_masks(self, name, video, masks, truth):
        """Draw a sequence: its overlay video, its masks, a row of the contact sheet."""
        if self.config.masks:
            folder = self.subject.picture(f"{self.stem}{name}_masks")
            folder.mkdir(exist_ok=True)
            for number, mask in enumerate(masks):
                save_mask(folder / f"{number:05d}.png", mask)
        chosen = np.linspace(0, len(masks) - 1, SHEET_COLUMNS).round().astype(int)
        self.masks += [tile(overlay(video.frames([t])[0], masks[t], truth[t])) for t in chosen]
        if self.config.videos:
            path = self.subject.picture(f"{self.stem}{name}.mp4")
            write_video(path, map(overlay, video, masks, truth), self.config.rate)
            self.files[f"{self.words}overlay of {name}"] = path

    def add_joints(self, video, frames, tracked, truth):
        """Draw a row of the sheet of joints; of very many videos the first ones."""
        if len(self.joints) < MOST_ROWS * SHEET_COLUMNS:
            self.joints += joint_tiles(video, frames, tracked, truth)

    def save(self):
        """Write the contact sheets; returns {name: path} of all pictures."""
        for name, tiles in (("contact sheet", self.masks), ("keypoints", self.joints)):
            if tiles:
                path = self.subject.picture(f"{self.stem}{name.replace(' ', '_')}.png")
                save_sheet(path, tiles, SHEET_COLUMNS)
                self.files[f"{self.words}{name}"] = path
        return self.files
