"""The state of a job at a glance, and what is missing of its outputs: from the ledger alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import IntervalsMissing
from pipeline.intervals import Interval, format_instant
from pipeline.steps import rollout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.job import JobSpec
    from pipeline.ledger import Ledger
    from pipeline.ledger.glance import Glance
    from pipeline.reports import Decision
    from pipeline.steps.context import JobContext
    from pipeline.steps.rollout import Running

_LOOKBACK = 100
_SHOWN_DECISIONS = 5


def status(ledger: Ledger, jobs: Sequence[JobSpec], now: datetime) -> list[dict[str, Any]]:
    """A JSON-ready object on each job; see `pipeline.runtime.Runtime.status`. Asks no more for many jobs than for one."""
    found = ledger.glances([job.name for job in jobs], decided=_SHOWN_DECISIONS, rollouts=rollout.FEW)
    return [_status(ledger, job, found[job.name], now) for job in jobs]


def _status(ledger: Ledger, job: JobSpec, found: Glance, now: datetime) -> dict[str, Any]:
    ruling, latest, running = found.champion, found.manifest, _running(ledger, job, found, now)
    return {
        "job": job.name,
        "champion": ruling.model.version if ruling else None,
        "since": format_instant(ruling.effective_at) if ruling else None,
        "intervals": found.intervals,
        "latest": format_instant(latest.start) if latest else None,
        "rows_scored": latest.rows_scored if latest else 0,
        "rows_quarantined": latest.rows_quarantined if latest else 0,
        "drift": found.drift.verdict if found.drift else None,
        "metric": job.metric,
        "value": found.performance.value if found.performance else None,
        "performance": found.performance.verdict if found.performance else None,
        "rollout": running.id if running else None,
        "decisions": [
            {"id": d.id, "at": format_instant(d.at), "outcome": d.outcome} for d in reversed(found.decisions)
        ],
    }


def _running(ledger: Ledger, job: JobSpec, found: Glance, now: datetime) -> Running | None:
    if job.promote.rollout.kind == "direct":
        return None
    decided: Sequence[Decision] = [decision for decision in found.rollouts if decision.at <= now]
    if len(found.rollouts) == rollout.FEW and all(decision.outcome != "started" for decision in decided):
        decided = rollout.recent(ledger, job.name, until=now)
    return rollout.under_way(job, decided, lambda: found.champion)


def find_gaps(ctx: JobContext, as_of: datetime) -> list[Interval]:
    """The published intervals among the latest 100; raises `IntervalsMissing` naming those that are not there."""
    job = ctx.job
    _, first, _ = ctx.ledger.published(job.name)
    if first is None:
        return []
    due = as_of - job.schedule.timeout
    end = job.cadence.floor(min(due, job.schedule.end or due))
    start = max(first.start, job.cadence.shift(end, -_LOOKBACK))
    expected = list(job.cadence.split(Interval(start, end))) if start < end else []
    published = {manifest.start for manifest in ctx.ledger.manifests(job.name, since=start, ended_by=end)}
    if missing := [interval for interval in expected if interval.start not in published]:
        earliest = format_instant(missing[0].start)
        raise IntervalsMissing(
            f"job {job.name!r}: {len(missing)} of the latest {len(expected)} intervals were never published: "
            + ", ".join(format_instant(interval.start) for interval in missing[:10]),
            expected=f"every interval up to {format_instant(end)}",
            got=f"{len(expected) - len(missing)} published",
            left_behind="all published partitions are untouched",
            next_step=f"pipeline score {job.name} --start {earliest} (or clear the failed runs in Airflow)",
        )
    return expected
