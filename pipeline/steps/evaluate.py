"""Realised performance of published intervals, once their labels have matured."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import engine, performance, windows
from pipeline.errors import ContractViolation, LabelsOverdue, NoData
from pipeline.intervals import format_instant
from pipeline.job import Column
from pipeline.performance import Outcomes
from pipeline.policies import METRICS
from pipeline.reports import PerformanceReport, SliceMetric
from pipeline.steps import labels, plan, validate
from pipeline.steps.context import LABEL
from pipeline.steps.sampling import KeySample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from pipeline.registry import LoadedModel
    from pipeline.reports import Manifest
    from pipeline.steps.context import JobContext

_OVERDUE, _BROKEN = "Labels are overdue", "Not measurable"
_ALL = "all"
_AS_TEXT = Column(type="category")
# Slices of one column at most; the rows of rarer levels are measured together.
_MOST_LEVELS = 100


def evaluate(ctx: JobContext, as_of: datetime, *, quiet: bool = False) -> list[PerformanceReport]:
    """New reports on the intervals that matured by ``as_of`` and were not measured yet, oldest first.

    Only labels that had arrived by ``as_of`` count. An interval without any label is tried again at every later call and
    reported when there is news. Once ``labels.overdue_after`` has passed it raises `LabelsOverdue`, and one whose
    predictions or labels cannot be used `ContractViolation`: each one time, after everything else was evaluated. A
    backfilled interval is always evaluated quietly, and quiet reports raise neither.
    """
    reports = []
    for manifest in ctx.ledger.unmeasured(ctx.job.name, ended_by=windows.matured_by(ctx.job, as_of)):
        try:
            report = _evaluate(ctx, manifest, as_of, quiet or manifest.quiet)
        except (ContractViolation, NoData) as error:
            report = _unmeasurable(ctx, manifest, as_of, quiet or manifest.quiet, f"{_BROKEN}: {error}")
        measured = report.n > 0 or report.rows_scored == 0
        if not measured and _is_known(ctx, manifest, report):
            continue
        _publish(ctx, report)
        ctx.ledger.record_performance(report, manifest if measured else None)
        reports.append(report)
    loud = [report for report in reports if not report.quiet]
    if broken := [report for report in loud if report.reason.startswith(_BROKEN)]:
        raise _broken_error(ctx, broken)
    if overdue := [report for report in loud if report.reason.startswith(_OVERDUE)]:
        raise _overdue_error(ctx, overdue)
    return reports


def _is_known(ctx: JobContext, manifest: Manifest, report: PerformanceReport) -> bool:
    """Whether the last report on the interval said the same, and was heard if this one is to be."""
    found = ctx.ledger.performance(ctx.job.name, interval=manifest.interval)
    if not found:
        return False
    earlier = found[-1]
    same = (earlier.reason, earlier.model_version, earlier.n) == (report.reason, report.model_version, report.n)
    return same and (report.quiet or not earlier.quiet)


def _evaluate(ctx: JobContext, manifest: Manifest, as_of: datetime, quiet: bool) -> PerformanceReport:
    job = ctx.job
    # A feed that stopped leaves many intervals to look at again and again: that must cost no more than a listing each.
    come = labels.files(ctx, manifest.interval)
    joined = labels.join(ctx, _predictions(ctx, manifest), manifest.interval, as_of) if come else None
    if joined is None or joined.num_rows == 0:
        is_due = as_of >= manifest.end + job.labels.mature_after + job.labels.overdue_after
        reason = f"{_OVERDUE}: none of" if is_due and manifest.rows_scored else "No label has come yet for"
        return _unmeasurable(ctx, manifest, as_of, quiet, f"{reason} {manifest.rows_scored} rows.")
    model = ctx.load(manifest.model_version)
    measured = outcomes(ctx, joined, model)
    metrics = _metrics(ctx, measured, _slice_levels(ctx, manifest, joined))
    value = next(m.value for m in metrics if m.metric == job.metric and m.slice == _ALL)
    verdict, reason, limit = performance.judge(
        job.performance, job.metric, value, len(measured), model.profile.baseline
    )
    return PerformanceReport(
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
        slices=tuple(SliceMetric(metric=name, slice=_ALL, value=None, n=0) for name in METRICS[ctx.job.task]),
        quiet=quiet,
    )


def _predictions(ctx: JobContext, manifest: Manifest) -> pa.Table:
    """Key, time, prediction and score columns of the published rows, at most ``performance.max_rows`` of them."""
    job = ctx.job
    files = ctx.inputs.files(f"{ctx.output}/predictions", [job.output_partition(manifest.interval)])
    if [file.sha256 for file in files] != [manifest.sha256]:
        raise ContractViolation(
            f"job {job.name!r}: the published file of {manifest.interval} is not the one that its manifest records",
            expected=f"one file with sha256 {manifest.sha256}",
            got=", ".join(f"sha256 {file.sha256}" for file in files) or "no file",
            next_step=f"pipeline score {job.name} --start {format_instant(manifest.start)} publishes it again",
        )
    names = [name for name in ctx.inputs.schema(files[0]).names if name != "model_version"]
    sample = KeySample(job.features.key, job.performance.max_rows, job.model.seed)
    for batch in ctx.inputs.batches(files, names):
        sample.add(batch)
    table = sample.table()
    return ctx.storage.read(manifest.path, names) if table is None else table


def outcomes(ctx: JobContext, joined: pa.Table, model: LoadedModel) -> Outcomes:
    """The outcomes of published rows that have been joined with their labels.

    Raises `ContractViolation` for labels that cannot be classes of the model.
    """
    if ctx.job.task == "regression":
        return Outcomes(joined[LABEL].to_numpy(), joined["prediction"].to_numpy())
    names = [name for name in joined.column_names if name == "score" or name.startswith("score_")]
    scores = np.column_stack([joined[name].to_numpy() for name in names])
    if ctx.job.task == "binary":
        scores = np.column_stack([1 - scores, scores])
    classes = tuple(np.asarray(model.estimator.classes_).tolist())
    truth = joined[LABEL].to_numpy()
    known = pa.array(classes)
    strange = sorted({str(v) for v in pc.unique(joined[LABEL]).to_pylist()} - {str(v) for v in classes})
    if joined[LABEL].type != known.type or (strange and ctx.job.task == "binary"):
        raise ContractViolation(
            f"job {ctx.job.name!r}: the labels in column {ctx.job.labels.column!r} are no classes of version "
            f"{model.ref.version}",
            expected=f"{known.type} values {', '.join(map(str, classes))}",
            got=f"{joined[LABEL].type} values {', '.join((strange or [str(v) for v in truth])[:5])}",
            next_step=f"fix the labels, or train on the new ones: pipeline retrain {ctx.job.name} --as-of T --reason TEXT",
        )
    return Outcomes(truth, joined["prediction"].to_numpy(), scores, classes)


def _slice_levels(ctx: JobContext, manifest: Manifest, joined: pa.Table) -> dict[str, NDArray[Any]]:
    """Per column of ``performance.slices`` the level of each row, as text; read again from the input."""
    job = ctx.job
    if not job.performance.slices:
        return {}
    order = np.argsort(hashes := engine.row_hashes(joined, job.features.key))
    ordered = hashes[order]
    levels = {name: np.full(joined.num_rows, "(null)", dtype=object) for name in job.performance.slices}
    for batch in validate.accepted(ctx, manifest.interval, plan.scored_files(ctx, manifest.interval)):
        asked = engine.row_hashes(batch, job.features.key)
        at = np.minimum(np.searchsorted(ordered, asked), len(ordered) - 1)
        mine = np.flatnonzero(ordered[at] == asked)
        frame = engine.to_frame(batch.take(pa.array(mine)), dict.fromkeys(levels, _AS_TEXT))
        for name, values in levels.items():
            texts = frame[name].to_numpy()
            held = np.array([text is not None for text in texts], dtype=bool)
            values[order[at[mine[held]]]] = texts[held]
    return levels


def _metrics(ctx: JobContext, measured: Outcomes, levels: Mapping[str, NDArray[Any]]) -> tuple[SliceMetric, ...]:
    rows = [
        SliceMetric(metric=name, slice=_ALL, value=performance.evaluate(name, measured), n=len(measured))
        for name in METRICS[ctx.job.task]
    ]
    for column, values in levels.items():
        counts = Counter(values.tolist())
        named = sorted(counts, key=lambda level: (-counts[level], level))[:_MOST_LEVELS]
        parts = {level: values == level for level in sorted(named)}
        if len(named) < len(counts):
            parts["(other)"] = ~np.isin(values, named)
        for level, mask in parts.items():
            part = measured.take(mask)
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
    ]
)
