"""Opening data by name and path, decoding, and what a user reads when it cannot be used."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from sslzoo.data import DataError, ImageData, open_data
from sslzoo.data.decoding import decode


def picture(seed=0, size=(12, 10), mode="RGB"):
    """A random image of width 12 and height 10."""
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_images(folder, *names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)


def write_parquet(path, count=3, metadata=None, **columns):
    images = [{"bytes": encoded(picture(i)), "path": f"{i}.png"} for i in range(count)]
    table = pa.table({"image": images, **columns})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_digits_are_a_fixed_stratified_split_of_scikit_learns():
    train, test, both = (open_data("digits", split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (1437, 360, 1797)
    assert train.channels == 1 and train.class_names == [str(i) for i in range(10)]
    share = test.labels.bincount() / both.labels.bincount()
    assert (share - 0.2).abs().max() < 0.01
    ours = {
        (image.numpy().tobytes(), int(y)) for image, y in zip(both.images, both.labels, strict=True)
    }
    theirs = load_digits()
    pixels = np.rint(theirs.images * 255 / 16).astype(np.uint8)
    assert ours == {(x.tobytes(), int(y)) for x, y in zip(pixels, theirs.target, strict=True)}
    assert train.fingerprint() == open_data("digits").fingerprint() != test.fingerprint()


def test_class_folders_give_labels_in_the_order_of_names(tmp_path):
    write_images(tmp_path, "dog/b.png", "dog/a.JPG", "cat/deep/er/c.png", "cat/.hidden.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    data = open_data(tmp_path)
    assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [0, 1, 1]
    assert data.images.shape == (3, 3, 10, 12)
    assert torch.equal(data.load(0), torch.tensor(np.array(picture(2))).permute(2, 0, 1))


def test_flat_folder_has_no_labels(tmp_path):
    write_images(tmp_path, "b.png", "a.png", "more/c.png")
    data = open_data(str(tmp_path))
    assert len(data) == 3 and data.labels is None and data.class_names is None
    with pytest.raises(DataError, match="no labels, which the probe needs"):
        data.require_labels("the probe")


def test_class_numbers_agree_between_splits_when_one_lacks_a_class(tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png")
    test = open_data(tmp_path, "test")
    assert test.labels.tolist() == [2] and test.class_names == ["a", "b", "c"]
    assert open_data(tmp_path, "all").labels.tolist() == [0, 1, 2, 2]


def test_undivided_folder_has_no_test_split_and_all_is_everything(tmp_path):
    write_images(tmp_path, "a/1.png", "b/2.png")
    with pytest.raises(DataError, match=r"no test split: it needs subfolders .*/train and .*/test"):
        open_data(tmp_path, "test")
    assert len(open_data(tmp_path, "all")) == 2


@pytest.mark.parametrize("large", [False, True])
def test_odd_or_large_images_are_decoded_one_by_one(tmp_path, large):
    write_images(tmp_path, "a/1.png", "b/2.png")
    if not large:
        picture(5, (7, 5)).save(tmp_path / "b" / "3.png")
    data = open_data(tmp_path, memory_limit_mib=0 if large else 1)
    assert data.images is None and data.load(1).shape == (3, 10, 12)
    part = data.subset([len(data) - 1, 0])
    assert torch.equal(part.load(1), data.load(0)) and part.labels.tolist() == [1, 0]
    assert (
        part.fingerprint()
        != data.fingerprint()
        == open_data(tmp_path, memory_limit_mib=0 if large else 1).fingerprint()
    )


def test_subset_of_images_in_memory():
    images = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 3, 2, 2)
    part = ImageData("x", images=images, labels=torch.arange(4)).subset([3, 1])
    assert part.images[:, 0, 0, 0].tolist() == [3, 1] == part.labels.tolist()


def test_parquet_by_file_folder_and_prefix(tmp_path):
    metadata = {"class_names": json.dumps(["x", "y"])}
    write_parquet(tmp_path / "set-train.parquet", 3, metadata, label=[0, 1, 1])
    write_parquet(tmp_path / "set-test.parquet", 2, metadata, label=[1, 0])
    for spec in (tmp_path, tmp_path / "set", tmp_path / "set-train.parquet"):
        train, test = open_data(spec), open_data(spec, "test")
        assert train.labels.tolist() == [0, 1, 1] and test.labels.tolist() == [1, 0]
        assert train.class_names == ["x", "y"] and train.images.shape == (3, 3, 10, 12)
        assert len(open_data(spec, "all")) == 5
    write_parquet(tmp_path / "other-train.parquet")
    with pytest.raises(DataError, match=r"several data sets; name one of .*other, .*set"):
        open_data(tmp_path)


def test_parquet_shards_in_the_layout_of_the_hub(tmp_path):
    info = {"info": {"features": {"fine": {"names": ["x", "y"], "_type": "ClassLabel"}}}}
    for shard in range(2):
        name = f"train-{shard:05d}-of-00002-abc.parquet"
        metadata = {"huggingface": json.dumps(info)}
        write_parquet(tmp_path / "data" / name, 2, metadata, fine=[0, 1], label=[-1, -1])
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", 1, fine=[1])
    data = open_data(tmp_path, label_column="fine")
    assert data.labels.tolist() == [0, 1, 0, 1] and data.class_names == ["x", "y"]
    assert open_data(tmp_path).labels is None, "-1 stands for withheld labels"
    assert len(open_data(tmp_path, "test")) == 1


def test_parquet_without_labels_with_bare_bytes_and_paths(tmp_path):
    pq.write_table(pa.table({"img": [encoded(picture(3))]}), tmp_path / "bare.parquet")
    assert open_data(tmp_path / "bare.parquet").labels is None
    picture(4).save(tmp_path / "beside.png")
    cells = pa.array([{"bytes": None, "path": "beside.png"}],
                     pa.struct({"bytes": pa.binary(), "path": pa.string()}))  # fmt: skip
    pq.write_table(pa.table({"image": cells}), tmp_path / "paths.parquet")
    expected = torch.tensor(np.array(picture(4))).permute(2, 0, 1)
    assert torch.equal(open_data(tmp_path / "paths.parquet").load(0), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16", "I", "F"])
def test_every_colour_mode_decodes_to_the_same_greys(mode):
    # A grey picture survives every mode; in RGBA and LA it is opaque.
    grey = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (8, 1))
    if mode == "1":
        grey = np.where(grey > 100, 255, 0).astype(np.uint8)
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in deep:
        image = Image.fromarray(
            (grey.astype(np.float64) * (257 if mode != "F" else 1 / 255)).astype(deep[mode])
        )
    else:
        image = Image.fromarray(grey).convert(mode)
    file = io.BytesIO(encoded(image, "TIFF"))
    decoded = decode(file, "x")
    assert decoded.dtype == torch.uint8 and decoded.shape == (3, 8, 25)
    assert (decoded.int() - torch.tensor(grey.astype(np.int32))).abs().max() <= 1


def test_transparent_pixels_are_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    assert decode(io.BytesIO(encoded(image)), "x")[:, 0].T.tolist() == [[255] * 3, [200, 0, 0]]


def test_exif_orientation_is_honoured():
    image = picture()
    exif = image.getexif()
    exif[0x0112] = 6  # turned clockwise when shown
    decoded = decode(io.BytesIO(encoded(image, exif=exif)), "x")
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(decoded, torch.tensor(np.array(upright)).permute(2, 0, 1))


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty", "text"])
def test_corrupt_image_is_named(tmp_path, damage):
    good = encoded(picture())
    bad = {"truncated": good[: len(good) // 2], "noise": good[:40] + b"\0" * 300, "empty": b"",
           "text": b"hello"}[damage]  # fmt: skip
    write_images(tmp_path, "folder/a/1.png", "folder/b/2.png")
    (tmp_path / "folder" / "b" / "3.png").write_bytes(bad)
    with pytest.raises(DataError, match=r"b/3\.png is not a readable image") as caught:
        open_data(tmp_path / "folder")
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"image": [good, bad]}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=r"row 1 of .*f\.parquet is not a readable image"):
        open_data(tmp_path / "f.parquet")


def test_unusable_specs_are_refused_in_one_line(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "bad.parquet").write_text("no parquet")
    write_parquet(tmp_path / "text.parquet", 1, label=["cat"])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "noimage.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "zero.parquet")
    for spec, message in {
        empty: "holds no images",
        tmp_path / "file.txt": "neither a folder nor a Parquet file nor a tar archive",
        tmp_path / "bad.parquet": "not a readable Parquet file",
        tmp_path / "absent.parquet": "no data set or path",
        tmp_path / "text.parquet": "label of .* must hold integers; it is string",
        tmp_path / "noimage.parquet": "no column image or img; it has x",
        tmp_path / "zero.parquet": "holds no images",
        "cifra10": "did you mean cifar10",
        "zzz": "named sets: digits, cifar10",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            open_data(spec)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no column fine; it has image, label"):
        open_data(tmp_path / "text.parquet", label_column="fine")
    with pytest.raises(DataError, match="split must be one of train, test"):
        open_data("digits", "tset")
    with pytest.raises(DataError, match="digits has no unlabeled split"):
        open_data("digits", "unlabeled")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_missing_downloads_say_what_to_do(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name} is not complete in .*; download it"):
        open_data(name, root=tmp_path)


def test_torchvision_sets_keep_pixels_and_labels(monkeypatch):
    class Downloaded:
        classes = ("x", "y")
        data = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
        targets = (1, 0)

        def __init__(self, root, *, train, download):
            assert train and not download

    monkeypatch.setattr(datasets, "CIFAR10", Downloaded)
    data = open_data("cifar10")
    assert data.labels.tolist() == [1, 0] and data.labels.dtype == torch.int64
    assert data.images[1, 2, 3, 4] == Downloaded.data[1, 3, 4, 2]


def test_real_cifar_opens_by_prefix(shared_data):
    data = open_data(shared_data / "cifar10", "test")
    assert data.images.shape == (10000, 3, 32, 32)
    assert data.labels.bincount().tolist() == [1000] * 10
    assert data.class_names[0] == "airplane" and data.class_names[9] == "truck"
    cell = pq.read_table(shared_data / "cifar10-test.parquet")["image"][77].as_py()
    expected = np.array(Image.open(io.BytesIO(cell["bytes"])))
    assert np.array_equal(data.images[77].permute(1, 2, 0).numpy(), expected)


def test_real_imagenette_opens_one_by_one(shared_data):
    data = open_data(shared_data / "imagenette224-val.parquet", "test", memory_limit_mib=10)
    assert data.images is None and len(data) == 1000 and data.class_names[0] == "tench"
    assert data.load(999).shape == (3, 224, 224)


def test_folder_that_vanishes_is_reported(tmp_path):
    write_images(tmp_path, "set/a/1.png", "set/b/2.png")
    data = open_data(tmp_path / "set", memory_limit_mib=0)
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(DataError, match="is not a readable image"):
        data.load(0)
