"""Parquet files whose footers or page headers say what is not so: each must be refused, or read as it really is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tests.faults import footers
from tests.faults.footers import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    Decoder,
    Struct,
    chunk,
    encoded,
    joined,
    lying,
    parted,
    put,
)
from tests.faults.hostile import Hostile, held, refused, sample, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HUGE = 2**62
# One page in every column, nothing compressed: what is changed is where it is looked for.
PLAIN = {"compression": "none", "use_dictionary": False, "store_schema": False}


def lengths() -> Iterator[Hostile]:
    """Lies about where the footer begins."""
    content = written(sample())
    length = int.from_bytes(content[-8:-4], "little")
    for said in (
        0,
        1,
        length - 1,
        length + 1,
        len(content) - 12,
        len(content) - 11,
        len(content),
        2**31 - 1,
        2**32 - 1,
    ):
        lie = content[:-8] + said.to_bytes(4, "little") + content[-4:]
        yield refused(f"a footer of {said - length:+} bytes", lie, "corrupt", "too_large")
    noise = np.random.default_rng(3).bytes(length)
    yield refused("a footer of noise", content[: -8 - length] + noise + content[-8:], "corrupt", "memory", "too_large")


def numbers() -> Iterator[Hostile]:
    """Lies about rows, sizes and places."""
    content = written(sample(), **PLAIN)
    rows = sample().num_rows
    for said in (rows - 1, rows + 1, 1, HUGE, -1, -HUGE):
        yield refused(f"{said} rows in the file", lying(content, _set(said, footers.ROWS)))
        yield refused(f"{said} rows in the row group", lying(content, _set(said, footers.GROUP_ROWS, _group)))
        yield refused(f"{said} values in a column", lying(content, _set(said, footers.VALUES, chunk)))
    yield held("no total of rows", lying(content, _set(0, footers.ROWS)), sample())
    for said in (HUGE, 2**31, -1, -HUGE):
        yield refused(f"{said} bytes unpacked", lying(content, _set(said, footers.UNCOMPRESSED, chunk)))
    for said in (0, 1, HUGE, 2**31, -1):
        yield refused(f"{said} bytes packed", lying(content, _set(said, footers.COMPRESSED, chunk)))
    for said in (0, 1, 5, len(content) - 1, len(content) * 2, HUGE, -1, -HUGE):
        yield refused(f"pages at {said}", lying(content, _set(said, footers.DATA_OFFSET, chunk)))
    other = chunk(parted(content)[1], column=2)[footers.DATA_OFFSET][1]
    yield refused("pages of another column", lying(content, _set(other, footers.DATA_OFFSET, chunk)))


def kinds() -> Iterator[Hostile]:
    """Lies about codecs, encodings, types and names."""
    content = written(sample(), **PLAIN)
    for codec in (8, 99, -1):
        # What has no codec that is known is taken as it is, which it is.
        yield held(f"codec {codec} of plain pages", lying(content, _set(codec, footers.CODEC, chunk)), sample())
    for codec in range(1, 8):
        yield refused(f"codec {codec} of plain pages", lying(content, _set(codec, footers.CODEC, chunk)))
    packed = written(sample(), use_dictionary=False, compression="zstd", store_schema=False)
    for codec in (0, 1, 5, 99):
        yield refused(f"codec {codec} of packed pages", lying(packed, _set(codec, footers.CODEC, chunk)))
    for kind in (0, 1, 3, 4, 5, 6, 7, 99):
        yield refused(f"type {kind} in the columns", lying(content, _set(kind, footers.TYPE, _element)))
        yield refused(f"type {kind} in the row group", lying(content, _set(kind, footers.TYPE, chunk)))
    yield refused("columns that are repeated", lying(content, _set(2, footers.REPETITION, _element)))
    yield refused("columns that are never null", lying(content, _set(0, footers.REPETITION, _element)))
    yield refused("a column of another name", lying(content, _set(b"revenue", footers.NAME, _element)))
    yield refused("a name that is not UTF-8", lying(content, _set(b"\xff\xfe", footers.NAME, _element)))
    noted = written(sample(), use_dictionary=False, compression="none")
    yield refused("nanoseconds for microseconds", lying(noted, _nanoseconds), "corrupt")
    yield refused("pages in another file", lying(content, _elsewhere), "unsupported", "corrupt")
    yield held("statistics that lie", lying(content, _lying_statistics), sample())


def shapes() -> Iterator[Hostile]:
    """Columns within columns without end, and more of everything than anybody needs."""
    for depth in (60, 1000, 100_000):
        yield refused(f"columns nested {depth} deep", _nested(depth), "unsupported", "corrupt", "crashed", "too_large")
    for children in (0, 5, 2**31 - 1, -1):
        yield refused(f"{children} columns", lying(written(sample(), **PLAIN), _children(children)))
    yield refused(
        "one column and 100,000 row groups", _multiplied(written(sample().select(["row_id"])), 100_000), "too_large"
    )
    yield refused("30,000 columns", written(pa.table({f"c{i}": [i] for i in range(30_000)})), "too_large")
    yield refused("a trillion rows without columns", _rows_alone(2**40), "too_large", "corrupt")
    yield refused("two row groups of the same pages", _multiplied(written(sample(), **PLAIN), 2), "corrupt")


def pages() -> Iterator[Hostile]:
    """Lies in the header of a page, which no checksum covers."""
    content = written(sample(), **PLAIN)
    where = chunk(parted(content)[1])[footers.DATA_OFFSET][1]
    decoder = Decoder(content, where)
    header = decoder.struct()
    for name, change in _page_lies(header[5][1]).items():
        lie = {**header, **change}
        yield refused(f"a page with {name}", _replaced(content, where, decoder.position, encoded(lie)))
    # The first dictionary index is a bit width; 31 bits make indices far beyond the dictionary.
    unsealed = written(sample(), compression="none", store_schema=False, write_page_checksum=False)
    start = chunk(parted(unsealed)[1], column=3)[footers.DATA_OFFSET][1]
    body = Decoder(unsealed, start)
    body.struct()
    for width in (31, 32, 33, 255):
        at = body.position + 4 + int.from_bytes(unsealed[body.position : body.position + 4], "little")
        yield refused(f"indices of {width} bits", unsealed[:at] + bytes([width]) + unsealed[at + 1 :])


def _page_lies(header: Struct) -> dict[str, Struct]:
    def values(count: int) -> Struct:
        return {5: (STRUCT, {**header, 1: (I32, count)})}

    return {
        "one value more": values(501),
        "one value less": values(499),
        "no value": values(0),
        "2 billion values": values(2**31 - 1),
        "a negative number of values": values(-5),
        "another encoding": {5: (STRUCT, {**header, 2: (I32, 8)})},
        "an unknown encoding": {5: (STRUCT, {**header, 2: (I32, 77)})},
        "another kind": {1: (I32, 1)},
        "an unknown kind": {1: (I32, 50)},
        "2 GiB packed": {3: (I32, 2**31 - 1)},
        "a negative size": {2: (I32, -1)},
        "another checksum": {4: (I32, 12345)},
    }


def _replaced(content: bytes, start: int, end: int, middle: bytes) -> bytes:
    """The file with a longer or shorter part, and a footer that knows."""
    body, footer = parted(content)
    grown = len(middle) - (end - start)
    for column in range(len(footer[footers.GROUPS][1][1][0][footers.COLUMNS][1][1])):
        meta = chunk(footer, column)
        if meta[footers.DATA_OFFSET][1] > start:
            put(meta, footers.DATA_OFFSET, meta[footers.DATA_OFFSET][1] + grown)
        elif meta[footers.DATA_OFFSET][1] == start:
            put(meta, footers.COMPRESSED, meta[footers.COMPRESSED][1] + grown)
    return joined(body[:start] + middle + body[end:], footer)


def _set(
    value: object, number: int, of: Callable[[Struct], Struct] = lambda footer: footer
) -> Callable[[Struct], None]:
    return lambda footer: put(of(footer), number, value)


def _group(footer: Struct) -> Struct:
    group: Struct = footer[footers.GROUPS][1][1][0]
    return group


def _element(footer: Struct) -> Struct:
    """The first column of the schema; the root comes before it."""
    element: Struct = footer[footers.SCHEMA][1][1][1]
    return element


def _nanoseconds(footer: Struct) -> None:
    logical = footer[footers.SCHEMA][1][1][2][10][1]
    timestamp = logical[8][1]
    timestamp[2] = (STRUCT, {3: (STRUCT, {})})


def _elsewhere(footer: Struct) -> None:
    _group(footer)[footers.COLUMNS][1][1][0][footers.FILE_PATH] = (BINARY, b"../../../etc/passwd")


def _lying_statistics(footer: Struct) -> None:
    for column in range(4):
        statistics = chunk(footer, column)[footers.STATISTICS][1]
        for number, (kind, value) in list(statistics.items()):
            statistics[number] = (kind, value[::-1] if kind == BINARY else 7 if kind == I64 else value)


def _children(count: int) -> Callable[[Struct], None]:
    return lambda footer: put(footer[footers.SCHEMA][1][1][0], footers.CHILDREN, count)


def _nested(depth: int) -> bytes:
    body, footer = parted(written(pa.table({"x": [1]}), **PLAIN))
    root, leaf = footer[footers.SCHEMA][1][1]
    group = {footers.REPETITION: (I32, 1), footers.NAME: (BINARY, b"x"), footers.CHILDREN: (I32, 1)}
    put(footer, footers.SCHEMA, (STRUCT, [root, *[group] * depth, leaf]))
    put(chunk(footer), footers.PATH, (BINARY, [b"x"] * (depth + 1)))
    return joined(body, footer)


def _multiplied(content: bytes, times: int) -> bytes:
    """The file with its one row group listed many times."""
    body, footer = parted(content)
    put(footer, footers.ROWS, footer[footers.ROWS][1] * times)
    groups = footer[footers.GROUPS][1][1]
    end = encoded({**footer, footers.GROUPS: (LIST, (STRUCT, []))})
    one = encoded(groups[0])
    empty, full = encoded((STRUCT, []), LIST), bytes([0xF0 | STRUCT]) + footers.varint(times) + one * times
    # Encoded once, since a hundred thousand times would take long; a list of none marks the place.
    before = encoded({number: footer[number] for number in footer if number < footers.GROUPS})[:-1]
    at = len(before) + 1
    assert end[at : at + len(empty)] == empty
    end = end[:at] + full + end[at + len(empty) :]
    return body + end + len(end).to_bytes(4, "little") + b"PAR1"


def _rows_alone(rows: int) -> bytes:
    body, footer = parted(written(pa.table({})))
    put(footer, footers.ROWS, rows)
    footer[footers.GROUPS] = (LIST, (STRUCT, [{1: (LIST, (STRUCT, [])), 2: (I64, 0), 3: (I64, rows)}]))
    return joined(body, footer)


def catalogue() -> list[Hostile]:
    """All files of this module."""
    return [case for group in (lengths, numbers, kinds, shapes, pages) for case in group()]
