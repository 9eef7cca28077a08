"""The image column of Parquet files larger than the memory, read row by row from the disk.

A view is a function of (seed, epoch, sample), so rows are wanted in any order, and Parquet knows
row groups only. Of each row group that is read the places of its values are noted: where the file
holds their bytes as they are, they are later read alone. Elsewhere (compressed columns) whole row
groups are read, and the last ones kept.
"""

import os
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


class StreamedColumn:
    """A column of cells over all row groups of several files; it holds no file open.

    Args:
        name: of the column.
        files: their paths.
        metadata: pyarrow.parquet.FileMetaData of each.
        limit_bytes: row groups that are kept, in bytes, in each process that reads; the one that
            was read last stays even where it is larger.

    Attributes:
        kept: number of a row group -> its column, the one used last at the end.
        kept_bytes: what these take.
        places: number of a row group -> Places, or None where its values do not lie in the file.
    """

    def __init__(self, name, files, metadata, limit_bytes):
        self.name, self.files, self.metadata, self.limit_bytes = name, files, metadata, limit_bytes
        self.groups = [(f, g) for f, m in enumerate(metadata) for g in range(m.num_row_groups)]
        rows = [metadata[f].row_group(g).num_rows for f, g in self.groups]
        if min(rows, default=0) < 0 or sum(rows) != sum(m.num_rows for m in metadata):
            raise ValueError("its row groups do not make up its rows")
        self.ends = list(accumulate(rows))
        self.kept, self.kept_bytes, self.places = OrderedDict(), 0, {}

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index):
        """{"bytes": ..., "path": ...}, or the cell as pyarrow gives it to Python."""
        number = bisect_right(self.ends, index)
        row = index - (self.ends[number - 1] if number else 0)
        if self.places.get(number):
            return self.places[number].cell(row)
        return self.group(number)[row].as_py()

    def group(self, number):
        """The column of a row group, from memory or from the file."""
        if number in self.kept:
            self.kept.move_to_end(number)
            return self.kept[number]
        file, group = self.groups[number]
        with pq.ParquetFile(self.files[file], metadata=self.metadata[file], pre_buffer=False) as f:
            # Without threads: worker processes are forked, and threads do not survive that.
            column = f.read_row_group(group, columns=[self.name], use_threads=False)[self.name]
        if number not in self.places:
            leaves = self.metadata[file].row_group(group)
            self.places[number] = find_places(self.files[file], leaves, self.name, column)
        if not self.places[number]:
            self.keep(number, column)
        return column

    def keep(self, number, column):
        """Keep a row group; those used longest ago make way."""
        while self.kept and self.kept_bytes + column.nbytes > self.limit_bytes:
            self.kept_bytes -= self.kept.popitem(last=False)[1].nbytes
        self.kept[number] = column
        self.kept_bytes += column.nbytes


class Places(NamedTuple):
    """Where the values of a row group lie in a file: 16 bytes a row, and the paths."""

    file: str
    offsets: np.ndarray  # int64 [rows], from the start of the file
    sizes: np.ndarray  # int64 [rows], in bytes; -1 is an empty cell
    paths: pa.ChunkedArray | None

    def cell(self, row):
        path = None if self.paths is None else self.paths[row].as_py()
        offset, size = int(self.offsets[row]), int(self.sizes[row])
        if size < 0:
            return {"bytes": None, "path": path}
        with open(self.file, "rb") as file:
            return {"bytes": os.pread(file.fileno(), size, offset), "path": path}


def find_places(file, group, name, column):
    """Places of a column's values; None unless all lie in the file as they are."""
    contents, paths, leaf_name = column, None, name
    if pa.types.is_struct(column.type):
        fields = {field.name for field in column.type}
        contents = pc.struct_field(column, "bytes") if "bytes" in fields else column
        paths = pc.struct_field(column, "path") if "path" in fields else None
        leaf_name = f"{name}.bytes"
    if not (pa.types.is_binary(contents.type) or pa.types.is_large_binary(contents.type)):
        return None
    leaves = [group.column(i) for i in range(group.num_columns)]
    leaf = next((leaf for leaf in leaves if leaf.path_in_schema == leaf_name), None)
    if leaf is None:
        return None
    starts = [leaf.data_page_offset, leaf.dictionary_page_offset]
    start = min(s for s in starts if s is not None)
    with open(file, "rb") as opened:
        chunk = os.pread(opened.fileno(), leaf.total_compressed_size, start)
    offsets, sizes, end = np.zeros(len(column), np.int64), np.full(len(column), -1), 0
    for row, scalar in enumerate(contents):
        if (value := scalar.as_py()) is not None:
            at = place(value, chunk, end)
            if at < 0:
                return None
            offsets[row], sizes[row], end = start + at, len(value), at + len(value)
    return Places(file, offsets, sizes, paths)


def place(value, chunk, end):
    """Where the very bytes of a value stand in a chunk; -1 if nowhere.

    That is behind the end of the value before and a length of 4 bytes, mostly; further on at the
    start of a page; and anywhere if a dictionary holds equal values once.
    """
    if chunk.startswith(value, end + 4):
        return end + 4
    further = chunk.find(value, end)
    return further if further >= 0 else chunk.find(value)
