"""How many threads numerical libraries use: one, where several would wait for each other longer than they work.

Must not know what is computed.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threadpoolctl import ThreadpoolController


@contextmanager
def one() -> Iterator[None]:
    """One thread per call of a numerical library, as long as this lasts."""
    with _libraries(len(sys.modules)).limit(limits=1):
        yield


def one_for_good() -> None:
    """The same for the rest of a worker's life; OpenMP counts the threads of every thread by itself."""
    with suppress(RuntimeError):
        _libraries(len(sys.modules)).limit(limits=1)


@lru_cache(maxsize=1)
def _libraries(modules: int) -> ThreadpoolController:
    """The loaded libraries that have threads; looking for them takes milliseconds, and new ones come with ``modules``."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
