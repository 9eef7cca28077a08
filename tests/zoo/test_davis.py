"""A folder as DAVIS is published: the numbers of the same videos in a Parquet file."""

import shutil

import pytest
from PIL import Image
from test_tracking_command import sprites, subject  # noqa: F401
from videos import sprite_video

from sslzoo import registry
from sslzoo.data import DataError
from sslzoo.evaluate import evaluate
from sslzoo.evaluation.davis import open_davis
from sslzoo.evaluation.tracking_data import fingerprint, true_masks
from sslzoo.masks import save_mask


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    """The two sequences of `sprites` in DAVIS's layout, the masks indexed."""
    folder = tmp_path_factory.mktemp("DAVIS")
    for seed, name in ((3, "left"), (4, "right")):
        frames, masks = sprite_video(seed, frames=7)
        images, annotations = (folder / part / "480p" / name
                               for part in ("JPEGImages", "Annotations"))  # fmt: skip
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for t in range(7):
            pixels = frames[t].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(images / f"{t:05d}.png")  # lossless, to compare with
            save_mask(annotations / f"{t:05d}.png", masks[t].byte())
    for path, text in (
        ("2017/val.txt", "left\nright\n"),
        ("2016/val.txt", "right\n"),
        ("480p/train.txt", "/JPEGImages/480p/left/00000.jpg x\n" * 2),
    ):
        (folder / "ImageSets" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / path).write_text(text)
    return folder


def test_a_folder_of_davis_gives_the_numbers_of_the_parquet_file(davis, sprites, tmp_path):  # noqa: F811
    options = dict(keypoints=str(sprites / "joints.parquet"), size=32, videos=False)
    tracking = registry.evaluator("tracking")
    found = {}
    for data in (davis, sprites / "videos.parquet"):
        judged = subject(sprites, tmp_path, data=str(data))
        assert tracking.unsuitable(judged) is None
        found[data] = evaluate("tracking", judged, tracking.Config(**options)).rows
    assert found[davis] == found[sprites / "videos.parquet"]


def test_lists_and_faults_of_a_folder_of_davis(davis, tmp_path):
    assert [*open_davis(davis)[1]] == ["left", "right"]
    assert [*open_davis(davis, "train")[1]] == ["left"]
    _, videos = open_davis(davis, chosen=("right",))
    assert [*videos] == ["right"] and len(videos["right"]) == 7
    with pytest.raises(DataError, match=r"has no list test-dev\.txt"):
        open_davis(davis, "test-dev")
    with pytest.raises(DataError, match="has no sequence bear; it has left, right"):
        open_davis(davis, chosen=("bear",))
    bare = tmp_path / "bare"
    for part in ("JPEGImages", "Annotations"):
        shutil.copytree(davis / part / "480p", bare / part)
    assert [*open_davis(bare)[1]] == ["left", "right"]
    (bare / "Annotations/left/00003.png").unlink()
    with pytest.raises(DataError, match=r"frames of left without a mask: no 00003\.png"):
        true_masks(bare, open_davis(bare)[1])


def test_a_changed_mask_is_other_data(davis, tmp_path):
    data, videos = open_davis(davis)
    masks = true_masks(davis, videos)
    before = fingerprint(data, masks, {})
    assert fingerprint(data, true_masks(davis, videos), {}) == before
    masks["left"][2, 0, 0] = 1
    assert fingerprint(data, masks, {}) != before
