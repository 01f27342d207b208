"""Which columns a model may learn from, of what kind they are, and what is usual for their values.

Judges a sample of rows. When in doubt a column is left out with its reason: a person can add it back.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rules import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from numpy.typing import NDArray

_CODE_NAME = re.compile(r"(?:^|_)(?:ids?|codes?|zip|zipcode|postcode|types?|kind|class|category)$")
_MOST_LISTED = 50
_NEARLY = 0.95
# Days of history below which nothing can be said about what comes back.
_SHORTEST_SPAN = 28
_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Feature:
    """A column to learn from, with what the sample says about its usual values."""

    name: str
    type: Literal["number", "category", "boolean"]
    complete: bool
    low: float | None = None
    high: float | None = None
    values: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A column that is not offered to the model, and why in a few plain words."""

    name: str
    reason: str


@dataclass(frozen=True)
class Clock:
    """The event times of the sampled rows (``datetime64[us]``, NaT where missing) and how long a training looks back."""

    times: NDArray[np.datetime64]
    window: timedelta

    def restated_by(self, values: pa.ChunkedArray) -> str:
        """Which part of the calendar the column only restates, or ``""``.

        Such a column does not come back within a training window: the model would meet values that it never learned
        from. Hours and weekdays do come back, so they are no clock.
        """
        known = np.asarray(pc.is_valid(values)) & ~np.isnat(self.times)
        times = self.times[known]
        if not len(times):
            return ""
        found = values.filter(pa.array(known))
        numbers = _whole_numbers(found)
        part = "" if numbers is None else self._restated_part(numbers, times)
        ranks = np.asarray(pc.rank(found, tiebreaker="dense")).astype(np.int64)
        order = np.argsort(times, kind="stable")
        return part or self._passing(ranks[order], times[order])

    def _restated_part(self, numbers: NDArray[np.int64], times: NDArray[np.datetime64]) -> str:
        days = times.astype("datetime64[D]")
        years, months = days.astype("datetime64[Y]"), days.astype("datetime64[M]")
        # Monday is 0; 1970-01-01 was a Thursday.
        weekday = (days.astype(np.int64) + 3) % 7
        thursday = days + (3 - weekday).astype("timedelta64[D]")
        iso_week = (thursday - thursday.astype("datetime64[Y]").astype("datetime64[D]")) // _DAY // 7 + 1
        parts = {
            "year": years.astype(np.int64) + 1970,
            "day of the month": (days - months.astype("datetime64[D]")) // _DAY + 1,
        }
        if self.window.days < 2 * 365:
            parts |= {
                "month": months.astype(np.int64) % 12 + 1,
                "day of the year": (days - years.astype("datetime64[D]")) // _DAY + 1,
                "ISO week": iso_week,
            }
        if np.ptp(days.astype(np.int64)) < 14 and len(np.unique((numbers - weekday) % 7)) == 1:
            return ""  # too short a stretch to tell a weekday from a day of the month
        for name, part in parts.items():
            shift = np.asarray(part).astype(np.int64) - numbers
            usual = np.median(shift)
            # Two values that keep their distance to a year or a week may be a flag that was once raised.
            if np.ptp(part) > (1 if usual else 0) and np.mean(shift == usual) >= _NEARLY:
                return name
        return ""

    def _passing(self, ranks: NDArray[np.int64], times: NDArray[np.datetime64]) -> str:
        """Whether values, in order of time, only grow, or stand still within days and change about monthly at most."""
        days = times.astype("datetime64[D]")
        unique, first, rows = np.unique(days, return_index=True, return_counts=True)
        if np.ptp(unique.astype(np.int64)) < _SHORTEST_SPAN:
            return ""
        if ranks.max() > 0.5 * len(ranks) and np.mean(np.diff(ranks) > 0) >= _NEARLY:
            return "it only grows with time"
        low, high = np.minimum.reduceat(ranks, first), np.maximum.reduceat(ranks, first)
        months = int(np.ptp(unique.astype("datetime64[M]").astype(np.int64))) + 1
        if np.mean(rows > 1) < 0.5 or np.mean(low == high) < _NEARLY:
            return ""
        changes = np.flatnonzero(np.diff(low)) + 1
        if len(changes) > months:
            return ""
        left: dict[int, np.datetime64] = {}
        for run in np.split(np.arange(len(low)), changes):
            value = int(low[run[0]])
            if value in left and unique[run[0]] - left[value] < np.timedelta64(self.window):
                return ""
            left[value] = unique[run[-1]]
        return "the same all day, changing monthly at most"


def judge(name: str, column: pa.ChunkedArray, clock: Clock) -> Feature | LeftOut:
    """What to do with one column of the sample: learn from it, or leave it out with the reason."""
    kind = kind_of(column.type)
    if kind in ("time", "other"):
        return LeftOut(name, "an instant" if kind == "time" else f"{column.type} is no kind of feature")
    values = _nan_as_null(column, kind)
    known = values.drop_null()
    if not len(known):
        return LeftOut(name, "no values in the sample")
    distinct = pc.count_distinct(known).as_py()
    if distinct == 1 and not values.null_count:
        return LeftOut(name, "a single value in the sample")
    coded = _is_code(name, known, kind)
    if (kind == "text" or coded) and distinct > 0.5 * len(known):
        return LeftOut(name, "nearly every row has another value: it identifies rows")
    if restated := clock.restated_by(values):
        return LeftOut(name, f"restates the calendar ({restated})")
    complete = not values.null_count
    if kind == "boolean":
        return Feature(name, "boolean", complete)
    if kind == "text" or coded:
        return Feature(name, "category", complete, values=_listed(known) if distinct <= _MOST_LISTED else ())
    low, high = _usual_range(np.asarray(known.cast(pa.float64(), safe=False)))
    return Feature(name, "number", complete, low, high)


def _is_code(name: str, known: pa.ChunkedArray, kind: str) -> bool:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return kind in ("integer", "float") and bool(_CODE_NAME.search(snake)) and _whole_numbers(known) is not None


def _nan_as_null(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    if kind != "float":
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _whole_numbers(known: pa.ChunkedArray) -> NDArray[np.int64] | None:
    """The values as integers, or ``None`` when one of them is none."""
    try:
        return np.asarray(known.cast(pa.int64()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _listed(known: pa.ChunkedArray) -> tuple[str | int, ...]:
    values = known.unique() if kind_of(known.type) == "text" else known.cast(pa.int64()).unique()
    return tuple(sorted(values.to_pylist()))


def _usual_range(numbers: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Limits one whole range beyond what was seen, never below 0 for what was never negative; two figures."""
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return None, None
    low, high = float(finite.min()), float(finite.max())
    margin = (high - low) or abs(high) or 1.0
    if not math.isfinite(margin):
        return None, None
    return (0.0 if low >= 0 else _rounded(low - margin, math.floor)), _rounded(high + margin, math.ceil)


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    scale = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return towards(value / scale) * scale
