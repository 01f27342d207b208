"""Like compared with like: which past intervals belong to the same season as the current window.

Pure arithmetic on interval starts, in minutes since 1970 UTC; must not read data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.intervals import Cadence
    from pipeline.policies import Reference

# From like to less like: "daytype" parts working days from weekends, "all" parts nothing.
Season = Literal["all", "daytype", "weekday", "hour", "daytype_hour", "month"]

_HOUR, _DAY, _WEEK = 60, 1440, 10080
_MINUTES = {"m": 1, "h": _HOUR, "d": _DAY, "w": _WEEK, "mo": 28 * _DAY}
_MONDAY = 4 * _DAY  # 5 January 1970, the first Monday
_LADDERS: dict[str, tuple[Season, ...]] = {
    "none": ("all",),
    "hour": ("daytype_hour", "hour", "all"),
    "weekday": ("weekday", "daytype", "all"),
    "month": ("month", "all"),
}
_NAMES: dict[Season, str] = {
    "all": "all of it",
    "daytype": "working days or weekends alike",
    "weekday": "the same weekday",
    "hour": "the same hour of the day",
    "daytype_hour": "the same hour of working days or weekends",
    "month": "the same month",
}


def ladder(policy: Reference, cadence: Cadence, window: int) -> tuple[Season, ...]:
    """The seasons to try, most alike first and ``all`` last, for windows of ``window`` intervals of the cadence.

    ``auto`` takes hours for windows shorter than a day, weekdays for those shorter than a week, and nothing beyond.
    """
    if policy.season != "auto":
        return _LADDERS[policy.season]
    minutes = window * cadence.count * _MINUTES[cadence.unit]
    return _LADDERS["hour" if minutes < _DAY else "weekday" if minutes < _WEEK else "none"]


def cells(season: Season, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cell of each interval start (minutes since 1970): intervals of one cell are alike."""
    weekday = (starts - _MONDAY) % _WEEK // _DAY
    hour = starts % _DAY // _HOUR
    if season == "all":
        return np.zeros_like(starts)
    if season == "weekday":
        return weekday
    if season == "daytype":
        return (weekday >= 5).astype(np.int64)
    if season == "hour":
        return hour
    if season == "daytype_hour":
        return hour + 24 * (weekday >= 5)
    return starts.astype("datetime64[m]").astype("datetime64[M]").astype(np.int64) % 12


def alike(
    seasons: tuple[Season, ...],
    rows: NDArray[np.int64],
    window: NDArray[np.int64],
    *,
    min_intervals: int,
    min_rows: int,
) -> tuple[Season, NDArray[np.bool_]]:
    """The most alike season that has enough history, and which rows of the history belong to it.

    ``rows`` holds the interval start of each past row, ``window`` those of the current window's intervals. A season has
    enough when each of the window's cells has ``min_intervals`` past intervals and all together ``min_rows`` rows;
    ``all`` is taken when none has.
    """
    for season in seasons:
        if season == "all":
            break
        own, wanted = cells(season, rows), np.unique(cells(season, window))
        intervals = cells(season, np.unique(rows))
        mask = np.isin(own, wanted)
        if np.count_nonzero(mask) >= min_rows and all(
            np.count_nonzero(intervals == cell) >= min_intervals for cell in wanted
        ):
            return season, mask
    return "all", np.ones(len(rows), dtype=bool)


def described(season: Season) -> str:
    """The season in words, for reports."""
    return _NAMES[season]


def starts_of(values: Any) -> NDArray[np.int64]:
    """Interval starts (aware datetimes) in minutes since 1970."""
    return np.array([int(value.timestamp() // 60) for value in values], dtype=np.int64)
