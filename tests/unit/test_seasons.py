"""Like is compared with like, and with less alike where the history is short."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pipeline import seasons
from pipeline.intervals import Cadence
from pipeline.policies import Reference

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = seasons.starts_of([MONDAY + timedelta(days=n) for n in range(56)])
ROWS = np.repeat(DAYS, 10)


def starts(*days: int) -> np.ndarray:
    return seasons.starts_of([MONDAY + timedelta(days=day) for day in days])


@pytest.mark.parametrize(
    ("cadence", "window", "finest"),
    [
        ("15m", 1, "daytype_hour"),
        ("1h", 12, "daytype_hour"),
        ("1h", 24, "weekday"),
        ("1d", 1, "weekday"),
        ("1d", 6, "weekday"),
        ("1d", 7, "all"),
        ("1w", 1, "all"),
        ("1mo", 1, "all"),
    ],
)
def test_the_season_of_a_window_follows_from_its_length(cadence: str, window: int, finest: str) -> None:
    assert seasons.ladder(Reference(), Cadence.parse(cadence), window)[0] == finest


def test_a_monday_is_compared_with_mondays() -> None:
    season, mask = seasons.alike(("weekday", "daytype", "all"), ROWS, starts(56), min_intervals=4, min_rows=20)
    assert season == "weekday"
    assert {datetime.fromtimestamp(int(at) * 60, UTC).weekday() for at in ROWS[mask]} == {0}
    assert mask.sum() == 80


def test_a_window_of_several_days_is_compared_with_all_their_weekdays() -> None:
    _, mask = seasons.alike(("weekday", "all"), ROWS, starts(55, 56), min_intervals=4, min_rows=20)
    assert {datetime.fromtimestamp(int(at) * 60, UTC).weekday() for at in ROWS[mask]} == {6, 0}


@pytest.mark.parametrize(
    ("days", "rows", "season"), [(14, 20, "daytype"), (3, 20, "all"), (56, 200, "daytype"), (56, 500, "all")]
)
def test_short_history_falls_back_to_what_is_less_alike(days: int, rows: int, season: str) -> None:
    past = np.repeat(DAYS[:days], 10)
    # 56 days hold 80 rows of Mondays and 400 of working days.
    found, mask = seasons.alike(("weekday", "daytype", "all"), past, starts(56), min_intervals=4, min_rows=rows)
    assert found == season
    assert mask.any()


def test_hours_of_weekends_are_apart_from_those_of_working_days() -> None:
    saturday, monday = starts(5) + 180, starts(0) + 180
    assert seasons.cells("hour", saturday) == seasons.cells("hour", monday) == 3
    assert seasons.cells("daytype_hour", saturday) != seasons.cells("daytype_hour", monday)


def test_months_are_counted_within_the_year() -> None:
    assert seasons.cells("month", starts(0, 31, 366)).tolist() == [0, 1, 0]
