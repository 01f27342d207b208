"""A file in the making: bytes that depend on the content alone, proven on the disk before anyone can see them.

Owns every setting that decides the bytes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ContractViolation, RowsUnaccounted
from pipeline.failpoints import reach
from pipeline.storage.parquet import ROW_GROUP, opened
from pipeline.storage.places import Place, answering, sync
from pipeline.storage.spill import Spill
from pipeline.storage.targets import Published
from pipeline.storage.unique import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

UNCHANGED = "the published file is unchanged and the staged one is removed"
_WHOLE = "the published file is the previous one or the new one, never a part, and the staged one is removed"
# Bytes whose digest takes less than the start of a thread.
_SMALL = 1 << 18
_WRITER = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "zstd",
    # Level 3 makes files no smaller and takes longer.
    "compression_level": 2,
    # Only small dictionaries save anything: with the library's limit of 1 MB files are 20 to 40 % larger and take longer.
    "dictionary_pagesize_limit": 1 << 15,
    "write_statistics": True,
    "write_page_checksum": True,
    "store_schema": True,
}


def settings(schema: pa.Schema) -> dict[str, Any]:
    """Everything that decides the bytes of a file with these columns, for `pyarrow.parquet.ParquetWriter`.

    Keys, times and counts are written as differences, numbers with fractions as they are, all else through dictionaries:
    half the time and nine tenths of the bytes of dictionaries everywhere. Every reader that knows Parquet 2 reads it; the
    denser encodings of fractions are left out because Spark's fast reader does not know them.
    """
    differences = [field.name for field in schema if _is_counted(field.type)]
    plain = [field.name for field in schema if pa.types.is_floating(field.type)]
    dictionaries = [name for name in schema.names if name not in {*differences, *plain}]
    return {
        **_WRITER,
        "use_dictionary": dictionaries or False,
        "column_encoding": dict.fromkeys(differences, "DELTA_BINARY_PACKED"),
    }


def _is_counted(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date32(kind))


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
            self._writer = pq.ParquetWriter(self._stream, self._schema, **settings(self._schema))
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
            sha256 = self._read_back(expected_rows, unique)
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

    def _read_back(self, expected_rows: int, unique: Sequence[str]) -> str:
        """The file's SHA-256, once it was read back."""
        place = Place.of(str(self._path))
        if self._path.stat().st_size < _SMALL:
            self._verify(expected_rows, unique)
            return place.digest()[0]
        # Both leave the interpreter free most of the time: where a core is idle, the digest costs nothing.
        with ThreadPoolExecutor(1) as beside:
            digest = beside.submit(place.digest)
            self._verify(expected_rows, unique)
            return digest.result()[0]

    def _verify(self, expected_rows: int, unique: Sequence[str]) -> None:
        with opened(self._path, str(self._path)) as parquet:
            rows, schema = parquet.metadata.num_rows, parquet.schema_arrow

            def keys() -> Iterator[pa.RecordBatch]:
                yield from parquet.iter_batches(ROW_GROUP, columns=list(unique), use_threads=False)

            found = faults(keys, unique, Spill(self._path.parent)) if unique else ""
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
        if found:
            raise self._unfit(found, "such rows")

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
