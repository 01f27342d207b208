"""What the caller of `scaffold` asks for, checked as far as that is possible without reading data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from pipeline.errors import InvalidRequest
from pipeline.intervals import Cadence
from pipeline.policies import Task

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class Request:
    """The facts about a job that no data can tell."""

    name: str
    key: tuple[str, ...]
    time: str
    label: str
    task: Task
    cadence: Cadence
    available_at: str | None
    delay: timedelta | None
    exclude: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidRequest(
                f"{self.name!r} cannot be the name of a job",
                expected="lower-case letters, digits and underscores, a letter first, 63 at most",
                next_step="choose another name",
            )
        if self.task not in get_args(Task):
            raise InvalidRequest(
                f"{self.task!r} is no task",
                expected=f"one of {', '.join(get_args(Task))}",
                next_step="choose one of them",
            )
        if (self.available_at is None) == (self.delay is None):
            raise InvalidRequest(
                "how late labels arrive must be said in exactly one way",
                expected="either available_at, a column with arrival times, or delay, a fixed duration such as P1D",
                got="neither" if self.delay is None else "both",
                next_step="pass --available-at COLUMN or --delay P1D",
            )
        if not self.key:
            raise InvalidRequest(
                "no key column was named", expected="the columns that identify a row", next_step="pass --key COLUMN"
            )

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """The columns of the labels that carry the outcome and its arrival."""
        return (self.label,) if self.available_at is None else (self.label, self.available_at)


def require_columns(where: str, wanted: Iterable[str], found: Iterable[str]) -> None:
    """Raise `InvalidRequest` unless all wanted columns are among the found ones."""
    present = list(found)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise InvalidRequest(
            f"{where} has no column {', '.join(map(repr, missing))}",
            expected="columns that the data has",
            got=f"columns {', '.join(present)}",
            next_step="correct the column name, or pass the other data set",
        )


def cadence_of(interval: str) -> Cadence:
    """The cadence named by ``interval``; raises `InvalidRequest` that lists what is allowed."""
    try:
        return Cadence.parse(interval)
    except ValueError as err:
        raise InvalidRequest(str(err), next_step="pass another --interval") from err
