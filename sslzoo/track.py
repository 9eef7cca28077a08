"""What `sslzoo evaluate tracking` and `sslzoo propagate` do."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sslzoo.data import DataError
from sslzoo.data.video import open_videos, read_sequences
from sslzoo.data.video_file import write_video
from sslzoo.evaluation.tracking import PCK_LEVELS, pck, score_sequence
from sslzoo.pictures import grid
from sslzoo.tracker import Tracker, mask_numbers, overlay, read_mask, save_mask

SHEET_FRAMES, SHEET_WIDTH = 12, 320


def track(path, config):
    """J, F and PCK of an encoder on labelled sequences, and of the first frame's labels copied.

    Args:
        path: a run folder, a checkpoint, or the name of an encoder.
        config: TrackingConfig.

    Returns:
        (rows of (metric, value, None), the features in words).

    Raises:
        DataError: the data cannot be used.
    """
    if not config.data:
        raise DataError("tracking needs --data: a Parquet file with frames and masks")
    tracker = Tracker(path, config)
    videos = chosen_videos(config)
    truths = mask_table(Path(config.data), videos)
    joints = keypoint_table(config.keypoints) if config.keypoints else {}
    tracked, copied, places = {}, {}, []
    for name, video in videos.items():
        features = list(tracker.features(video))
        truth = truths[name]
        predicted = torch.stack(list(tracker.masks(features, truth[0])))
        tracked[name] = score_sequence(predicted.numpy(), truth.numpy())
        copied[name] = score_sequence(truth[:1].expand_as(truth).numpy(), truth.numpy())
        if config.masks:
            save_masks(Path(config.masks, name), predicted)
        if name in joints:
            places.append(track_joints(tracker, features, *joints[name], video.size))
    rows = mask_rows("", tracked) + mask_rows("first mask copied: ", copied, by_sequence=False)
    return rows + pck_rows(places), tracker.description


def chosen_videos(config):
    """Name -> Video of the sequences that were asked for."""
    data = open_videos(config.data, memory_limit_mib=0)
    videos = {Path(video.name).name: video for video in data.videos}
    unknown = set(config.sequences) - set(videos)
    if unknown:
        raise DataError(f"{config.data} has no sequence {min(unknown)}; it has "
                        f"{', '.join(videos)}")  # fmt: skip
    return {name: videos[name] for name in config.sequences or videos}


def mask_table(path, videos):
    """Sequence -> true masks, int64 [T, H, W], of the frames in order."""
    masks = {}
    for name, cells in sequence_cells(path, "mask").items():
        if name not in videos:
            continue
        if len(cells) != len(videos[name]) or any(cell is None for _, cell in cells):
            raise DataError(f"{path} has frames of {name} without a mask")
        images = [Image.open(io.BytesIO(cell["bytes"])) for _, cell in cells]
        masks[name] = torch.stack([mask_numbers(np.array(i), i.mode) for i in images])
        size = tuple(masks[name].shape[1:])
        if size != videos[name].size:
            raise DataError(f"masks of another size in {path}: {name} has masks of {size} and "
                            f"frames of {videos[name].size} (height, width)")  # fmt: skip
    return masks


def sequence_cells(path, column):
    """Sequence -> list of (frame index, cell) in the order of frames."""
    table = read_sequences(Path(path), (column,))
    found = {}
    for row in sorted(range(len(table)), key=lambda r: table["frame_index"][r].as_py()):
        pair = table["frame_index"][row].as_py(), table[column][row].as_py()
        found.setdefault(table["sequence"][row].as_py(), []).append(pair)
    return found


def keypoint_table(path):
    """Sequence -> (frame numbers int [A], keypoints float32 [A, K, 3])."""
    if not Path(path).is_file():
        raise DataError(f"no file {path} with keypoints")
    return {
        name: (np.array([t for t, _ in cells]), np.array([k for _, k in cells], np.float32))
        for name, cells in sequence_cells(path, "keypoints").items()
    }


def track_joints(tracker, features, frames, truth, size):
    """(tracked, copied, true) places at the annotated frames after the first."""
    start = frames[0]
    if frames[-1] >= len(features):
        raise DataError(
            f"keypoints of frame {frames[-1]}, but the video has {len(features)} frames"
        )
    begin = torch.from_numpy(truth[0])
    found = list(tracker.keypoints(features[start : frames[-1] + 1], begin, size))
    tracked = np.stack([found[t - start - 1].numpy() for t in frames[1:]])
    still = np.where(truth[:1, :, 2:] > 0, truth[:1, :, :2], -1)
    return tracked, np.broadcast_to(still, tracked.shape), truth[1:]


def mask_rows(prefix, scores, by_sequence=True):
    """Rows of J, F and J&F, means over all objects of all sequences."""
    objects = [pair for pairs in scores.values() for pair in pairs]
    if not objects:
        raise DataError("no sequence has an object in its first mask")
    rows = []
    for name, part in (("J", 0), ("F", 1)):
        values = np.array([pair[part] for pair in objects]).mean(0)
        labels = (name, f"{name} recall", f"{name} decay")
        rows += [(prefix + label, float(v), None)
                 for label, v in zip(labels, values, strict=True)]  # fmt: skip
    rows.append((f"{prefix}J&F", (rows[0][1] + rows[3][1]) / 2, None))
    if by_sequence:
        for name, pairs in scores.items():
            mean = np.mean([(J.mean + F.mean) / 2 for J, F in pairs])
            rows.append((f"J&F, {name}", float(mean), None))
    return rows


def pck_rows(places):
    """Rows of PCK, pooled over all sequences; those of the copied joints stand below."""
    if not places:
        return []
    rows = []
    for prefix, part in (("", 0), ("first joints copied: ", 1)):
        # Each frame on its own, for the sequences differ in their number of joints.
        guesses = [frame for place in places for frame in place[part]]
        truths = [frame for place in places for frame in place[2]]
        result = pck(guesses, truths)
        for kind, shares in (("lenient", result.lenient), ("strict", result.strict)):
            rows += [(f"{prefix}PCK@{a}, {kind}", shares[a], None) for a in PCK_LEVELS]
    return rows


def propagate(path, config):
    """Carry the mask of a video's first frame through it and write what people look at.

    Args:
        path: a run folder, a checkpoint, or the name of an encoder.
        config: PropagateConfig.

    Returns:
        The folder with overlay.mp4, contact_sheet.png and masks/.
    """
    for name in ("video", "mask"):
        if not getattr(config, name):
            raise DataError(f"propagate needs --{name}")
    video = one_video(config)
    mask = read_mask(config.mask, video.size)
    tracker = Tracker(path, config)
    out = Path(config.out)
    masks = list(tracker.masks(tracker.features(video), mask))
    save_masks(out / "masks", masks)
    tinted = (overlay(video.frames([t])[0], mask) for t, mask in enumerate(masks))
    write_video(out / "overlay.mp4", tinted, config.rate)
    contact_sheet(out / "contact_sheet.png", video, masks)
    return out


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


def save_masks(folder, masks):
    """Write indexed PNGs, 00000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks):
        save_mask(folder / f"{number:05d}.png", mask)


def contact_sheet(path, video, masks):
    """A picture of evenly spaced frames with their masks."""
    chosen = np.unique(np.linspace(0, len(masks) - 1, SHEET_FRAMES).astype(int))
    height = round(video.size[0] * SHEET_WIDTH / video.size[1])
    tiles = [
        Image.fromarray(overlay(video.frames([t])[0], masks[t])).resize((SHEET_WIDTH, height))
        for t in chosen
    ]
    tiles = torch.from_numpy(np.stack([np.array(tile) for tile in tiles])).permute(0, 3, 1, 2)
    sheet = grid([tiles], samples_per_row=4)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
