"""Parquet files in the Hugging Face layout: a column of encoded images, a column of labels."""

import io
import json
import zlib
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sslzoo.data.decoding import decode
from sslzoo.data.image_data import DataError, check_split, from_source, known
from sslzoo.data.parquet_stream import StreamedColumn
from sslzoo.data.splits import split_files

IMAGE_COLUMNS = ("image", "img")
# What pyarrow raises on damaged files.
DAMAGE = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
)


class EncodedImages:
    """A column of encoded image files, in memory or a StreamedColumn, as a source of images."""

    def __init__(self, column, names, folder):
        self.column = column
        self.names = names  # (file, its first row), to name a row in an error
        self.folder = folder

    def __len__(self):
        return len(self.column)

    def read(self, index):
        cell = self.cell(index)
        if cell["bytes"] is None and not cell.get("path"):
            raise DataError(f"{self.name(index)} holds no image")
        outside = cell["bytes"] is None
        file = self.beside(cell["path"], index) if outside else io.BytesIO(cell["bytes"])
        return decode(file, self.name(index))

    def beside(self, path, index):
        """The file that a cell names, which must lie in the folder of the Parquet file."""
        file = (self.folder / path).resolve()
        if not file.is_relative_to(self.folder.resolve()):
            raise DataError(f"{self.name(index)} names {path}, outside of {self.folder}")
        return file

    def cell(self, index):
        """{"bytes": ..., "path": ...}; a column may also hold the bytes alone."""
        try:
            cell = self.column[index]
            cell = cell.as_py() if isinstance(cell, pa.Scalar) else cell
        except DAMAGE as error:
            raise DataError(f"{self.name(index)} cannot be read ({first_line(error)})") from error
        cell = cell if isinstance(cell, dict) else {"bytes": cell}
        if not isinstance(cell.get("bytes", 0), (bytes, type(None))):
            raise DataError(f"{self.name(index)} holds no encoded image")
        return cell

    def name(self, index):
        file, first = next(pair for pair in reversed(self.names) if pair[1] <= index)
        return f"row {index - first} of {file}"

    def key(self, index):
        cell = self.cell(index)
        return f"{zlib.crc32(cell['bytes'] or b'')} {cell.get('path')}"


def open_parquet(
    path, split="train", *, label_column=None, memory_limit_mib=1024, max_unreadable=0, **_
):
    """Images of one split of a Parquet file, a folder of them, or a folder and a name's start.

    Args:
        path: a file; a folder with the files of one data set; or e.g. `data/cifar10` for
            `data/cifar10-train.parquet` and `data/cifar10-test.parquet`.
        split: chosen by the word train, test, val or validation in the file names; files without
            such a word are the train split.
        memory_limit_mib: of all decoded images together; of the encoded ones, which are streamed
            beyond it; and of the row groups that each process then keeps.
        label_column: name of the column of class numbers; None takes `label` where it exists.
    """
    splits = split_files(path, ".parquet")
    check_split(path, split, splits)
    files = splits[split]
    label = label_column or "label"
    source, table = read_files(files, label, memory_limit_mib * 2**20)
    labels = label_tensor(table, label_column, files[0])
    if labels is not None and len(labels) != len(source):
        raise DataError(f"{path} holds {len(source)} images but {len(labels)} labels")
    classes = None if labels is None else class_names(table.schema, label)
    return from_source(
        f"{path}/{split}",
        source,
        memory_limit_mib=memory_limit_mib,
        max_unreadable=max_unreadable,
        labels=labels,
        class_names=classes,
    )


def read_files(files, label, limit_bytes):
    """EncodedImages, in memory up to the limit and else streamed; a table that has the labels."""
    name = [image_column(file) for file in files].pop()
    footers = [read_footer(file) for file in files]
    sizes = [encoded_bytes(*pair, name) for pair in zip(files, footers, strict=True)]
    is_streamed = sum(sizes) > limit_bytes
    tables = [read_columns(file, [label] if is_streamed else [name, label]) for file in files]
    with reading(files[0].parent):
        table = pa.concat_tables(tables)
        column = StreamedColumn(name, files, footers, limit_bytes) if is_streamed else table[name]
    firsts = np.cumsum([0] + [footer.num_rows for footer in footers[:-1]]).tolist()
    names = list(zip(files, firsts, strict=True))
    return EncodedImages(column, names, files[0].parent), table


@contextmanager
def reading(file):
    """Inside, what pyarrow raises on a damaged file is a DataError."""
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{file} is not a readable Parquet file ({first_line(error)})") from error


def first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


def read_footer(file):
    """pyarrow.parquet.FileMetaData: where the row groups lie."""
    with reading(file):
        return pq.read_metadata(file)


def image_column(file):
    """The name of the column of images."""
    with reading(file):
        columns = pq.read_schema(file).names
    names = [name for name in IMAGE_COLUMNS if name in columns]
    if not names:
        wanted = " or ".join(IMAGE_COLUMNS)
        raise DataError(f"{file} has no column {wanted}; it has {', '.join(columns)}")
    return names[0]


def encoded_bytes(file, footer, name):
    """What a column takes in memory, by the file's own account."""
    with reading(file):
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        leaves = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(leaf.total_uncompressed_size for leaf in leaves
                   if leaf.path_in_schema.partition(".")[0] == name)  # fmt: skip


def read_columns(file, wanted):
    """Those of the wanted columns that a file has."""
    with reading(file):
        columns = pq.read_schema(file).names
        return pq.read_table(file, columns=[name for name in wanted if name in columns])


def label_tensor(table, label_column, file):
    """int64 [N], or None where the default column is missing."""
    name = label_column or "label"
    if name not in table.column_names:
        if label_column is None:
            return None
        columns = ", ".join(pq.read_schema(file).names)
        raise DataError(f"{file} has no column {name}; it has {columns}")
    column = table[name]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(
            f"column {name} of {file} must hold integers; it is {column.type} with "
            f"{column.null_count} empty cells"
        )
    return known(torch.from_numpy(column.to_numpy().astype(np.int64)), f"column {name} of {file}")


def class_names(schema, label_column):
    """Class names from the metadata `class_names` or `huggingface`; None without either."""
    metadata = schema.metadata or {}
    try:
        if b"class_names" in metadata:
            return json.loads(metadata[b"class_names"])
        if b"huggingface" in metadata:
            features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
            return features.get(label_column, {}).get("names")
    except (ValueError, AttributeError) as error:
        raise DataError(f"the class names in the file's metadata are damaged ({error})") from error
    return None
