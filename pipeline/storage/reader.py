"""The program of the process that opens files nobody vouches for; `pipeline.storage.isolation` starts it and reads its answers.

It imports nothing but the standard library and pyarrow, so that it starts fast and has nothing to give away. One JSON line on
standard input is one request; the answer is a sequence of frames on standard output: a kind (one byte), a length (eight
bytes, little-endian), and that many bytes of JSON (``J``) or of a complete Arrow IPC stream with at most one batch (``A``).
Every answer ends with a ``J`` frame that has ``done``, ``code`` or ``errno``.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import queue
import resource
import signal
import stat
import struct
import sys
import threading
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

if __name__ == "__main__":
    # Without site packages of its own, the interpreter finds pyarrow alone; numpy would double the time to start.
    sys.path.append(sys.argv[1])
    sys.modules["numpy"] = None  # type: ignore[assignment]

import pyarrow as pa
import pyarrow.parquet as pq

HEADER = struct.Struct("<cQ")
_BLOCK = 1 << 20
_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
_SMALLEST = 12
# pyarrow calls LZ4_RAW "LZ4", and has no name for the older LZ4 with Hadoop's framing.
_CODECS = {"UNCOMPRESSED", "SNAPPY", "GZIP", "BROTLI", "ZSTD", "LZ4", "UNKNOWN"}
# Far beyond what writers make, and still parsed within seconds and a few hundred megabytes.
_MOST_FOOTER_BYTES = 64 << 20
_MOST_COLUMNS, _MOST_GROUPS, _MOST_CHUNKS = 20_000, 50_000, 500_000
_MOST_STRING_BYTES = 16 << 20
_DEEPEST = 48
_LEAST_CODED_ROWS = 1 << 16
_MOST_CODED_BYTES, _LEAST_USES = 16 << 20, 4
_MOST_ROWS = 1 << 40
# A small file that inflates hugely is a bomb: 1,000-fold is suspicious, and 2 GiB are read within seconds.
_INFLATION, _HARMLESS_BYTES, _VALUE_BYTES = 1000, 2 << 30, 8
# A batch and its decoded predecessor live at once, beside pages and buffers.
_SHARES_OF_MEMORY = 8
# What an absurd offset makes a sound disk say; any other number is the disk's own complaint.
_FAULTS_OF_THE_FILE = {errno.EINVAL, errno.EOVERFLOW, errno.EFBIG, errno.ESPIPE}
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


class Refusal(Exception):
    """The file cannot be used: a code of `pipeline.storage.refusals`, what was found, and the rows it declares."""

    def __init__(self, code: str, got: str, rows: int | None = None) -> None:
        super().__init__(got)
        self.code, self.got, self.rows = code, got, rows


def confine(memory_bytes: int, parent: int, mortal: bool) -> None:
    """Give up what decoding does not need, and die with ``parent`` when ``mortal``."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if mortal:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(0)
    # Counts what can be written to, and not, as RLIMIT_AS does, what is only reserved.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:  # noqa: PTH123
        stream.write("1000")


def send(out: BinaryIO, **message: Any) -> None:
    """Send one ``J`` frame."""
    content = json.dumps(message).encode()
    out.write(HEADER.pack(b"J", len(content)) + content)
    out.flush()


def send_batch(out: BinaryIO, schema: pa.Schema, batch: pa.RecordBatch | None) -> None:
    """One ``A`` frame; dictionaries travel with every batch, so that none depends on another."""
    measure = pa.MockOutputStream()
    _write(measure, schema, batch)
    out.write(HEADER.pack(b"A", measure.size()))
    _write(out, schema, batch)
    out.flush()


def _write(sink: Any, schema: pa.Schema, batch: pa.RecordBatch | None) -> None:
    with pa.ipc.new_stream(sink, schema) as stream:
        if batch is not None:
            stream.write_batch(batch)


def preflight(path: str) -> int:
    """The length of the file's footer; raises `Refusal` for what is not Parquet at first sight."""
    # A pipe would wait for its other end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Refusal("not_a_file", "not a regular file")
        if found.st_size < _SMALLEST:
            raise Refusal("not_parquet", f"{found.st_size} bytes, too few for a Parquet file")
        head = os.pread(descriptor, 4, 0)
        tail = os.pread(descriptor, 8, found.st_size - 8)
    finally:
        os.close(descriptor)
    if tail[4:] == _ENCRYPTED_MAGIC:
        raise Refusal("encrypted", "an encrypted footer")
    if head != _MAGIC or tail[4:] != _MAGIC:
        raise Refusal("not_parquet", f"a file that begins with {head!r} and ends with {tail[4:]!r}")
    length = int.from_bytes(tail[:4], "little")
    if length > found.st_size - _SMALLEST:
        raise Refusal("corrupt", f"a footer of {length} bytes in a file of {found.st_size}")
    if length > _MOST_FOOTER_BYTES:
        raise Refusal("too_large", f"a footer of {length} bytes, where {_MOST_FOOTER_BYTES} are allowed")
    return length


class Footer:
    """What a file declares about itself, found to be plausible and within the limits before any page is read."""

    def __init__(self, parquet: pq.ParquetFile, size: int, memory_bytes: int) -> None:
        self.metadata = parquet.metadata
        self.paths: list[list[str]] = parquet.reader.column_paths
        self._columns = [parquet.schema.column(index) for index in range(len(self.paths))]
        self._size, self._memory = size, memory_bytes
        self.rows = self._declared_rows()
        self._require_modest_shape()
        self.row_bytes = self._require_modest_chunks()
        if said := _contradiction(parquet):
            raise Refusal("corrupt", said, self.rows)

    def _declared_rows(self) -> int:
        groups = range(min(self.metadata.num_row_groups, _MOST_GROUPS))
        rows = [self.metadata.row_group(group).num_rows for group in groups]
        # Some writers leave the total at zero.
        total: int = self.metadata.num_rows or sum(rows)
        if max(total, sum(rows)) > _MOST_ROWS:
            raise Refusal("too_large", f"{max(total, sum(rows))} rows declared, where {_MOST_ROWS} are allowed")
        if min([total, *rows]) < 0 or (total != sum(rows) and self.metadata.num_row_groups <= _MOST_GROUPS):
            raise Refusal("corrupt", f"{sum(rows)} rows in its row groups where its footer promises {total}")
        return total

    def _require_modest_shape(self) -> None:
        columns, groups = len(self.paths), self.metadata.num_row_groups
        for what, found, most in (
            ("columns", columns, _MOST_COLUMNS),
            ("row groups", groups, _MOST_GROUPS),
            ("column chunks", columns * groups, _MOST_CHUNKS),
        ):
            if found > most:
                raise Refusal("too_large", f"{found} {what}, where {most} are allowed", self.rows)
        if (deepest := max(map(len, self.paths), default=0)) > _DEEPEST:
            raise Refusal("unsupported", f"columns nested {deepest} levels deep, where {_DEEPEST} are", self.rows)

    def _require_modest_chunks(self) -> int:
        """The most bytes that a row is declared to have in any row group."""
        inflated = widest = 0
        spans: list[tuple[int, int]] = []
        for position in range(self.metadata.num_row_groups):
            group = self.metadata.row_group(position)
            if group.num_columns != len(self._columns):
                raise Refusal(
                    "corrupt", f"{group.num_columns} of {len(self._columns)} columns in a row group", self.rows
                )
            declared = 0
            for index, column in enumerate(self._columns):
                chunk = group.column(index)
                self._require_consistent(chunk, column, group.num_rows)
                if chunk.num_values:
                    spans.append(_span(chunk))
                # Pages as they are unpacked, or values as they are decoded where runs of them are stored.
                declared += max(chunk.total_uncompressed_size, chunk.num_values * _VALUE_BYTES)
            inflated += max(declared, group.num_rows * _VALUE_BYTES)
            widest = max(widest, declared // max(group.num_rows, 1))
        self._require_apart(sorted(spans))
        if inflated > max(_HARMLESS_BYTES, _INFLATION * self._size):
            raise Refusal("too_large", f"{self._size} bytes that declare to hold {inflated} uncompressed", self.rows)
        if widest * _SHARES_OF_MEMORY > self._memory:
            raise Refusal("too_large", f"{widest} bytes declared in a single row", self.rows)
        return widest

    def _require_consistent(self, chunk: pq.ColumnChunkMetaData, column: pq.ColumnSchema, rows: int) -> None:
        name = column.path
        if (chunk.path_in_schema, chunk.physical_type) != (name, column.physical_type):
            found = f"{chunk.path_in_schema!r} of type {chunk.physical_type}"
            raise Refusal("corrupt", f"column {name!r} of type {column.physical_type} is {found}", self.rows)
        if chunk.compression not in _CODECS:
            raise Refusal("codec", f"column {name!r} is compressed with {chunk.compression}", self.rows)
        if chunk.file_path:
            raise Refusal("unsupported", f"column {name!r} lies in another file, {chunk.file_path!r}", self.rows)
        if min(chunk.total_uncompressed_size, chunk.total_compressed_size, chunk.num_values) < 0:
            raise Refusal("corrupt", f"a negative size of column {name!r}", self.rows)
        if not column.max_repetition_level and chunk.num_values != rows:
            raise Refusal("corrupt", f"{chunk.num_values} values of column {name!r} in {rows} rows", self.rows)

    def _require_apart(self, spans: list[tuple[int, int]]) -> None:
        """No two columns may share bytes of the file, nor lie outside of it."""
        outside = (self._size, self._size)
        for (start, end), (following, _) in pairwise([*spans, outside]):
            if start < 0 or end > following:
                raise Refusal("corrupt", f"pages from {start} to {end}, others from {following} on", self.rows)


def _span(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Where the pages of a column begin and end. Some writers give a dictionary that is none the place zero."""
    start = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
    return start, start + chunk.total_compressed_size


def _contradiction(parquet: pq.ParquetFile) -> str:
    """How the columns differ from those that their writer noted beside them; empty when they do not.

    A footer has no checksum. Where Arrow has written the file, its columns stand there twice, and one bit that would make
    nanoseconds of microseconds, or shift a decimal point, does not change both.
    """
    content = (parquet.metadata.metadata or {}).get(b"ARROW:schema")
    if content is None:
        return ""
    noted, found = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(content))), parquet.schema_arrow
    if noted.names != found.names:
        return f"columns {found.names} where its writer noted {noted.names}"
    pairs = zip(found.names, found.types, noted.types, strict=True)
    return ", ".join(f"{name!r} is {kind}, noted as {other}" for name, kind, other in pairs if _clash(kind, other))


def _clash(kind: pa.DataType, noted: pa.DataType) -> bool:
    """Whether the values would change their meaning; writers may well store a type as a wider or a coarser one."""
    types = pa.types
    if types.is_decimal(kind) and types.is_decimal(noted):
        return bool((kind.precision, kind.scale) != (noted.precision, noted.scale))
    if types.is_integer(kind) and types.is_integer(noted):
        return bool(types.is_signed_integer(kind) != types.is_signed_integer(noted) and kind != pa.int64())
    if (types.is_timestamp(kind) and types.is_timestamp(noted)) or (types.is_time(kind) and types.is_time(noted)):
        return bool(kind.unit == "ns" != noted.unit)
    return False


class Reading:
    """Requests answered one after the other; the last footer is kept, since a file's schema is asked for first."""

    def __init__(self, out: BinaryIO, memory_bytes: int) -> None:
        self._out, self._memory = out, memory_bytes
        self._last: tuple[tuple[str, int, int, int], Footer] | None = None

    def answer(
        self, path: str, columns: list[str] | None = None, batch_rows: int = 0, codes: list[str] | None = None
    ) -> None:
        """Send the file's schema, or its rows with texts of ``codes`` as dictionaries if that pays, or why that cannot be."""
        rows: int | None = None
        try:
            with self._opened(path, codes or []) as (parquet, footer):
                rows = footer.rows
                send(self._out, rows=rows)
                if batch_rows:
                    self._send_rows(parquet, footer, columns, batch_rows, codes or [])
                else:
                    self._send_schema(parquet)
        except Refusal as err:
            send(self._out, code=err.code, got=err.got, rows=rows if err.rows is None else err.rows)
        except MemoryError as err:
            send(self._out, code="memory", got=str(err) or "out of memory", rows=rows)
        except OSError as err:
            # pyarrow reports broken pages as an OSError without a number.
            if err.errno is None or err.errno in _FAULTS_OF_THE_FILE:
                send(self._out, code=_code(err), got=str(err), rows=rows)
            else:
                send(self._out, errno=err.errno, text=err.strerror or str(err))
        except (pa.ArrowException, UnicodeError) as err:
            send(self._out, code=_code(err), got=str(err), rows=rows)

    @contextmanager
    def _opened(self, path: str, codes: list[str]) -> Iterator[tuple[pq.ParquetFile, Footer]]:
        found = os.stat(path)  # noqa: PTH116
        key = (path, found.st_size, found.st_mtime_ns, found.st_ino)
        if self._last is None or self._last[0] != key:
            self._last = None
            preflight(path)
            with _parquet(path) as parquet:
                self._last = (key, Footer(parquet, found.st_size, self._memory))
        footer = self._last[1]
        pays = footer.rows >= _LEAST_CODED_ROWS * footer.metadata.num_row_groups  # codes end with their row group
        with _parquet(path, footer.metadata, codes if pays else []) as parquet:
            yield parquet, footer

    def _send_schema(self, parquet: pq.ParquetFile) -> None:
        send_batch(self._out, parquet.schema_arrow, None)
        send(self._out, done=True)

    def _send_rows(
        self, parquet: pq.ParquetFile, footer: Footer, columns: list[str] | None, batch_rows: int, codes: list[str]
    ) -> None:
        whole = parquet.schema_arrow
        names = _distinct(whole.names, footer.rows)
        if absent := [name for name in columns or () if name not in names]:
            send(self._out, done=True, absent=absent, names=names)
            return
        wanted = names if columns is None else columns
        schema = pa.schema([whole.field(name) for name in wanted], whole.metadata)
        chosen = set(wanted)
        leaves = [index for index, path in enumerate(footer.paths) if path[0] in chosen]
        groups = list(range(parquet.metadata.num_row_groups))
        fitting = max(1, self._memory // _SHARES_OF_MEMORY // max(footer.row_bytes, 1))
        for batch in parquet.reader.iter_batches(min(batch_rows, fitting), groups, leaves):
            arrays = [self._sendable(batch.column(name), coded=name in codes) for name in wanted]
            kinds = pa.schema([f.with_type(a.type) for f, a in zip(schema, arrays, strict=True)], schema.metadata)
            send_batch(self._out, kinds, pa.RecordBatch.from_arrays(arrays, schema=kinds))
        pa.default_memory_pool().release_unused()
        send(self._out, done=True)

    def _sendable(self, column: pa.Array, *, coded: bool) -> pa.Array:
        """The column; as codes only where decoding them, outside of this process's limit, would take little memory."""
        if not coded or not pa.types.is_dictionary(column.type):
            return column
        import pyarrow.compute as pc  # which takes long, and only large files come here

        lengths = pc.binary_length(column.dictionary)
        longest = pc.max(lengths).as_py() or 0
        if longest * len(column) <= _MOST_CODED_BYTES and len(lengths) * _LEAST_USES <= len(column):
            return column
        if int(pc.sum(lengths.take(column.indices)).as_py() or 0) > self._memory:
            raise MemoryError(f"texts of up to {longest} bytes in {len(column)} rows")
        return column.dictionary_decode()


@contextmanager
def _parquet(path: str, metadata: pq.FileMetaData = None, codes: list[str] | None = None) -> Iterator[pq.ParquetFile]:
    with (
        pa.OSFile(path) as source,
        pq.ParquetFile(
            source,
            metadata=metadata,
            read_dictionary=codes or [],
            # Buffered reads without prefetching keep memory flat whatever the size of a row group.
            pre_buffer=False,
            buffer_size=_BLOCK,
            page_checksum_verification=True,
            thrift_string_size_limit=_MOST_STRING_BYTES,
            thrift_container_size_limit=_MOST_CHUNKS,
        ) as parquet,
    ):
        yield parquet


def _distinct(names: list[str], rows: int) -> list[str]:
    if len(set(names)) < len(names):
        raise Refusal("duplicate_columns", f"column names occur twice: {', '.join(sorted(names))}", rows)
    return names


def _code(err: Exception) -> str:
    said = str(err)
    if "decrypt" in said:
        return "encrypted"
    if "codec" in said:
        return "codec"
    return "unsupported" if isinstance(err, pa.ArrowNotImplementedError) else "corrupt"


def _serve(requests: queue.SimpleQueue[dict[str, Any]], reading: Reading) -> NoReturn:
    try:
        while True:
            reading.answer(**requests.get())
    except BrokenPipeError:
        os._exit(0)
    finally:
        # Whatever else went wrong has been printed; a half-sent answer must not look like a slow one.
        os._exit(1)


def main(memory_bytes: int, parent: int, mortal: bool) -> None:
    """Serve until standard input ends, which it does at the latest when the parent does."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    confine(memory_bytes, parent, mortal)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_serve, args=(requests, Reading(out, memory_bytes)), daemon=True).start()
    send(out, ready=True)
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "mortal")
