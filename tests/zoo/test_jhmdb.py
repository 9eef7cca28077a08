"""A folder as JHMDB is published: joints by hand, and the numbers of the same in a Parquet file."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat
from videos import sprite_video

from sslzoo.cli import main
from sslzoo.data import DataError
from sslzoo.evaluation.jhmdb import NAMES, is_jhmdb, joint_positions, open_jhmdb
from sslzoo.evaluation.propagation import PROTOCOLS
from sslzoo.evaluation.tracking_data import keypoints, labelled_videos, true_masks
from sslzoo.tracker import Tracker
from sslzoo.tracking_config import TrackerConfig

VIDEOS = {"a_run_0": ("run", 3), "b_run_1": ("run", 4), "c_wave_0": ("wave", 5)}
FRAMES = 5


def joints_of(masks):
    """Fifteen places on a square's diagonal in every frame, from 0: float [T, 15, 2]."""
    places = []
    for mask in masks.numpy():
        y, x = mask.nonzero()
        share = np.linspace(0.1, 0.9, 15)
        places.append(np.stack([x.min() + share * np.ptp(x), y.min() + share * np.ptp(y)], 1))
    return np.array(places)


def write_video(folder, name, action, frames, places):
    """Frames, and the joints' places [T, 15, 2] from 0 as JHMDB has them, from 1."""
    images, joints = (folder / part / action / name for part in ("Rename_Images",
                                                                 "joint_positions"))  # fmt: skip
    images.mkdir(parents=True)
    joints.mkdir(parents=True)
    for t, frame in enumerate(frames, 1):
        Image.fromarray(frame).save(images / f"{t:05d}.png")
    savemat(joints / "joint_positions.mat", {"pos_img": places.transpose(2, 1, 0) + 1})


@pytest.fixture
def folder(tmp_path):
    """Three videos of sprites, of which the first split tests two; the masks are kept beside."""
    path = tmp_path / "JHMDB"
    for name, (action, seed) in VIDEOS.items():
        frames, masks = sprite_video(seed, frames=FRAMES)
        frames = frames.permute(0, 2, 3, 1).numpy()
        write_video(path, name, action, frames, joints_of(masks))
    (path / "splits").mkdir()
    for file, text in (
        ("run_test_split1", "a_run_0.avi 2 \nb_run_1.avi 1\n"),
        ("wave_test_split1", "c_wave_0.avi 2\n"),
        ("run_test_split2", "a_run_0.avi 1\nb_run_1.avi 2\n"),
    ):
        (path / "splits" / f"{file}.txt").write_text(text)
    return path


def test_videos_and_joints_are_those_of_the_split(folder):
    assert is_jhmdb(folder) and not is_jhmdb(folder / "splits")
    data, videos = labelled_videos(folder)
    assert [*videos] == ["a_run_0", "c_wave_0"] and len(data.videos) == 2
    assert [*open_jhmdb(folder, "split2")[1]] == ["b_run_1"]
    assert [*open_jhmdb(folder, chosen=("c_wave_0",))[1]] == ["c_wave_0"]
    assert true_masks(folder, videos) == {}
    joints, names = keypoints(folder, videos)
    frames, places = joints["a_run_0"]
    assert names[0] == "neck" and len(names) == 15 and frames.tolist() == [*range(FRAMES)]
    expected = joints_of(sprite_video(3, frames=FRAMES)[1])
    np.testing.assert_allclose(places[..., :2], expected, atol=1e-5)
    assert (places[..., 2] == 1).all()


def test_only_in_the_first_frame_joints_must_lie_inside(folder):
    places = np.full((FRAMES, 15, 2), 10.0)
    places[:, 0], places[:, 1], places[:, 2] = (-1, 5), (63, 63), (5, 64)
    write_video(folder, "edge", "run", np.zeros((FRAMES, 64, 64, 3), np.uint8), places)
    (folder / "splits/run_test_split3.txt").write_text("edge.avi 2\n")
    _, videos = open_jhmdb(folder, "split3")
    visible = joint_positions(folder, videos)["edge"][1][..., 2]
    assert visible[0].tolist() == [0, 1, 0, *[1] * 12] and (visible[1:] == 1).all()


def test_copied_joints_have_the_pck_worked_by_hand(folder, tmp_path, capsys):
    """A box of diagonal 50, so 30 pixels: joints that moved by 2, 4, 10 and 20 pixels."""
    first = np.zeros((15, 2))
    first[:, 0], first[:, 1] = np.linspace(2, 32, 15), np.linspace(2, 42, 15)
    places = np.stack([first + (dx, 0) for dx in (0, 2, 4, 10, 20)])
    write_video(folder, "slide", "run", np.zeros((FRAMES, 64, 64, 3), np.uint8), places)
    (folder / "splits/run_test_split3.txt").write_text("slide.avi 2\n")
    argv = ["evaluate", "tracking", "convnet4", "--data", str(folder), "--test_list", "split3",
            "--size", "32", "--square", "--device", "cpu", "--out", str(tmp_path)]  # fmt: skip
    assert main(argv) == 0
    (entry,) = json.loads((tmp_path / "evaluation.json").read_text())["evaluations"]
    rows = {row["metric"]: row["value"] for row in entry["results"]}
    shares = {0.1: 1 / 4, 0.2: 2 / 4, 0.3: 2 / 4, 0.4: 3 / 4, 0.5: 3 / 4}
    for level, share in shares.items():
        for kind in ("", ", strict"):
            assert rows[f"first labels copied, PCK@{level}{kind}"] == share
    assert {name.split("PCK")[0] for name in rows} == {"", "first labels copied, "}, "no J, no F"
    (details,) = entry["details"].values()
    assert list(details["PCK of joints"]) == NAMES
    assert (tmp_path / entry["pictures"]["keypoints"]).is_file()
    assert "PCK@0.1: " in capsys.readouterr().out


def test_the_folder_gives_the_numbers_of_a_parquet_file(folder, make_subject, judge, tmp_path):
    rows, marks = [], []
    for name in ("a_run_0", "c_wave_0"):
        frames, masks = sprite_video(VIDEOS[name][1], frames=FRAMES)
        for t in range(FRAMES):
            rows.append((name, t, cell(frames[t].permute(1, 2, 0).numpy()),
                         cell((255 * masks[t]).byte().numpy())))  # fmt: skip
            xy = joints_of(masks)[t]
            marks.append((name, t, np.c_[xy, np.ones(15)].tolist()))
    for file, columns, cells in (
        ("videos", ("sequence", "frame_index", "image", "mask"), rows),
        ("joints", ("sequence", "frame_index", "keypoints"), marks),
    ):
        table = dict(zip(columns, map(list, zip(*cells, strict=True)), strict=True))
        pq.write_table(pa.table(table), tmp_path / f"{file}.parquet")
    options = dict(size=64, videos=False)
    ours, _ = judge("tracking", make_subject(data=str(folder), channels=3), **options)
    theirs, _ = judge("tracking", make_subject(data=str(tmp_path / "videos.parquet"), channels=3),
                      keypoints=str(tmp_path / "joints.parquet"), **options)  # fmt: skip
    assert ours and ours == {name: theirs[name] for name in ours}
    assert 0 < ours["PCK@0.1"] < 1


def cell(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def test_frames_are_stretched_to_a_square_where_asked(make_subject):
    subject = make_subject(channels=3)
    sizes = [Tracker(subject, None, TrackerConfig(size=320, square=square)).input_size(240, 426)
             for square in (False, True)]  # fmt: skip
    assert sizes == [(320, 512), (320, 320)]
    assert PROTOCOLS["crw"].topk == 10 and PROTOCOLS["crw"].last_frames == 20


def test_faults_of_the_folder_are_told(folder):
    _, videos = open_jhmdb(folder)
    with pytest.raises(DataError, match=r"lists no test videos of split4: no \*_test_split4\.txt"):
        open_jhmdb(folder, "split4")
    with pytest.raises(DataError, match="has no test video b_run_1 in split1; it has a_run_0, c_w"):
        open_jhmdb(folder, chosen=("b_run_1",))
    file = folder / "joint_positions/run/a_run_0/joint_positions.mat"
    savemat(file, {"pos_img": np.ones((2, 15, FRAMES + 1))})
    with pytest.raises(DataError, match="has joints of 6 frames; the video has 5"):
        joint_positions(folder, videos)
    savemat(file, {"pos_img": np.ones((2, 14, FRAMES))})
    with pytest.raises(DataError, match=r"pos_img must be \[2, 15, frames\]; it is \(2, 14, 5\)"):
        joint_positions(folder, videos)
    whole = file.read_bytes()
    for content in (b"", b"no joints", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"joint_positions\.mat is no readable file of joints"):
            joint_positions(folder, videos)
    savemat(file, {"other": np.ones(3)})
    with pytest.raises(DataError, match="no readable file of joints"):
        joint_positions(folder, videos)
    for frame in (folder / "Rename_Images/wave/c_wave_0").iterdir():
        frame.unlink()
    with pytest.raises(DataError, match="c_wave_0 holds no frames"):
        open_jhmdb(folder)
