"""Tar archives in WebDataset's layout: the images of a folder, labels, damage, streaming."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo.data import DataError, open_data
from sslzoo.data.tar import BLOCK, members
from sslzoo.loader import ViewLoader
from sslzoo.views import ViewSpec

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def picture(seed=0, size=(12, 10)):
    """The bytes of a PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path, files, format="ustar"):
    """An archive of {name: bytes}."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[format]) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def samples(count, first=0, label=lambda i: {"cls": str(i % 3).encode()}, **sizes):
    files = {}
    for i in range(first, first + count):
        files[f"{i:04d}.png"] = picture(i, **sizes)
        files |= {f"{i:04d}.{kind}": text for kind, text in label(i).items()}
    return files


def decoded(content):
    return torch.tensor(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["a/b.png", "a" * 99 + "/" + "b" * 90 + ".png", "ü/é.png"])
def test_members_lie_where_tarfile_finds_them(tmp_path, format, name):
    files = {"first.txt": b"x" * 700, name: picture(), "empty.cls": b"", "last.bin": b"y" * 512}
    write_tar(tmp_path / "x.tar", files, format)
    with tarfile.open(tmp_path / "x.tar") as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive]
    assert [tuple(m) for m in members(tmp_path / "x.tar")] == expected
    content = (tmp_path / "x.tar").read_bytes()
    assert [content[o : o + n] for _, o, n in members(tmp_path / "x.tar")] == [*files.values()]


def test_extended_names_longer_than_a_block_and_links_passed_over(tmp_path):
    name = "/".join(["folder" * 30] * 5) + ".png"
    for format in ("gnu", "pax"):
        with tarfile.open(tmp_path / "x.tar", "w", format=FORMATS[format]) as archive:
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
                info = tarfile.TarInfo(f"{kind}.png")
                info.type, info.linkname = kind, "/etc/passwd"
                archive.addfile(info)
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        assert [(m.name, m.size) for m in members(tmp_path / "x.tar")] == [(name, 3)]


@pytest.mark.parametrize("format", FORMATS)
def test_no_member_leads_out_of_the_archive(tmp_path, format):
    """A name is but a word, and what is no regular file is nothing, whatever it is a link to."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(99))
    names = [str(secret), "../secret.png", "a/../../secret.png", "/etc/passwd.png"]
    others = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
              tarfile.DIRTYPE, tarfile.CONTTYPE)  # fmt: skip
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data/x.tar", "w", format=FORMATS[format]) as archive:
        for i, name in enumerate(names):
            for kind in others:
                info = tarfile.TarInfo(f"{i} {kind}.png")
                info.type, info.linkname, info.devmajor, info.devminor = kind, str(secret), 1, 5
                archive.addfile(info)
            info = tarfile.TarInfo(name)
            info.size = len(picture(i))
            archive.addfile(info, io.BytesIO(picture(i)))
    before = sorted(tmp_path.rglob("*"))
    for limit in (0, 1024):
        data = open_data(tmp_path / "data", memory_limit_mib=limit)
        assert len(data) == len(names)
        for i in range(len(data)):
            assert torch.equal(data.load(i), decoded(picture(i)))
    assert sorted(tmp_path.rglob("*")) == before and secret.read_bytes() == picture(99)


def test_sizes_beyond_eight_gigabytes_are_read(tmp_path):
    info = tarfile.TarInfo("big.png")
    info.size = 2**34
    header = info.tobuf(tarfile.GNU_FORMAT)
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(header)
        file.truncate(BLOCK + 2**34 + 2 * BLOCK)  # sparse: takes no room
    assert list(members(tmp_path / "x.tar")) == [("big.png", BLOCK, 2**34)]


@pytest.mark.parametrize("spec", ["", "set", "set-train-{000000..000001}.tar"])
def test_a_folder_a_name_s_start_and_a_range_open_all_archives(tmp_path, spec):
    write_tar(tmp_path / "set-train-000000.tar", samples(3))
    write_tar(tmp_path / "set-train-000001.tar", samples(2, first=3))
    write_tar(tmp_path / "set-val-000000.tar", samples(2, first=7))
    data = open_data(str(tmp_path / spec) if spec else tmp_path)
    assert data.labels.tolist() == [0, 1, 2, 0, 1] and data.images.shape == (5, 3, 10, 12)
    assert all(torch.equal(data.images[i], decoded(picture(i))) for i in range(5))
    if "{" not in spec:
        assert open_data(tmp_path, "test").labels.tolist() == [1, 2]
        assert len(open_data(tmp_path, "all")) == 7


def test_one_archive_without_a_split_in_its_name(tmp_path):
    write_tar(tmp_path / "000017.tar", {"dog/a.jpg": picture(1), "dog/b.seg.png": picture(2),
                                        "dog/b.JPG": picture(3), "._dog": b"?"})  # fmt: skip
    data = open_data(tmp_path / "000017.tar", memory_limit_mib=0)
    assert data.labels is None and len(data) == 2 and data.images is None
    assert torch.equal(data.load(1), decoded(picture(3)))
    with pytest.raises(DataError, match="no test split; it has train"):
        open_data(tmp_path / "000017.tar", "test")


def test_labels_from_json(tmp_path):
    text = {"label": lambda i: {"json": json.dumps({"label": i, "fine": 10 + i}).encode()}}
    write_tar(tmp_path / "x.tar", samples(3, **text))
    assert open_data(tmp_path / "x.tar").labels.tolist() == [0, 1, 2]
    assert open_data(tmp_path / "x.tar", label_column="fine").labels.tolist() == [10, 11, 12]
    with pytest.raises(DataError, match=r"0000\.png of .*x\.tar has no label coarse"):
        open_data(tmp_path / "x.tar", label_column="coarse")
    write_tar(tmp_path / "x.tar", samples(3, label=lambda i: {"cls": b"-1"}))
    assert open_data(tmp_path / "x.tar").labels is None, "-1 stands for withheld labels"


def test_unusable_archives_are_named_in_one_line(tmp_path):
    file = tmp_path / "x.tar"
    one = {"a.png": picture()}
    for files, message in {
        "two": ({**one, "a.jpg": picture()}, r"sample of a\.png in .*x\.tar holds 2 images"),
        "none": ({"a.cls": b"1"}, "holds 0 images"),
        "word": ({**one, "a.cls": b"cat"}, r"a\.cls of .* must hold a class number; .*cat"),
        "list": ({**one, "a.json": b"{"}, r"a\.json of .* is not valid JSON"),
        "half": ({"a.png": picture(), "a.cls": b"1", "b.png": picture()}, r"b\.png of .* no label"),
        "noise": ({"a.png": b"no image"}, r"a\.png of .*x\.tar is not a readable image"),
        "nothing": ({}, "holds no images"),
    }.values():
        write_tar(file, files)
        with pytest.raises(DataError, match=message) as caught:
            open_data(file)
        assert "\n" not in str(caught.value)


def test_cut_off_foreign_and_vanished_archives(tmp_path):
    write_tar(tmp_path / "x.tar", samples(3))
    whole = (tmp_path / "x.tar").read_bytes()
    end = BLOCK * 2 + 10
    cuts = {0: "too short", end: "cut off", len(whole.rstrip(b"\0")) // BLOCK * BLOCK: "cut off"}
    for length, words in cuts.items():
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"cut\.tar is not a readable tar archive .*{words}"):
            open_data(tmp_path / "cut.tar")
    (tmp_path / "zip.tar").write_bytes(b"PK" * 500)
    with pytest.raises(DataError, match="is no number"):
        open_data(tmp_path / "zip.tar")
    data = open_data(tmp_path / "x.tar", memory_limit_mib=0)
    (tmp_path / "x.tar").unlink()
    with pytest.raises(DataError, match=r"x\.tar cannot be read: No such file"):
        data.load(0)


def test_images_beside_an_archive_are_a_folder_of_images(tmp_path):
    write_tar(tmp_path / "leftover.tar", samples(3))
    (tmp_path / "a.png").write_bytes(picture(9))
    assert len(open_data(tmp_path)) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_archives_stream_the_same_batches_as_a_folder(tmp_path, workers):
    """Any number of workers, and from the middle of an epoch."""
    (tmp_path / "folder").mkdir()
    for i in range(12):
        size = (20 + i, 30 - i)
        (tmp_path / "folder" / f"{i:04d}.png").write_bytes(picture(i, size))
        shard = tmp_path / "tars" / f"{i // 4:06d}.tar"
        if i % 4 == 0:
            write_tar(shard, {f"{j:04d}.png": picture(j, (20 + j, 30 - j))
                              for j in range(i, i + 4)})  # fmt: skip
    spec = ViewSpec(16, brightness=0.4, hue=0.1, blur=0.5)
    folder, tars = (
        ViewLoader(open_data(tmp_path / name), [spec, spec], batch_size=3, seed=1, workers=w)
        for name, w in (("folder", 0), ("tars", workers))
    )
    assert folder.data.images is tars.data.images is None
    expected = list(folder.epoch(2))
    for first in (0, 2):
        found = list(tars.epoch(2, first))
        assert len(found) == 4 - first
        for ours, theirs in zip(found, expected[first:], strict=True):
            assert torch.equal(ours.indices, theirs.indices)
            assert all(map(torch.equal, ours.views, theirs.views))
