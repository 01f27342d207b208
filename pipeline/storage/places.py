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
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InvalidRequest, PipelineError, StorageUnavailable
from pipeline.storage.targets import join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
        # A relative name means another file once the working directory has changed: only absolute ones are remembered.
        if uri.startswith("/") and "://" not in uri and "::" not in uri:
            return cls(uri, *_on_disk(uri))
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


class Present:
    """What is published in one place at one moment. Valid while it is open.

    ``token`` changes whenever the content does; ``size`` is in bytes. ``stream`` gives the bytes that the token stands
    for, ``sha256`` (hex) their digest, computed only when the store has not told it.
    """

    def __init__(self, token: str, size: int, opening: Callable[[], BinaryIO], sha256: str | None = None) -> None:
        self.token, self.size = token, size
        self._opening, self._sha256 = opening, sha256

    @cached_property
    def stream(self) -> BinaryIO:
        """The bytes, from the first one."""
        return self._opening()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the bytes."""
        if self._sha256 is None:
            self.stream.seek(0)
            self._sha256, _ = digest(self.stream)
        return self._sha256


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
        # Not `get_file`: it may ask for parts of the object at once, and mix those of two generations.
        with place.open() as source, copy.open("xb") as sink:
            shutil.copyfileobj(source, sink, BLOCK)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


@lru_cache(maxsize=4096)
def _on_disk(uri: str) -> tuple[LocalFileSystem, str]:
    """The file system and the path of an absolute local name; a partition is asked for dozens of times."""
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


def digest(stream: BinaryIO) -> tuple[str, int]:
    """SHA-256 (hex) and number of the bytes that are left in ``stream``."""
    sha, size = hashlib.sha256(), 0
    while block := stream.read(BLOCK):
        sha.update(block)
        size += len(block)
    return sha.hexdigest(), size


def remove_where(uri: str, remove: Callable[[Place, str], bool]) -> list[str]:
    """The URIs of the files under ``uri`` that ``remove``, given the place and its path below ``uri``, did remove."""
    removed = []
    for path, _ in Place.of(uri).entries():
        place = Place.of(join(uri, path))
        # Another process may have published or removed it since it was listed.
        with suppress(FileNotFoundError):
            if remove(place, path):
                removed.append(place.uri)
    return removed


def older(before: datetime, only: str = "") -> Callable[[Place, str], bool]:
    """For `remove_where`: remove files last modified before ``before`` whose names end with ``only``."""

    def remove(place: Place, path: str) -> bool:
        if not path.endswith(only) or place.fs.modified(place.path) >= before:
            return False
        place.fs.rm_file(place.path)
        if local := place.local:
            remove_empty(local.parent, path.count("/"))
        return True

    return remove


def remove_empty(folder: Path, levels: int) -> None:
    """Remove ``folder`` and the folders above it, ``levels`` at most, as long as they are empty."""
    with suppress(OSError):
        for path in [folder, *folder.parents][:levels]:
            path.rmdir()


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
    sync(staged)
    move(staged, final)
    sync(final.parent)


def move(staged: Path, final: Path) -> None:
    """Move a finished file to its final name, atomically; new folders are durable, the file and its new name are not yet."""
    missing = [path for path in (final.parent, *final.parent.parents) if not path.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)
    staged.replace(final)
