"""The store: listing, reading, staging, publishing, withdrawing and sweeping, on every file system alike.

Nothing unfinished is ever inside a data set's root, where readers would see it: work lies in the sibling folder
``<root>.staging`` (for an object store: in a local scratch folder), superseded files in ``<root>.versions``.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import InputChanged, NoData, PipelineError
from pipeline.reports import InputFile
from pipeline.storage import parquet
from pipeline.storage.parquet import UNCHANGED, Staged
from pipeline.storage.places import (
    STAGED,
    Place,
    State,
    answering,
    digest,
    keep,
    remove_older,
    replace,
    sync,
    temporary,
)
from pipeline.storage.targets import Published, Target, join, refuse_escape, sibling

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa


class Storage:
    """All reads and writes of data files, on the local disk and on any fsspec file system.

    ``scratch`` is a local folder with room for one file per running task: object stores are read and written through
    it. What the file system refuses raises `StorageUnavailable`, which says what was left behind.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def inputs(self, root: str, partitions: Sequence[str]) -> list[InputFile]:
        """Every ``*.parquet`` file of the named partitions, sorted by path, with size and SHA-256.

        ``""`` names the root with all below it. Files and folders whose names start with ``_`` or ``.`` are skipped;
        a missing folder has no files. What is named like a file but is none (a dangling link, a pipe) raises
        `ContractViolation`: to skip it would lose rows without a word.
        """
        paths: set[str] = set()
        for partition in partitions:
            if partition:
                refuse_escape(partition)
            uri = join(root, partition)
            with answering(f"listing {uri}"):
                paths.update(join(partition, path) if partition else path for path in _parquet_files(uri))
        return [_as_found(join(root, path), path) for path in sorted(paths)]

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
                    self._local_copy(file.uri, file.sha256) as path,
                    parquet.opened(path, file.uri) as opened,
                ):
                    yield from parquet.batches(opened, file.uri, columns, batch_rows)
            except PipelineError:
                # A file that is rewritten under its reader looks corrupt; the rewriting is what to report.
                _require_same(file, before)
                raise
            _require_same(file, before)

    @contextmanager
    def stage(self, target: Target, schema: pa.Schema, metadata: Mapping[str, str] | None = None) -> Iterator[Staged]:
        """A new file for ``target``, unseen until `Staged.publish`; leaving without publishing removes it.

        ``metadata`` goes into the file's footer. Equal rows and metadata give equal bytes, however they were batched.
        """
        with answering(f"staging {target.uri}", UNCHANGED):
            path, commit = self._staging(target), partial(self._commit, target)
            staged = Staged(path, target.uri, schema, metadata or {}, commit)
        try:
            yield staged
        finally:
            staged.discard()

    def metadata(self, target: Target) -> dict[str, str] | None:
        """What was given to `stage` and `Staged.publish` for the published file; ``None`` when nothing is published.

        A published file that cannot be read raises `ContractViolation`: taking it for absent would bury it.
        """
        if not self.exists(target.uri):
            return None
        advice = f"copy the latest file of {target.versions} over it, or move it away and score the interval again"
        with answering(f"reading {target.uri}"):
            return parquet.own_metadata(parquet.footer(target.uri, advice))

    def published(self, target: Target) -> Published:
        """The file that ``target`` names, as it is now; raises `NoData` when nothing is published."""
        with answering(f"reading {target.uri}", absent=_absent(target.uri)):
            return Published(target.uri, Place.of(target.uri).digest()[0], parquet.footer(target.uri).num_rows)

    def read(self, uri: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of one published file; an absent file raises `NoData`, an absent column `ContractViolation`."""
        with (
            answering(f"reading {uri}", absent=_absent(uri)),
            self._local_copy(uri) as path,
            parquet.opened(path, uri) as opened,
        ):
            return parquet.table(opened, uri, columns)

    def file_digest(self, uri: str) -> str:
        """SHA-256 (hex) of a file's bytes; an absent file raises `NoData`."""
        with answering(f"reading {uri}", absent=_absent(uri)):
            return Place.of(uri).digest()[0]

    def exists(self, uri: str) -> bool:
        """Whether the file or folder is there; a storage that does not answer raises instead of saying no."""
        with answering(f"looking up {uri}"):
            try:
                Place.of(uri).state()
            except FileNotFoundError:
                return False
            return True

    def write_text(self, uri: str, text: str) -> None:
        """Replace a small UTF-8 file (a manifest, an HTML report) as a whole."""
        place = Place.of(uri)
        with answering(f"writing {uri}", "the file, if there was one, is unchanged"):
            if (final := place.local) is None:
                place.fs.pipe_file(place.path, text.encode())
                return
            staged = temporary(final.parent, f".{final.name}")
            try:
                staged.write_bytes(text.encode())
                replace(staged, final)
            finally:
                staged.unlink(missing_ok=True)

    def read_text(self, uri: str) -> str | None:
        """The text of a small UTF-8 file; ``None`` when it is absent."""
        if not self.exists(uri):
            return None
        with answering(f"reading {uri}"), Place.of(uri).open() as stream:
            return stream.read().decode()

    def withdraw(self, target: Target) -> bool:
        """Take a partition back: keep its file under ``.versions``, then remove it; ``False`` when there is none."""
        place = Place.of(target.uri)
        with answering(f"withdrawing {target.uri}", "the file is still published, or kept under .versions"):
            if self._keep(target) is None:
                return False
            place.fs.rm_file(place.path)
            if final := place.local:
                sync(final.parent)
        return True

    def sweep(self, root: str, *, staged_before: datetime, superseded_before: datetime) -> list[str]:
        """Remove by age what killed processes left in staging, and superseded files; the URIs that were removed.

        ``staged_before`` must lie further back than any task may run: work in progress is not told from leftovers.
        """
        with answering(f"sweeping beside {root}", "some leftovers may remain"):
            return [
                *remove_older(sibling(root, "staging"), staged_before),
                *remove_older(sibling(root, "versions"), superseded_before),
                *remove_older(sibling(root, "manifest"), staged_before, only=STAGED),
                *remove_older(str(self._scratch), staged_before, only=STAGED),
            ]

    def _staging(self, target: Target) -> Path:
        """A new local path from which ``target`` can be published; a rename must not cross file systems."""
        return temporary(Place.of(target.staging).local or self._scratch, target.partition.replace("/", "~"))

    def _commit(self, target: Target, staged: Path, sha256: str) -> None:
        """Make a complete staged file the published one, unless the published one has the same bytes."""
        if self._keep(target, unless=sha256) == sha256:
            return
        place = Place.of(target.uri)
        if (final := place.local) is None:
            # One whole-object put: a stream to the final key would publish a truncated object when it breaks off.
            place.fs.put_file(str(staged), place.path)
        else:
            replace(staged, final)

    def _keep(self, target: Target, unless: str = "") -> str | None:
        """The digest of the published file (``None``: there is none), which is now also under ``.versions``.

        A file whose digest is ``unless`` is left alone.
        """
        place = Place.of(target.uri)
        try:
            source = place.open()
        except FileNotFoundError:
            return None
        with source:
            sha256, _ = digest(source)
            version = Place.of(join(target.versions, f"{sha256}.parquet"))
            if sha256 != unless and place.local and version.local:
                keep(source, place.local, self._staging(target), version.local)
            elif sha256 != unless:
                version.fs.makedirs(str(PurePosixPath(version.path).parent), exist_ok=True)
                version.fs.cp_file(place.path, version.path)
            return sha256

    @contextmanager
    def _local_copy(self, uri: str, sha256: str | None = None) -> Iterator[Path]:
        """The file on this machine: a local one as it is, a remote one fetched as a whole for the time of reading.

        Range reads of an object that is replaced meanwhile mix old and new row groups silently; a copy cannot, and
        its digest is compared with the planned one.
        """
        place = Place.of(uri)
        if local := place.local:
            yield local
            return
        copy = temporary(self._scratch, "copy")
        try:
            place.fs.get_file(place.path, str(copy))
            if sha256 and (got := Place.of(str(copy)).digest()[0]) != sha256:
                raise _changed(uri, f"sha256 {sha256}", f"sha256 {got}")
            yield copy
        finally:
            copy.unlink(missing_ok=True)


def _parquet_files(uri: str) -> Iterator[str]:
    """The paths below ``uri`` of the files that readers see."""
    for path, kind in Place.of(uri).entries():
        if not path.endswith(".parquet") or any(part[0] in "._" for part in path.split("/")):
            continue
        if kind != "file":
            raise parquet.unreadable(join(uri, path), "not a regular file")
        yield path


def _as_found(uri: str, path: str) -> InputFile:
    with answering(f"reading {uri}", absent=_changed(uri, "the file that was listed", "no file")):
        sha256, size = Place.of(uri).digest()
    return InputFile(uri=uri, path=path, size=size, sha256=sha256)


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


def _absent(uri: str) -> NoData:
    return NoData(f"{uri} does not exist", next_step="score its interval, or correct the URI")
