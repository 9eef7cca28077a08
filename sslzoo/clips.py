"""Batches of video clips: frames of one video in their order, all cropped and flipped alike.

Start, gaps, crop and flip of a clip are a function of (seed, epoch, sample), as views are.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sslzoo import pixels
from sslzoo.counter_random import Uniform, stream_keys
from sslzoo.data import DataError
from sslzoo.loader import MadeByWorkers, ViewLoader

CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class ClipSpec:
    """How random clips are drawn.

    Attributes:
        size: side of the frames in pixels.
        frames: in a clip.
        gap: smallest and largest step from one frame of a clip to the next, in frames. Videos that
            are too short for it get smaller steps, at least 1.
        clips_per_video: in an epoch.
        crop_scale: smallest and largest share of a frame's area in the crop.
        crop_ratio: smallest and largest width / height of the crop.
        flip: probability of a horizontal flip.
        mean, std: taken for what image views have too; clips are RGB from 0 to 1.
    """

    size: int
    frames: int = 4
    gap: tuple[int, int] = (1, 1)
    clips_per_video: int = 1
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


def draw_clips(spec, seed, epoch, indices, lengths, heights, widths):
    """Parameters of the clips of some samples.

    Args:
        spec: ClipSpec.
        seed, epoch: integers.
        indices: [B] sample numbers.
        lengths, heights, widths: [B] frames of the sample's video, and their size in pixels.

    Returns:
        Dictionary: frames int64 [B, F], frame numbers; crop int64 [B, 4], top, left, height and
        width in pixels; flip bool [B].

    Example:
        >>> from sslzoo.clips import ClipSpec, draw_clips
        >>> spec = ClipSpec(size=64, frames=4, gap=(2, 2))
        >>> drawn = draw_clips(spec, 0, 0, [0], [10], [480], [854])
        >>> (drawn["frames"][0] - drawn["frames"][0, 0]).tolist()
        [0, 2, 4, 6]
    """
    uniform = Uniform(stream_keys(seed, epoch, np.asarray(indices)))
    size = (np.asarray(x, np.float64)[:, None] for x in (heights, widths))
    crop, flip = draw_resized_boxes(spec, uniform, *size), uniform() < spec.flip
    lengths = np.asarray(lengths)[:, None]
    low, high = spec.gap
    gaps = np.floor(uniform(spec.frames - 1, low, high + 1)).astype(np.int64)
    gaps = np.clip(gaps, 1, np.maximum((lengths - 1) // (spec.frames - 1), 1))
    offsets = np.concatenate([np.zeros_like(lengths), gaps.cumsum(1)], 1)
    starts = np.floor(uniform()[:, None] * (lengths - offsets[:, -1:])).astype(np.int64)
    return {"frames": starts + offsets, "crop": crop.astype(np.int64), "flip": flip}


def draw_resized_boxes(spec, uniform, height, width):
    """As torchvision's RandomResizedCrop: ten attempts, else a centre crop.

    Args:
        height, width: float64 [B, 1], in pixels.
    """
    area = height * width * uniform(CROP_ATTEMPTS, *spec.crop_scale)
    low, high = np.log(spec.crop_ratio)
    ratio = np.exp(uniform(CROP_ATTEMPTS, low, high))
    w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)[:, None]
    w, h = np.take_along_axis(w, first, 1), np.take_along_axis(h, first, 1)
    place = uniform(2)
    top = np.floor(place[:, :1] * (height - h + 1))
    left = np.floor(place[:, 1:] * (width - w + 1))

    none_fits = ~fits.any(1, keepdims=True)
    nearest = np.clip(width / height, *spec.crop_ratio)
    w = np.where(none_fits, np.rint(np.minimum(width, height * nearest)), w)
    h = np.where(none_fits, np.rint(np.minimum(height, width / nearest)), h)
    top = np.where(none_fits, (height - h) // 2, top)
    left = np.where(none_fits, (width - w) // 2, left)
    return np.concatenate([top, left, h, w], 1)


class ClipLoader(ViewLoader):
    """A ViewLoader whose batches hold one view: clips, float32 RGB [B, F, 3, S, S] from 0 to 1.

    Args:
        data: VideoData.
        specs: one ClipSpec.
        **options: those of ViewLoader; batches are counted in clips.
    """

    things = "clips"

    def __init__(self, data, specs, **options):
        (self.spec,) = specs
        super().__init__(data, specs, **options)

    @property
    def samples(self):
        return len(self.data.videos) * self.spec.clips_per_video

    def make(self, workers):
        clips = Clips(self.data.videos, self.spec, self.seed)
        return MadeByWorkers(self, workers, clips, finish_clips)


def finish_clips(clips, spec, drawn):
    """uint8 [B, F, 3, S, S] to float, 0 to 1, flipped where that was drawn."""
    flip = drawn["flip"].to(clips.device, non_blocking=True)[:, None, None, None, None]
    clips = clips.float() / 255
    return torch.where(flip, clips.flip(-1), clips)


class Clips(torch.utils.data.Dataset):
    """(epoch, sample numbers) -> uint8 clips, their parameters, and what went wrong."""

    def __init__(self, videos, spec, seed):
        self.videos, self.spec, self.seed = videos, spec, seed

    def __getitem__(self, item):
        epoch, indices = item
        clips, flips = [], []
        try:
            for index in indices:
                clip, drawn = self.clip(epoch, index)
                clips.append(clip)
                flips.append(drawn["flip"])
        except DataError as error:  # an exception would arrive wrapped in a worker's traceback
            return [], [], str(error)
        return [torch.stack(clips)], [{"flip": torch.from_numpy(np.concatenate(flips))}], None

    def clip(self, epoch, index):
        """One clip uint8 [F, 3, S, S], not flipped yet, and its parameters."""
        video, spec = self.videos[index // self.spec.clips_per_video], self.spec
        if len(video) < spec.frames:
            raise DataError(f"{video.name} has {len(video)} frames; a clip needs {spec.frames}")
        (H, W), T = video.size, len(video)
        drawn = draw_clips(spec, self.seed, epoch, [index], [T], [H], [W])
        frames = video.frames(drawn["frames"][0])
        box = drawn["crop"][0].tolist()
        return torch.stack([pixels.crop_resize(x, box, spec.size) for x in frames]), drawn
