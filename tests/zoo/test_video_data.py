"""Videos from files, folders and Parquet: which frames, in which order, and what is refused."""

import io

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from videos import sprite_video

from sslzoo.data import DataError
from sslzoo.data.video import open_videos
from sslzoo.data.video_file import VideoFile, write_video


def numbered(count, size=(48, 64)):
    """uint8 [T, H, W, 3]: a bright field whose column tells the frame's number."""
    frames = np.full((count, *size, 3), 40, np.uint8)
    for t in range(count):
        frames[t, :, 4 * t : 4 * t + 4] = 220
    return frames


def number_of(frame):
    """The number that a frame of `numbered` shows; lossy coding does not hide it."""
    return frame.float().mean((0, 1)).unflatten(0, (-1, 4)).mean(1).argmax().item()


def write(path, frames, codec, container=None, **options):
    """A video file by PyAV with a codec of choice."""
    with av.open(str(path), "w", options=container or {}) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b.mp4", "libx264", {"bf": "3", "g": "8"}),  # frames are stored out of order
        ("g.mkv", "libx264", {"g": "100"}),  # one key frame
        ("m.avi", "mpeg4", {"g": "5"}),
        ("j.mov", "mjpeg", {}),
        ("v.webm", "libvpx", {"deadline": "realtime"}),
    ],
)
def test_every_frame_of_a_file_is_found_by_its_number(tmp_path, name, codec, options):
    write(tmp_path / name, numbered(16), codec, **options)
    video = open_videos(tmp_path / name).videos[0]
    assert len(video) == 16 and video.size == (48, 64)
    assert [number_of(frame) for frame in video] == list(range(16))
    assert [number_of(frame) for frame in video.frames([9, 2, 15, 9])] == [9, 2, 15, 9]
    assert [number_of(video.frames([t])[0]) for t in (0, 7, 8, 15)] == [0, 7, 8, 15]


def test_a_written_video_has_its_frames_its_rate_and_even_sides(tmp_path):
    frames = numbered(9, size=(49, 63))
    write_video(tmp_path / "out.mp4", iter(frames), rate=12)
    with av.open(str(tmp_path / "out.mp4")) as container:
        (stream,) = container.streams.video
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 12)
        assert stream.codec_context.pix_fmt == "yuv420p"
    video = VideoFile(tmp_path / "out.mp4")
    assert len(video) == 9 and video.read(0).shape == (3, 48, 62)
    difference = video.read(4).permute(1, 2, 0).float() - torch.from_numpy(frames[4, :48, :62])
    assert difference.abs().mean() < 8


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "cut.mp4"
    write_video(path, numbered(16))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # the index at the end is gone
    with pytest.raises(DataError, match=r"cut\.mp4 is not a readable video"):
        len(open_videos(path).videos[0])
    path.write_bytes(b"no video at all" * 100)
    with pytest.raises(DataError, match=r"cut\.mp4 is not a readable video"):
        open_videos(path).videos[0].frames([0])
    (tmp_path / "empty.mkv").touch()
    with pytest.raises(DataError, match=r"empty\.mkv is not a readable video"):
        len(open_videos(tmp_path / "empty.mkv").videos[0])


def test_a_file_cut_behind_its_index_does_not_pass_as_whole(tmp_path):
    path = tmp_path / "cut.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), np.uint8)
    write(path, noise, "libx264", container={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 19 // 20])
    video = open_videos(path).videos[0]
    with pytest.raises(DataError, match=r"cut\.mp4 is damaged"):
        list(video)
    with pytest.raises(DataError, match=r"cut\.mp4 is damaged"):
        video.frames([0, 15])


def test_a_file_without_pictures_is_refused(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="has no video stream"):
        len(open_videos(path).videos[0])


def save_frames(folder, frames):
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{t:05d}.png")


def test_a_folder_of_frames_is_one_video_and_a_folder_of_folders_several(tmp_path):
    frames = numbered(5)
    save_frames(tmp_path / "all" / "one", frames)
    save_frames(tmp_path / "all" / "two", frames[::-1])
    (tmp_path / "all" / "one" / "notes.txt").write_text("not a frame")
    single = open_videos(tmp_path / "all" / "two").videos
    assert len(single) == 1 and [number_of(f) for f in single[0]] == [4, 3, 2, 1, 0]
    data = open_videos(tmp_path / "all")
    assert [v.name.rpartition("/")[2] for v in data.videos] == ["one", "two"]
    assert torch.equal(data.videos[0].frames([3])[0].permute(1, 2, 0), torch.from_numpy(frames[3]))


def test_a_folder_of_files_at_any_depth(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    write_video(tmp_path / "a" / "b" / "second.mp4", numbered(4))
    write_video(tmp_path / "a" / "first.mp4", numbered(6))
    videos = open_videos(tmp_path).videos
    assert sorted(len(video) for video in videos) == [4, 6]


def encoded(image, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format)
    return {"bytes": file.getvalue(), "path": None}


def test_a_parquet_file_is_sorted_by_frame_within_its_sequences(tmp_path):
    frames = numbered(4)
    rows = [("b", 2), ("a", 1), ("b", 0), ("a", 0), ("b", 1)]
    pq.write_table(pa.table({
        "sequence": [name for name, _ in rows],
        "frame_index": [t for _, t in rows],
        "image": [encoded(frames[t]) for _, t in rows],
    }), tmp_path / "v.parquet")  # fmt: skip
    for limit in (0, 1024):  # decoded when wanted, or at once
        data = open_videos(tmp_path / "v.parquet", memory_limit_mib=limit)
        found = {v.name.rpartition("/")[2]: [number_of(f) for f in v] for v in data.videos}
        assert found == {"b": [0, 1, 2], "a": [0, 1]}


def test_the_fingerprint_knows_frames_and_names(tmp_path):
    frames = numbered(4)
    save_frames(tmp_path / "one" / "clip", frames)
    save_frames(tmp_path / "same" / "clip", frames)
    save_frames(tmp_path / "less" / "clip", frames[:3])
    one, same, less = (open_videos(tmp_path / n).fingerprint() for n in ("one", "same", "less"))
    assert one == same != less


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file or folder"):
        open_videos(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither frames nor video files"):
        open_videos(tmp_path / "empty")
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(DataError, match="is no video: it is none of"):
        open_videos(tmp_path / "text.txt")
    pq.write_table(pa.table({"image": [encoded(numbered(1)[0])]}), tmp_path / "plain.parquet")
    with pytest.raises(DataError, match="has no column sequence; it has image"):
        open_videos(tmp_path / "plain.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        open_videos(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="videos have no test split"):
        open_videos(tmp_path / "plain.parquet", "test")


def test_stills_are_spread_over_all_videos(tmp_path):
    for seed in range(3):
        frames, _ = sprite_video(seed, frames=8)
        save_frames(tmp_path / str(seed), frames.permute(0, 2, 3, 1).numpy())
    data = open_videos(tmp_path)
    assert len(data) == 24 and data.labels is None  # all of them, for they are few
    assert torch.equal(data.load(9), data.videos[1].frames([1])[0])
