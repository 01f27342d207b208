"""Input files, which nobody vouches for: listed once, frozen by digest, read under suspicion, looked at again after.

Must not write anything but local copies of remote files.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import InputChanged, PipelineError
from pipeline.reports import InputFile
from pipeline.storage import parquet
from pipeline.storage.places import Place, State, answering, fetched
from pipeline.storage.targets import join, refuse_escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa


class Inputs:
    """All reads of input partitions: features, and labels.

    ``scratch`` is a local folder with room for one file: object stores are read through it. What the file system refuses
    raises `StorageUnavailable`.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def files(self, root: str, partitions: Sequence[str], known: Sequence[InputFile] = ()) -> list[InputFile]:
        """Every ``*.parquet`` file of the named partitions, sorted by path, with size and SHA-256.

        ``""`` names the root with all below it. Files and folders whose names start with ``_`` or ``.`` are skipped;
        a missing folder has no files. What is named like a file but is none (a dangling link, a pipe) raises
        `ContractViolation`: to skip it would lose rows without a word. A file that is one of the ``known``, judged by path,
        size and mark, keeps the digest found then and is not read again.
        """
        paths: set[str] = set()
        for partition in partitions:
            if partition:
                refuse_escape(partition)
            uri = join(root, partition)
            with answering(f"listing {uri}"):
                paths.update(join(partition, path) if partition else path for path in _parquet_files(uri))
        earlier = {file.path: file for file in known}
        return [_as_found(join(root, path), path, earlier.get(path)) for path in sorted(paths)]

    def schema(self, file: InputFile) -> pa.Schema:
        """The columns of one input file, from its footer; an unreadable file raises `ContractViolation`."""
        with answering(f"reading {file.uri}", absent=_gone(file)):
            return parquet.schema(file.uri)

    def batches(
        self, files: Sequence[InputFile], columns: Sequence[str] | None = None, batch_rows: int = parquet.ROW_GROUP
    ) -> Iterator[pa.RecordBatch]:
        """The rows of ``files`` in order, at most ``batch_rows`` at a time; ``columns`` projects, in the given order.

        Page checksums are verified and folders never become columns. Raises `ContractViolation` for a corrupt file
        or an absent column, and `InputChanged` when a file is not, or does not stay, the one that was planned.
        """
        for file in files:
            before = _planned_state(file)
            try:
                with (
                    answering(f"reading {file.uri}", absent=_gone(file)),
                    self._frozen(file) as path,
                    parquet.opened(path, file.uri) as opened,
                ):
                    yield from parquet.batches(opened, file.uri, columns, batch_rows)
            except PipelineError:
                # A file that is rewritten under its reader looks corrupt; the rewriting is what to report.
                _require_same(file, before)
                raise
            _require_same(file, before)

    @contextmanager
    def _frozen(self, file: InputFile) -> Iterator[Path]:
        """The file on this machine, for the time of reading; a fetched copy must have the planned digest."""
        with fetched(file.uri, self._scratch) as path:
            if Place.of(file.uri).local is None and (got := Place.of(str(path)).digest()[0]) != file.sha256:
                raise _changed(file.uri, f"sha256 {file.sha256}", f"sha256 {got}")
            yield path


def _parquet_files(uri: str) -> Iterator[str]:
    """The paths below ``uri`` of the files that readers see."""
    for path, kind in Place.of(uri).entries():
        if not path.endswith(".parquet") or any(part[0] in "._" for part in path.split("/")):
            continue
        if kind != "file":
            raise parquet.unreadable(join(uri, path), "not a regular file")
        yield path


def _as_found(uri: str, path: str, known: InputFile | None) -> InputFile:
    with answering(f"reading {uri}", absent=_changed(uri, "the file that was listed", "no file")):
        place = Place.of(uri)
        size, marks = place.state()
        if known and (known.size, known.mark) == (size, _mark(marks)):
            return known.model_copy(update={"uri": uri})
        sha256, size = place.digest()
    return InputFile(uri=uri, path=path, size=size, sha256=sha256, mark=_mark(marks))


def _mark(marks: tuple[str, ...]) -> str:
    return " ".join(marks)


def _planned_state(file: InputFile) -> State:
    """The state of an input file, which must have the planned size."""
    with answering(f"looking up {file.uri}", absent=_gone(file)):
        state = Place.of(file.uri).state()
    if state[0] != file.size:
        raise _changed(file.uri, f"{file.size} bytes", f"{state[0]} bytes")
    return state


def _require_same(file: InputFile, before: State) -> None:
    if _planned_state(file) != before:
        raise _changed(file.uri, "one file from the first to the last byte", "a newer file")


def _changed(uri: str, expected: str, got: str) -> InputChanged:
    return InputChanged(f"{uri} changed since it was planned", expected=expected, got=got, next_step="run again")


def _gone(file: InputFile) -> InputChanged:
    return _changed(file.uri, f"{file.size} bytes", "no file")
