"""Footers and page headers of Parquet files taken apart and put together again: Thrift's compact protocol, as plain values.

A struct is a dict of field number to (type, value); a list is a tuple of (element type, values). That is enough to change
any number in a footer and write everything else back as it was.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
Struct = dict[int, tuple[int, Any]]

# Field numbers of the Parquet format.
SCHEMA, ROWS, GROUPS, PAIRS = 2, 3, 4, 5
TYPE, LENGTH, REPETITION, NAME, CHILDREN, CONVERTED, SCALE, PRECISION = 1, 2, 3, 4, 5, 6, 7, 8
COLUMNS, GROUP_BYTES, GROUP_ROWS = 1, 2, 3
FILE_PATH, FILE_OFFSET, CHUNK = 1, 2, 3
ENCODINGS, PATH, CODEC, VALUES, UNCOMPRESSED, COMPRESSED, DATA_OFFSET, DICTIONARY_OFFSET, STATISTICS = (
    *(2, 3, 4, 5, 6, 7, 9, 11, 12),
)


class Decoder:
    """Reads one struct from the position on."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data, self.position = data, position

    def struct(self) -> Struct:
        found: Struct = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            found[number] = (kind, kind == TRUE if kind in (TRUE, FALSE) else self._value(kind))
        return found

    def _value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE, BYTE):
            return self._byte()
        if kind in (I16, I32, I64):
            return self._zigzag()
        if kind == DOUBLE:
            return struct.unpack("<d", self._take(8))[0]
        if kind == BINARY:
            return self._take(self._varint())
        if kind in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return head & 15, [self._value(head & 15) for _ in range(count)]
        assert kind == STRUCT, kind
        return self.struct()

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        self.position += count
        return self.data[self.position - count : self.position]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)


def encoded(value: Any, kind: int = STRUCT) -> bytes:
    """The bytes of a struct, or of a value of another type."""
    if kind in (TRUE, FALSE):
        return bytes([TRUE if value else FALSE])
    if kind == BYTE:
        return bytes([value])
    if kind in (I16, I32, I64):
        return varint((value << 1) ^ (value >> 63))
    if kind == DOUBLE:
        return struct.pack("<d", value)
    if kind == BINARY:
        return varint(len(value)) + value
    if kind in (LIST, SET):
        element, values = value
        head = (
            bytes([len(values) << 4 | element]) if len(values) < 15 else bytes([0xF0 | element]) + varint(len(values))
        )
        return head + b"".join(encoded(item, element) for item in values)
    return _struct(value)


def _struct(fields: Struct) -> bytes:
    out, last = b"", 0
    for number in sorted(fields):
        kind, value = fields[number]
        if kind in (TRUE, FALSE):
            kind = TRUE if value else FALSE
        step = number - last
        out += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + encoded(number, I16)
        out += b"" if kind in (TRUE, FALSE) else encoded(value, kind)
        last = number
    return out + b"\0"


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def parted(data: bytes) -> tuple[bytes, Struct]:
    """The pages of a Parquet file, and its footer."""
    length = int.from_bytes(data[-8:-4], "little")
    return data[: -8 - length], Decoder(data[-8 - length : -8]).struct()


def joined(pages: bytes, footer: Struct) -> bytes:
    """The Parquet file of these pages and this footer."""
    end = encoded(footer)
    return pages + end + len(end).to_bytes(4, "little") + b"PAR1"


def lying(data: bytes, lie: Callable[[Struct], None]) -> bytes:
    """The file with a changed footer."""
    pages, footer = parted(data)
    lie(footer)
    return joined(pages, footer)


def chunk(footer: Struct, column: int = 0, group: int = 0) -> Struct:
    """What the footer says of one column in one row group."""
    meta: Struct = footer[GROUPS][1][1][group][COLUMNS][1][1][column][CHUNK][1]
    return meta


def put(fields: Struct, number: int, value: Any) -> None:
    """Change the value of a field that is there."""
    fields[number] = (fields[number][0], value)
