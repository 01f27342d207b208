"""Realised performance of published intervals, once their labels have matured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import performance, windows
from pipeline.errors import LabelsOverdue
from pipeline.intervals import format_instant
from pipeline.performance import Outcomes
from pipeline.policies import METRICS
from pipeline.reports import PerformanceReport, SliceMetric
from pipeline.steps import labels, plan, validate
from pipeline.steps.context import LABEL
from pipeline.steps.sampling import KeySample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.reports import Manifest
    from pipeline.steps.context import JobContext

_OVERDUE = "Labels are overdue"


def evaluate(ctx: JobContext, as_of: datetime, *, quiet: bool = False) -> list[PerformanceReport]:
    """Reports on the intervals that matured by ``as_of`` and were not evaluated yet, oldest first.

    Only labels that had arrived by ``as_of`` count. An interval without any label is tried again at every later call;
    once ``labels.overdue_after`` has passed it raises `LabelsOverdue`, one time, after everything else was evaluated.
    """
    done = {(r.start, r.model_version): r for r in ctx.ledger.performance(ctx.job.name)}
    reports, overdue = [], []
    for manifest in ctx.ledger.manifests(ctx.job.name, ended_by=windows.matured_by(ctx.job, as_of)):
        earlier = done.get((manifest.start, manifest.model_version))
        if earlier is not None and earlier.n > 0:
            continue
        report = _evaluate(ctx, manifest, as_of, quiet)
        if report.reason.startswith(_OVERDUE):
            if earlier is not None and earlier.reason.startswith(_OVERDUE):
                continue
            overdue.append(report)
        ctx.ledger.record_performance(report)
        reports.append(report)
    if overdue:
        raise _overdue_error(ctx, overdue)
    return reports


def _evaluate(ctx: JobContext, manifest: Manifest, as_of: datetime, quiet: bool) -> PerformanceReport:
    job = ctx.job
    interval = manifest.interval
    rows = _predictions(ctx, manifest)
    joined = labels.join(ctx, rows, interval, as_of)
    measured = outcomes(ctx, joined, manifest.model_version)
    metrics = _slices(ctx, manifest, joined, measured)
    value = next(m.value for m in metrics if m.metric == job.metric and m.slice == "all")
    yardstick = ctx.load(manifest.model_version).profile.baseline
    verdict, reason, limit = performance.judge(job.performance, job.metric, value, len(measured), yardstick)
    due = manifest.end + job.labels.mature_after + job.labels.overdue_after
    if len(measured) == 0 and manifest.rows_scored and as_of >= due:
        reason = f"{_OVERDUE}: none of {manifest.rows_scored} rows has one by {format_instant(as_of)}."
    report = PerformanceReport(
        job=job.name,
        start=manifest.start,
        end=manifest.end,
        as_of=as_of,
        verdict=verdict,
        reason=reason,
        metric=job.metric,
        value=value,
        limit=limit,
        n=len(measured),
        rows_scored=manifest.rows_scored,
        model_version=manifest.model_version,
        slices=metrics,
        quiet=quiet,
    )
    _publish(ctx, report)
    return report


def _predictions(ctx: JobContext, manifest: Manifest) -> pa.Table:
    job = ctx.job
    table = ctx.storage.read(manifest.path)
    if table.num_rows > job.performance.max_rows:
        sample = KeySample(job.features.key, job.performance.max_rows, job.model.seed)
        for batch in table.to_batches():
            sample.add(batch)
        table = sample.table() or table
    if not job.performance.slices:
        return table
    wanted = list(dict.fromkeys([*job.features.key, *job.performance.slices]))
    parts = [
        b.select(wanted) for b in validate.accepted(ctx, manifest.interval, plan.input_files(ctx, manifest.interval))
    ]
    return table.join(pa.Table.from_batches(parts), keys=list(job.features.key), join_type="left outer")


def outcomes(ctx: JobContext, joined: pa.Table, version: int) -> Outcomes:
    """The outcomes of published rows that have been joined with their labels."""
    if ctx.job.task == "regression":
        truth = joined[LABEL].cast(pa.float64()).to_numpy()
        return Outcomes(truth, joined["prediction"].to_numpy())
    kind = joined.schema.field("prediction").type
    classes = tuple(pa.array(ctx.load(version).profile.classes).cast(kind).to_pylist())
    names = [f"score_{c}" for c in ctx.load(version).profile.classes] if ctx.job.task == "multiclass" else ["score"]
    scores = np.column_stack([joined[name].to_numpy() for name in names])
    if ctx.job.task == "binary":
        scores = np.column_stack([1 - scores, scores])
    truth = _values(joined[LABEL].cast(kind))
    return Outcomes(truth, _values(joined["prediction"]), scores, classes)


def _values(column: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    values: np.ndarray[tuple[int], np.dtype[np.generic]] = column.to_numpy()
    return values


def _slices(ctx: JobContext, manifest: Manifest, joined: pa.Table, measured: Outcomes) -> tuple[SliceMetric, ...]:
    rows = [
        SliceMetric(metric=name, slice="all", value=performance.evaluate(name, measured), n=len(measured))
        for name in METRICS[ctx.job.task]
    ]
    for column in ctx.job.performance.slices:
        values = joined[column].cast(pa.string())
        for level in sorted(v for v in pc.unique(values).to_pylist() if v is not None):
            part = measured.take(pc.fill_null(pc.equal(values, level), False).to_numpy())
            value = performance.evaluate(ctx.job.metric, part)
            rows.append(SliceMetric(metric=ctx.job.metric, slice=f"{column}={level}", value=value, n=len(part)))
    return tuple(rows)


def _publish(ctx: JobContext, report: PerformanceReport) -> None:
    rows = [
        {
            "job": report.job,
            "interval_start": report.start,
            "interval_end": report.end,
            "as_of": report.as_of,
            "model_version": report.model_version,
            "verdict": report.verdict if m.metric == report.metric and m.slice == "all" else None,
            "rows_scored": report.rows_scored,
            **m.model_dump(),
        }
        for m in report.slices
    ]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    with ctx.storage.stage(ctx.target("monitoring/performance", ctx.job.interval(report.start)), _SCHEMA) as staged:
        for batch in table.to_batches():
            staged.write(batch)
        staged.publish(expected_rows=table.num_rows)


def _overdue_error(ctx: JobContext, overdue: Sequence[PerformanceReport]) -> LabelsOverdue:
    starts = [format_instant(report.start) for report in overdue]
    return LabelsOverdue(
        f"job {ctx.job.name!r}: no label has come for {len(overdue)} interval(s): {', '.join(starts[:10])}",
        expected=f"labels within {ctx.job.labels.mature_after + ctx.job.labels.overdue_after} after the interval's end",
        got="none",
        left_behind="the intervals are recorded as insufficient_data and will be evaluated when labels come",
        next_step=f"look for the label feed under {ctx.job.labels.uri}, then pipeline evaluate {ctx.job.name} --as-of T",
    )


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
    ]
)
