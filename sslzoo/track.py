"""What `sslzoo propagate` does: carry the mask of a video's first frame through it."""

from pathlib import Path

import numpy as np

from sslzoo.data import DataError
from sslzoo.data.video import open_videos
from sslzoo.data.video_file import write_video
from sslzoo.evaluation.subject import Common, Subject
from sslzoo.masks import overlay, read_mask, save_mask, save_sheet, tile
from sslzoo.tracker import Tracker

SHEET_FRAMES, SHEET_COLUMNS = 12, 4


def propagate(source, config):
    """Carry a mask through a video and write what people look at.

    Args:
        source: as sslzoo.evaluation.opening.open_backbone takes it.
        config: PropagateConfig.

    Returns:
        The folder with overlay.mp4, contact_sheet.png and masks/.
    """
    video = one_video(config)
    mask = read_mask(config.mask, video.size)
    names = ("device", "pretrained", "download", "untrained")
    options = {name: getattr(config, name) for name in names}
    subject = Subject(source, Common(layers=config.layer, **options))
    tracker = Tracker(subject, subject.layers[0], config)
    out = Path(config.out)
    (out / "masks").mkdir(parents=True, exist_ok=True)
    masks = tracker.masks(tracker.features(video), mask)
    tiles = {}
    write_video(out / "overlay.mp4", pictures(video, masks, out / "masks", tiles), config.rate)
    save_sheet(out / "contact_sheet.png", list(tiles.values()), SHEET_COLUMNS)
    return out


def pictures(video, masks, folder, tiles):
    """The frames with their masks, one by one; masks go into the folder, some frames to tiles."""
    chosen = spread(len(video), SHEET_FRAMES)
    for number, (frame, mask) in enumerate(zip(video, masks, strict=True)):
        save_mask(folder / f"{number:05d}.png", mask)
        picture = overlay(frame, mask)
        if number in chosen:
            tiles[number] = tile(picture)
        yield picture


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
