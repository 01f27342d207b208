"""Run the whole loop over history in simulated time: exactly the verbs that the DAGs call, in their order.

Labels appear only when they had arrived; the clock is the end of the interval that is being lived through.
"""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import (
    ContractViolation,
    InvalidRequest,
    LabelsOverdue,
    NoData,
    NotEnoughLabels,
    TooManyQuarantined,
)
from pipeline.intervals import Interval, format_instant
from pipeline.policies import HIGHER_IS_BETTER
from pipeline.release import Approval
from pipeline.reports import TriggerDecision
from pipeline.runtime import Runtime, intervals
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from pipeline.job import JobSpec
    from pipeline.reports import Manifest

Policy = Literal["closed_loop", "frozen", "always"]
_MARKER = ".pipeline-replay"


@dataclass(slots=True)
class _Clock:
    now: datetime

    def __call__(self) -> datetime:
        return self.now


@dataclass(slots=True)
class _Course:
    """What happened so far."""

    manifests: list[Manifest] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    alerts: int = 0
    retrains: int = 0
    promotions: int = 0
    rollbacks: int = 0
    training_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)


def replay(
    job: JobSpec,
    start: datetime,
    end: datetime,
    *,
    policy: Policy,
    workspace: Path,
    jobs: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The course of the job from ``start`` to ``end`` as one JSON-ready report; all state lies under ``workspace``.

    ``closed_loop`` lets the job's own policy train and promote; ``frozen`` keeps the first champion; ``always``
    trains and promotes whenever the labels of a month are complete. Training that is not allowed or not possible
    leaves the champion in place; an interval whose input is missing or refused is named under ``skipped``, and life goes
    on, as it does in Airflow. ``progress`` gets one line per interval. Raises what bootstrapping at ``start`` raises, and
    `InvalidRequest` when ``workspace`` holds something else.
    """
    lived = intervals(job, start, end)
    _prepare(workspace)
    clock = _Clock(start)
    # The policy decides here; a job that is still careful (dry_run, or asks a person) would otherwise replay as frozen.
    job = job.model_copy(
        update={
            "promote": job.promote.model_copy(update={"mode": "enabled", "approval": Approval()}),
            "output": job.output.model_copy(update={"uri": str(workspace / "outputs" / job.name)}),
        }
    )
    began = time.perf_counter()
    with Runtime(Settings.in_home(workspace, jobs=jobs), clock) as runtime:
        runtime.retrain(job, start, bootstrap=True, reason="Bootstrap of the replay.")
        course = _Course()
        for interval in lived:
            clock.now = interval.end
            tick = time.perf_counter()
            line = _live(runtime, job, interval, policy, course)
            course.seconds.append(time.perf_counter() - tick)
            progress(line)
            if len(course.seconds) == 1:
                # All libraries are loaded by now. Looking through them for garbage takes a twentieth of a small interval.
                gc.freeze()
        gc.unfreeze()
        clock.now = lived[-1].end + job.labels.mature_after
        try:
            runtime.evaluate(job, clock.now)
        except (LabelsOverdue, ContractViolation) as error:
            progress(str(error))
        return _summary(runtime, job, policy, course, time.perf_counter() - began)


def backtest(
    job: JobSpec,
    changed: JobSpec,
    start: datetime,
    end: datetime,
    *,
    workspace: Path,
    jobs: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Both courses of one history, under the job's policies and under those of ``changed``, beside each other.

    ``present`` and ``changed`` are reports of `replay`; ``difference`` is the second minus the first of each count, of the
    mean of the metric and of the seconds that trainings took. Raises `InvalidRequest` when the two are about different
    inputs, labels or tasks, since then it is no change of policy, and what `replay` raises.
    """
    fields = [
        name for name in ("task", "schedule", "features", "labels") if getattr(job, name) != getattr(changed, name)
    ]
    if fields or job.metric != changed.metric:
        raise InvalidRequest(
            f"the changed job {changed.name!r} is about something else than job {job.name!r}",
            expected="the same task, schedule, features, labels and metric, and other policies",
            got=f"other {', '.join(fields or ['performance.metric'])}",
            left_behind="nothing was replayed",
            next_step="copy the job file and change its sections checks, drift, performance, retrain or promote only",
        )
    reports = {
        name: replay(
            spec,
            start,
            end,
            policy="closed_loop",
            workspace=workspace / name,
            jobs=jobs,
            progress=lambda line, name=name: progress(f"{name}: {line}"),  # type: ignore[misc]
        )
        for name, spec in (("present", job), ("changed", changed.model_copy(update={"name": job.name})))
    }
    counts = ("alerts", "retrains", "promotions", "rollbacks", "training_seconds")
    difference: dict[str, float | None] = {
        name: round(reports["changed"][name] - reports["present"][name], 3) for name in counts
    }
    means = [reports[name]["metric"]["mean"] for name in ("present", "changed")]
    difference["metric"] = None if None in means else means[1] - means[0]
    return {**reports, "difference": difference}


def _prepare(workspace: Path) -> None:
    """Start from an empty workspace; only one that an earlier replay made is emptied."""
    if workspace.exists() and any(workspace.iterdir()):
        if not (workspace / _MARKER).exists():
            raise InvalidRequest(
                f"workspace {workspace} is not empty and was not made by a replay",
                expected="a new or empty folder, or an earlier replay's workspace",
                got=f"{sum(1 for _ in workspace.iterdir())} entries",
                next_step="pass another --workspace",
            )
        shutil.rmtree(workspace)
    workspace.mkdir(parents=True, exist_ok=True)
    (workspace / _MARKER).touch()


def _live(runtime: Runtime, job: JobSpec, interval: Interval, policy: Policy, course: _Course) -> str:
    """One interval's life: score, monitor, evaluate, decide, act; returns a line of progress."""
    label = format_instant(interval.start)
    try:
        (manifest,) = runtime.score(job, interval.start)
    except (NoData, ContractViolation, TooManyQuarantined) as error:
        course.skipped.append(label)
        return f"{label}  {error}"
    course.manifests.append(manifest)
    (drift,) = runtime.monitor(job, interval.start)
    evaluated, trouble = runtime.evaluate(job, interval.end, strict=False), ""
    try:
        runtime.require_measured(job, interval.end)
    except (LabelsOverdue, ContractViolation) as error:
        trouble = str(error)
    moved = runtime.advance(job, interval.end)
    course.promotions += moved is not None and moved.outcome == "completed"
    course.alerts += (drift.verdict == "drift") + sum(r.verdict == "drift" for r in evaluated)
    acted = _act(runtime, job, interval, policy, course)
    value = f"{job.metric} {evaluated[-1].value:.4g}" if evaluated and evaluated[-1].value is not None else ""
    return (
        f"{label}  {manifest.rows_scored} scored, {manifest.rows_quarantined} quarantined, version "
        f"{manifest.model_version}, {drift.verdict}  {value}  {acted}  {f'rollout {moved.outcome}' if moved else ''}  {trouble}"
    ).rstrip()


def _act(runtime: Runtime, job: JobSpec, interval: Interval, policy: Policy, course: _Course) -> str:
    as_of, trigger = interval.end, None
    if policy == "closed_loop":
        watched = runtime.watch(job, as_of)
        if watched is not None and watched.outcome == "rolled_back":
            course.rollbacks += 1
            return f"rolled back to version {watched.back_to}, {len(watched.restated)} intervals restated"
        trigger = runtime.decide(job, as_of)
    elif policy == "always" and _completes_month(job, interval):
        trigger = TriggerDecision(fire=True, cause="schedule", reason="The labels of a month are complete.")
    if trigger is None or not trigger.fire:
        return ""
    course.retrains += trigger.version is None
    began = time.perf_counter()
    try:
        report = runtime.retrain(job, as_of, trigger=trigger, force=policy == "always")
    except (NotEnoughLabels, ContractViolation) as error:
        return str(error)
    finally:
        course.training_seconds += time.perf_counter() - began
    course.promotions += report.outcome == "promoted"
    return f"retrained ({trigger.cause}): {report.outcome}"


def _completes_month(job: JobSpec, interval: Interval) -> bool:
    """Whether the labels of a calendar month became complete during the interval."""
    known = interval.end - job.labels.mature_after
    earlier = interval.start - job.labels.mature_after
    return (known.year, known.month) != (earlier.year, earlier.month)


def _summary(runtime: Runtime, job: JobSpec, policy: Policy, course: _Course, seconds: float) -> dict[str, Any]:
    reports = {report.start: report for report in runtime.ledger.performance(job.name)}
    by_interval: list[dict[str, Any]] = [
        {
            "start": format_instant(m.start),
            "value": reports[m.start].value if m.start in reports else None,
            "n": reports[m.start].n if m.start in reports else 0,
            "model_version": m.model_version,
        }
        for m in course.manifests
    ]
    values: list[float] = [row["value"] for row in by_interval if row["value"] is not None]
    ordered = sorted(course.seconds)
    return {
        "job": job.name,
        "policy": policy,
        "intervals": len(course.manifests),
        "skipped": course.skipped,
        "rows_in": sum(m.rows_in for m in course.manifests),
        "rows_scored": sum(m.rows_scored for m in course.manifests),
        "rows_quarantined": sum(m.rows_quarantined for m in course.manifests),
        "alerts": course.alerts,
        "retrains": course.retrains,
        "promotions": course.promotions,
        "rollbacks": course.rollbacks,
        "training_seconds": round(course.training_seconds, 3),
        "metric": {
            "name": job.metric,
            "higher_is_better": HIGHER_IS_BETTER[job.metric],
            "mean": sum(values) / len(values) if values else None,
            "by_interval": by_interval,
        },
        "decisions": [
            {"at": format_instant(d.at), "kind": d.kind, "outcome": d.outcome, "reason": d.reason, "id": d.id}
            for d in runtime.ledger.decisions(job.name)
        ],
        "seconds": round(seconds, 3),
        "seconds_per_interval": {
            "median": round(ordered[len(ordered) // 2], 4) if ordered else None,
            "max": round(ordered[-1], 4) if ordered else None,
        },
    }
