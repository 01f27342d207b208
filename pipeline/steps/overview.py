"""The state of a job at a glance, and what is missing of its outputs: from the ledger alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import IntervalsMissing
from pipeline.intervals import Interval, format_instant
from pipeline.steps import rollout

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.steps.context import JobContext

_LOOKBACK = 100
_SHOWN_DECISIONS = 5


def status(ctx: JobContext, now: datetime) -> dict[str, Any]:
    """A JSON-ready object on the job; see `pipeline.runtime.Runtime.status`."""
    job, ledger = ctx.job, ctx.ledger
    ruling = ledger.champion(job.name)
    intervals, _, latest = ledger.published(job.name)
    drift = ledger.drift(job.name, last=1)
    performance = ledger.performance(job.name, last=1)
    running = rollout.running(ctx, now)
    return {
        "job": job.name,
        "champion": ruling.model.version if ruling else None,
        "since": format_instant(ruling.effective_at) if ruling else None,
        "intervals": intervals,
        "latest": format_instant(latest.start) if latest else None,
        "rows_scored": latest.rows_scored if latest else 0,
        "rows_quarantined": latest.rows_quarantined if latest else 0,
        "drift": drift[-1].verdict if drift else None,
        "metric": job.metric,
        "value": performance[-1].value if performance else None,
        "performance": performance[-1].verdict if performance else None,
        "rollout": running.id if running else None,
        "decisions": [
            {"id": d.id, "at": format_instant(d.at), "outcome": d.outcome}
            for d in reversed(ledger.decisions(job.name, last=_SHOWN_DECISIONS))
        ],
    }


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
