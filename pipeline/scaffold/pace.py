"""How long the windows of a job are, by its interval, and how many rows each can be expected to hold.

Pure arithmetic on values.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.intervals import Cadence

_DAY = timedelta(days=1)
_LONGEST_DRIFT_WINDOW = 366


@dataclass(frozen=True)
class Pace:
    """The windows that suit one cadence."""

    drift_window: int
    training: timedelta
    holdout: timedelta
    cooldown: timedelta
    overdue: timedelta
    violations: int
    of_last: int

    @classmethod
    def of(cls, cadence: Cadence) -> Pace:
        """One cycle per drift window - a day of hours, a week of days, a month of weeks - and trainings to match."""
        if cadence.unit == "mo":
            return cls(1, 1095 * _DAY, 180 * _DAY, 90 * _DAY, 90 * _DAY, 2, 3)
        if cadence.unit == "w":
            return cls(4, 365 * _DAY, 56 * _DAY, 28 * _DAY, 30 * _DAY, 3, 5)
        per_day = {"d": 7, "h": 24, "m": 24 * 60}[cadence.unit] // cadence.count
        window = min(per_day, _LONGEST_DRIFT_WINDOW)
        return cls(window, 60 * _DAY, 10 * _DAY, 7 * _DAY, 30 * _DAY, 3, 5)


def length(cadence: Cadence) -> timedelta:
    """The length of an interval; a month counts as 30 days."""
    units = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": _DAY, "w": 7 * _DAY, "mo": 30 * _DAY}
    return cadence.count * units[cadence.unit]


def reachable(expected: float, usual: int, least: int) -> int:
    """The usual minimum of rows, lowered to three quarters of the expected ones where those are fewer."""
    return max(least, min(usual, int(expected * 0.75)))


def iso(duration: timedelta) -> str:
    """The ISO 8601 text of a duration: ``P14D``, ``PT6H``, ``PT90S``."""
    for unit, text in ((_DAY, "P{}D"), (timedelta(hours=1), "PT{}H"), (timedelta(minutes=1), "PT{}M")):
        if duration >= unit and not duration % unit:
            return text.format(duration // unit)
    return f"PT{duration.total_seconds():.6f}".rstrip("0").rstrip(".") + "S" if duration else "PT0S"
