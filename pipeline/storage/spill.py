"""Numbers on the disk instead of in memory: files without a name, which end with the process whatever ends it."""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.storage.places import answering, temporary

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_LEFT = "nothing was published or changed"


class Spill:
    """A `pipeline.keys.Shelf` in a local folder; a full or broken disk raises `StorageUnavailable`."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._kept: list[mmap.mmap] = []

    def keep(self, values: NDArray[Any]) -> NDArray[Any]:
        """The same values, mapped from a file that has no name any more."""
        if not values.nbytes:
            return values
        with answering(f"keeping row keys in {self._scratch}", _LEFT):
            path = temporary(self._scratch, "keys")
            try:
                with path.open("xb+") as file:
                    # All of it is written before it is mapped: a disk that fills up later would end the process.
                    file.write(np.ascontiguousarray(values).data)
                    file.flush()
                    mapped = mmap.mmap(file.fileno(), values.nbytes, access=mmap.ACCESS_READ)
            finally:
                path.unlink(missing_ok=True)
        self._kept.append(mapped)
        return np.frombuffer(mapped, values.dtype)

    def rest(self) -> None:
        """Give back the memory that looking at the values has taken; the system may still cache them."""
        for mapped in self._kept:
            with suppress(OSError, AttributeError):
                mapped.madvise(mmap.MADV_DONTNEED)


class Roll:
    """A `pipeline.aggregates.Roll` in a local file without a name; a full or broken disk raises `StorageUnavailable`."""

    def __init__(self, scratch: Path) -> None:
        self._doing = f"keeping columns in {scratch}"
        with answering(self._doing, _LEFT):
            path = temporary(scratch, "column")
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            # The file has no name any more, and is gone with the roll, or with the process.
            weakref.finalize(self, os.close, self._file)
            path.unlink()
        self._size = 0

    def append(self, data: memoryview) -> int:
        """Where the bytes begin that were added."""
        start = self._size
        with answering(self._doing, _LEFT):
            while len(data):
                written = os.pwrite(self._file, data, self._size)
                self._size += written
                data = data[written:]
        return start

    def read(self, start: int, size: int) -> bytes:
        """Bytes that were added."""
        with answering(self._doing, _LEFT):
            return os.pread(self._file, size, start)
