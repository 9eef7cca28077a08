"""Options of what tracks: `sslzoo evaluate tracking` and `sslzoo propagate`."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class TrackerConfig:
    """Options of every tracker."""

    protocol: Literal["dino", "crw", "paper"] = "dino"
    """How labels are carried on; see docs/evaluation/tracking.md."""
    size: int = 480
    """Shorter side of the frames as the encoder sees them, in pixels."""
    square: bool = False
    """Stretch the frames to a square of this size, as is done for JHMDB with a size of 320."""
    temperature: float = 0.0
    """Temperature of the attention; no unit. 0 takes the protocol's."""
    last_frames: int = 0
    """Context: so many frames before the present one. 0 takes the protocol's."""
    topk: int = 0
    """Context cells that a cell copies from; more than there are is all. 0 takes the protocol's."""
    radius: int = 0
    """Window around a cell, in cells; the frame's length is none. 0 takes the protocol's."""

    def __post_init__(self):
        if self.size < 16:
            raise ValueError(f"size must be 16 pixels or more; got {self.size}")
        for name in ("temperature", "last_frames", "topk", "radius"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)}")


@dataclass
class PropagateConfig(TrackerConfig):
    """Options of carrying a mask through a video."""

    video: str = ""
    """Video file, folder of frames, or Parquet file of frames."""
    mask: str = ""
    """PNG of the first frame's size: 0 is background, every other value an object. Empty takes the
    first of the true masks."""
    truth: str = ""
    """True masks, which J, F and J&F are measured by: a folder with a PNG for each frame, or a
    Parquet file with a column mask. Empty takes those beside the frames of a Parquet file."""
    keypoints: str = ""
    """Parquet file with columns sequence, frame_index and keypoints, to carry them too and measure
    PCK; empty for none."""
    sequence: str = ""
    """Name of the video, where the path holds several."""
    out: str = "propagated"
    """Folder for overlay.mp4, contact_sheet.png and masks/."""
    rate: int = 24
    """Frames per second of the overlay video."""
    layer: str = ""
    """Layer whose map is taken; empty takes a method's embeddings, or else the last map."""
    untrained: bool = False
    """The encoder as it was before training, as a control."""
    pretrained: bool = False
    """A name of timm gets its published weights instead of random ones."""
    download: bool = False
    """With --pretrained, fetch the weights where they are missing."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""

    def __post_init__(self):
        super().__post_init__()
        if self.rate < 1:
            raise ValueError(f"rate must be 1 frame per second or more; got {self.rate}")
        if not self.video:
            raise ValueError("propagate needs --video")
