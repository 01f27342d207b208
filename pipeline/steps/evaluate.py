"""Realised performance of published intervals, once their labels have matured."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import maturity, pages, performance, windows
from pipeline.errors import ContractViolation, LabelsOverdue, NoData
from pipeline.intervals import format_instant
from pipeline.policies import METRICS
from pipeline.steps import arms, incidents, labels, measure, truth, user_metrics
from pipeline.verdicts import PerformanceReport, SliceMetric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from typing import Literal

    from pipeline.maturity import Curve
    from pipeline.metrics import UserMetric
    from pipeline.reports import Manifest
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import DriftReport

    Cause = Literal["concept", "inputs", "broken_data"]

_LOG = logging.getLogger(__name__)
_OVERDUE, _BROKEN = "Labels are overdue", "Not measurable"
# Reports of earlier intervals that a page shows, and that labels are judged beside.
_SHOWN = 60
# A feature with less than this share of the importance explains no loss of performance.
_NEGLIGIBLE = 0.01
_EXPLAINED: dict[Cause, str] = {
    "concept": "while the inputs are stable: what they mean has changed",
    "inputs": "while the inputs drifted: the model meets data that it was not trained on",
    "broken_data": "on broken data",
}


def evaluate(ctx: JobContext, as_of: datetime, *, quiet: bool = False) -> list[PerformanceReport]:
    """New reports on the intervals that matured by ``as_of``, oldest first.

    Those are the intervals that were not measured yet, and those measured within ``labels.restate_within`` before all of
    their labels had come, of which more have come since: the new report supersedes. Only labels that had arrived by
    ``as_of`` count. An interval without any label, or whose predictions or labels cannot be used, is tried again at every
    later call and reported when there is news; `require_measured` raises for it. A backfilled interval is always evaluated
    quietly. Raises `InvalidJob` when a metric of ``performance.extra`` cannot be imported.
    """
    extra = user_metrics.load(ctx.job)
    matured = windows.matured_by(ctx.job, as_of)
    known = ctx.ledger.performance_course(ctx.job.name, as_of=as_of, last=maturity.REPORTS)
    curve = maturity.learn(known, settled_before=matured - ctx.job.labels.restate_within)
    due = _due(ctx, as_of)
    course = _course(ctx, due[0][0].start, as_of) if due else {}
    reports = []
    for manifest, earlier in due:
        is_quiet = quiet or manifest.quiet
        before = [course[start] for start in sorted(course) if start < manifest.start][-_SHOWN:]
        try:
            report = _evaluate(ctx, manifest, as_of, is_quiet, curve, extra, before)
        except (ContractViolation, NoData) as error:
            report = _unmeasurable(ctx, manifest, as_of, is_quiet, f"{_BROKEN}: {error}")
        if earlier is not None:
            if report.n <= earlier.n:
                if report.reason.startswith(_BROKEN):
                    _LOG.warning("%s keeps its report, measuring it again failed: %s", manifest.interval, report.reason)
                continue
            report = report.model_copy(update={"restated": True})
        measured = report.n > 0 or report.rows_scored == 0
        if not measured and _is_known(ctx, manifest, report):
            continue
        _publish(ctx, report, before)
        ctx.ledger.record_performance(report, manifest if measured else None)
        incidents.follow(ctx, report)
        reports.append(report)
        course[report.start] = report
    return reports


def require_measured(ctx: JobContext, as_of: datetime) -> None:
    """Raise for intervals that the evaluation of exactly this ``as_of`` found news of and could not measure.

    `ContractViolation` when the predictions or labels of any cannot be used, else `LabelsOverdue` when no label came within
    ``labels.overdue_after`` after maturity. The same trouble is recorded once, so later evaluations do not raise it again.
    Quiet reports raise neither.
    """
    loud = [report for report in ctx.ledger.performance_at(ctx.job.name, as_of) if not report.quiet]
    if broken := [report for report in loud if report.reason.startswith(_BROKEN)]:
        raise _broken_error(ctx, broken)
    if overdue := [report for report in loud if report.reason.startswith(_OVERDUE)]:
        raise _overdue_error(ctx, overdue)


def _course(ctx: JobContext, first: datetime, as_of: datetime) -> dict[datetime, PerformanceReport]:
    """The reports by ``as_of`` that those on intervals from ``first`` on are held against, by start."""
    since = ctx.job.cadence.shift(first, -_SHOWN)
    return {report.start: report for report in ctx.ledger.performance(ctx.job.name, since=since, as_of=as_of)}


def _due(ctx: JobContext, as_of: datetime) -> list[tuple[Manifest, PerformanceReport | None]]:
    """What is to be measured by start, with the earlier report where that had not seen all labels."""
    job, matured = ctx.job, windows.matured_by(ctx.job, as_of)
    found: dict[datetime, tuple[Manifest, PerformanceReport | None]] = {
        manifest.start: (manifest, None) for manifest in ctx.ledger.unmeasured(job.name, ended_by=matured)
    }
    since = matured - job.labels.restate_within
    latest = {report.start: report for report in ctx.ledger.performance(job.name, since=since)}
    for manifest in ctx.ledger.manifests(job.name, since=since, ended_by=matured):
        earlier = latest.get(manifest.start)
        if manifest.start not in found and earlier is not None and _may_grow(ctx, manifest, earlier, as_of):
            found[manifest.start] = manifest, earlier
    return [found[start] for start in sorted(found)]


def _may_grow(ctx: JobContext, manifest: Manifest, earlier: PerformanceReport, as_of: datetime) -> bool:
    """Whether labels may have come since the report; told by a listing, nothing is read."""
    seen = earlier.maturity
    if seen is None or seen.labelled >= seen.rows or earlier.as_of > as_of:
        return False
    return (seen.pending is not None and seen.pending <= as_of) or labels.state(ctx, manifest.interval) != seen.files


def _is_known(ctx: JobContext, manifest: Manifest, report: PerformanceReport) -> bool:
    """Whether the last report on the interval said the same, and was heard if this one is to be."""
    found = ctx.ledger.performance(ctx.job.name, interval=manifest.interval)
    if not found:
        return False
    earlier = found[-1]
    same = (earlier.reason, earlier.model_version, earlier.n) == (report.reason, report.model_version, report.n)
    return same and (report.quiet or not earlier.quiet)


def _evaluate(
    ctx: JobContext,
    manifest: Manifest,
    as_of: datetime,
    quiet: bool,
    curve: Curve,
    extra: Mapping[str, UserMetric],
    before: Sequence[PerformanceReport],
) -> PerformanceReport:
    job = ctx.job
    seen = measure.labelled(ctx, manifest, as_of)
    if seen is None or seen.table.num_rows == 0:
        is_due = as_of >= manifest.end + job.labels.mature_after + job.labels.overdue_after
        reason = f"{_OVERDUE}: none of" if is_due and manifest.rows_scored else "No label has come yet for"
        return _unmeasurable(ctx, manifest, as_of, quiet, f"{reason} {manifest.rows_scored} rows.")
    model, own = ctx.load(manifest.model_version), measure.of_champion(seen.table)
    n = own.num_rows
    found, slices = measure.measure(ctx, manifest, model, own, extra)
    compared = arms.compared(ctx, manifest, model, seen.table)
    complete = maturity.assess(curve, age=as_of - manifest.end, labelled=seen.table.num_rows, rows=seen.rows)
    verdict, reason, limit = performance.judge(job.performance, job.metric, found, n, model.profile.baseline)
    shortfall = maturity.shortfall(complete, job.labels.min_completeness)
    if shortfall and verdict != "insufficient_data":
        verdict, reason, limit = "insufficient_data", shortfall, None
    cause = _cause(ctx, manifest) if verdict == "drift" else None
    return PerformanceReport(
        job=job.name,
        start=manifest.start,
        end=manifest.end,
        as_of=as_of,
        verdict=verdict,
        reason=f"{reason.removesuffix('.')}, {_EXPLAINED[cause]}." if cause else reason,
        metric=job.metric,
        value=found.value,
        low=found.low,
        high=found.high,
        limit=limit,
        baseline=None if limit is None else model.profile.baseline.value,
        n=n,
        rows_scored=manifest.rows_scored,
        model_version=manifest.model_version,
        slices=(*slices, *arms.slices(ctx, compared)),
        cause=cause,
        label=None if shortfall else truth.compare(ctx, model, manifest, seen.table, before),
        maturity=complete.model_copy(update={"files": seen.files, "pending": seen.pending}),
        arms=compared,
        quiet=quiet,
    )


def _cause(ctx: JobContext, manifest: Manifest) -> Cause | None:
    """What degraded performance is put down to, after the interval's drift report; ``None`` when that cannot tell."""
    found = ctx.ledger.drift(ctx.job.name, since=manifest.start, ended_by=manifest.end)
    report = next((known for known in reversed(found) if known.start == manifest.start), None)
    if report is None:
        return None
    if report.faults:
        return "broken_data"
    if report.verdict == "drift" or _has_moved(report):
        return "inputs"
    return "concept" if report.verdict == "stable" else None


def _has_moved(report: DriftReport) -> bool:
    """Whether inputs moved that matter, be it in this interval alone: then they are not stable either."""
    together = report.multivariate
    return (together is not None and together.moved) or any(
        column.moved and column.role == "feature" and (column.importance is None or column.importance >= _NEGLIGIBLE)
        for column in report.columns
    )


def _unmeasurable(ctx: JobContext, manifest: Manifest, as_of: datetime, quiet: bool, reason: str) -> PerformanceReport:
    return PerformanceReport(
        job=ctx.job.name,
        start=manifest.start,
        end=manifest.end,
        as_of=as_of,
        verdict="insufficient_data",
        reason=reason,
        metric=ctx.job.metric,
        value=None,
        limit=None,
        n=0,
        rows_scored=manifest.rows_scored,
        model_version=manifest.model_version,
        slices=tuple(SliceMetric(metric=name, slice=measure.ALL, value=None, n=0) for name in METRICS[ctx.job.task]),
        quiet=quiet,
    )


def _publish(ctx: JobContext, report: PerformanceReport, before: Sequence[PerformanceReport]) -> None:
    rows = [
        {
            "job": report.job,
            "interval_start": report.start,
            "interval_end": report.end,
            "as_of": report.as_of,
            "model_version": report.model_version,
            "verdict": report.verdict if m.metric == report.metric and m.slice == measure.ALL else None,
            "rows_scored": report.rows_scored,
            "labelled_share": report.maturity.share if report.maturity else None,
            **m.model_dump(),
        }
        for m in report.slices
    ]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    with ctx.storage.stage(ctx.target("monitoring/performance", ctx.job.interval(report.start)), _SCHEMA) as staged:
        for batch in table.to_batches():
            staged.write(batch)
        staged.publish(expected_rows=table.num_rows)
    uri = ctx.report_uri("performance", ctx.job.interval(report.start))
    ctx.storage.write_text(uri, pages.performance_page(report, before), durable=False)


def _overdue_error(ctx: JobContext, overdue: Sequence[PerformanceReport]) -> LabelsOverdue:
    return LabelsOverdue(
        f"job {ctx.job.name!r}: no label has come for {len(overdue)} interval(s): {_starts(overdue)}",
        expected=f"labels within {ctx.job.labels.mature_after + ctx.job.labels.overdue_after} after the interval's end",
        got="none",
        left_behind="the intervals are recorded as insufficient_data and will be evaluated when labels come",
        next_step=f"look for the label feed under {ctx.job.labels.uri}, then pipeline evaluate {ctx.job.name} --as-of T",
    )


def _broken_error(ctx: JobContext, broken: Sequence[PerformanceReport]) -> ContractViolation:
    return ContractViolation(
        f"job {ctx.job.name!r}: {len(broken)} interval(s) cannot be measured: {_starts(broken)}. The first: "
        f"{broken[0].reason.removeprefix(_BROKEN + ': ')}",
        left_behind="the intervals are recorded as insufficient_data and are tried again at every evaluation; all others "
        "were evaluated",
        next_step=f"follow the first one's way out, then pipeline evaluate {ctx.job.name} --as-of T",
    )


def _starts(reports: Sequence[PerformanceReport]) -> str:
    return ", ".join(format_instant(report.start) for report in reports[:10]) + (", ..." if len(reports) > 10 else "")


_INSTANT = pa.timestamp("us", "UTC")
_SCHEMA = pa.schema(
    [
        ("job", pa.string()),
        ("interval_start", _INSTANT),
        ("interval_end", _INSTANT),
        ("as_of", _INSTANT),
        ("model_version", pa.int32()),
        ("metric", pa.string()),
        ("slice", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int64()),
        ("rows_scored", pa.int64()),
        ("verdict", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("labelled_share", pa.float64()),
    ]
)
