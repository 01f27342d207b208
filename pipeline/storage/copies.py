"""Local copies of remote input files, kept from listing until their rows were read, so that each is downloaded once.

Range reads of an object that is replaced meanwhile mix old and new row groups silently; a copy cannot.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.storage.places import BLOCK, Place, temporary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Copy:
    """A whole file on this machine, with the SHA-256 (hex) and the number of its bytes."""

    path: Path
    sha256: str
    size: int


class Copies:
    """Copies in ``scratch`` by URI. What is kept at once never exceeds ``most_bytes``; a file in use comes on top."""

    def __init__(self, scratch: Path, most_bytes: int) -> None:
        self._scratch, self._most_bytes = scratch, most_bytes
        self._kept: dict[str, Copy] = {}

    def digest(self, place: Place, size: int) -> tuple[str, int]:
        """SHA-256 (hex) and number of the remote bytes; a file of ``size`` bytes for which there is room is kept."""
        self.drop(place.uri)
        if not self._has_room(size):
            return place.digest()
        copy = self._fetched(place)
        self._kept[place.uri] = copy
        return copy.sha256, copy.size

    @contextmanager
    def local(self, place: Place, sha256: str, *, last: bool) -> Iterator[Copy]:
        """A copy for the time being, the kept one if it has the digest; after the ``last`` use none is kept."""
        copy = self._kept.get(place.uri)
        if copy is None or copy.sha256 != sha256:
            self.drop(place.uri)
            copy = self._fetched(place)
            if not last and self._has_room(copy.size):
                self._kept[place.uri] = copy
        try:
            yield copy
        finally:
            if last:
                self.drop(place.uri)
            if self._kept.get(place.uri) != copy:
                copy.path.unlink(missing_ok=True)

    def drop(self, uri: str) -> None:
        """Remove the copy of that file, if one is kept."""
        if (copy := self._kept.pop(uri, None)) is not None:
            copy.path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all copies that are kept."""
        for uri in list(self._kept):
            self.drop(uri)

    def _has_room(self, size: int) -> bool:
        return size + sum(copy.size for copy in self._kept.values()) <= self._most_bytes

    def _fetched(self, place: Place) -> Copy:
        path, sha, size = temporary(self._scratch, "copy"), hashlib.sha256(), 0
        try:
            # Not `get_file`: it may ask for parts of the object at once, and mix those of two generations.
            with place.open() as source, path.open("xb") as sink:
                while block := source.read(BLOCK):
                    sha.update(block)
                    sink.write(block)
                    size += len(block)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Copy(path, sha.hexdigest(), size)
