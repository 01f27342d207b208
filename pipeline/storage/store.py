"""The store of the job's own data sets: reading, staging, publishing, withdrawing and sweeping, on every file system alike.

Nothing unfinished is ever inside a data set's root, where readers would see it: work lies in the sibling folder
``<root>.staging`` (for an object store: in a local scratch folder), superseded files in ``<root>.versions``.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import NoData
from pipeline.storage import parquet
from pipeline.storage.parquet import UNCHANGED, Staged
from pipeline.storage.places import (
    STAGED,
    Place,
    answering,
    digest,
    fetched,
    keep,
    remove_older,
    replace,
    sync,
    temporary,
)
from pipeline.storage.targets import Published, Target, join, sibling

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa


class Storage:
    """All reads and writes of published files, on the local disk and on any fsspec file system.

    ``scratch`` is a local folder with room for one file per running task: object stores are read and written through
    it. What the file system refuses raises `StorageUnavailable`, which says what was left behind.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

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
            fetched(uri, self._scratch) as path,
            parquet.opened(path, uri) as opened,
        ):
            return parquet.table(opened, uri, columns)

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


def _absent(uri: str) -> NoData:
    return NoData(f"{uri} does not exist", next_step="score its interval, or correct the URI")
