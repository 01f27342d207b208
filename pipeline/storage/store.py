"""The store of the job's own data sets: reading, staging, publishing, withdrawing and sweeping, on every file system alike.

Nothing unfinished is ever inside a data set's root, where readers would see it: work lies in the sibling folder
``<root>.staging`` (for an object store: in a local scratch folder), superseded files in ``<root>.versions``.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import NoData, PipelineError, PublishConflict
from pipeline.failpoints import reach
from pipeline.storage import parquet
from pipeline.storage.disk import Disk
from pipeline.storage.objects import S3, Objects, serves_s3
from pipeline.storage.places import STAGED, Place, answering, fetched, move, older, remove_where, replace, temporary
from pipeline.storage.staged import UNCHANGED, Staged
from pipeline.storage.targets import Current, Published, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa

    from pipeline.storage.places import Present

# A store may refuse a request although nobody else was there; so often is it asked again.
_ATTEMPTS = 5
_REFUSED = "the store refuses the request again and again"


class Storage:
    """All reads and writes of published files, on the local disk and on any fsspec file system.

    ``scratch`` is a local folder with room for one file per running task: object stores are read and written through
    it. What the file system refuses raises `StorageUnavailable`, which says what was left behind.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def current(self, target: Target) -> Current:
        """What is published now, to be given to `stage` and `withdraw` as ``seen``.

        A published file that cannot be read raises `ContractViolation`: taking it for absent would bury it.
        """
        advice = f"copy the latest file of {target.versions} over it, or move it away and score the interval again"
        with answering(f"reading {target.uri}"), _shelf(target).opened() as present:
            if present is None:
                return Current(None, None)
            return Current(parquet.own_metadata(parquet.footer(present.stream, target.uri, advice)), present.token)

    @contextmanager
    def stage(
        self,
        target: Target,
        schema: pa.Schema,
        metadata: Mapping[str, str] | None = None,
        *,
        seen: Current | None = None,
    ) -> Iterator[Staged]:
        """A new file for ``target``, unseen until `Staged.publish`; leaving without publishing removes it.

        ``metadata`` goes into the file's footer. Equal rows and metadata give equal bytes, however they were batched.
        ``seen`` is what the caller's decision to publish rests on, by default what is there now: when that is no longer
        what is published, publishing raises `PublishConflict`.
        """
        with answering(f"staging {target.uri}", UNCHANGED):
            shelf = _shelf(target)
            if seen is None:
                with shelf.opened() as present:
                    seen = Current(None, _token(present))
            path = shelf.staging(self._scratch)
            staged = Staged(path, target.uri, schema, metadata or {}, partial(_commit, target, seen))
        try:
            yield staged
        finally:
            staged.discard()

    def withdraw(self, target: Target, *, seen: Current | None = None) -> bool:
        """Take a partition back: keep its file under ``.versions``, then remove it; ``False`` when there is none.

        Raises `PublishConflict` when the published file is not the one that was ``seen``.
        """
        shelf = _shelf(target)
        with (
            answering(f"withdrawing {target.uri}", "the file is still published, or kept under .versions"),
            shelf.locked(),
        ):
            for _ in range(_ATTEMPTS):
                with shelf.opened() as present:
                    if present is None:
                        return False
                    if seen is not None and present.token != seen.token:
                        raise _conflict("withdrawing", target, seen, present, "the published file stays")
                    if shelf.keep(present) and shelf.remove(present):
                        shelf.sync()
                        return True
            raise OSError(_REFUSED)

    def snapshot(self, target: Target) -> str:
        """The path or URI of a file with the bytes that are published now, which no later publishing changes.

        For readers that open a path several times or read for long. It lives as long as superseded files do (see
        `sweep`): on the local disk counted from the moment it was superseded, elsewhere from this call. Raises `NoData`
        when nothing is published.
        """
        shelf = _shelf(target)
        with answering(f"keeping {target.uri}"), shelf.locked():
            for _ in range(_ATTEMPTS):
                with shelf.opened() as present:
                    if present is None:
                        raise _absent(target.uri)
                    if kept := shelf.keep(present):
                        return kept
            raise OSError(_REFUSED)

    def published(self, target: Target) -> Published:
        """The file that ``target`` names, as it is now; raises `NoData` when nothing is published."""
        with answering(f"reading {target.uri}"), _shelf(target).opened() as present:
            if present is None:
                raise _absent(target.uri)
            return Published(target.uri, present.sha256, parquet.footer(present.stream, target.uri).num_rows)

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

    def write_text(self, uri: str, text: str, *, staging: str | None = None, durable: bool = True) -> None:
        """Replace a small UTF-8 file (a manifest, an HTML report) as a whole.

        ``staging`` is the folder of the unfinished file, on the same file system and swept by `sweep`; by default the file's
        own, where it would stay if the process died. One that is not ``durable`` may be gone or empty after a power cut.
        """
        place = Place.of(uri)
        with answering(f"writing {uri}", "the file, if there was one, is unchanged"):
            if (final := place.local) is None:
                place.fs.pipe_file(place.path, text.encode())
                return
            staged = temporary(Path(Place.of(staging).path) if staging else final.parent, f".{final.name}")
            try:
                staged.write_bytes(text.encode())
                (replace if durable else move)(staged, final)
            finally:
                staged.unlink(missing_ok=True)

    def read_text(self, uri: str) -> str | None:
        """The text of a small UTF-8 file; ``None`` when it is absent."""
        if not self.exists(uri):
            return None
        with answering(f"reading {uri}"), Place.of(uri).open() as stream:
            return stream.read().decode()

    def sweep(self, root: str, *, staged_before: datetime, superseded_before: datetime) -> list[str]:
        """Remove by age what killed processes left in staging, and superseded files; the URIs that were removed.

        ``staged_before`` must lie further back than any task may run: work in progress is not told from leftovers. A
        version that is still published (see `snapshot`) is never removed from the local disk.
        """
        with answering(f"sweeping beside {root}", "some leftovers may remain"):
            return [
                *_kind(root).sweep(root, staged_before, superseded_before),
                *remove_where(str(self._scratch), older(staged_before, only=STAGED)),
            ]


def _kind(uri: str) -> type[Disk] | type[Objects]:
    """How files are replaced on the store that serves the URI."""
    place = Place.of(uri)
    if place.local:
        return Disk
    return S3 if serves_s3(place.fs) else Objects


def _shelf(target: Target) -> Disk | Objects:
    return _kind(target.uri)(target)


def _token(present: Present | None) -> str | None:
    return present.token if present else None


def _commit(target: Target, seen: Current, staged: Path, sha256: str) -> None:
    """Make a complete staged file the published one, unless that has the same bytes already."""
    shelf = _shelf(target)
    with shelf.locked():
        reach("publish.locked")
        for _ in range(_ATTEMPTS):
            with shelf.opened() as present:
                if present and present.sha256 == sha256:
                    return
                if _token(present) != seen.token:
                    raise _conflict(
                        "publishing", target, seen, present, "its file stays, and the staged one is removed"
                    )
                if present and not shelf.keep(present):
                    continue
                reach("publish.kept")
                if shelf.put(staged, sha256, present):
                    break
        else:
            raise OSError(_REFUSED)
        reach("publish.replaced")
        shelf.sync()
        reach("publish.synced")


def _conflict(doing: str, target: Target, seen: Current, present: Present | None, left_behind: str) -> PublishConflict:
    before, now = "no published file", "no published file"
    if seen.token:
        before = f"the file seen at the start, {seen.token}, fingerprint {(seen.metadata or {}).get('fingerprint')}"
    if present:
        now = f"sha256 {present.sha256}, fingerprint {_fingerprint(present, target.uri)}"
    return PublishConflict(
        f"not {doing} {target.uri}: another run has published or withdrawn it in the meantime",
        expected=before,
        got=now,
        left_behind=left_behind,
        next_step="run the same command again: it starts from what is published now",
    )


def _fingerprint(present: Present, uri: str) -> str | None:
    try:
        return parquet.own_metadata(parquet.footer(present.stream, uri)).get("fingerprint")
    except PipelineError:
        return None  # the file cannot be read; its digest says which it is


def _absent(uri: str) -> NoData:
    return NoData(f"{uri} does not exist", next_step="score its interval, or correct the URI")
