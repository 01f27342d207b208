"""Whether to train a challenger now: a pure policy over recorded verdicts and earlier trainings.

First a cause is looked for: more evidence on the last challenger, degradation, estimated degradation, drift, the schedule. Then
the brakes: what broken data, the cooldown, the breaker, the rows that are new, and the budget say about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline import windows
from pipeline.intervals import format_instant
from pipeline.policies import HIGHER_IS_BETTER
from pipeline.reports import TriggerDecision
from pipeline.verdicts import PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from pipeline.intervals import Interval
    from pipeline.job import JobSpec
    from pipeline.policies import Retrain
    from pipeline.verdicts import DriftReport

    _Report = DriftReport | PerformanceReport
Cause = Literal["degradation", "estimate", "drift", "schedule"]
Starter = Literal["person", "calendar", "change"]

_NAMED: dict[Cause, str] = {"degradation": "Degradation", "estimate": "Estimated degradation", "drift": "Drift"}
# A training that did not end within so long was lost with its process, unless the cooldown is longer.
_LOST_AFTER = timedelta(days=1)
# A change is learnt from part of what is new and proven on the rest: each part needs rows and intervals of its own.
_FEWEST_INTERVALS = 3
_WEEK, _MONTH = timedelta(days=7), timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Training:
    """One earlier training and what became of it."""

    as_of: datetime
    started_by: Starter
    outcome: Literal["promoted", "rejected", "open", "running"]
    learnt_until: datetime | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it was to answer a change and led to nothing; one by the calendar may well find nothing better."""
        return self.outcome == "rejected" and self.started_by == "change"


@dataclass(frozen=True, slots=True)
class Unproven:
    """The last challenger, better than the present champion but not proven so, for the last time on the rows of ``span``."""

    version: int
    gain: float
    span: Interval
    looks: int


@dataclass(frozen=True, slots=True)
class Known:
    """What is known when a decision is made.

    ``drift`` and ``performance`` are the latest reports in order of their intervals, of several on one interval the last
    counts; ``trainings`` come in order of ``as_of``; ``labelled`` holds the labelled rows of each interval by its start;
    ``in_rollout`` is the version that is in rollout beside the champion, ``unproven`` the last training's if it may yet win.
    """

    champion_version: int
    drift: Sequence[DriftReport]
    performance: Sequence[PerformanceReport]
    trainings: Sequence[Training]
    labelled: Mapping[datetime, int]
    in_rollout: int | None = None
    unproven: Unproven | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    cause: Cause
    reason: str
    since: datetime | None = None


def decide(job: JobSpec, as_of: datetime, known: Known) -> TriggerDecision:
    """The decision at ``as_of``, with the one reason that settled it.

    Only reports on the present champion count; quiet ones (from backfills) and those of intervals that had not ended by
    ``as_of`` never do. A cause needs ``violations`` within ``of_last`` reports, and then lasts until the reports since it
    began say that it has passed. Degradation is named before what is only estimated, that before drift, and all before the
    schedule, which is asked where a change has to wait. Nothing starts while the latest interval's data is broken (a model
    would learn the defect), while a rollout or a training is under way or the cooldown since the last one lasts, for a change
    while the breaker is open, before ``min_new_rows`` labelled rows have come since the change began and since the last
    training for it - twice as many for each that led to nothing - over long enough to learn from some and prove it on others
    (`pipeline.windows.shortest_since_change`), and beyond the budget. To look again at a challenger costs nothing of these.
    """
    policy = job.retrain
    halted = len(rejected_in_a_row(known.trainings)) >= policy.breaker.after
    if why := _may_be_proven_now(job, as_of, known):
        assert known.unproven is not None
        return TriggerDecision(fire=True, cause="evidence", reason=why, version=known.unproven.version, halted=halted)
    causes, why = _causes(job, as_of, known)
    if not causes:
        return TriggerDecision(fire=False, cause="none", reason=why, halted=halted)
    told = [(found, _waiting(job, as_of, known, found)) for found in causes]
    found, waiting = next((one for one in told if not one[1]), told[0])
    reason = f"{found.reason} {waiting}".rstrip()
    return TriggerDecision(fire=not waiting, cause=found.cause, reason=reason, since=found.since, halted=halted)


def rejected_in_a_row(trainings: Sequence[Training]) -> list[Training]:
    """The trainings since the last promotion that a change started and that led to nothing, oldest first."""
    run: list[Training] = []
    for training in trainings:
        if training.outcome == "promoted":
            run = []
        elif training.has_failed:
            run.append(training)
    return run


def _may_be_proven_now(job: JobSpec, as_of: datetime, known: Known) -> str:
    """Why the last challenger is compared again: there is twice as much to compare it on; empty when it is not."""
    unproven, policy = known.unproven, job.retrain
    if unproven is None or unproven.looks >= job.promote.looks or not policy.enabled:
        return ""
    if _broken(as_of, known.drift) or known.in_rollout is not None or known.trainings[-1].outcome == "running":
        return ""
    begin = unproven.span.start
    seen, now = unproven.span.end - begin, windows.labelled_by(job, as_of) - begin
    if now < 2 * seen:
        return ""
    return (
        f"Version {unproven.version} was better by {unproven.gain:.4g} over {_days(seen)}, which was no proof; now there are "
        f"labels of {_days(now)}. Look {unproven.looks + 1} of {job.promote.looks}."
    )


def _causes(job: JobSpec, as_of: datetime, known: Known) -> tuple[list[_Found], str]:
    """The causes to train, first what changed and then the calendar; or why there is none."""
    policy = job.retrain
    if not policy.enabled:
        return [], "Retraining is switched off (retrain.enabled: false)."
    if broken := _broken(as_of, known.drift):
        return [], f"Nothing is trained on {broken}."
    found = (_violated(job, as_of, known), _due(job, as_of, known.trainings))
    return [one for one in found if one is not None], "No cause to train: too few violations in the latest intervals."


def _waiting(job: JobSpec, as_of: datetime, known: Known, found: _Found) -> str:
    """What the brakes have to say of a cause; empty when none holds."""
    return (
        _under_way(job.retrain, as_of, known)
        or _resting(job.retrain, as_of, known.trainings, found)
        or _too_little_is_new(job, known, found)
        or _over_budget(job.retrain, as_of, known.trainings)
    )


def _violated(job: JobSpec, as_of: datetime, known: Known) -> _Found | None:
    """The first cause that enough reports show, now or for as long as it has lasted since, and since when."""
    policy = job.retrain
    kinds: tuple[tuple[Cause, Sequence[_Report], Callable[[_Report], bool], Callable[[_Report], float | None]], ...] = (
        ("degradation", known.performance, lambda report: report.is_violation, _realised),
        ("estimate", known.drift if policy.estimates else (), _is_estimated, _estimated),
        ("drift", known.drift, lambda report: report.is_violation, lambda report: None),
    )
    for cause, reports, is_violation, value in kinds:
        counted = _counted(as_of, known.champion_version, reports)
        places = [place for place, report in enumerate(counted) if is_violation(report)]
        raised = _raised(policy, places)
        if raised is None:
            continue
        begun = _onset(policy, counted, [place for place in places if place <= raised], value)
        shown = counted[begun:]
        if raised < len(counted) - 1:
            told = _lasts(job, shown, is_violation)
        else:
            seen = counted[-policy.of_last :]
            told = (
                f"{sum(map(is_violation, seen))} of the last {len(seen)} intervals violate ({policy.violations} of "
                f"{policy.of_last} start a training). "
                f"{seen[-1].estimate.reason if cause == 'estimate' else seen[-1].reason}"  # type: ignore[union-attr]
            )
        if told:
            return _Found(cause, f"{_NAMED[cause]}: {told}", shown[0].start)
    return None


def _raised(policy: Retrain, places: Sequence[int]) -> int | None:
    """Of the reports at ``places``, which violate, the latest with which enough of the ``of_last`` up to it do."""
    for last in range(len(places) - 1, policy.violations - 2, -1):
        if places[last] - places[last - policy.violations + 1] < policy.of_last:
            return places[last]
    return None


def _lasts(job: JobSpec, shown: Sequence[_Report], is_violation: Callable[[_Report], bool]) -> str:
    """How the reports since a change began say that it goes on, though the latest do not violate; empty when it has passed.

    Their mean metric is still worse than the champion's at training by more than ``performance.tolerance`` and more than
    chance lets a mean of so many be; where there is no metric, as large a share of them violates as starts a training.
    """
    policy, since = job.retrain, f"it has lasted since {format_instant(shown[0].start)}"
    measured = [r for r in shown if isinstance(r, PerformanceReport) and r.metric == job.metric]
    known = [(r.value, r.baseline, r.limit) for r in measured if r.cause != "broken_data"]
    told = [(v, b, limit) for v, b, limit in known if v is not None and b is not None and limit is not None]
    if told:
        value, expected, limit = (float(np.mean(column)) for column in zip(*told, strict=True))
        slack = max(job.performance.tolerance * abs(expected), abs(limit - expected) / len(told) ** 0.5)
        loss = expected - value if HIGHER_IS_BETTER[job.metric] else value - expected
        if loss <= slack:
            return ""
        return (
            f"{since}: {job.metric} {value:.4g} on average over {len(told)} intervals, worse than at training "
            f"({expected:.4g}) by more than {slack:.2g}."
        )
    violating = sum(map(is_violation, shown))
    if violating * policy.of_last < policy.violations * len(shown):
        return ""
    return f"{since}: {violating} of {len(shown)} intervals violate."


def _onset(
    policy: Retrain, counted: Sequence[_Report], places: Sequence[int], value: Callable[[_Report], float | None]
) -> int:
    """The place of the interval with which the change began that the violations at ``places`` have shown.

    Of the violations that are linked to the latest one by gaps of less than ``of_last`` intervals the first; where the
    reports have a value, the one of these before which and from which on the values differ most (the point that CUSUM
    finds, Page 1954): a violation by chance shortly before the change is not taken for its beginning.
    """
    linked = [places[-1]]
    for place in reversed(places[:-1]):
        if linked[0] - place > policy.of_last:
            break
        linked.insert(0, place)
    values = np.array([np.nan if (found := value(report)) is None else found for report in counted])
    # A single interval is no change yet.
    candidates = linked[:-1] or linked
    scores = [_contrast(values[:place], values[place:]) for place in candidates]
    return candidates[int(np.argmax(scores))]


def _contrast(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """How far the means of two stretches lie apart, in units in which chance moves them alike."""
    older, newer = before[np.isfinite(before)], after[np.isfinite(after)]
    if not len(older) or not len(newer):
        return 0.0
    weight = len(older) * len(newer) / (len(older) + len(newer))
    return float(abs(older.mean() - newer.mean()) * np.sqrt(weight))


def _is_estimated(report: _Report) -> bool:
    estimate = getattr(report, "estimate", None)
    return estimate is not None and estimate.is_valid and estimate.verdict == "drift"


def _realised(report: _Report) -> float | None:
    value: float | None = getattr(report, "value", None)
    return value


def _estimated(report: _Report) -> float | None:
    estimate = getattr(report, "estimate", None)
    return None if estimate is None else estimate.value


def _due(job: JobSpec, as_of: datetime, trainings: Sequence[Training]) -> _Found | None:
    """What the calendar says: the last training is too old, or there is so much more to learn from than it had."""
    policy, last = job.retrain, trainings[-1].as_of if trainings else as_of
    if policy.every is not None and as_of >= last + policy.every:
        return _Found("schedule", f"The last training is {as_of - last} old; retrain.every is {policy.every}.")
    now, then = windows.learnable(job, as_of), windows.learnable(job, last)
    if policy.growth is not None and now >= policy.growth * then > timedelta(0):
        told = f"There are {_days(now)} to learn from, the last training had {_days(then)}"
        return _Found("schedule", f"{told}; retrain.growth is {policy.growth:g}.")
    return None


def _broken(as_of: datetime, reports: Sequence[DriftReport]) -> str:
    """What is broken in the data of the latest interval; empty when nothing is."""
    latest = max((r for r in reports if r.end <= as_of and not r.quiet), key=lambda r: r.start, default=None)
    if latest is None or not latest.faults:
        return ""
    return f"broken data ({format_instant(latest.start)}: {latest.reason.removeprefix('broken data: ')})"


def _counted(as_of: datetime, champion_version: int, reports: Sequence[_Report]) -> list[_Report]:
    """The reports that count, at most one per interval."""
    by_interval = {
        report.start: report
        for report in reports
        if report.model_version == champion_version and not report.quiet and report.end <= as_of
    }
    return list(by_interval.values())


def _under_way(policy: Retrain, as_of: datetime, known: Known) -> str:
    """What a rollout, and a training that has begun or began too recently, have to say; empty when nothing."""
    if known.in_rollout is not None:
        return f"Version {known.in_rollout} is in rollout: what it shows decides first."
    if not known.trainings:
        return ""
    last = known.trainings[-1]
    if last.outcome == "running" and as_of < last.as_of + max(policy.cooldown, _LOST_AFTER):
        return f"The training as of {format_instant(last.as_of)} has not ended."
    ready = last.as_of + policy.cooldown
    return f"Waiting for the cooldown until {format_instant(ready)}." if as_of < ready else ""


def _resting(policy: Retrain, as_of: datetime, trainings: Sequence[Training], found: _Found) -> str:
    """What the breaker has to say while it is open; empty when it is closed, lets one training try, or nothing changed."""
    run = rejected_in_a_row(trainings)
    if len(run) < policy.breaker.after or found.cause == "schedule":
        return ""
    until = run[-1].as_of + policy.breaker.rest
    if as_of >= until:
        return ""
    return (
        f"The last {len(run)} trainings led to nothing (retrain.breaker.after is {policy.breaker.after}): none starts by "
        f"itself for a change until {format_instant(until)}."
    )


def _too_little_is_new(job: JobSpec, known: Known, found: _Found) -> str:
    """What is missing of the labelled rows from which the change could be learnt; empty when there are enough."""
    since = found.since
    trained = [t for t in known.trainings if since is None or (t.as_of > since and t.started_by != "calendar")]
    learnt = max((t.learnt_until for t in trained if t.learnt_until is not None), default=None)
    begin = max((moment for moment in (since, learnt) if moment is not None), default=None)
    labelled = {start: rows for start, rows in known.labelled.items() if rows and (since is None or start >= since)}
    fresh = {start: rows for start, rows in labelled.items() if begin is None or start >= begin}
    rejected = 0 if since is None else sum(t.has_failed for t in trained)
    wanted = _rows_wanted(job) * 2**rejected
    # What is due by the calendar alone is proven on what every training is proven on.
    stretch = timedelta(0) if since is None else windows.shortest_since_change(job)
    covered = job.cadence.next(max(labelled)) - min(labelled) if labelled else timedelta(0)
    if sum(fresh.values()) >= wanted and len(fresh) >= _FEWEST_INTERVALS and covered >= stretch:
        return ""
    needed = f"{wanted} in {_FEWEST_INTERVALS}" + (f" over {_days(stretch)}" if covered < stretch else "")
    seen = f"{sum(fresh.values())} labelled rows in {len(fresh)} intervals are new, {needed} are needed."
    if learnt is not None and begin == learnt:
        return f"The training as of {format_instant(trained[-1].as_of)} has seen this already: {seen}"
    return f"Waiting for labels since {format_instant(begin)}: {seen}" if begin else ""


def _rows_wanted(job: JobSpec) -> int:
    """Rows to learn from, and as many or as the gate asks for to prove it on."""
    return job.retrain.min_new_rows or job.retrain.min_rows + max(job.retrain.min_rows, job.promote.min_labels)


def _days(length: timedelta) -> str:
    return f"{length / timedelta(days=1):g} days"


def _over_budget(policy: Retrain, as_of: datetime, trainings: Sequence[Training]) -> str:
    """Which budget is used up; empty when none is."""
    for span, most, name in ((_WEEK, policy.budget.week, "week"), (_MONTH, policy.budget.month, "month")):
        spent = [t for t in trainings if t.started_by != "person" and as_of - span < t.as_of <= as_of]
        if len(spent) >= most:
            ready = spent[-most].as_of + span
            return f"The budget of {most} trainings a {name} is used up until {format_instant(ready)}."
    return ""
