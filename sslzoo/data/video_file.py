"""Video files, read and written by PyAV: any frame of a file by its number.

PyAV, the largest of the libraries here, is imported where a video file is opened: all else runs
without it.
"""

import functools

import numpy as np
import torch

from sslzoo.data.image_data import DataError

EXTENSIONS = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv"}


class VideoFile:
    """A video file as a list of frames.

    Args:
        path: of the file. Nothing is read before it is asked for.
    """

    def __init__(self, path):
        self.path = path

    @functools.cached_property
    def times(self):
        """Presentation times of all frames, int64 in units of the stream, in order; no decoding."""
        with self._opened() as (container, stream):
            packets = container.demux(stream)
            times = np.sort([p.pts for p in packets if p.size and p.pts is not None])
        if not len(times):
            raise DataError(f"{self.path} holds no frames")
        return times

    def __len__(self):
        return len(self.times)

    def key(self):
        return str(self.path.stat().st_size)

    def read(self, index):
        return self.frames([index])[0]

    def frames(self, indices):
        """The frames at `indices`, a list of uint8 [3, H, W]: one seek, then forward."""
        wanted = self.times[np.asarray(indices)]
        found = {}
        with self._opened() as (container, stream):
            container.seek(int(wanted.min()), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts in wanted:
                    found[frame.pts] = as_tensor(frame)
                if frame.pts is not None and frame.pts >= wanted.max():
                    break
        missing = [int(i) for i, t in zip(indices, wanted, strict=True) if t not in found]
        if missing:
            raise DataError(f"{self.path} is damaged: frame {missing[0]} cannot be decoded")
        return [found[t] for t in wanted]

    def every(self):
        """All frames in order, one by one, uint8 [3, H, W]."""
        count = 0
        with self._opened() as (container, stream):
            for frame in container.decode(stream):
                count += 1
                yield as_tensor(frame)
        if count != len(self):
            raise DataError(f"{self.path} is damaged: {count} of {len(self)} frames can be decoded")

    def _opened(self):
        return _Opened(self.path)


def as_tensor(frame):
    """PyAV's frame as uint8 [3, H, W]."""
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()


class _Opened:
    """The file and its video stream, closed after use; PyAV's errors become a DataError."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        import av

        try:
            self.container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{self.path} is not a readable video ({error.strerror})") from error
        if not self.container.streams.video:
            self.container.close()
            raise DataError(f"{self.path} has no video stream")
        return self.container, self.container.streams.video[0]

    def __exit__(self, kind, error, trace):
        import av

        self.container.close()
        if isinstance(error, av.FFmpegError):
            raise DataError(f"{self.path} is damaged ({error.strerror})") from error


def write_video(path, frames, rate=24):
    """Write frames as an MP4 file (H.264, which browsers play).

    Args:
        path: of the file.
        frames: iterable of uint8 [H, W, 3]; sides are cut to even numbers, as the codec needs.
        rate: frames per second.
    """
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for image in frames:
            image = np.ascontiguousarray(image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2])
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
