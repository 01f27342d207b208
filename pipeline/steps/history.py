"""What earlier intervals say about one: whether their columns moved too, whether its rows came before, how many are usual.

Intervals may be monitored in any order, also at the same time. A report names what it rests on, so that it is found out of
date, and made again, as soon as an interval before it says something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import breakage, windows
from pipeline.intervals import Interval, format_instant
from pipeline.steps import reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.registry import LoadedModel
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import DriftReport

# Intervals that may be repeated by a partition that was delivered twice.
_REMEMBERED = 14


def earlier(ctx: JobContext, interval: Interval, version: int) -> list[DriftReport]:
    """The reports on the intervals just before, oldest first; those on other models have no say."""
    since = ctx.job.cadence.shift(interval.start, -_reach(ctx))
    found = ctx.ledger.drift(ctx.job.name, since=since, ended_by=interval.start)
    return [report for report in found if report.model_version == version]


def in_a_row(ctx: JobContext, reports: Sequence[DriftReport]) -> list[DriftReport]:
    """Of the earlier reports those that persistence looks at."""
    return list(reports)[-(ctx.job.drift.of_last - 1) :] if ctx.job.drift.of_last > 1 else []


def rests_on(
    ctx: JobContext,
    interval: Interval,
    *,
    rows: int,
    sketch: tuple[int, ...],
    reports: Sequence[DriftReport],
    usual: Sequence[int],
) -> tuple[str, ...]:
    """What the verdict on ``interval`` owes to intervals before it, in words; equal if and only if they say the same."""
    found = []
    for report in in_a_row(ctx, reports):
        moved = [column.column for column in report.columns if column.moved]
        if report.multivariate is not None and report.multivariate.moved:
            moved.append("all together")
        if moved:
            found.append(f"{format_instant(report.start)} moved in {', '.join(moved)}")
    sketches = {format_instant(report.start): report.sketch for report in reports}
    found += [fault.detail for fault in breakage.against_history(rows, usual, sketch, sketches)]
    if ctx.job.drift.reference.kind == "previous":
        before = reference.windows_before(ctx, windows.monitored(ctx.job, interval))[0]
        found += [f"compared with {format_instant(part.start)}" for part in before]
    return tuple(found)


def is_outdated(ctx: JobContext, model: LoadedModel, report: DriftReport) -> bool:
    """Whether intervals before the one that was reported on, with ``model``, say something else by now."""
    interval = Interval(report.start, report.end)
    present = rests_on(
        ctx,
        interval,
        rows=report.interval_rows or 0,
        sketch=report.sketch,
        reports=earlier(ctx, interval, report.model_version),
        usual=reference.usual_rows(ctx, model, interval),
    )
    return present != report.rests_on


def resting(ctx: JobContext, interval: Interval) -> list[DriftReport]:
    """The reports that may rest on ``interval``, beginning with its own, by start."""
    until = ctx.job.cadence.shift(interval.end, _reach(ctx))
    return ctx.ledger.drift(ctx.job.name, since=interval.start, ended_by=until)


def _reach(ctx: JobContext) -> int:
    return max(_REMEMBERED, ctx.job.drift.of_last)
