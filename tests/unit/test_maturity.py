"""How complete labels are: what is learnt from earlier reports, promised for an age, and held against an interval."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from pipeline.maturity import Curve, assess, expected, learn, shortfall
from pipeline.verdicts import PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Iterable

T0 = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LATER = T0 + 1000 * DAY


def reported(number: int, age: timedelta, labelled: int, rows: int = 100) -> PerformanceReport:
    """A report on day ``number``, made at that age."""
    end = T0 + (number + 1) * DAY
    return PerformanceReport(
        job="orders",
        start=end - DAY,
        end=end,
        as_of=end + age,
        verdict="stable",
        reason="",
        metric="mae",
        value=1.0,
        limit=2.0,
        n=labelled,
        rows_scored=rows,
        model_version=1,
        slices=(),
        maturity=assess(Curve(), age=age, labelled=labelled, rows=rows),
    )


def learnt(reports: Iterable[PerformanceReport]) -> Curve:
    return learn(list(reports), settled_before=LATER)


def test_what_is_expected_grows_with_age_as_earlier_intervals_did() -> None:
    curve = learnt(reported(n, age * DAY, share) for n in range(20) for age, share in ((1, 40), (3, 70), (9, 95)))
    assert [expected(curve, age * DAY) for age in (1, 2, 3, 8, 9, 100)] == [0.4, 0.4, 0.7, 0.7, 0.95, 0.95]


def test_nothing_is_expected_at_an_age_younger_than_any_that_was_seen() -> None:
    curve = learnt(reported(n, 3 * DAY, 70) for n in range(20))
    assert expected(curve, 3 * DAY - timedelta(seconds=1)) is None


@pytest.mark.parametrize("intervals", [0, 1, 2])
def test_fewer_than_three_intervals_promise_nothing(intervals: int) -> None:
    # Restated often, two intervals are still two.
    curve = learnt(reported(n, age * DAY, 50) for n in range(intervals) for age in range(1, 9))
    assert (expected(curve, 9 * DAY), curve.final) == (None, None)


def test_one_bad_day_does_not_move_what_is_expected() -> None:
    curve = learnt(reported(n, DAY, 2 if n == 12 else 80) for n in range(15))
    assert expected(curve, DAY) == 0.8


def test_a_feed_that_became_thinner_for_good_is_what_is_expected_after_eight_intervals() -> None:
    def after(thin: int) -> float | None:
        return expected(learnt(reported(n, DAY, 80 if n < 40 else 20) for n in range(40 + thin)), DAY)

    assert (after(7), after(8)) == (0.8, 0.2)


def test_what_is_never_labelled_is_told_by_intervals_that_are_not_looked_at_again() -> None:
    reports = [reported(n, age * DAY, share) for n in range(10) for age, share in ((1, 40), (8, 90))]
    assert learn(reports, settled_before=T0 + 5 * DAY).final == 0.9
    young = [reported(n, DAY, 40) for n in range(10)]
    assert learn(young, settled_before=T0).final is None


def test_only_the_last_hundred_reports_teach() -> None:
    assert expected(learnt(reported(n, DAY, 10 if n < 50 else 90) for n in range(150)), DAY) == 0.9


def test_an_assessment_holds_the_share_and_what_was_to_be_expected() -> None:
    found = assess(learnt(reported(n, DAY, 80) for n in range(5)), age=2 * DAY, labelled=30, rows=60)
    assert (found.share, found.expected, found.final) == (0.5, 0.8, 0.8)
    assert assess(Curve(), age=DAY, labelled=0, rows=0).share is None


@pytest.mark.parametrize(("labelled", "is_short"), [(39, True), (40, False), (80, False)])
def test_labels_fall_short_below_the_given_share_of_what_was_expected(labelled: int, is_short: bool) -> None:
    curve = learnt(reported(n, DAY, 80) for n in range(5))
    found = shortfall(assess(curve, age=DAY, labelled=labelled, rows=100), 0.5)
    assert (found is not None) == is_short
    if found:
        assert "39% of 100 rows are labelled; earlier intervals had 80% at this age" in found


def test_labels_never_fall_short_of_an_experience_that_is_not_there() -> None:
    assert shortfall(assess(Curve(), age=DAY, labelled=1, rows=100), 0.5) is None
