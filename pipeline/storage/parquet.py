"""Parquet files: strict reading, and writing with bytes that depend on the content alone. Owns every format setting."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ContractViolation, RowsUnaccounted
from pipeline.failpoints import reach
from pipeline.keys import SeenKeys
from pipeline.storage.places import BLOCK, Place, answering, sync
from pipeline.storage.targets import Published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

ROW_GROUP = 131_072
UNCHANGED = "the published file is unchanged and the staged one is removed"
_WHOLE = "the published file is the previous one or the new one, never a part, and the staged one is removed"
# Everything that decides the bytes is fixed here, so that equal rows give an equal file.
_WRITER = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": True,
    "write_statistics": True,
    "write_page_checksum": True,
    "store_schema": True,
}
# Buffered reads without prefetching keep memory flat: 163 MB instead of 463 MB for a row group of 314 MB, no slower.
_READER = {"pre_buffer": False, "buffer_size": BLOCK, "page_checksum_verification": True}
_LIBRARY_KEYS = {b"ARROW:schema", b"pandas"}


class Staged:
    """A file in the making; comes from `Storage.stage`. ``rows`` counts what was written so far."""

    def __init__(
        self,
        path: Path,
        uri: str,
        schema: pa.Schema,
        metadata: Mapping[str, str],
        commit: Callable[[Path, str], None],
    ) -> None:
        self.rows = 0
        self._path, self._uri, self._commit = path, uri, commit
        self._schema, self._metadata = schema.remove_metadata(), dict(metadata)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._stream = path.open("xb")
        try:
            self._writer = pq.ParquetWriter(self._stream, self._schema, **_WRITER)
            reach("stage.opened")
        except BaseException as err:
            self._stream.close()
            path.unlink()
            if isinstance(err, pa.ArrowException):
                raise self._unfit("Parquet has no such column type", err) from err
            raise

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows; a batch of another schema raises `ContractViolation`."""
        if not batch.schema.equals(self._schema):
            raise self._unfit("a batch has another schema", batch.schema)
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        with answering(f"writing {self._uri}", UNCHANGED):
            # Row groups end at fixed rows: the file must not depend on how its rows were batched.
            while self._waiting_rows >= ROW_GROUP:
                self._write_row_group()

    def publish(
        self, *, expected_rows: int, metadata: Mapping[str, str] | None = None, unique: Sequence[str] = ()
    ) -> Published:
        """Make the file visible as a whole, after it was synced to the disk and read back.

        ``metadata`` is added to what was given to `Storage.stage`, for facts known only after the last row. No two rows
        of the file may have the same values in all columns of ``unique``. The file that is replaced is kept under
        ``.versions``; an equal one is left untouched. Raises `RowsUnaccounted` when the file has not ``expected_rows``
        rows, `ContractViolation` when rows repeat, and `PublishConflict` when another run has published meanwhile.
        """
        with answering(f"publishing {self._uri}", UNCHANGED):
            if self._waiting_rows:
                self._write_row_group()
            self._writer.add_key_value_metadata(dict(sorted({**self._metadata, **(metadata or {})}.items())))
            self._writer.close()
            self._stream.close()
            reach("stage.closed")
            sync(self._path)
            reach("stage.synced")
            self._verify(expected_rows, unique)
            sha256, _ = Place.of(str(self._path)).digest()
            reach("stage.verified")
        with answering(f"publishing {self._uri}", _WHOLE):
            self._commit(self._path, sha256)
        return Published(self._uri, sha256, self.rows)

    def discard(self) -> None:
        """Remove the staged file; does nothing once it is published."""
        with suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()
        with suppress(OSError):
            self._stream.close()
        self._path.unlink(missing_ok=True)

    def _write_row_group(self) -> None:
        waiting = pa.Table.from_batches(self._waiting, self._schema)
        rest = waiting.slice(ROW_GROUP)
        try:
            self._writer.write_table(_canonical(waiting.slice(0, ROW_GROUP)), row_group_size=ROW_GROUP)
        except pa.ArrowException as err:
            raise self._unfit("a row group does not fit the schema", err) from err
        self._waiting, self._waiting_rows = rest.to_batches(), rest.num_rows
        reach("stage.row_group")

    def _verify(self, expected_rows: int, unique: Sequence[str]) -> None:
        with opened(self._path, str(self._path)) as parquet:
            rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
            faults = _faults(parquet, unique) if unique else ""
        if not rows == self.rows == expected_rows:
            raise RowsUnaccounted(
                f"not publishing {self._uri}",
                expected=f"{expected_rows} rows",
                got=f"{self.rows} rows written, {rows} in the staged file",
                left_behind=UNCHANGED,
                next_step="report this with the input files; it is a defect of the product",
            )
        if not schema.equals(self._schema):
            raise self._unfit("Parquet does not give a column type back as it was", schema)
        if faults:
            raise self._unfit(faults, "such rows")

    def _unfit(self, what: str, got: object) -> ContractViolation:
        return ContractViolation(
            f"not publishing {self._uri}: {what}",
            expected=str(self._schema),
            got=str(got),
            left_behind=UNCHANGED,
            next_step="report this with the input files; it is a defect of the product",
        )


def _canonical(rows: pa.Table) -> pa.Table:
    """The same rows, each column in one chunk and each dictionary in order of first use: equal rows, equal bytes."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            plain = rows.column(index).cast(field.type.value_type).combine_chunks()
            rows = rows.set_column(index, field, plain.dictionary_encode().cast(field.type))
    return rows.combine_chunks()


def _faults(parquet: pq.ParquetFile, unique: Sequence[str]) -> str:
    """What is wrong with the columns that should identify each row; empty when nothing is."""
    seen, repeated = SeenKeys(), 0
    for batch in parquet.iter_batches(ROW_GROUP, columns=list(unique)):
        for name, column in zip(unique, batch.columns, strict=True):
            if column.null_count:
                return f"{column.null_count} rows have no {name}"
        repeated += int(seen.repeated(batch.columns).sum())
    return f"{repeated} rows repeat the {', '.join(unique)} of another row" if repeated else ""


@contextmanager
def opened(path: Path, uri: str) -> Iterator[pq.ParquetFile]:
    """The local file ``path``, read under the name ``uri``; what is corrupt raises `ContractViolation`, also later."""
    with _readable(uri), pa.OSFile(str(path)) as source, pq.ParquetFile(source, **_READER) as parquet:
        yield parquet


def footer(stream: BinaryIO, uri: str, advice: str = "") -> pq.FileMetaData:
    """The footer of the open file ``uri``; ``advice`` is the way out that a `ContractViolation` names."""
    with _readable(uri, advice):
        return pq.read_metadata(stream)


def schema(uri: str) -> pa.Schema:
    """The columns that reading gives, from the footer alone."""
    with Place.of(uri).open() as stream, _readable(uri), pq.ParquetFile(stream, **_READER) as parquet:
        return parquet.schema_arrow


def own_metadata(footer: pq.FileMetaData) -> dict[str, str]:
    """The key-value pairs of a footer without those that libraries put there for themselves."""
    pairs = footer.metadata or {}
    return {key.decode(): value.decode() for key, value in pairs.items() if key not in _LIBRARY_KEYS}


def batches(
    parquet: pq.ParquetFile, uri: str, columns: Sequence[str] | None, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """All rows, at most ``batch_rows`` at a time; other than the footer promises raises `ContractViolation`."""
    names, read = _projection(parquet, uri, columns), 0
    for batch in parquet.iter_batches(batch_rows, columns=names):
        read += batch.num_rows
        yield batch
    _require_rows(parquet, uri, read)


def table(parquet: pq.ParquetFile, uri: str, columns: Sequence[str] | None) -> pa.Table:
    """All rows at once, under the conditions of `batches`."""
    names = _projection(parquet, uri, columns)
    read = parquet.read(names)
    _require_rows(parquet, uri, read.num_rows)
    return read


def _require_rows(parquet: pq.ParquetFile, uri: str, read: int) -> None:
    # pyarrow reads what the row groups say and never compares it with the total. Some writers leave the total at zero.
    footer = parquet.metadata
    promised = footer.num_rows or sum(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    if read != promised:
        raise unreadable(uri, f"{read} rows where its footer promises {promised}")


def _projection(parquet: pq.ParquetFile, uri: str, columns: Sequence[str] | None) -> list[str]:
    """The columns to read, by default all; raises `ContractViolation` when one is absent or a name occurs twice."""
    names = list(parquet.schema_arrow.names)
    if len(set(names)) < len(names):
        raise unreadable(uri, f"column names occur twice: {', '.join(sorted(names))}")
    if absent := [name for name in columns or () if name not in names]:
        raise ContractViolation(
            f"{uri} lacks columns",
            expected=", ".join(absent),
            got=", ".join(names),
            next_step="correct the file or the job's columns",
        )
    return names if columns is None else list(columns)


def unreadable(uri: str, reason: str, advice: str = "") -> ContractViolation:
    """The `ContractViolation` for a file that is not what its name says; ``advice`` is its way out."""
    return ContractViolation(
        f"{uri} is not readable as Parquet",
        got=reason,
        next_step=advice or "have the file delivered again, or take it out of the folder",
    )


@contextmanager
def _readable(uri: str, advice: str = "") -> Iterator[None]:
    """Turn what pyarrow says of a corrupt file into `ContractViolation`; failures of the disk pass."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as err:
        raise unreadable(uri, str(err), advice) from err
    except OSError as err:
        # pyarrow reports broken pages as a bare OSError without a number.
        if type(err) is not OSError or err.errno is not None:
            raise
        raise unreadable(uri, str(err), advice) from err
