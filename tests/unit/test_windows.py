"""Windows of time: known answers per cadence, and no window that reaches beyond what was known."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from pipeline import windows
from pipeline.intervals import Interval, parse_instant

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.job import JobSpec


def span(start: str, end: str) -> Interval:
    return Interval(parse_instant(start), parse_instant(end))


@pytest.mark.parametrize(
    ("interval", "window", "at", "expected"),
    [
        ("1d", 1, ("2026-03-01", "2026-03-02"), ("2026-03-01", "2026-03-02")),
        ("1d", 7, ("2026-03-01", "2026-03-02"), ("2026-02-23", "2026-03-02")),
        ("6h", 4, ("2026-03-01T06:00", "2026-03-01T12:00"), ("2026-02-28T12:00", "2026-03-01T12:00")),
        ("15m", 3, ("2026-03-01T00:00", "2026-03-01T00:15"), ("2026-02-28T23:30", "2026-03-01T00:15")),
        ("1w", 2, ("2026-03-02", "2026-03-09"), ("2026-02-23", "2026-03-09")),
        ("1mo", 3, ("2026-02-01", "2026-03-01"), ("2025-12-01", "2026-03-01")),
    ],
)
def test_the_monitored_window_ends_with_the_interval_and_spans_drift_window_intervals(
    make_job: Callable[..., JobSpec], interval: str, window: int, at: tuple[str, str], expected: tuple[str, str]
) -> None:
    start = "2024-01-01T00:00:00Z"
    job = make_job(schedule={"interval": interval, "start": start}, drift={"window": window})
    assert windows.monitored(job, span(*at)) == span(*expected)


@pytest.mark.parametrize(("mature_after", "expected"), [("PT0S", "2026-03-10T05:00"), ("P1DT6H", "2026-03-08T23:00")])
def test_an_interval_has_matured_when_its_end_lies_mature_after_in_the_past(
    make_job: Callable[..., JobSpec], mature_after: str, expected: str
) -> None:
    job = make_job(labels={"mature_after": mature_after})
    assert windows.matured_by(job, parse_instant("2026-03-10T05:00")) == parse_instant(expected)


@pytest.mark.parametrize(
    ("interval", "window", "mature_after", "as_of", "expected"),
    [
        ("1d", "P60D", "PT0S", "2026-03-10", ("2026-01-09", "2026-03-10")),
        ("1d", "P60D", "PT0S", "2026-03-10T23:59:59", ("2026-01-09", "2026-03-10")),
        ("1d", "P60D", "P2D", "2026-03-10T12:00", ("2026-01-07", "2026-03-08")),
        ("1d", "P60D", "PT13H", "2026-03-10T12:00", ("2026-01-08", "2026-03-09")),
        ("1h", "P2D", "PT0S", "2026-03-10T05:30", ("2026-03-08T05:00", "2026-03-10T05:00")),
        ("1d", "PT36H", "PT0S", "2026-03-10", ("2026-03-08", "2026-03-10")),  # rounded up to whole intervals
        ("1w", "P20D", "PT0S", "2026-03-11", ("2026-02-16", "2026-03-09")),  # ends on a Monday
        ("1mo", "P60D", "PT0S", "2026-03-31", ("2025-12-01", "2026-03-01")),
        ("1mo", "P1D", "PT0S", "2026-03-31", ("2026-02-01", "2026-03-01")),
        ("3mo", "P365D", "P10D", "2026-04-05", ("2025-01-01", "2026-01-01")),  # the first quarter has not matured
    ],
)
def test_the_history_is_the_latest_matured_whole_intervals(
    make_job: Callable[..., JobSpec],
    interval: str,
    window: str,
    mature_after: str,
    as_of: str,
    expected: tuple[str, str],
) -> None:
    job = make_job(
        schedule={"interval": interval, "start": "2024-01-01T00:00:00Z"},
        labels={"mature_after": mature_after},
        retrain={"window": window, "holdout": "PT1H"},
    )
    assert windows.history(job, parse_instant(as_of)) == span(*expected)


@pytest.mark.parametrize(
    ("interval", "holdout", "available", "cut"),
    [
        ("1d", "P14D", ("2026-01-01", "2026-03-02"), "2026-02-16"),  # 60 days: the full holdout
        ("1d", "P14D", ("2026-01-01", "2026-02-26"), "2026-02-12"),  # 56 days too
        ("1d", "P14D", ("2026-01-01", "2026-01-21"), "2026-01-11"),  # 20 days: half of them
        ("1d", "P4D", ("2026-01-01", "2026-01-09"), "2026-01-05"),  # 8 days: exactly a half
        ("1d", "P14D", ("2026-01-01", "2026-01-08"), "2026-01-05"),  # 7 days: at most a half, whole days only
        ("1d", "P14D", ("2026-01-01", "2026-01-03"), "2026-01-02"),  # two days: one each
        ("1d", "PT36H", ("2026-01-01", "2026-03-02"), "2026-02-28"),  # rounded up to whole days
        ("1h", "PT6H", ("2026-01-01", "2026-01-02"), "2026-01-01T18:00"),
        ("1w", "P14D", ("2026-01-05", "2026-03-30"), "2026-03-16"),
        ("1mo", "P14D", ("2025-01-01", "2026-01-01"), "2025-12-01"),  # the last month, not its last 14 days
        ("1mo", "P70D", ("2025-01-01", "2026-01-01"), "2025-10-01"),  # rounded up to three whole months
        ("1mo", "P70D", ("2025-01-01", "2025-04-01"), "2025-03-01"),
    ],
)
def test_the_holdout_is_the_latest_part_and_shrinks_to_half_of_a_short_history(
    make_job: Callable[..., JobSpec], interval: str, holdout: str, available: tuple[str, str], cut: str
) -> None:
    job = make_job(
        schedule={"interval": interval, "start": "2024-01-01T00:00:00Z"},
        retrain={"window": "P400D", "holdout": holdout},
    )
    found = windows.training(job, span(*available))
    assert found == windows.TrainingWindow(span(available[0], cut), span(cut, available[1]))
    assert found.span == span(*available)


@pytest.mark.parametrize("interval", ["1h", "1d", "1mo"])
def test_one_interval_alone_cannot_be_split(make_job: Callable[..., JobSpec], interval: str) -> None:
    job = make_job(schedule={"interval": interval, "start": "2026-01-01T00:00:00Z"})
    assert windows.training(job, job.interval(parse_instant("2026-02-01"))) is None


def test_no_window_reaches_beyond_what_was_known_and_train_never_meets_holdout(
    make_job: Callable[..., JobSpec],
) -> None:
    draw = random.Random(7)
    for _ in range(400):
        hours = draw.randint(2, 24 * 90)
        job = make_job(
            schedule={
                "interval": draw.choice(["15m", "1h", "6h", "1d", "1w", "1mo", "3mo"]),
                "start": "2024-01-01T00:00Z",
            },
            labels={"mature_after": f"PT{draw.randint(0, 500)}H"},
            retrain={"window": f"PT{hours}H", "holdout": f"PT{draw.randint(1, hours - 1)}H"},
        )
        as_of = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=draw.randint(0, 500_000))
        history = windows.history(job, as_of)
        assert history.end + job.labels.mature_after <= as_of
        assert history.end - history.start >= job.retrain.window
        step = job.cadence
        assert step.next(history.end) + job.labels.mature_after > as_of, "a matured interval was left out"
        assert (step.floor(history.start), step.floor(history.end)) == (history.start, history.end)

        split = windows.training(job, history)
        if split is None:
            assert step.next(history.start) == history.end
            continue
        assert split.span == history
        assert split.train.end == split.holdout.start
        assert step.floor(split.holdout.start) == split.holdout.start
        one_interval = step.next(split.holdout.start) == history.end
        assert one_interval or split.holdout.end - split.holdout.start <= (history.end - history.start) / 2
