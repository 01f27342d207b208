"""Whether to train a challenger now: a pure policy over recorded verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.intervals import format_instant
from pipeline.reports import TriggerDecision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.policies import Retrain
    from pipeline.verdicts import DriftReport, PerformanceReport

    _Report = DriftReport | PerformanceReport
    Cause = Literal["degradation", "drift", "schedule"]


def decide(
    policy: Retrain,
    as_of: datetime,
    *,
    champion_version: int,
    drift: Sequence[DriftReport],
    performance: Sequence[PerformanceReport],
    last_trained: datetime,
) -> TriggerDecision:
    """The decision at ``as_of``, with the one reason that settled it.

    ``drift`` and ``performance`` are the latest reports in order of their intervals; of several on one interval the last
    counts. Only reports on the present champion count; quiet ones (from backfills) and those of intervals that had not
    ended by ``as_of`` never do. A cause needs ``violations`` of the ``of_last`` latest reports, the latest included.
    Degradation is named before drift, because it is the damage itself, and both before the schedule. No cause is acted
    upon before the cooldown since ``last_trained`` is over, and none while the latest interval's data is broken: a model
    would learn the defect.
    """
    if not policy.enabled:
        return TriggerDecision(fire=False, cause="none", reason="Retraining is switched off (retrain.enabled: false).")
    if broken := _broken(as_of, drift):
        return TriggerDecision(fire=False, cause="none", reason=f"Nothing is trained on {broken}.")
    by_cause: dict[Cause, Sequence[_Report]] = {"degradation": performance, "drift": drift}
    for cause, reports in by_cause.items():
        latest = _latest(policy, as_of, champion_version, reports)
        violations = [report for report in latest if report.is_violation]
        if len(violations) >= policy.violations and violations[-1] is latest[-1]:
            found = (
                f"{cause.capitalize()}: {len(violations)} of the last {len(latest)} intervals violate "
                f"({policy.violations} of {policy.of_last} start a training). {latest[-1].reason}"
            )
            return _after_cooldown(policy, as_of, last_trained, cause, found)
    if policy.every is not None and as_of >= last_trained + policy.every:
        found = f"The last training is {as_of - last_trained} old; retrain.every is {policy.every}."
        return _after_cooldown(policy, as_of, last_trained, "schedule", found)
    return TriggerDecision(
        fire=False, cause="none", reason="No cause to train: too few violations in the latest intervals."
    )


def _broken(as_of: datetime, reports: Sequence[DriftReport]) -> str:
    """What is broken in the data of the latest interval; empty when nothing is."""
    latest = max((r for r in reports if r.end <= as_of and not r.quiet), key=lambda r: r.start, default=None)
    if latest is None or not latest.faults:
        return ""
    return f"broken data ({format_instant(latest.start)}: {latest.reason.removeprefix('broken data: ')})"


def _latest(policy: Retrain, as_of: datetime, champion_version: int, reports: Sequence[_Report]) -> list[_Report]:
    """The reports that count, at most one per interval and ``of_last`` in all."""
    by_interval = {
        report.start: report
        for report in reports
        if report.model_version == champion_version and not report.quiet and report.end <= as_of
    }
    return list(by_interval.values())[-policy.of_last :]


def _after_cooldown(
    policy: Retrain, as_of: datetime, last_trained: datetime, cause: Cause, found: str
) -> TriggerDecision:
    ready = last_trained + policy.cooldown
    if as_of < ready:
        waiting = f"{found} Waiting for the cooldown until {format_instant(ready)}."
        return TriggerDecision(fire=False, cause=cause, reason=waiting)
    return TriggerDecision(fire=True, cause=cause, reason=found)
