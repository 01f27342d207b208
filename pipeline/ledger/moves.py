"""The lock under which one process at a time moves a job's champion: the ledger and the registry are two writes.

Beside a SQLite file it is a file lock, on PostgreSQL an advisory lock; both end with the process that holds them.
"""

from __future__ import annotations

import fcntl
import time
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PromotionConflict

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    import sqlalchemy as sa

_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.01
# With the job's checksum one key of two integers: any constant that no other program on the database uses.
_MOVES = 1_930_415_772


def acquire(engine: sa.Engine, job: str) -> ExitStack:
    """Hold the lock of ``job`` until the result is closed; raises `PromotionConflict` after a minute of waiting."""
    with ExitStack() as held:
        if engine.dialect.name == "sqlite":
            if not engine.url.database:
                return held.pop_all()
            ledger = Path(engine.url.database)
            stream = held.enter_context(ledger.with_name(f".{ledger.name}.{job}.lock").open("w"))
            _wait(job, lambda: _locked(stream))
        else:
            connection = held.enter_context(engine.begin())
            key = zlib.crc32(job.encode()) - (1 << 31)
            ask = f"SELECT pg_try_advisory_xact_lock({_MOVES}, {key})"
            _wait(job, lambda: bool(connection.exec_driver_sql(ask).scalar()))
        return held.pop_all()


def _locked(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(job: str, locked: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while not locked():
        if time.monotonic() > until:
            raise PromotionConflict(
                f"somebody else has been moving the champion of job {job!r} for {_PATIENCE_SECONDS:g} s",
                expected="one move at a time, each of a few seconds",
                got="a move that does not end",
                left_behind="nothing was changed",
                next_step="run the same command again; pipeline status shows who is champion then",
            )
        time.sleep(_POLL_SECONDS)
