"""A catalogue of hostile Parquet files: odd ones that must be read exactly, and bad ones that must be refused for a reason.

Everything is made here, from seeds and by hand; nothing is copied from anywhere.
"""

from __future__ import annotations

import decimal
import gzip
import io
import os
import zipfile
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ANY_REFUSAL = frozenset({"corrupt", "too_large", "memory", "unsupported", "codec"})


@dataclass(frozen=True)
class Hostile:
    """One file: how to put it at a path, and either the rows it holds or the codes with which it may be refused."""

    name: str
    make: Callable[[Path], object]
    rows: pa.Table | None = None
    codes: frozenset[str] = frozenset()


def written(table: pa.Table, **options: Any) -> bytes:
    """The table as a file with page checksums."""
    stream = io.BytesIO()
    pq.write_table(table, stream, **{"write_page_checksum": True, **options})
    return stream.getvalue()


def held(name: str, content: bytes, rows: pa.Table) -> Hostile:
    """A file that holds ``rows``."""
    return Hostile(name, lambda path: path.write_bytes(content), rows=rows)


def refused(name: str, content: bytes, *codes: str) -> Hostile:
    """A file that must be refused."""
    return Hostile(name, lambda path: path.write_bytes(content), codes=frozenset(codes) or ANY_REFUSAL)


def sample(rows: int = 500) -> pa.Table:
    """An ordinary table of the columns that the usual job needs."""
    rng = np.random.default_rng(5)
    return pa.table(
        {
            "row_id": np.arange(rows),
            "event_ts": pa.array(np.arange(rows) * 1_000_000, pa.timestamp("us", "UTC")),
            "amount": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1),
            "country": rng.choice(["de", "fr", "nl"], rows),
        }
    )


def odd_values() -> Iterator[Hostile]:
    """Values at the edge of their types."""
    limits = np.iinfo(np.int64)
    floats = [float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 5e-324, -2.2250738585072014e-308, 1.7e308]
    texts = [b"\xff\xfe", b"ok", b"\xc3", b"\xed\xa0\x80", b"\x00", b""]
    columns: dict[str, pa.Array] = {
        "floats": pa.array(floats),
        "small floats": pa.array(np.array(floats[:6], np.float32)),
        "half floats": pa.array(np.array([1.5, np.inf, -0.0], np.float16)),
        "wide integers": pa.array([limits.min, limits.max, 2**53 + 1, -(2**53) - 1]),
        "unsigned integers": pa.array([0, 2**64 - 1, 2**63], pa.uint64()),
        "short integers": pa.array([-128, 127, None], pa.int8()),
        "decimals": pa.array([decimal.Decimal("-12345678901234567890.123456789012345678")], pa.decimal128(38, 18)),
        "wide decimals": pa.array([decimal.Decimal(10) ** 75], pa.decimal256(76, 0)),
        "old and late times": pa.array(
            [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)], pa.timestamp("us", "UTC")
        ),
        "nanoseconds": pa.array([limits.min, limits.max, -1], pa.timestamp("ns")),
        "seconds": pa.array([-1, 253_402_300_799], pa.timestamp("ms", "+14:00")),
        "dates": pa.array([date(1, 1, 1), date(9999, 12, 31)]),
        "times of day": pa.array([time(0), time(23, 59, 59, 999_999)]),
        "durations": pa.array([timedelta(microseconds=-1), timedelta(days=99_999)], pa.duration("us")),
        "texts that are not UTF-8": pa.array(texts, pa.binary()).view(pa.string()),
        "long texts": pa.array(["x" * (4 << 20), "", "y" * (20 << 20)]),
        "texts with marks": pa.array(["\u202e\u0000\ufeff", "😀", "'; drop table x; --", "\r\n"]),
        "bytes of one length": pa.array([b"abcd", b"\x00\xff\x00\xff"], pa.binary(4)),
        "booleans": pa.array([True, False, None] * 1000),
        "nothing but nulls": pa.nulls(1000, pa.float64()),
        "no type at all": pa.nulls(1000),
        "large texts": pa.array(["a", None, "b"], pa.large_string()),
        "viewed texts": pa.array(["a" * 40, None, "b"], pa.string_view()),
    }
    for name, column in columns.items():
        yield held(name, written(pa.table({"x": column})), pa.table({"x": column}))
    old = pa.table({"x": pa.array([0, 86_399_999_999_999, -1, 2**60], pa.timestamp("ns"))})
    yield held("96 bit times", written(old, use_deprecated_int96_timestamps=True, store_schema=False), old)


def odd_dictionaries() -> Iterator[Hostile]:
    """Dictionaries with parts that nobody uses, repeats, nulls, and too many values."""
    words = pa.array(["a", "b", "a", "unused", "😀"])
    many = pa.array([f"{i:060d}" for i in range(60_000)])
    indices = {
        "unused and repeated values": pa.array([0, 1, 2, None, 0], pa.int32()),
        "nothing but nulls": pa.array([None, None], pa.int32()),
        "no rows": pa.array([], pa.int32()),
    }
    for name, index in indices.items():
        rows = pa.table({"x": pa.DictionaryArray.from_arrays(index, words)})
        yield held(f"dictionary: {name}", written(rows), rows)
    grown = pa.table({"x": many.dictionary_encode()})
    yield held("dictionary: more values than fit a page", written(grown, dictionary_pagesize_limit=1000), grown)
    groups = pa.table(
        {"x": pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c"]).dictionary_encode()])}
    )
    yield held("dictionary: another one in every row group", written(groups, row_group_size=2), groups)


def odd_shapes(full: bool) -> Iterator[Hostile]:
    """Too few or too many rows, columns, row groups and levels."""
    table = sample()
    nested = pa.table(
        {
            "lists": pa.array([[1, None], [], None, [3]]),
            "structs": pa.array([{"a": "x", "b": [1]}, None, {"a": None, "b": []}, {"a": "y", "b": None}]),
            "maps": pa.array([[("k", 1.5)], [], None, [("k", None), ("l", 2.5)]], pa.map_(pa.string(), pa.float64())),
            "lists of lists": pa.array([[[["x"]]], [[None, []]], [[]], None]),
        }
    )
    yield held("no rows", written(table.slice(0, 0)), table.slice(0, 0))
    yield held("no columns", written(pa.table({})), pa.table({}))
    empty = io.BytesIO()
    pq.ParquetWriter(empty, table.schema).close()
    yield held("no row groups", empty.getvalue(), table.schema.empty_table())
    yield held("nested columns", written(nested), nested)
    yield held("one row in every row group", written(table, row_group_size=1), table)
    many = sample(10_000 if full else 2000).select(["row_id"])
    yield held("thousands of row groups", written(many, row_group_size=1), many)
    wide = pa.table({f"c{i}": [i] for i in range(3000)})
    yield held("three thousand columns", written(wide), wide)
    runs = pa.table({"x": pa.array(np.zeros(5_000_000, np.int64))})
    yield held("five million equal values", written(runs, row_group_size=5_000_000), runs)
    plain = pa.table({"x": pa.array(np.zeros(30_000_000 if full else 1_000_000))})
    yield held("many zeros", written(plain, use_dictionary=False, compression="zstd"), plain)
    for version in ("1.0", "2.0"):
        for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4"):
            yield held(f"{codec}, pages {version}", written(table, compression=codec, data_page_version=version), table)
    numbers = table.select(["row_id", "amount"])
    for encoding, rows in {
        "DELTA_BINARY_PACKED": table.select(["row_id"]),
        "BYTE_STREAM_SPLIT": numbers,
        "DELTA_LENGTH_BYTE_ARRAY": table.select(["country"]),
        "DELTA_BYTE_ARRAY": table.select(["country"]),
    }.items():
        content = written(rows, use_dictionary=False, column_encoding=dict.fromkeys(rows.column_names, encoding))
        yield held(encoding, content, rows)
    noted = table.replace_schema_metadata({"note": "x" * (1 << 20), "pandas": "{not json"})
    yield held("a long note", written(noted), table)


def odd_names() -> Iterator[Hostile]:
    """Names of columns, and of files, that somebody may take for something else."""
    names = ["😀", "a\nb", "", "A", "a", "a.b", "../../etc/passwd", "x" * 10_000, "'; --", "\u202eevil", " ", "0"]
    table = pa.table({name: [float(i)] for i, name in enumerate(names)})
    yield held("names of columns", written(table), table)
    yield refused("a name that occurs twice", written(pa.table([[1], [2]], names=["x", "x"])), "duplicate_columns")
    rows = sample(3)
    for name in ("😀", "line\nend", "sp ace", "a%2fb", "[a-z]*", "what?", "#1", "{x}", "~", "x" * 200, "-rf"):
        yield Hostile(f"file {name}", _named(f"{name}.parquet"), rows=rows)


def _named(name: str) -> Callable[[Path], object]:
    return lambda path: path.with_name(name).write_bytes(written(sample(3)))


def no_parquet() -> Iterator[Hostile]:
    """Files of other formats, and things that are no files."""
    archive, arrow = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as pack:
        pack.writestr("part-0.parquet", written(sample()))
    with pa.ipc.new_file(arrow, sample().schema) as stream:
        stream.write_table(sample())
    for name, content in {
        "an empty file": b"",
        "one byte": b"P",
        "only the mark": b"PAR1",
        "two marks": b"PAR1PAR1",
        "a table of text": b"row_id,amount\n1,2\n" * 100,
        "an archive": archive.getvalue(),
        "a compressed file": gzip.compress(written(sample())),
        "an Arrow file": arrow.getvalue(),
        "a page of a web server": b"<html><body>403 Forbidden</body></html>",
        "noise": np.random.default_rng(1).bytes(100_000),
        "zeros": bytes(100_000),
        "no mark in front": b"XXXX" + written(sample())[4:],
        "no mark at the end": written(sample())[:-4] + b"XXXX",
    }.items():
        yield refused(name, content, "not_parquet")
    yield refused("an encrypted footer", written(sample())[:-4] + b"PARE", "encrypted")
    yield Hostile("a pipe", os.mkfifo, codes=frozenset({"not_a_file"}))
    yield Hostile("a device", lambda path: path.symlink_to("/dev/zero"), codes=frozenset({"not_a_file"}))
    yield Hostile("a link to nothing", lambda path: path.symlink_to("nowhere"), codes=frozenset({"not_a_file"}))
    yield Hostile("a link to itself", lambda path: path.symlink_to(path.name), codes=frozenset({"not_a_file"}))


def cut_off() -> Iterator[Hostile]:
    """A file that ends too early, at many places; and one that is followed by something."""
    content = written(sample())
    for share in range(1, 10):
        yield refused(f"{share} tenths of a file", content[: len(content) * share // 10], "not_parquet")
    for missing in (1, 4, 5, 8, 9, 100):
        yield refused(f"a file without its last {missing} bytes", content[:-missing], "not_parquet", "corrupt")
    yield refused("a file without its first byte", content[1:], "not_parquet")
    yield refused("a file and a line end", content + b"\n", "not_parquet")
    # The last footer counts, and what it names lies where it says.
    yield held("a file within a file", content[:-8] + content, sample())


def bombs(full: bool) -> Iterator[Hostile]:
    """Little on the disk, gigabytes in memory: one long value, and four hundred references to it."""
    words = pa.array([bytes(8 << 20)], pa.binary())
    rows = pa.table({"x": pa.DictionaryArray.from_arrays(pa.array(np.zeros(400, np.int32)), words)})
    for codec in ("zstd", "snappy", "gzip", "brotli", "lz4") if full else ("zstd",):
        content = written(rows, compression=codec, dictionary_pagesize_limit=1 << 30, store_schema=False)
        assert len(content) < 1 << 20
        yield refused(f"a dictionary bomb, {codec}", content, "memory")
    # As a dictionary it stays small.
    yield held("a dictionary of one long value", written(rows, dictionary_pagesize_limit=1 << 30), rows)


def catalogue(full: bool) -> list[Hostile]:
    """All files of this module, or all but those that take long to make or to read."""
    groups = (odd_values, odd_dictionaries, odd_names, no_parquet, cut_off)
    return [*(case for group in groups for case in group()), *odd_shapes(full), *bombs(full)]
