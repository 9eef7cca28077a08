"""What is inside a tar archive, by its headers alone: nothing is unpacked, and nothing is run.

Of the formats that are in use (POSIX 1988 and 2001, GNU) regular files, with long names; links,
folders and devices are passed over.
"""

import os
from typing import NamedTuple

from sslzoo.data.image_data import DataError

BLOCK = 512
REGULAR, LONG_NAME, PAX = b"0\0", b"L", b"x"
LONGEST = 2**20  # bytes of an extended header


class Member(NamedTuple):
    """A file inside an archive."""

    name: str
    offset: int  # of its first byte in the archive
    size: int  # in bytes


def members(path):
    """The regular files in their order; a DataError where the archive is damaged or cut off.

    Args:
        path: of an archive that is not compressed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        yield from _walk(descriptor, os.fstat(descriptor).st_size)
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a readable tar archive ({error})") from error
    finally:
        os.close(descriptor)


def _walk(descriptor, end):
    """Members from header to header, until the block of zeros that ends an archive."""
    position, extended = 0, {}
    while True:
        header = os.pread(descriptor, BLOCK, position)
        if len(header) < BLOCK:
            raise ValueError("it is cut off" if position else "it is too short")
        if header == bytes(BLOCK):
            return
        name, size, kind = _parse(header, position)
        size = extended.get("size", size)
        begin = position + BLOCK
        position = begin + (size + BLOCK - 1) // BLOCK * BLOCK
        if position > end:
            raise ValueError("it is cut off")
        if kind in (LONG_NAME, PAX):
            if size > LONGEST:
                raise ValueError(f"an extended header of {size} bytes")
            extended |= _extended(kind, os.pread(descriptor, size, begin))
            continue
        if kind in REGULAR:
            yield Member(extended.get("path", name), begin, size)
        extended = {}


def _parse(header, position):
    """Name, size and kind from a header whose check sum is right."""
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if _number(header[148:156]) != total:
        raise ValueError(f"no header at byte {position}")
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = f"{_text(header[345:500])}/{name}"
    return name, _number(header[124:136]), header[156:157]


def _number(field):
    """Octal digits, or 256 as the base, which GNU takes for large sizes."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if not digits.isdigit() and digits:
        raise ValueError(f"{field!r} is no number")
    return int(digits or b"0", 8)


def _text(field):
    return field.split(b"\0")[0].decode("utf-8", "replace")


def _extended(kind, content):
    """What an extended header says of the next member: its path, its size."""
    if kind == LONG_NAME:
        return {"path": _text(content)}
    found = {}
    while content:  # records "LENGTH KEY=VALUE\n"
        length = int(content.split(b" ")[0])
        record, content = content[:length], content[length:]
        if length < 5 or b"=" not in record:
            raise ValueError("a damaged extended header")
        key, value = record.split(b" ", 1)[1][:-1].split(b"=", 1)
        if key == b"path":
            found["path"] = value.decode("utf-8", "replace")
        elif key == b"size":
            found["size"] = int(value)
            if found["size"] < 0:
                raise ValueError("a damaged extended header")
    return found
