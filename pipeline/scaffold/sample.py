"""A deterministic sample of partitioned Parquet: which files there are, and rows spread evenly over them.

Memory is bounded by the sample, not by the files. Must not judge what it reads.
"""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InvalidRequest
from pipeline.intervals import Interval, granule
from pipeline.scaffold.layout import infer_template, instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GOLDEN = (math.sqrt(5) - 1) / 2
_ROW_GROUPS = 8
_READERS = 8
_START = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Rows:
    """Rows of one file, and how many it has."""

    file: str
    table: pa.Table
    total: int


@dataclass(frozen=True)
class Dataset:
    """Parquet files below one root, in the order of the time that their folders name."""

    uri: str
    fs: Any
    root: str
    files: tuple[str, ...]
    template: str

    @classmethod
    def open(cls, uri: str) -> Dataset:
        """The data set at a path or fsspec URI; raises `InvalidRequest` when no Parquet file lies below it."""
        with _readable(uri):
            fs, root = fsspec.core.url_to_fs(uri)
            found = [path.removeprefix(root).lstrip("/") for path in fs.find(root)]
        files = [name for name in found if name.endswith(".parquet") and not any(p[0] in "._" for p in name.split("/"))]
        if not files:
            raise InvalidRequest(
                f"no Parquet file lies below {uri}",
                expected="a folder with *.parquet files, in folders such as ds=2026-01-31 or directly in it",
                got="a single file" if found == [""] else f"{len(found)} other files",
                next_step="pass the root folder of the data",
            )
        template = infer_template(files)
        in_order = sorted(files, key=lambda name: (instant(name, template) or _START, name))
        return cls(uri, fs, root, tuple(in_order), template)

    def span(self, file: str) -> Interval | None:
        """The time that a file's folder covers, by its name; ``None`` when folders name no time."""
        start, step = instant(file, self.template), granule(self.template)
        return None if start is None or step is None else Interval(start, step.next(start))

    def schema(self, file: str) -> pa.Schema:
        """The columns of one file, from its footer."""
        with self._opened(file) as parquet:
            return parquet.schema_arrow

    def read(
        self, files: Sequence[str], *, rows: int | None = None, columns: Sequence[str] | None = None
    ) -> list[Rows]:
        """The rows of each file, evenly thinned to at most ``rows`` per file; all of them by default."""

        def read(file: str) -> Rows:
            with self._opened(file) as parquet:
                return Rows(file, _thinned(parquet, rows, columns), parquet.metadata.num_rows)

        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(read, files))

    @contextmanager
    def _opened(self, file: str) -> Iterator[pq.ParquetFile]:
        path = f"{self.root.rstrip('/')}/{file}"
        with _readable(f"{self.uri.rstrip('/')}/{file}"), self.fs.open(path, "rb") as stream:
            yield pq.ParquetFile(stream)


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``range(count)``, evenly over it, with the first and the last.

    The distances vary (by the golden ratio), because equal ones could meet nothing but Mondays, or nothing but midnights.
    """
    if count <= most:
        return list(range(count))
    inner = {int((i + (i * _GOLDEN) % 1) * (count - 1) / most) for i in range(1, most - 1)}
    return sorted({0, count - 1} | inner)


def joined(samples: Sequence[Rows]) -> pa.Table:
    """All rows as one table without dictionary encoding; integers and floats of different files become floats.

    Raises `InvalidRequest` when the files disagree about a column.
    """
    tables = [_decoded(sample.table) for sample in samples]
    for name, count in Counter(tables[0].column_names).items():
        if count > 1:
            raise InvalidRequest(
                f"column {name!r} appears {count} times in {samples[0].file}",
                expected="every column once",
                next_step="rename one of them",
            )
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as err:
        raise InvalidRequest(
            "the files do not agree about their columns",
            expected="the same columns, each of one type, in all files",
            got=" ".join(str(err).split()),
            next_step="rewrite the files that differ, or point to the part that belongs together",
        ) from err


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, pa.ArrowException) as err:
        raise InvalidRequest(
            f"cannot read {what}",
            expected="readable Parquet files",
            got=" ".join(str(err).split()),
            next_step="check the path or URI, and remove files that are no valid Parquet",
        ) from err


def _thinned(parquet: pq.ParquetFile, rows: int | None, columns: Sequence[str] | None) -> pa.Table:
    metadata = parquet.metadata
    groups = list(range(metadata.num_row_groups)) if rows is None else spread(metadata.num_row_groups, _ROW_GROUPS)
    found = sum(metadata.row_group(group).num_rows for group in groups)
    step = 1 if rows is None else max(1, math.ceil(found / rows))
    batches, seen = [], 0
    for batch in parquet.iter_batches(row_groups=groups, columns=columns):
        batches.append(batch if step == 1 else batch.take(pa.array(np.arange(-seen % step, len(batch), step))))
        seen += len(batch)
    if batches:
        return pa.Table.from_batches(batches)
    wanted = [field for field in parquet.schema_arrow if columns is None or field.name in columns]
    return pa.schema(wanted).empty_table()


def _decoded(table: pa.Table) -> pa.Table:
    def plain(kind: pa.DataType) -> pa.DataType:
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    return table.cast(pa.schema([pa.field(field.name, plain(field.type)) for field in table.schema]))
