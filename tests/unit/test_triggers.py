"""Whether to train: which reports count, what starts a training, and what comes first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pipeline import triggers
from pipeline.policies import Retrain
from pipeline.verdicts import DriftReport, PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.reports import TriggerDecision
    from pipeline.verdicts import Verdict

CHAMPION = 3
DAY = timedelta(days=1)
FIRST = datetime(2026, 3, 1, tzinfo=UTC)
LONG_AGO = FIRST - timedelta(days=300)
VERDICTS: dict[str, Verdict] = {"d": "drift", "s": "stable", "i": "insufficient_data"}


def drift(day: int, verdict: Verdict, *, version: int = CHAMPION, quiet: bool = False) -> DriftReport:
    start = FIRST + day * DAY
    return DriftReport(
        job="orders",
        start=start,
        end=start + DAY,
        verdict=verdict,
        reason=f"Drift reason of day {day}.",
        rows=1000,
        window_start=start,
        model_version=version,
        detector="scipy",
        columns=(),
        quiet=quiet,
    )


def performance(day: int, verdict: Verdict, *, version: int = CHAMPION, quiet: bool = False) -> PerformanceReport:
    start = FIRST + day * DAY
    return PerformanceReport(
        job="orders",
        start=start,
        end=start + DAY,
        as_of=start + DAY,
        verdict=verdict,
        reason=f"Performance reason of day {day}.",
        metric="mae",
        value=1.0,
        limit=1.0,
        n=1000,
        rows_scored=1000,
        model_version=version,
        slices=(),
        quiet=quiet,
    )


def drifts(letters: str, **changes: Any) -> list[DriftReport]:
    """One drift report per letter, on successive days."""
    return [drift(day, VERDICTS[letter], **changes) for day, letter in enumerate(letters)]


def performances(letters: str, **changes: Any) -> list[PerformanceReport]:
    return [performance(day, VERDICTS[letter], **changes) for day, letter in enumerate(letters)]


def decided(
    policy: Retrain,
    *,
    drift: Sequence[DriftReport] = (),
    performance: Sequence[PerformanceReport] = (),
    last_trained: datetime = LONG_AGO,
    as_of: datetime = FIRST + 10 * DAY,
) -> TriggerDecision:
    return triggers.decide(
        policy, as_of, champion_version=CHAMPION, drift=drift, performance=performance, last_trained=last_trained
    )


@pytest.mark.parametrize(
    ("letters", "fires"),
    [
        ("", False),
        ("dd", False),  # two of three
        ("ddd", True),
        ("dddss", False),  # the latest is stable again
        ("ddsid", True),
        ("ddsdi", False),  # nothing is known about the latest
        ("dsdsd", True),
        ("iiddd", True),
        ("ddsss" + "d", False),  # the first has left the window of five
        ("sssss", False),
        ("iiiii", False),
        ("ddddd" * 2, True),
    ],
)
@pytest.mark.parametrize("cause", ["drift", "degradation"])
def test_a_training_needs_three_of_the_last_five_the_latest_included(letters: str, fires: bool, cause: str) -> None:
    policy = Retrain(violations=3, of_last=5)
    found = (
        decided(policy, drift=drifts(letters))
        if cause == "drift"
        else decided(policy, performance=performances(letters))
    )
    assert (found.fire, found.cause) == ((True, cause) if fires else (False, "none"))


@pytest.mark.parametrize(("letters", "fires"), [("d", True), ("sd", True), ("ds", False), ("di", False)])
def test_one_of_one_fires_on_every_violation(letters: str, fires: bool) -> None:
    assert decided(Retrain(violations=1, of_last=1), drift=drifts(letters)).fire is fires


def test_the_reason_names_the_count_the_policy_and_the_latest_violation() -> None:
    found = decided(Retrain(violations=2, of_last=4), drift=drifts("dsd"))
    assert found.reason == (
        "Drift: 2 of the last 3 intervals violate (2 of 4 start a training). Drift reason of day 2."
    )


def test_reports_of_backfills_neither_fire_nor_push_others_out_of_the_window() -> None:
    policy = Retrain(violations=3, of_last=3)
    assert not decided(policy, drift=drifts("ddddd", quiet=True)).fire
    quiet = [drift(day, "stable", quiet=True) for day in range(3, 6)]
    assert decided(policy, drift=[*drifts("ddd"), *quiet]).fire


def test_reports_on_another_version_do_not_count() -> None:
    policy = Retrain(violations=3, of_last=5)
    assert not decided(policy, drift=drifts("ddddd", version=CHAMPION - 1)).fire
    earlier = [drift(day, "drift", version=CHAMPION - 1) for day in range(3)]
    present = [drift(day, "drift") for day in range(3, 5)]
    assert not decided(policy, drift=[*earlier, *present]).fire
    assert decided(policy, drift=[*earlier, *present, drift(5, "drift")]).fire


def test_an_interval_that_was_judged_again_counts_once_with_its_last_verdict() -> None:
    policy = Retrain(violations=3, of_last=5)
    assert not decided(policy, performance=[performance(0, "drift") for _ in range(3)]).fire
    corrected = [*performances("dd"), performance(2, "insufficient_data"), performance(2, "drift")]
    assert decided(policy, performance=corrected).fire
    assert not decided(policy, performance=[*performances("ddd"), performance(2, "stable")]).fire


def test_an_interval_that_had_not_ended_does_not_count() -> None:
    policy = Retrain(violations=3, of_last=3)
    assert decided(policy, drift=drifts("ddd"), as_of=FIRST + 3 * DAY).fire
    assert not decided(policy, drift=drifts("ddd"), as_of=FIRST + 3 * DAY - timedelta(seconds=1)).fire


def test_drift_and_degradation_are_counted_apart() -> None:
    policy = Retrain(violations=3, of_last=5)
    assert not decided(policy, drift=drifts("dd"), performance=performances("dd")).fire


def test_degradation_comes_before_drift_and_drift_before_the_schedule() -> None:
    policy = Retrain(violations=1, of_last=1, every=DAY)
    bad = {"drift": drifts("d"), "performance": performances("d")}
    assert decided(policy, **bad).cause == "degradation"
    assert decided(policy, drift=bad["drift"], performance=performances("s")).cause == "drift"
    assert decided(policy, drift=drifts("s")).cause == "schedule"


@pytest.mark.parametrize(("wait", "fires"), [(timedelta(0), True), (timedelta(seconds=1), False)])
def test_a_violation_waits_for_the_cooldown_and_says_so(wait: timedelta, fires: bool) -> None:
    as_of = FIRST + 10 * DAY
    policy = Retrain(violations=1, of_last=1, cooldown=14 * DAY)
    found = decided(policy, drift=drifts("d"), as_of=as_of, last_trained=as_of + wait - 14 * DAY)
    assert (found.fire, found.cause) == (fires, "drift")
    if not fires:
        assert found.reason.endswith("Waiting for the cooldown until 2026-03-11T00:00:01Z.")


@pytest.mark.parametrize(("age", "fires"), [(29 * DAY, False), (30 * DAY, True), (31 * DAY, True)])
def test_the_schedule_fires_when_the_last_training_is_old_enough(age: timedelta, fires: bool) -> None:
    as_of = FIRST + 10 * DAY
    found = decided(Retrain(every=30 * DAY), as_of=as_of, last_trained=as_of - age)
    assert (found.fire, found.cause) == ((True, "schedule") if fires else (False, "none"))


def test_the_schedule_keeps_the_cooldown_too() -> None:
    as_of = FIRST + 10 * DAY
    policy = Retrain(every=7 * DAY, cooldown=14 * DAY)
    early = decided(policy, as_of=as_of, last_trained=as_of - 10 * DAY)
    assert (early.fire, early.cause) == (False, "schedule")
    assert "Waiting for the cooldown until 2026-03-15T00:00:00Z" in early.reason
    assert decided(policy, as_of=as_of, last_trained=as_of - 14 * DAY).fire


def test_without_a_schedule_age_alone_never_fires() -> None:
    assert not decided(Retrain(every=None), last_trained=LONG_AGO, drift=drifts("sssss")).fire


def test_nothing_fires_when_retraining_is_switched_off() -> None:
    policy = Retrain(enabled=False, violations=1, of_last=1, every=DAY)
    found = decided(policy, drift=drifts("ddd"), performance=performances("ddd"))
    assert (found.fire, found.cause) == (False, "none")
    assert "retrain.enabled" in found.reason
