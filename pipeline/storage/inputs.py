"""Input files, which nobody vouches for: listed once, frozen by digest, read under suspicion, looked at again after.

Files are opened in a process of their own (see `pipeline.storage.isolation`). Must not parse anything of them, and must not
write anything but local copies of remote files.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import ContractViolation, InputChanged, PipelineError
from pipeline.reports import InputFile
from pipeline.storage.copies import Copies
from pipeline.storage.isolation import ColumnsAbsent, Readers, ReadLimits, Refused
from pipeline.storage.parquet import ROW_GROUP
from pipeline.storage.places import Place, State, answering
from pipeline.storage.refusals import rejected
from pipeline.storage.spill import Roll, Spill
from pipeline.storage.targets import join, refuse_escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from pipeline.storage.isolation import Footer, Reader

_KEPT_BYTES = 1 << 30


class Inputs:
    """All reads of input partitions: features, and labels. End it with `close`.

    ``scratch`` is a local folder with room for one file and 1 GiB more: object stores are read through it. ``limits`` hold for
    every file. What the file system refuses raises `StorageUnavailable`.
    """

    def __init__(self, scratch: Path, limits: ReadLimits | None = None) -> None:
        self._scratch = scratch
        self._copies = Copies(scratch, _KEPT_BYTES)
        self._readers = Readers(limits or ReadLimits())
        weakref.finalize(self, _end, os.getpid(), self._readers, self._copies)

    def close(self) -> None:
        """End the reading processes and remove the copies of remote files. Rows that are being read are given up."""
        _end(os.getpid(), self._readers, self._copies)

    def files(self, root: str, partitions: Sequence[str], known: Sequence[InputFile] = ()) -> list[InputFile]:
        """Every ``*.parquet`` file of the named partitions, sorted by path, with size and SHA-256.

        ``""`` names the root with all below it. Files and folders whose names start with ``_`` or ``.`` are skipped;
        a missing folder has no files. What is named like a file but is none (a dangling link, a pipe) raises
        `FileRejected`: to skip it would lose rows without a word. A file that is one of the ``known``, judged by path,
        size and mark, keeps the digest found then and is not read again.
        """
        # It is ready to read by the time that the files are known and the model is loaded.
        self._readers.warm()
        earlier = {file.path: file for file in known}
        return [self._as_found(join(root, path), path, earlier.get(path)) for path in _listed(root, partitions)]

    def state(self, root: str, partitions: Sequence[str]) -> str:
        """SHA-256 (hex) of what the file system tells of the files that `files` would find; none of them is read.

        While it is the same, so are the files. Empty when there is none. Raises what `files` raises of a listing.
        """
        digest = hashlib.sha256()
        for path in (paths := _listed(root, partitions)):
            uri = join(root, path)
            with answering(f"looking up {uri}", absent=_changed(uri, "the file that was listed", "no file")):
                size, marks = Place.of(uri).state()
            digest.update(json.dumps([path, size, *marks]).encode())
        return digest.hexdigest() if paths else ""

    def footer(self, file: InputFile) -> Footer:
        """The columns and the number of rows that one input file declares; raises what `batches` raises."""
        with self._undisturbed(file, last=False) as (reader, path):
            return reader.footer(path)

    def schema(self, file: InputFile) -> pa.Schema:
        """The columns of one input file; raises what `batches` raises."""
        return self.footer(file).schema

    def batches(
        self,
        files: Sequence[InputFile],
        columns: Sequence[str] | None = None,
        batch_rows: int = ROW_GROUP,
        codes: Sequence[str] = (),
    ) -> Iterator[pa.RecordBatch]:
        """The rows of ``files`` in order, at most ``batch_rows`` at a time; ``columns`` projects, in the given order.

        The next rows are decoded while the caller works on the last ones. Page checksums are verified and folders never
        become columns. Texts may hold bytes that are not UTF-8; the text columns ``codes`` come as dictionaries where that
        is cheaper. Raises `FileRejected` for a file that cannot be used,
        with a code of `pipeline.storage.refusals`, `ContractViolation` for an absent column, and `InputChanged` when a
        file is not, or does not stay, the one that was planned.
        """
        for file in files:
            with self._undisturbed(file, last=True) as (reader, path):
                yield from reader.batches(path, columns, batch_rows, codes)

    def shelf(self) -> Spill:
        """Room on this machine's disk for what would grow with a partition; it is gone with the last use."""
        return Spill(self._scratch)

    def roll(self) -> Roll:
        """Room on this machine's disk for one column; it is gone with the last use."""
        return Roll(self._scratch)

    def _as_found(self, uri: str, path: str, known: InputFile | None) -> InputFile:
        with answering(f"reading {uri}", absent=_changed(uri, "the file that was listed", "no file")):
            place = Place.of(uri)
            size, marks = place.state()
            if known and (known.size, known.mark) == (size, _mark(marks)):
                return known.model_copy(update={"uri": uri})
            sha256, size = place.digest() if place.local else self._copies.digest(place, size)
        return InputFile(uri=uri, path=path, size=size, sha256=sha256, mark=_mark(marks))

    @contextmanager
    def _undisturbed(self, file: InputFile, *, last: bool) -> Iterator[tuple[Reader, str]]:
        """A reader, and the path of the file on this machine; the planned file, from before the first byte to the end."""
        before = _planned_state(file)
        try:
            with (
                answering(f"reading {file.uri}", absent=_gone(file)),
                self._frozen(file, last) as path,
                self._readers.lent() as reader,
                _explained(file),
            ):
                yield reader, path
        except PipelineError:
            # A file that is rewritten under its reader looks corrupt; the rewriting is what to report.
            _require_same(file, before)
            raise
        _require_same(file, before)

    @contextmanager
    def _frozen(self, file: InputFile, last: bool) -> Iterator[str]:
        """The path of the file on this machine; a copy of a remote one must have the planned digest."""
        place = Place.of(file.uri)
        if place.local:
            yield os.path.abspath(place.path)  # noqa: PTH100 - keeps links as they are
            return
        with self._copies.local(place, file.sha256, last=last) as copy:
            if copy.sha256 != file.sha256:
                raise _changed(file.uri, f"sha256 {file.sha256}", f"sha256 {copy.sha256}")
            yield str(copy.path.absolute())


def _end(owner: int, readers: Readers, copies: Copies) -> None:
    # The same object in a forked process must not end what its parent works with.
    if owner == os.getpid():
        readers.close()
        copies.clear()


@contextmanager
def _explained(file: InputFile) -> Iterator[None]:
    """Turn what the reader says of a file into this product's errors."""
    try:
        yield
    except Refused as err:
        raise rejected(file.uri, file.path, err.code, err.got, err.rows) from err
    except ColumnsAbsent as err:
        raise ContractViolation(
            f"{file.uri} lacks columns",
            expected=", ".join(err.absent),
            got=", ".join(err.names),
            next_step="correct the file or the job's columns",
        ) from err


def _listed(root: str, partitions: Sequence[str]) -> list[str]:
    paths: set[str] = set()
    for partition in partitions:
        if partition:
            refuse_escape(partition)
        uri = join(root, partition)
        with answering(f"listing {uri}"):
            paths.update(join(partition, path) if partition else path for path in _parquet_files(uri))
    return sorted(paths)


def _parquet_files(uri: str) -> Iterator[str]:
    """The paths below ``uri`` of the files that readers see."""
    for path, kind in Place.of(uri).entries():
        if not path.endswith(".parquet") or any(part[0] in "._" for part in path.split("/")):
            continue
        if kind != "file":
            raise rejected(join(uri, path), path, "not_a_file", "not a regular file")
        yield path


def _mark(marks: tuple[str, ...]) -> str:
    return " ".join(marks)


def _planned_state(file: InputFile) -> State:
    """The state of an input file, which must have the planned size, and the planned digest if its mark is another."""
    with answering(f"looking up {file.uri}", absent=_gone(file)):
        place = Place.of(file.uri)
        size, marks = state = place.state()
        if size != file.size:
            raise _changed(file.uri, f"{file.size} bytes", f"{size} bytes")
        # Some mounts number equal files anew.
        if file.mark and _mark(marks) != file.mark and place.digest()[0] != file.sha256:
            raise _newer(file)
    return state


def _require_same(file: InputFile, before: State) -> None:
    if _planned_state(file) != before:
        raise _newer(file)


def _changed(uri: str, expected: str, got: str) -> InputChanged:
    return InputChanged(f"{uri} changed since it was planned", expected=expected, got=got, next_step="run again")


def _newer(file: InputFile) -> InputChanged:
    return _changed(file.uri, "the file that was planned", "a newer file of the same size")


def _gone(file: InputFile) -> InputChanged:
    return _changed(file.uri, f"{file.size} bytes", "no file")
