"""Publishing on the local disk: a lock file lets one process at a time replace, keep or sweep a partition's file.

Every step is atomic and durable by itself, so that whatever dies leaves the previous file or the new one. Must not know
Parquet.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.storage.places import (
    BLOCK,
    Place,
    Present,
    move,
    remove_empty,
    remove_where,
    replace,
    sync,
    temporary,
)
from pipeline.storage.targets import Target, join, sibling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_LOCK = ".lock"
# The holder hashes the superseded file and renames: seconds, even for gigabytes.
_LOCK_SECONDS = 60.0
_POLL_SECONDS = 0.005


class Disk:
    """One partition's published file and its versions on this machine's file system, fenced by a lock file."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._final, self._staging = _path(target.uri), _path(target.staging)

    def staging(self, scratch: Path) -> Path:
        """A new path for an unfinished file; not in ``scratch``, because a rename must not cross file systems."""
        return temporary(self._staging, _flat(self._target.partition))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process and thread from changing this partition; ``TimeoutError`` after a minute's waiting."""
        with _locked(self._staging, self._target.partition, _LOCK_SECONDS):
            yield

    @contextmanager
    def opened(self) -> Iterator[Present | None]:
        """The published file, which stays what it is while it is open; ``None`` when there is none."""
        try:
            stream = self._final.open("rb")
        except FileNotFoundError:
            yield None
            return
        with stream:
            status = os.fstat(stream.fileno())
            yield Present(_token(status), status.st_size, lambda: stream)

    def keep(self, present: Present) -> str:
        """Give the published file its immutable name, a hard link where possible; nothing happens when it has it."""
        uri = join(self._target.versions, f"{present.sha256}.parquet")
        version, link = _path(uri), temporary(self._staging, _flat(self._target.partition))
        with suppress(FileNotFoundError):
            if _token(version.stat()) == present.token:
                return uri
        try:
            with suppress(OSError):
                link.hardlink_to(self._final)
            if not (link.exists() and _token(link.stat()) == present.token):
                # No hard links here, or something that takes no lock has replaced it: what was opened is what is kept.
                link.unlink(missing_ok=True)
                with link.open("xb") as copy:
                    present.stream.seek(0)
                    shutil.copyfileobj(present.stream, copy, BLOCK)
            replace(link, version)
        finally:
            # A rename between two links of one file does nothing, and leaves this one.
            link.unlink(missing_ok=True)
        return uri

    def put(self, staged: Path, sha256: str, present: Present | None) -> bool:
        """Move a complete and synced file over the published one. Always true: the lock keeps others out."""
        move(staged, self._final)
        return True

    def remove(self, present: Present) -> bool:
        """Remove the published file. Always true: the lock keeps others out."""
        self._final.unlink()
        return True

    def sync(self) -> None:
        """Make the last `put` or `remove` survive a loss of power."""
        sync(self._final.parent)

    @staticmethod
    def sweep(root: str, staged_before: datetime, superseded_before: datetime) -> list[str]:
        """Remove leftovers and superseded files by age; never a version that is still the published file."""
        staging, versions = sibling(root, "staging"), sibling(root, "versions")

        def leftover(place: Place, path: str) -> bool:
            left = Path(place.path)
            if _changed(left) >= staged_before.timestamp():
                return False
            if not path.endswith(_LOCK):
                left.unlink()
                return True
            with suppress(TimeoutError), _locked(_path(staging), path.removesuffix(_LOCK), 0):
                return True
            return False

        def superseded(place: Place, path: str) -> bool:
            version = Path(place.path)
            # Looked at twice, because publishing and snapshots may give a name a new life until the lock is held.
            if _superseded(version, superseded_before):
                partition = path.rpartition("/")[0]
                with suppress(TimeoutError), _locked(_path(staging), partition, 0):
                    if _superseded(version, superseded_before):
                        version.unlink()
                        remove_empty(version.parent, partition.count("/") + 1)
                        return True
            return False

        return [*remove_where(staging, leftover), *remove_where(versions, superseded)]


def _changed(path: Path) -> float:
    """When the file got its content or its names (ctime), whichever is later, in seconds since 1970.

    A new link has the modification time of the old file, but the moment at which a name was added or replaced is the
    system's own record, made in the same atomic step: a time set by us could be lost with the process.
    """
    return path.stat().st_ctime


def _superseded(version: Path, before: datetime) -> bool:
    """Whether no published file is linked to the version any more, and has not been since ``before``."""
    return version.stat().st_nlink == 1 and _changed(version) < before.timestamp()


def _token(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _path(uri: str) -> Path:
    return Path(Place.of(uri).path)


def _flat(partition: str) -> str:
    return partition.replace("/", "~")


@contextmanager
def _locked(staging: Path, partition: str, seconds: float) -> Iterator[None]:
    path = staging / f"{_flat(partition)}{_LOCK}"
    descriptor = _acquire(path, seconds)
    try:
        yield
    finally:
        # Removed while it is held: who waits for this file finds that the name is no longer its own and starts over.
        path.unlink(missing_ok=True)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(path: Path, seconds: float) -> int:
    """The descriptor of the locked file ``path``."""
    deadline = time.monotonic() + seconds
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file that was opened may have lost its name before it could be locked.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
        if time.monotonic() >= deadline:
            raise TimeoutError(f"another process has held {path} for {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
