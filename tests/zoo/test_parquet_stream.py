"""Parquet files read row by row from the disk: the same cells, views and errors as from memory."""

import io
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sslops import ViewSpec
from sslzoo import options
from sslzoo.data import DataError, open_data
from sslzoo.data.parquet import EncodedImages
from sslzoo.data.parquet_stream import StreamedColumn
from sslzoo.loader import ViewLoader

CELL = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def cells(count, seed=0):
    """Pictures of two sizes, hence never decoded at once, as files that compression can shorten."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 3)).tolist()
    for i, colour in enumerate(colours):
        file = io.BytesIO()
        image = Image.new("RGB", (12 + i % 2, 10), tuple(colour))
        image.putpixel((i % 10, i % 7), (0, 0, 0))
        image.save(file, "BMP")
        yield {"bytes": file.getvalue(), "path": f"{i}.bmp"}


def write(file, count=12, seed=0, **how):
    table = pa.table({"label": [i % 3 for i in range(count)], "image": list(cells(count, seed))})
    pq.write_table(table, file, row_group_size=5, **how)


def stream(file, limit_bytes=0, name="image"):
    return StreamedColumn(name, [file], [pq.read_metadata(file)], limit_bytes)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_set_above_the_limit_are_those_from_memory(tmp_path, compression, workers):
    for shard in range(2):
        write(tmp_path / f"train-{shard}-of-2.parquet", seed=shard, compression=compression)
    held, streamed = (open_data(tmp_path, memory_limit_mib=limit) for limit in (1, 0))
    assert isinstance(held.source.column, pa.ChunkedArray) and held.images is None
    assert isinstance(streamed.source.column, StreamedColumn) and streamed.images is None
    assert len(streamed) == 24 and torch.equal(streamed.labels, held.labels)
    batches = [
        [batch.views[0] for batch in ViewLoader(data, [ViewSpec(8, hue=0.1)], batch_size=8,
                                                workers=workers).epoch(1)]
        for data in (held, streamed)
    ]  # fmt: skip
    assert len(batches[0]) == len(batches[1]) == 3
    assert all(torch.equal(ours, expected) for expected, ours in zip(*batches, strict=True))
    assert streamed.fingerprint() == held.fingerprint()


@pytest.mark.parametrize("how", [
    dict(compression="none"),
    dict(compression="none", use_dictionary=False, data_page_size=700),
    dict(compression="none", data_page_version="2.0", data_page_size=700),
    dict(compression="zstd"),
    dict(compression="snappy", use_dictionary=False),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["cells", "bytes", "large bytes", "bytes without paths"])
def test_every_cell_is_the_one_that_pyarrow_reads(tmp_path, how, kind):
    some = list(cells(14))
    some[3] = {"bytes": None, "path": "beside.png"}
    some[4] = None
    some[6] = {"bytes": b"", "path": None}
    some[9] = some[7]  # in a dictionary once
    column = pa.array(some, CELL)
    if kind == "bytes without paths":
        column = pa.array([c and {"bytes": c["bytes"]} for c in some])
    elif kind != "cells":
        type_ = pa.binary() if kind == "bytes" else pa.large_binary()
        column = pa.array([c and c["bytes"] for c in some], type_)
    pq.write_table(pa.table({"x": range(14), "image": column}), tmp_path / "x", row_group_size=6,
                   **how)  # fmt: skip
    held = EncodedImages(pq.read_table(tmp_path / "x")["image"], [("x", 0)], tmp_path)
    streamed = EncodedImages(stream(tmp_path / "x"), [("x", 0)], tmp_path)
    for index in random.Random(0).choices(range(14), k=60):  # by their places, later on
        expected, ours = held.cell(index), streamed.cell(index)
        assert ours["bytes"] == expected["bytes"] and ours.get("path") == expected.get("path")
        assert streamed.key(index) == held.key(index)
    assert held.cell(9)["bytes"] == some[7]["bytes"]
    if how["compression"] == "none":
        assert all(streamed.column.places.values()), "equal values of a dictionary are found, too"


def test_values_that_lie_in_the_file_are_read_alone_and_none_is_kept(tmp_path):
    write(tmp_path / "x", 20, compression="none")
    streamed = stream(tmp_path / "x", 10**9)
    first = [streamed[i] for i in range(20)]
    assert all(streamed.places[number] for number in range(4))
    assert (streamed.kept_bytes, len(streamed.kept)) == (0, 0)
    content = (tmp_path / "x").read_bytes()
    for number, places in streamed.places.items():
        for row, (at, size) in enumerate(zip(places.offsets, places.sizes, strict=True)):
            assert content[at : at + size] == first[5 * number + row]["bytes"]


def test_row_groups_of_a_compressed_column_are_kept_up_to_the_limit(tmp_path):
    write(tmp_path / "x", 30, compression="zstd")
    each = [c.nbytes for c in pq.read_table(tmp_path / "x")["image"].chunks]
    size = stream(tmp_path / "x").group(0).nbytes
    assert len(each) <= 6 and size > 5 * 400
    streamed = stream(tmp_path / "x", limit_bytes=size * 5 // 2)
    for index in random.Random(1).choices(range(30), k=200):
        streamed[index]
        held = sum(column.nbytes for column in streamed.kept.values())
        assert streamed.kept_bytes == held <= size * 5 // 2 and len(streamed.kept) in (1, 2)
    for index in (0, 5, 1, 10):  # row groups 0, 1, 0, 2: the one used longest ago makes way
        streamed[index]
    assert list(streamed.kept) == [0, 2]
    smallest = stream(tmp_path / "x", limit_bytes=1)
    assert [smallest[i] for i in (0, 29)] and list(smallest.kept) == [5]


def test_a_streamed_file_that_is_cut_off_or_gone_is_named(tmp_path):
    file = tmp_path / "x.parquet"
    for compression in ("none", "zstd"):
        write(file, compression=compression)
        data = open_data(file, memory_limit_mib=0)
        data.load(0)
        file.write_bytes(file.read_bytes()[:100])
        for index in (0, 11):
            data.source.column.kept.clear()
            with pytest.raises(DataError, match=rf"row {index} of .*x\.parquet") as caught:
                data.load(index)
            assert "\n" not in str(caught.value)
        file.unlink()
        with pytest.raises(DataError, match=r"row 11 of .*x\.parquet cannot be read"):
            data.load(11)


def test_unreadable_images_of_a_streamed_file_are_skipped(tmp_path):
    some = list(cells(6))
    some[2]["bytes"] = b"no image"
    table = pa.table({"image": some, "label": [0, 1, 0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2, compression="none")
    data = open_data(tmp_path / "x.parquet", memory_limit_mib=0, max_unreadable=1)
    assert torch.equal(data.load(2), data.load(4)) and list(data.unreadable.found) == [2]
    assert "row 2 of" in data.unreadable.found[2]


def test_the_limit_is_an_option_of_the_training():
    assert options.parse_pretrain(["simclr"]).training.opening["memory_limit_mib"] == 1024
    chosen = options.parse_pretrain(["simclr", "--memory_limit_mib", "8"])
    assert chosen.training.opening["memory_limit_mib"] == 8
    with pytest.raises(ValueError, match="memory_limit_mib must be 0 or more"):
        options.parse_pretrain(["simclr", "--memory_limit_mib", "-1"])
