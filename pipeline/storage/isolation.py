"""Reading in a process of its own, which may crash, hang or run out of memory: the parent's side of `pipeline.storage.reader`.

Must not parse anything of an input file; what comes back is checked before it is believed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import StorageUnavailable
from pipeline.storage import reader as program
from pipeline.storage.refusals import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PIPE_BYTES = 1 << 20
_STARTING_SECONDS = 60.0
_ENDING_SECONDS = 5.0
_MOST_JSON_BYTES = 64 << 20
_MOST_THREADS = 4
_HEADER = program.HEADER


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What reading one file may take: memory of the reading process, and seconds without a sign of progress."""

    memory_bytes: int = 1280 << 20
    stall_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file declares about itself: its columns, and the number of its rows."""

    schema: pa.Schema
    rows: int


class Refused(Exception):
    """The file cannot be used; ``code`` is one of `pipeline.storage.refusals.REFUSALS`."""

    def __init__(self, code: str, got: str, rows: int | None = None) -> None:
        super().__init__(got)
        self.code, self.got, self.rows = code, got, rows


class ColumnsAbsent(Exception):
    """The file lacks the columns ``absent``; it has ``names``."""

    def __init__(self, absent: list[str], names: list[str]) -> None:
        super().__init__(", ".join(absent))
        self.absent, self.names = absent, names


class Reader:
    """One reading process; it answers one request at a time."""

    def __init__(self, limits: ReadLimits) -> None:
        self.busy = False
        self._limits, self._owner = limits, os.getpid()
        self._ready = False
        self._rows: int | None = None
        self._errors, said = os.pipe()
        # A process that prints without end must not wait for somebody to read it.
        os.set_blocking(said, False)
        os.set_blocking(self._errors, False)
        try:
            self._process = subprocess.Popen(
                _command(limits),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
                cwd="/",
                env=_environment(),
                # An interrupt of the terminal is for the parent.
                start_new_session=True,
            )
        except BaseException:
            os.close(self._errors)
            raise
        finally:
            os.close(said)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        if sys.platform == "linux":
            with suppress(OSError):
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._poll = select.poll()
        self._poll.register(self._pipe, select.POLLIN)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether the process is there for another request of this process (and not of one that forked it)."""
        return not self.busy and self._owner == os.getpid() and self._process.poll() is None

    def footer(self, path: str) -> Footer:
        """What a local file declares; raises `Refused`, and ``OSError`` for what the disk refuses."""
        schema = None
        for content in self._answer(path=path):
            schema = _stream(content).schema
        if schema is None or self._rows is None:
            raise Refused("crashed", "an answer without a schema")
        return Footer(schema, self._rows)

    def batches(
        self, path: str, columns: Sequence[str] | None, batch_rows: int, codes: Sequence[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a local file; raises `Refused`, `ColumnsAbsent`, and ``OSError`` for what the disk refuses."""
        names, read = None if columns is None else list(columns), 0
        for content in self._answer(path=path, columns=names, batch_rows=batch_rows, codes=list(codes)):
            try:
                batch = _stream(content).read_next_batch()
                _require_sound(batch)
            except (pa.ArrowException, OSError, StopIteration) as err:
                raise Refused("corrupt", str(err), self._rows) from err
            read += batch.num_rows
            # What was received lives as long as any column of the batch; nothing here may hold it longer.
            del content
            yield batch
        if read != self._rows:
            raise Refused("corrupt", f"{read} rows where its footer promises {self._rows}", self._rows)

    def kill(self) -> None:
        """End the process, whatever it is doing, and wait for its end."""
        if self._owner != os.getpid() or self._errors < 0:
            return
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        os.close(self._errors)
        self._errors = -1

    def _answer(self, **request: Any) -> Iterator[pa.Buffer]:
        """The Arrow streams of one answer, up to its end."""
        self._await_start()
        self.busy, self._rows = True, None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise self._fallen() from None
        while True:
            kind, content = self._frame(self._limits.stall_seconds)
            if kind == b"A":
                yield content
                del content
                continue
            message = _message(content)
            if "done" in message:
                self.busy = False
                if "absent" in message:
                    raise ColumnsAbsent(message["absent"], message["names"])
                return
            self._rows = message.get("rows")
            if "errno" in message:
                self.busy = False
                raise OSError(int(message["errno"]), str(message["text"]))
            if "code" in message:
                # A process that has run out of memory once is not trusted to be well.
                self.busy = message["code"] == "memory"
                raise Refused(message["code"], message["got"], self._rows)

    def _await_start(self) -> None:
        if self._ready:
            return
        try:
            self._frame(_STARTING_SECONDS)
        except Refused as err:
            raise StorageUnavailable(
                "the process that reads input files did not start",
                got=err.got,
                next_step="check memory and PIPELINE_READ_MEMORY_MB, and run the same command again",
            ) from err
        self._ready = True

    def _frame(self, seconds: float) -> tuple[bytes, pa.Buffer]:
        header = bytearray(_HEADER.size)
        self._fill(memoryview(header), seconds)
        kind, length = _HEADER.unpack(header)
        if length > (self._limits.memory_bytes if kind == b"A" else _MOST_JSON_BYTES):
            raise Refused("crashed", f"an answer of {length} bytes", self._rows)
        content = pa.allocate_buffer(length)
        self._fill(memoryview(content), seconds)
        return kind, content

    def _fill(self, view: memoryview, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while view:
            if self._errors < 0:
                raise OSError(errno.EPIPE, "the inputs were closed while they were being read")
            if not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise self._stalled(seconds)
            count = os.readv(self._pipe, [view])
            if not count:
                raise self._fallen()
            view = view[count:]

    def _stalled(self, seconds: float) -> Exception:
        with suppress(OSError):
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "D":  # waits for the disk, which is no fault of the file
                return OSError(errno.ETIMEDOUT, f"the storage did not answer for {seconds:g} s")
        return Refused("timeout", f"nothing for {seconds:g} s", self._rows)

    def _fallen(self) -> Refused | StorageUnavailable:
        """What the end of the process says: about the file, or about the machine."""
        status: int | None = None
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_ENDING_SECONDS)
        said = b""
        with suppress(OSError):
            said = os.read(self._errors, 1 << 16)
        text = said.decode(errors="replace").strip()
        name = signal.Signals(-status).name if status and status < 0 else f"exit status {status}"
        if status == -signal.SIGKILL:
            # The process keeps within a limit of its own; somebody else, or a machine without memory, has ended it.
            return StorageUnavailable(
                "the process that reads input files was ended from outside",
                got=name,
                next_step="check the machine's free memory and run the same command again",
            )
        # Libraries abort when the memory they ask for is refused.
        starved = any(word in text for word in ("bad_alloc", "MemoryError", "out of memory"))
        last = text.splitlines()[-1] if text else ""
        # pyarrow aborts when the metadata of a column is encrypted, or contradicts itself.
        codes = {"decrypt": "encrypted", "parquet::": "corrupt"}
        code = "memory" if starved else next((codes[word] for word in codes if word in text), "crashed")
        return Refused(code, f"{name}: {last}" if last else name, self._rows)


class Readers:
    """The reading processes of one `Inputs`: one, as long as no file is opened while another one is being read."""

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._idle: list[Reader] = []
        self._all: set[Reader] = set()

    def warm(self) -> None:
        """Start a process, if there is none, and do not wait until it is ready."""
        if not any(reader.usable for reader in self._all):
            self._idle.append(self._started())

    @contextmanager
    def lent(self) -> Iterator[Reader]:
        """A reader for one request; a process that did not come to the end of its answer is ended."""
        reader = self._take()
        try:
            yield reader
        finally:
            if reader.usable and not self._idle:
                self._idle.append(reader)
            else:
                self._end(reader)

    def close(self) -> None:
        """End all processes, also those in the middle of an answer."""
        self._idle.clear()
        for reader in list(self._all):
            self._end(reader)

    def _end(self, reader: Reader) -> None:
        self._all.discard(reader)
        reader.kill()

    def _take(self) -> Reader:
        with suppress(IndexError):
            while not (reader := self._idle.pop()).usable:
                self._end(reader)
            return reader
        return self._started()

    def _started(self) -> Reader:
        reader = Reader(self._limits)
        self._all.add(reader)
        return reader


def _command(limits: ReadLimits) -> list[str]:
    libraries = str(Path(pa.__file__).parents[1])
    # The kernel takes a thread that ends for the parent's end, unless it is the main one.
    mortal = "mortal" if threading.current_thread() is threading.main_thread() else "watched"
    numbers = [str(limits.memory_bytes), str(os.getpid())]
    return [sys.executable, "-I", "-S", "-B", str(program.__file__), libraries, *numbers, mortal]


def _environment() -> dict[str, str]:
    """Nothing of the parent's environment but where shared libraries lie: it may hold secrets."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(min(_MOST_THREADS, os.cpu_count() or 1))
    passed = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    # Every arena and every pool of threads reserves memory that counts towards the limit.
    return {
        **passed,
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": threads,
        "MALLOC_ARENA_MAX": "2",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }


def _message(content: pa.Buffer) -> dict[str, Any]:
    """One message, of which only what the protocol knows is believed."""
    try:
        said = json.loads(content.to_pybytes())
        message = {
            name: said[name] for name in ("ready", "rows", "done", "absent", "names", "errno", "code") if name in said
        }
        message |= {name: str(said[name]) for name in ("got", "text") if name in said}
    except (ValueError, TypeError) as err:
        raise Refused("crashed", "an answer that is none") from err
    if not isinstance(message.get("rows"), int | None) or message.get("code", "crashed") not in REFUSALS:
        raise Refused("crashed", "an answer that is none")
    return message


def _stream(content: pa.Buffer) -> pa.RecordBatchStreamReader:
    return pa.ipc.open_stream(content)


def _require_sound(batch: pa.RecordBatch) -> None:
    """Raise ``ArrowInvalid`` unless every offset and index of the batch stays within its buffers."""
    batch.validate()
    for column in batch.columns:
        stored = column.storage if isinstance(column, pa.ExtensionArray) else column
        # Bytes that are not UTF-8 make a bad row, not a bad file.
        stored.view(_untexted(stored.type)).validate(full=True)


def _untexted(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in place of texts."""
    types = pa.types
    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_string_view(kind):
        return pa.binary_view()
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _untexted(kind.value_type), kind.ordered)
    if types.is_struct(kind):
        return pa.struct([field.with_type(_untexted(field.type)) for field in kind])
    if types.is_map(kind):
        key, item = (field.with_type(_untexted(field.type)) for field in (kind.key_field, kind.item_field))
        return pa.map_(key, item, kind.keys_sorted)
    if types.is_list(kind) or types.is_large_list(kind):
        value = kind.value_field.with_type(_untexted(kind.value_type))
        return pa.list_(value) if types.is_list(kind) else pa.large_list(value)
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_untexted(kind.value_type)), kind.list_size)
    return kind
