"""Following things through a video of your own, with an encoder that learned from that video only.

    python examples/track_video.py clip.mp4 first.png
    python examples/track_video.py clips/ first.png --sequence beach.mp4 --epochs 50

first.png is a mask of the first frame, of the same size: 0 is background, every other value a thing
to follow. Video colourisation learns to copy colours from frame to frame; the same copying carries
the mask. Written to tracked/: overlay.mp4, contact_sheet.png, and masks/, one PNG for each frame.
No labels but the one mask are used. With a trained run at hand, the command `sslzoo propagate RUN
--video clip.mp4 --mask first.png` does the second half.
"""

import argparse
from pathlib import Path

from sslzoo import options, training
from sslzoo.track import propagate
from sslzoo.tracking_config import PropagateConfig


def learn(videos, out, epochs, clips):
    """The run folder of an encoder that learned from the frames of these videos."""
    # The recipe's videos have true masks, by which it judges itself as it learns; ours have none.
    words = ["--config", "video_colorization_davis", "--data", videos, "--out", out,
             "--epochs", str(epochs), "--clips_per_video", str(clips),
             "--tracking_every", "0"]  # fmt: skip
    chosen = options.parse_pretrain(words)
    return training.pretrain(chosen.name, chosen.method, chosen.training).path


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", help="a video file, or a folder of videos or frames")
    parser.add_argument("mask", help="PNG of the first frame's size")
    parser.add_argument("--sequence", default="", help="which video, where there are several")
    parser.add_argument("--size", type=int, default=240, help="shorter side of the frames, pixels")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--clips", type=int, default=64, help="of each video in an epoch")
    parser.add_argument("--run", default="", help="a run folder: nothing is trained")
    parser.add_argument("--out", default="tracked")
    given = parser.parse_args(argv)
    run_folder = str(Path(given.out, "run"))
    run = given.run or learn(given.video, run_folder, given.epochs, given.clips)
    config = PropagateConfig(video=given.video, mask=given.mask, sequence=given.sequence,
                             size=given.size, out=given.out)  # fmt: skip
    print(f"written to {propagate(run, config)}")


if __name__ == "__main__":
    main()
