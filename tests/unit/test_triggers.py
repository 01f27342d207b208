"""Whether to train: which reports count, what starts a training, and what comes first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pipeline import triggers
from pipeline.intervals import Interval
from pipeline.job import JobSpec
from pipeline.policies import Breaker, Budget, Retrain
from pipeline.triggers import Known, Training, Unproven
from pipeline.verdicts import DriftReport, Estimate, Fault, PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.reports import TriggerDecision
    from pipeline.verdicts import Verdict

CHAMPION = 3
DAY = timedelta(days=1)
FIRST = datetime(2026, 3, 1, tzinfo=UTC)
LONG_AGO = FIRST - timedelta(days=300)
VERDICTS: dict[str, Verdict] = {"d": "drift", "s": "stable", "i": "insufficient_data"}


def job(policy: Retrain) -> JobSpec:
    """A daily job with this policy; one day is enough to prove a change on, unless it says otherwise."""
    held = policy if "holdout" in policy.model_fields_set else policy.model_copy(update={"holdout": DAY})
    return JobSpec.model_validate(
        {
            "name": "orders",
            "task": "regression",
            "schedule": {"interval": "1d", "start": FIRST},
            "features": {"uri": "features", "key": ("id",), "time": "at", "columns": {"amount": {"type": "number"}}},
            "labels": {"uri": "labels", "column": "label", "available_at": "known_at"},
            "retrain": held,
        }
    )


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
    trainings: Sequence[Training] | None = None,
    labelled: int = 1000,
    as_of: datetime = FIRST + 10 * DAY,
    **known: Any,
) -> TriggerDecision:
    """The decision with ``labelled`` rows a day and, unless ``trainings`` are given, one promoted training."""
    facts = Known(
        champion_version=CHAMPION,
        drift=drift,
        performance=performance,
        trainings=[trained(last_trained)] if trainings is None else trainings,
        labelled={FIRST + day * DAY: labelled for day in range((as_of - FIRST).days)},
        **known,
    )
    return triggers.decide(job(policy), as_of, facts)


def trained(
    as_of: datetime,
    outcome: str = "promoted",
    *,
    started_by: str = "change",
    learnt_until: datetime | None = None,
) -> Training:
    return Training(as_of, started_by, outcome, learnt_until or as_of)


@pytest.mark.parametrize(
    ("letters", "fires"),
    [
        ("", False),
        ("dd", False),  # two of three
        ("ddd", True),
        ("dddss", True),  # it lasts: three of five since it began
        ("dddsss", False),  # it has passed
        ("ddsid", True),
        ("ddsds", True),
        ("ddssd" + "s" * 4 + "dd", False),  # never three of five
        ("dsdsd", True),
        ("iiddd", True),
        ("ddsss" + "d", False),  # the first has left the window of five
        ("sssss", False),
        ("iiiii", False),
        ("ddddd" * 2, True),
    ],
)
@pytest.mark.parametrize("cause", ["drift", "degradation"])
def test_a_cause_needs_three_of_five_and_lasts_as_long_as_that_share_of_the_intervals_since(
    letters: str, fires: bool, cause: str
) -> None:
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


@pytest.mark.parametrize(("day", "fires"), [(44, False), (45, True), (60, True)])
def test_half_as_much_history_again_is_reason_enough_to_train(day: int, fires: bool) -> None:
    # The last of the 30 days before the training was its holdout.
    policy, as_of = Retrain(growth=1.5, cooldown=DAY), FIRST + day * DAY
    found = decided(policy, as_of=as_of, last_trained=FIRST + 30 * DAY)
    assert (found.fire, found.cause) == ((True, "schedule") if fires else (False, "none"))
    if day == 45:
        assert found.reason == (
            "There are 44 days to learn from, the last training had 29 days; retrain.growth is 1.5."
        )


@pytest.mark.parametrize(
    "changes", [{"max_history": 50 * DAY, "window": 50 * DAY}, {"window_policy": "sliding", "window": 50 * DAY}]
)
def test_history_that_no_training_may_use_is_no_reason_to_train(changes: dict[str, Any]) -> None:
    policy = Retrain(growth=1.2, **changes)
    assert decided(policy, as_of=FIRST + 50 * DAY, last_trained=FIRST + 30 * DAY).fire
    assert not decided(policy, as_of=FIRST + 400 * DAY, last_trained=FIRST + 60 * DAY).fire


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


# --- what a decision waits for ----------------------------------------------------------------------------------------

TODAY = FIRST + 10 * DAY
EAGER: dict[str, Any] = {"violations": 1, "of_last": 1, "cooldown": timedelta(0), "min_new_rows": 100}


def test_what_is_only_estimated_counts_unless_the_policy_says_otherwise() -> None:
    expected = Estimate(
        metric="roc_auc",
        value=0.6,
        low=0.5,
        high=0.7,
        n=100,
        error=0.01,
        compared=9,
        is_valid=True,
        verdict="drift",
        reason="Low.",
    )
    seen = [report.model_copy(update={"estimate": expected}) for report in drifts("ss")]
    found = decided(Retrain(**{**EAGER, "violations": 2, "of_last": 2}), drift=seen)
    assert (found.fire, found.cause, found.since) == (True, "estimate", FIRST)
    assert found.reason.startswith("Estimated degradation: 2 of the last 2 intervals violate")
    assert found.reason.endswith("Low.")
    assert not decided(Retrain(**EAGER, estimates=False), drift=seen).fire
    doubtful = [
        report.model_copy(update={"estimate": expected.model_copy(update={"is_valid": False})}) for report in seen
    ]
    assert not decided(Retrain(**EAGER), drift=doubtful).fire


def test_a_decision_says_since_when_the_change_shows() -> None:
    policy = Retrain(violations=2, of_last=3, cooldown=timedelta(0))
    assert decided(policy, drift=drifts("sdsssddsd")).since == FIRST + 5 * DAY
    assert decided(policy, drift=drifts("sdsdsdsdd")).since == FIRST + DAY
    assert decided(policy, drift=drifts("sssss")).since is None


def test_a_violation_by_chance_shortly_before_the_change_is_not_its_beginning() -> None:
    policy = Retrain(violations=3, of_last=5, cooldown=timedelta(0))
    values = dict(enumerate([5.0, 5.1, 4.9, 5.6, 5.0, 9.0, 9.2, 9.1, 8.9]))
    reports = [
        performance(day, "drift" if value > 5.5 else "stable").model_copy(update={"value": value})
        for day, value in values.items()
    ]
    found = decided(policy, performance=reports)
    assert (found.fire, found.cause, found.since) == (True, "degradation", FIRST + 5 * DAY)


def test_a_change_waits_until_enough_rows_since_have_labels() -> None:
    policy = Retrain(**{**EAGER, "min_new_rows": 500})
    waiting = decided(policy, drift=drifts("sssssssddd"), labelled=100)
    assert (waiting.fire, waiting.cause) == (False, "drift")
    assert waiting.reason.endswith(
        "Waiting for labels since 2026-03-08T00:00:00Z: 300 labelled rows in 3 intervals are new, 500 in 3 are needed."
    )
    assert decided(policy, drift=drifts("sssssssddd"), labelled=200).fire
    assert not decided(policy, drift=drifts("ssssssssdd"), labelled=9_999).fire


def test_degradation_lasts_while_its_mean_is_worse_than_at_training_beyond_tolerance_and_chance() -> None:
    policy = Retrain(violations=3, of_last=5, cooldown=timedelta(0), min_new_rows=100)

    def lived(values: Sequence[float]) -> TriggerDecision:
        reports = [
            performance(day, "drift" if value > 14 else "stable").model_copy(
                update={"value": value, "baseline": 10.0, "limit": 14.0}
            )
            for day, value in enumerate(values)
        ]
        return decided(policy, performance=reports, as_of=FIRST + 30 * DAY)

    begun = [10.0, 9.0, 15.0, 15.0, 15.0]
    lasting = lived([*begun, 12.0, 12.0, 12.0, 12.0, 12.0, 12.0])  # a mean of 13 over 9 intervals; 10 + 4 / 3 is chance
    assert (lasting.fire, lasting.cause, lasting.since) == (True, "degradation", FIRST + 2 * DAY)
    assert lasting.reason == (
        "Degradation: it has lasted since 2026-03-03T00:00:00Z: mae 13 on average over 9 intervals, worse than at training (10) "
        "by more than 1.3."
    )
    assert not lived([*begun, *[9.0] * 7]).fire
    assert not lived([*begun, *[10.2] * 20]).fire  # a mean within the tolerance of 5 %, however sure


def test_a_change_waits_for_labels_to_learn_from_and_for_a_holdout_to_prove_it_on() -> None:
    policy, now = Retrain(**EAGER, holdout=10 * DAY), FIRST + 20 * DAY
    waiting = decided(policy, drift=drifts("s" * 4 + "d" * 16), as_of=now)
    assert (waiting.fire, waiting.cause) == (False, "drift")
    assert waiting.reason.endswith("16000 labelled rows in 16 intervals are new, 100 in 3 over 17 days are needed.")
    assert decided(policy, drift=drifts("s" * 3 + "d" * 17), as_of=now).fire
    assert decided(Retrain(**EAGER, holdout=2 * DAY), drift=drifts("s" * 16 + "d" * 4), as_of=now).fire


def test_rows_to_learn_from_and_to_prove_it_on_are_needed_unless_the_policy_says_otherwise() -> None:
    policy = Retrain(**{**EAGER, "min_new_rows": None}, min_rows=80)  # the gate asks for 100
    assert not decided(policy, drift=drifts("sssssssddd"), labelled=59).fire
    assert decided(policy, drift=drifts("sssssssddd"), labelled=60).fire
    policy = Retrain(**{**EAGER, "min_new_rows": None}, min_rows=120)
    assert not decided(policy, drift=drifts("sssssssddd"), labelled=79).fire
    assert decided(policy, drift=drifts("sssssssddd"), labelled=80).fire


def test_a_change_that_was_trained_on_needs_new_rows_twice_as_many_each_time() -> None:
    bad = drifts("dddddddddd")
    once = [trained(LONG_AGO), trained(FIRST + 6 * DAY, "rejected", learnt_until=FIRST + 5 * DAY)]
    again = decided(Retrain(**EAGER), drift=bad, trainings=once, labelled=30)
    assert (again.fire, again.cause, again.since) == (False, "drift", FIRST)
    assert again.reason.endswith(
        "The training as of 2026-03-07T00:00:00Z has seen this already: 150 labelled rows in 5 intervals are new, 200 in 3 are "
        "needed."
    )
    assert decided(Retrain(**EAGER), drift=bad, trainings=once, labelled=40).fire
    twice = [*once, trained(FIRST + 7 * DAY, "rejected", learnt_until=FIRST + 5 * DAY)]
    patient = Retrain(**EAGER, budget=Budget(week=9, month=9))
    assert not decided(patient, drift=bad, trainings=twice, labelled=79).fire
    assert decided(patient, drift=bad, trainings=twice, labelled=80).fire


def test_a_new_change_is_not_held_up_by_what_an_older_one_led_to() -> None:
    earlier = [trained(LONG_AGO), trained(FIRST - DAY, "rejected")]
    assert decided(Retrain(**EAGER), drift=drifts("sssssssddd"), trainings=earlier, labelled=40).fire


def test_the_schedule_waits_for_new_labels_too() -> None:
    policy = Retrain(every=7 * DAY, cooldown=timedelta(0), min_new_rows=100)
    last = [trained(FIRST, learnt_until=FIRST + 5 * DAY)]
    assert not decided(policy, trainings=last, labelled=19).fire
    assert decided(policy, trainings=last, labelled=20).fire


def test_one_training_is_under_way_at_a_time_until_it_must_be_lost() -> None:
    begun = [trained(LONG_AGO), trained(TODAY - timedelta(hours=3), "running")]
    waiting = decided(Retrain(**EAGER), drift=drifts("d" * 10), trainings=begun)
    assert not waiting.fire
    assert waiting.reason.endswith("The training as of 2026-03-10T21:00:00Z has not ended.")
    lost = [trained(LONG_AGO), trained(TODAY - DAY, "running", learnt_until=FIRST)]
    assert decided(Retrain(**EAGER), drift=drifts("d" * 10), trainings=lost).fire


@pytest.mark.parametrize(
    ("ages", "fires", "name"),
    [((3, 1), False, "week"), ((8, 1), True, ""), ((29, 20, 9, 8), False, "month"), ((30, 20, 9, 8), True, "")],
)
def test_trainings_that_start_by_themselves_have_a_budget(ages: tuple[int, ...], fires: bool, name: str) -> None:
    spent = [trained(TODAY - age * DAY, learnt_until=LONG_AGO) for age in ages]
    policy = Retrain(**EAGER, budget=Budget(week=2, month=4))
    found = decided(policy, drift=drifts("d" * 10), trainings=spent)
    assert found.fire is fires
    assert (f"trainings a {name} is used up until" in found.reason) is not fires
    by_hand = [trained(TODAY - age * DAY, started_by="person", learnt_until=LONG_AGO) for age in ages]
    assert decided(policy, drift=drifts("d" * 10), trainings=by_hand).fire


def test_the_breaker_opens_after_trainings_that_led_to_nothing_and_a_promotion_closes_it() -> None:
    policy = Retrain(**EAGER, breaker=Breaker(after=2, rest=30 * DAY), budget=Budget(week=9, month=9))
    bad = {"drift": drifts("d" * 10), "labelled": 10_000}
    failed = [trained(FIRST - 20 * DAY), trained(FIRST - 9 * DAY, "rejected"), trained(FIRST - 5 * DAY, "rejected")]
    opened = decided(policy, trainings=failed, **bad)
    assert (opened.fire, opened.halted) == (False, True)
    assert opened.reason.endswith(
        "The last 2 trainings led to nothing (retrain.breaker.after is 2): none starts by itself for a change until "
        "2026-03-26T00:00:00Z."
    )
    assert not decided(policy, trainings=failed[:2], **bad).halted
    quiet = decided(policy, trainings=failed, drift=drifts("s" * 10))
    assert (quiet.fire, quiet.cause, quiet.halted) == (False, "none", True)
    healed = decided(policy, trainings=[*failed, trained(FIRST - 4 * DAY, started_by="person")], **bad)
    assert (healed.fire, healed.halted) == (True, False)


def test_trainings_by_the_calendar_that_find_nothing_better_do_not_open_the_breaker() -> None:
    policy = Retrain(**EAGER, breaker=Breaker(after=2, rest=30 * DAY), budget=Budget(week=9, month=9))
    routine = [trained(FIRST - day * DAY, "rejected", started_by="calendar") for day in (20, 15, 10, 5)]
    found = decided(policy, trainings=routine, drift=drifts("d" * 10))
    assert (found.fire, found.cause, found.halted) == (True, "drift", False)


def test_where_a_change_has_to_wait_what_is_due_by_the_calendar_is_trained() -> None:
    policy = Retrain(**EAGER, every=7 * DAY, breaker=Breaker(after=1, rest=30 * DAY))
    failed = [trained(LONG_AGO), trained(TODAY - 7 * DAY, "rejected")]
    found = decided(policy, trainings=failed, drift=drifts("d" * 10))
    assert (found.fire, found.cause, found.halted) == (True, "schedule", True)
    rested = decided(policy.model_copy(update={"every": None}), trainings=failed, drift=drifts("d" * 10))
    assert (rested.fire, rested.cause) == (False, "drift")
    # Nor does it wait for the labels that a change is proven on.
    early = decided(
        policy.model_copy(update={"holdout": 30 * DAY}), trainings=[trained(LONG_AGO)], drift=drifts("d" * 10)
    )
    assert (early.fire, early.cause) == (True, "schedule")


def test_a_training_by_the_calendar_has_not_answered_a_change() -> None:
    policy = Retrain(**{**EAGER, "min_new_rows": 5_000})
    for started_by in ("calendar", "change"):
        between = trained(TODAY - 2 * DAY, "rejected", learnt_until=TODAY - 2 * DAY, started_by=started_by)
        found = decided(policy, trainings=[trained(LONG_AGO), between], drift=drifts("d" * 10))
        assert (found.fire, found.cause) == (started_by == "calendar", "drift")


def test_after_its_rest_an_open_breaker_lets_one_training_try() -> None:
    policy = Retrain(**EAGER, breaker=Breaker(after=1, rest=30 * DAY))
    old = [trained(FIRST - 60 * DAY), trained(TODAY - 30 * DAY, "rejected")]
    tried = decided(policy, trainings=old, drift=drifts("d" * 10))
    assert (tried.fire, tried.halted) == (True, True)
    younger = [old[0], trained(TODAY - 29 * DAY, "rejected")]
    assert not decided(policy, trainings=younger, drift=drifts("d" * 10)).fire


def test_nothing_is_trained_while_a_version_is_in_rollout() -> None:
    known = Known(CHAMPION, drifts("d" * 10), (), [], {FIRST + day * DAY: 999 for day in range(10)}, in_rollout=7)
    found = triggers.decide(job(Retrain(**EAGER)), TODAY, known)
    assert (found.fire, found.cause) == (False, "drift")
    assert found.reason.endswith("Version 7 is in rollout: what it shows decides first.")
    assert triggers.decide(job(Retrain(**EAGER)), TODAY, replace(known, in_rollout=None)).fire


def test_a_champion_that_nobody_here_trained_is_no_obstacle() -> None:
    assert decided(Retrain(**EAGER), drift=drifts("d" * 10), trainings=[]).fire
    assert not decided(Retrain(every=DAY), trainings=[]).fire


# Trained on day 10, compared on days 6 to 9, labels complete after two days.
UNPROVEN = Unproven(version=7, gain=0.01, span=Interval(FIRST + 6 * DAY, FIRST + 10 * DAY), looks=1)


def looked(day: int, unproven: Unproven = UNPROVEN, policy: Retrain | None = None, **known: Any) -> TriggerDecision:
    tried = known.pop("trainings", [trained(FIRST + 10 * DAY, "rejected")])
    asked = policy or Retrain(cooldown=30 * DAY)
    return decided(asked, as_of=FIRST + day * DAY, trainings=tried, unproven=unproven, **known)


def test_a_challenger_that_is_unproven_is_compared_again_once_twice_as_much_is_labelled_whatever_the_cooldown() -> None:
    mature = job(Retrain()).labels.mature_after
    first = next(day for day in range(10, 30) if looked(day).fire)
    again = looked(first)
    assert (again.cause, again.version) == ("evidence", 7)
    assert FIRST + first * DAY - mature >= UNPROVEN.span.start + 8 * DAY > FIRST + (first - 1) * DAY - mature
    assert "Look 2 of 3" in again.reason
    assert "better by 0.01 over 4 days" in again.reason


def test_no_other_look_is_taken_beyond_the_last_one_on_broken_data_in_a_rollout_or_beside_a_training() -> None:
    assert looked(20).fire
    assert not looked(20, replace(UNPROVEN, looks=3)).fire
    assert not looked(20, policy=Retrain(enabled=False)).fire
    assert not looked(20, in_rollout=8).fire
    assert not looked(20, trainings=[trained(FIRST + 19 * DAY, "running")]).fire
    broken = drift(19, "insufficient_data").model_copy(
        update={"faults": (Fault(kind="missing", column="amount", detail="gone"),)}
    )
    assert not looked(20, drift=[broken]).fire
