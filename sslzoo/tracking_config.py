"""Options of what tracks: `sslzoo evaluate tracking` and `sslzoo propagate`."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class TrackerConfig:
    """Options of every tracker."""

    protocol: Literal["dino", "crw", "paper"] = "dino"
    """How labels are carried on; see docs/methods/video_colorization.md."""
    size: int = 480
    """Shorter side of the frames as the encoder sees them, in pixels."""
    layer: str = ""
    """Layer whose map is taken; empty takes a method's embeddings, or else the last map."""
    temperature: float = 0.0
    """Temperature of the attention; no unit. 0 takes the protocol's."""
    untrained: bool = False
    """Draw the weights anew, as a control."""
    pretrained: bool = False
    """Fetch the published weights of an encoder that was named by its name in timm."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""

    def __post_init__(self):
        if self.size < 16:
            raise ValueError(f"size must be 16 pixels or more; got {self.size}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more; got {self.temperature}")


@dataclass
class TrackingConfig(TrackerConfig):
    """Options of mask and keypoint tracking."""

    data: str = ""
    """Parquet file with columns sequence, frame_index, image and mask (a PNG a frame)."""
    keypoints: str = ""
    """Parquet file with columns sequence, frame_index and keypoints; empty for none."""
    sequences: tuple[str, ...] = ()
    """Only these sequences, such as [dog,cows]; empty for all."""
    masks: str = ""
    """Folder for the predicted masks as indexed PNGs; empty writes none."""


@dataclass
class PropagateConfig(TrackerConfig):
    """Options of carrying a mask through a video."""

    video: str = ""
    """Video file, folder of frames, or Parquet file of frames."""
    mask: str = ""
    """PNG of the first frame's size: 0 is background, every other value an object."""
    sequence: str = ""
    """Name of the video, where the path holds several."""
    out: str = "propagated"
    """Folder for overlay.mp4, contact_sheet.png and masks/."""
    rate: int = 24
    """Frames per second of the overlay video."""
