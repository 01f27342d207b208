"""Any fsspec file system behind one small surface, with its errors made ours, and durable steps on the local disk.

Knows bytes and names only; must not know Parquet.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InvalidRequest, PipelineError, StorageUnavailable
from pipeline.storage.targets import join

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

# Names of unfinished files end with this, so that a sweep can tell them where they lie beside finished ones.
STAGED = ".staged"
BLOCK = 1 << 20
State = tuple[int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """A URI together with the file system that answers for it."""

    uri: str
    fs: Any
    path: str

    @classmethod
    def of(cls, uri: str) -> Place:
        """The place of a local path or fsspec URI; raises `InvalidRequest` when nothing serves its protocol."""
        try:
            fs, path = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as err:
            advice = "correct the URI, or install the package that serves it"
            raise InvalidRequest(f"cannot open {uri}", got=str(err), next_step=advice) from err
        # What another process has published since the last listing must be seen.
        fs.invalidate_cache()
        return cls(uri, fs, path)

    @property
    def local(self) -> Path | None:
        """The path when the place is on this machine's file system."""
        return Path(self.path) if isinstance(self.fs, LocalFileSystem) else None

    def open(self) -> BinaryIO:
        """The bytes, as a binary stream that the caller closes."""
        stream: BinaryIO = self.fs.open(self.path, "rb")
        return stream

    def state(self) -> State:
        """Size in bytes, and whatever else the file system tells that changes with the content."""
        info = self.fs.info(self.path)
        # A local file's "created" is its change time, which a new hard link moves.
        marks = ("mtime", "ino") if "mtime" in info else ("ETag", "etag", "LastModified", "last_modified", "created")
        return int(info["size"] or 0), tuple(str(info.get(mark)) for mark in marks)

    def digest(self) -> tuple[str, int]:
        """SHA-256 (hex) and number of the bytes."""
        with self.open() as stream:
            return digest(stream)

    def entries(self, relative: str = "") -> Iterator[tuple[str, str]]:
        """Everything below that is no folder: its path, prefixed with ``relative``, and its kind (``file``, ``other``).

        Links are followed. Nothing is listed for a place that does not exist.
        """
        try:
            listed = self.fs.ls(self.path, detail=True)
        except FileNotFoundError:
            return
        for entry in listed:
            if entry["name"].rstrip("/") == self.path.rstrip("/"):
                continue  # an object store lists the marker of a folder inside that folder
            name, kind = PurePosixPath(entry["name"]).name, entry["type"]
            if entry.get("islink"):
                with suppress(FileNotFoundError):  # a link to nothing stays what it is; a loop of links is an error
                    kind = self.fs.info(entry["name"])["type"]
            path = join(relative, name) if relative else name
            if kind == "directory":
                yield from Place(join(self.uri, name), self.fs, entry["name"]).entries(path)
            else:
                yield path, kind


@contextmanager
def answering(
    doing: str, left_behind: str = "nothing was written", absent: PipelineError | None = None
) -> Iterator[None]:
    """Turn the file system's errors into `StorageUnavailable`, and a missing file into ``absent`` when it is given."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as err:
        if absent is not None and isinstance(err, FileNotFoundError):
            raise absent from err
        # Clients of object stores raise classes of their own; other errors that are no OSError are defects of ours.
        if not isinstance(err, OSError) and type(err).__module__.split(".")[0] in ("builtins", "pyarrow"):
            raise
        raise StorageUnavailable(
            f"{doing} failed",
            got=f"{type(err).__name__}: {err}",
            left_behind=left_behind,
            next_step="check the storage (reachable, permitted, space left) and run the same command again",
        ) from err


@contextmanager
def fetched(uri: str, scratch: Path) -> Iterator[Path]:
    """The file on this machine: a local one as it is, a remote one copied as a whole into ``scratch`` for the time being.

    Range reads of an object that is replaced meanwhile mix old and new row groups silently; a copy cannot.
    """
    place = Place.of(uri)
    if local := place.local:
        yield local
        return
    copy = temporary(scratch, "copy")
    try:
        place.fs.get_file(place.path, str(copy))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def digest(stream: BinaryIO) -> tuple[str, int]:
    """SHA-256 (hex) and number of the bytes that are left in ``stream``."""
    sha, size = hashlib.sha256(), 0
    while block := stream.read(BLOCK):
        sha.update(block)
        size += len(block)
    return sha.hexdigest(), size


def remove_older(uri: str, before: datetime, only: str = "") -> list[str]:
    """Remove files under ``uri`` last modified before ``before`` and the folders this leaves empty; the removed URIs.

    ``only`` restricts it to names that end so.
    """
    folder, removed = Place.of(uri), []
    for path, _ in folder.entries():
        place = Place.of(join(uri, path))
        # Another process may have published or removed it since it was listed.
        with suppress(FileNotFoundError):
            if path.endswith(only) and place.fs.modified(place.path) < before:
                place.fs.rm_file(place.path)
                removed.append(place.uri)
                _remove_empty(folder, place)
    return removed


def _remove_empty(folder: Place, place: Place) -> None:
    """Remove the folders between ``place`` and ``folder`` that are empty; object stores have none."""
    if (top := folder.local) and (file := place.local):
        with suppress(OSError):
            for parent in file.relative_to(top).parents:
                if parent.name:
                    (top / parent).rmdir()


def temporary(folder: Path, label: str) -> Path:
    """A new path in ``folder`` for an unfinished file; two processes never get the same."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{label}.{uuid.uuid4().hex}{STAGED}"


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(staged: Path, final: Path) -> None:
    """Move a finished file to its final name, atomically and durably; new folders included."""
    missing = [path for path in (final.parent, *final.parent.parents) if not path.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)
    sync(staged)
    staged.replace(final)
    sync(final.parent)


def keep(source: BinaryIO, found_at: Path, staged: Path, version: Path) -> None:
    """Give the open file ``source``, which was found at ``found_at``, the further name ``version``.

    ``staged`` is a free name on the same file system. A hard link where possible, otherwise a copy.
    """
    try:
        with suppress(OSError):
            staged.hardlink_to(found_at)
        if not (staged.exists() and os.path.samestat(staged.stat(), os.fstat(source.fileno()))):
            # No hard links here, or another process has just published: what was opened is what is kept.
            staged.unlink(missing_ok=True)
            source.seek(0)
            with staged.open("xb") as copy:
                shutil.copyfileobj(source, copy, BLOCK)
        # A link has the age of its file; as a superseded file it is new.
        os.utime(staged)
        replace(staged, version)
    finally:
        # A rename between two links of one file does nothing, and leaves this one.
        staged.unlink(missing_ok=True)
