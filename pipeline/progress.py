"""How far a long pass over a partition has come: a bar on a terminal, otherwise a line in the log now and then.

Must not have any influence on what is computed.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

# A pass that is over sooner says nothing.
_PATIENCE_SECONDS = 2.0
_LOG_SECONDS = 10.0
_log = logging.getLogger("pipeline.progress")


class Progress:
    """Rows done of ``total``; a context manager. The logger ``pipeline.progress`` gets rows, rows/s and seconds left."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._told = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total, desc=self._what, unit=" rows", unit_scale=True, delay=_PATIENCE_SECONDS, leave=False
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._told > self._began and kind is None:
            self._tell(time.monotonic())

    def add(self, rows: int) -> None:
        """Count ``rows`` more as done."""
        self._done += rows
        if self._bar is not None:
            self._bar.update(rows)
            return
        now = time.monotonic()
        if now - self._told >= _LOG_SECONDS:
            self._tell(now)

    def _tell(self, now: float) -> None:
        self._told = now
        speed = self._done / max(now - self._began, 1e-9)
        left = max(self._total - self._done, 0) / max(speed, 1e-9)
        _log.info(
            "%s: %s of %s rows, %s rows/s, %.0f s left",
            self._what,
            f"{self._done:,}",
            f"{self._total:,}",
            f"{speed:,.0f}",
            left,
        )
