"""What `sslzoo propagate` does: carry the mask of a video's first frame through it."""

import json
from pathlib import Path

import numpy as np

from sslzoo.data import DataError
from sslzoo.data.video import open_videos
from sslzoo.data.video_file import write_video
from sslzoo.evaluation.results import Result
from sslzoo.evaluation.subject import Common, Subject
from sslzoo.evaluation.tracking import score_sequence
from sslzoo.evaluation.tracking_data import has_masks, keypoints, masks_of
from sslzoo.evaluation.tracking_rows import copied_rows, follow, mask_rows, pck_rows
from sslzoo.masks import (
    SHEET_COLUMNS,
    joint_tiles,
    overlay,
    read_mask,
    save_mask,
    save_sheet,
    tile,
)
from sslzoo.tracker import Tracker

CONTACT_FRAMES, CONTACT_COLUMNS = 12, 4


def propagate(source, config):
    """Carry a mask through a video and write what people look at, and how good it is where known.

    Args:
        source: as sslzoo.evaluation.opening.open_backbone takes it.
        config: PropagateConfig.

    Returns:
        Result. The folder config.out holds overlay.mp4, contact_sheet.png and masks/; with
        keypoints keypoints.png, and with anything to measure by scores.json.
    """
    video = one_video(config)
    truth, joints = true_labels(config, video)
    mask = first_mask(config, video, truth)
    names = ("device", "pretrained", "download", "untrained")
    options = {name: getattr(config, name) for name in names}
    subject = Subject(source, Common(layers=config.layer, **options))
    tracker = Tracker(subject, subject.layers[0], config)
    out = Path(config.out)
    (out / "masks").mkdir(parents=True, exist_ok=True)
    if truth is None and joints is None:  # frame by frame, so that a video can be long
        masks, tracked = tracker.masks(tracker.features(video), mask), None
    else:
        masks, tracked = follow(tracker, video, mask, joints)
    files = draw(config, video, masks, truth, tracked, joints)
    rows = scores(video, masks, truth, tracked, joints)
    if rows:
        files["scores"] = write_scores(out / "scores.json", config, tracker, rows)
    return Result(rows, files)


def true_labels(config, video):
    """(masks uint8 [T, H, W] or None, (frame numbers, keypoints) or None) to measure by."""
    path = config.truth or (config.video if has_masks(config.video, video) else None)
    joints = None
    if config.keypoints:
        name = Path(video.name).name
        joints = keypoints(config.keypoints, {name: video})[0].get(name)
        if joints is None:
            raise DataError(f"{config.keypoints} has no keypoints of {name}")
    return masks_of(path, video) if path else None, joints


def first_mask(config, video, truth):
    """The mask that is carried on."""
    if config.mask:
        return read_mask(config.mask, video.size)
    if truth is None:
        raise DataError(f"propagate needs --mask: {config.video} has no masks")
    if not truth[0].any():
        raise DataError(
            "the first of the true masks holds no object: all its pixels are background"
        )
    return truth[0]


def draw(config, video, masks, truth, tracked, joints):
    """Write the overlay video, the masks and the sheets; returns {name: path}."""
    out, tiles = Path(config.out), {}
    files = {"overlay": out / "overlay.mp4", "contact sheet": out / "contact_sheet.png"}
    frames = pictures(video, masks, truth, out / "masks", tiles)
    write_video(files["overlay"], frames, config.rate)
    save_sheet(files["contact sheet"], list(tiles.values()), CONTACT_COLUMNS)
    if tracked is not None:
        files["keypoints"] = out / "keypoints.png"
        numbers, places = joints
        tiles = joint_tiles(video, numbers[1:], tracked, places[1:])
        save_sheet(files["keypoints"], tiles, SHEET_COLUMNS)
    return files


def pictures(video, masks, truth, folder, tiles):
    """The frames with their masks, one by one; masks go into the folder, some frames to tiles."""
    chosen = spread(len(video), CONTACT_FRAMES)
    truth = [None] * len(video) if truth is None else truth
    for number, (frame, mask, true) in enumerate(zip(video, masks, truth, strict=True)):
        save_mask(folder / f"{number:05d}.png", mask)
        picture = overlay(frame, mask, true)
        if number in chosen:
            tiles[number] = tile(picture)
        yield picture


def scores(video, masks, truth, tracked, joints):
    """Rows of J, F, J&F and PCK, and those of the first labels copied."""
    name, rows = Path(video.name).name, []
    if truth is not None:
        rows += mask_rows("", {name: score_sequence(masks.numpy(), truth.numpy())})
    if tracked is not None:
        rows += pck_rows("", [(tracked, joints[1][1:])])
    return rows + copied_rows({} if truth is None else {name: truth},
                              {} if joints is None else {name: joints})  # fmt: skip


def write_scores(path, config, tracker, rows):
    """The rows as JSON, with what they were measured on; returns the path."""
    about = {"encoder": tracker.description, "video": config.video, "sequence": config.sequence,
             "protocol": config.protocol, "size": config.size}  # fmt: skip
    results = [row.record() for row in rows]
    path.write_text(json.dumps(about | {"results": results}, indent=2) + "\n", encoding="utf-8")
    return path


def spread(length, count):
    """At most `count` evenly spaced numbers from 0 to length - 1, the ends among them."""
    return set(np.linspace(0, length - 1, count).round().astype(int).tolist())


def one_video(config):
    """The video that was named."""
    videos = {Path(v.name).name: v for v in open_videos(config.video, memory_limit_mib=0).videos}
    if config.sequence and config.sequence not in videos:
        raise DataError(f"{config.video} has no video {config.sequence}; it has "
                        f"{', '.join(videos)}")  # fmt: skip
    if len(videos) > 1 and not config.sequence:
        raise DataError(f"{config.video} holds {len(videos)} videos: name one by --sequence, such "
                        f"as {min(videos)}")  # fmt: skip
    return videos[config.sequence] if config.sequence else next(iter(videos.values()))
