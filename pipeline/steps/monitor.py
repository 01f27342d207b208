"""Compare an interval's inputs and predictions with what its model was trained on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import breakage, detectors, drift, effects, engine, impact, pages, windows
from pipeline.errors import InvalidRequest, TerminalError
from pipeline.intervals import Interval, format_instant
from pipeline.signals import Intervals
from pipeline.steps import current, estimate, history, incidents, kept, profile, reference
from pipeline.steps.context import INTERVAL, PREDICTION
from pipeline.verdicts import DriftReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.effects import Distribution
    from pipeline.pooling import Kinds
    from pipeline.registry import LoadedModel
    from pipeline.steps.context import JobContext
    from pipeline.steps.current import Window
    from pipeline.steps.reference import Columns, Compared
    from pipeline.verdicts import ColumnDrift, Fault, Multivariate

_LOG = logging.getLogger(__name__)
# Reports whose course a page shows.
_SHOWN = 60
_SEPARATION_ROWS = 4_000
_IMPACT_ROWS, _IMPACT_COLUMNS = 2_000, 10
_SHOWN_AS = {PREDICTION: "prediction"}


def monitor(ctx: JobContext, interval: Interval, *, quiet: bool = False) -> DriftReport:
    """The drift verdict of a published interval, written to ``monitoring/drift``, the ledger and an HTML page.

    The window's rows are read again and scored by the interval's own model. A column that moved drifts once earlier
    intervals, judged with the same model, moved too; what they showed is taken from the ledger. Earlier intervals of the
    window whose input breaks the contract are left out, and the reason says so. A backfilled interval is always judged
    quietly. Reports on later intervals that rest on this one are made again if it changes what they rest on: in whatever
    order intervals are monitored, also at the same time, their verdicts come out the same.

    Raises `InvalidRequest` when the interval was not published, `NoData` when its input is gone, and `ContractViolation`
    when it no longer fits the job.
    """
    report = _report(ctx, interval, quiet)
    for later in history.resting(ctx, interval):
        if not history.is_outdated(ctx, ctx.load(later.model_version), later):
            continue
        if later.start == interval.start:
            report = _report(ctx, interval, quiet)
        else:
            _make_again(ctx, later)
    return report


def _make_again(ctx: JobContext, report: DriftReport) -> None:
    try:
        _report(ctx, Interval(report.start, report.end), report.quiet)
    except TerminalError as error:  # that interval's own trouble, told when it is monitored
        _LOG.warning("the drift report of %s is out of date: %s", format_instant(report.start), error)


def _report(ctx: JobContext, interval: Interval, quiet: bool) -> DriftReport:
    job = ctx.job
    manifest = ctx.ledger.manifest(job.name, interval)
    if manifest is None:
        raise InvalidRequest(
            f"job {job.name!r}: {interval} has not been published, so there is nothing to monitor",
            expected="a published partition",
            got="no manifest in the ledger",
            next_step=f"pipeline score {job.name} --start {format_instant(interval.start)}",
        )
    model = ctx.load(manifest.model_version)
    span = windows.monitored(job, interval)
    seen = current.window(ctx, span)
    compared = reference.compared(ctx, model, span)
    columns = reference.columns(ctx, model, seen.rows)
    earlier = history.earlier(ctx, interval, model.ref.version)
    usual = reference.usual_rows(ctx, model, interval)
    faults = _faults(ctx, model, compared, columns, seen, usual, earlier)
    judged, separation = _judged(ctx, model, compared, columns, seen, faults, earlier)
    judged = _with_impact(ctx, model, compared, seen.rows, judged)
    verdict, reason, tier = drift.window(job.drift, seen.rows.num_rows, judged, separation, faults)
    report = DriftReport(
        job=job.name,
        start=interval.start,
        end=interval.end,
        verdict=verdict,
        reason=f"{reason}{seen.left_out}",
        tier=tier,
        rows=seen.rows.num_rows,
        window_start=span.start,
        model_version=model.ref.version,
        detector=job.drift.detector,
        reference=compared.described,
        columns=judged,
        multivariate=separation,
        faults=faults,
        interval_rows=seen.interval_rows,
        usual_rows=float(np.median(usual)) if usual else None,
        sketch=seen.sketch,
        estimate=estimate.estimate(ctx, model, seen.rows, columns, interval) if not faults else None,
        rests_on=history.rests_on(
            ctx, interval, rows=seen.interval_rows, sketch=seen.sketch, reports=earlier, usual=usual
        ),
        report_uri=ctx.report_uri("drift", interval),
        quiet=quiet or manifest.quiet,
    )
    _publish(ctx, interval, report, _distributions(compared.sample, columns, reference.comparison_kinds(ctx)))
    ctx.ledger.record_drift(report)
    incidents.follow(ctx, report)
    return report


def _faults(
    ctx: JobContext,
    model: LoadedModel,
    compared: Compared,
    columns: Columns,
    seen: Window,
    usual: Sequence[int],
    earlier: Sequence[DriftReport],
) -> tuple[Fault, ...]:
    return breakage.find(
        compared.sample,
        columns,
        ctx.kinds,
        rows=seen.interval_rows,
        usual_rows=usual,
        sketch=seen.sketch,
        earlier={format_instant(report.start): report.sketch for report in earlier},
        duplicated_share=seen.duplicated,
        usual_duplicated_share=kept.with_model(
            ctx, model, "duplicated", lambda: current.duplicated(ctx, model.reference)
        ),
        history=compared.history,
        stretch=compared.starts,
    )


def _judged(
    ctx: JobContext,
    model: LoadedModel,
    compared: Compared,
    columns: Columns,
    seen: Window,
    faults: Sequence[Fault],
    earlier: Sequence[DriftReport],
) -> tuple[tuple[ColumnDrift, ...], Multivariate | None]:
    job, kinds = ctx.job, reference.comparison_kinds(ctx)
    detector = detectors.detector(job.drift.detector)
    rows = len(columns[PREDICTION])
    p_values: Mapping[str, float | None] = (
        detector.p_values(compared.sample, columns, kinds) if rows >= job.drift.min_rows else dict.fromkeys(kinds)
    )
    before = history.in_a_row(ctx, earlier)
    judged = drift.columns(
        job.drift,
        reference=compared.sample,
        current=columns,
        kinds=kinds,
        roles={name: "prediction" if name == PREDICTION else "feature" for name in kinds},
        p_values=p_values,
        natural=compared.natural,
        importance=model.profile.importance or None,
        faults=faults,
        earlier=[[_internal(column) for column in report.columns] for report in before],
        intervals=Intervals(seen.rows[INTERVAL].to_numpy(), compared.history, compared.starts),
        seed=job.model.seed,
    )
    judged = tuple(c.model_copy(update={"column": _SHOWN_AS.get(c.column, c.column)}) for c in judged)
    if not job.drift.multivariate or rows < job.drift.min_rows:
        return judged, None
    natural = model.profile.separation
    found = detector.separation(
        compared.sample,
        columns,
        ctx.kinds,
        rows=_SEPARATION_ROWS,
        seed=job.model.seed,
        ranked_from=drift.separation_threshold(job.drift, natural),
    )
    if found is None:
        return judged, None
    return judged, drift.multivariate(
        job.drift,
        auc=found.auc,
        p_value=found.p_value,
        ranked=found.ranked,
        rows=found.rows,
        natural=natural,
        earlier=[report.multivariate for report in before],
    )


def _internal(column: ColumnDrift) -> ColumnDrift:
    return column.model_copy(update={"column": PREDICTION}) if column.role == "prediction" else column


def _with_impact(
    ctx: JobContext, model: LoadedModel, compared: Compared, rows: pa.Table, judged: tuple[ColumnDrift, ...]
) -> tuple[ColumnDrift, ...]:
    """The features that moved most, with what their shift does to the predictions."""
    moved = sorted((c for c in judged if c.moved and c.role == "feature"), key=lambda c: -(c.effect or 0.0))
    if not moved:
        return judged
    few = rows.take(pa.array(np.arange(0, rows.num_rows, max(rows.num_rows // _IMPACT_ROWS, 1))))
    scorer, declared = ctx.scorer(model), ctx.job.features.columns
    usual = reference.predicted(ctx, scorer.predict(few))
    known = reference.values(reference.held_out(model.reference)[PREDICTION])
    spread = 1.0 if usual.dtype == object else float(np.std(known))
    found = {}
    for column in moved[:_IMPACT_COLUMNS]:
        name = column.column
        shifted = engine.to_frame(few, {name: declared[name]})[name].to_numpy()
        back = impact.undone(compared.sample[name], shifted, column.kind, ctx.job.model.seed)
        undone = few.set_column(few.schema.get_field_index(name), name, pa.array(back, from_pandas=True))
        other = reference.predicted(ctx, scorer.predict(undone))
        found[name] = profile.difference(usual, other) / spread if spread > 0 else 0.0
    return tuple(c.model_copy(update={"impact": found[c.column]}) if c.column in found else c for c in judged)


def _distributions(sample: Columns, columns: Columns, kinds: Kinds) -> dict[str, Distribution]:
    found = {}
    for name, kind in kinds.items():
        drawn = effects.distribution(sample[name], columns[name], kind)
        if drawn is not None:
            found[_SHOWN_AS.get(name, name)] = drawn
    return found


def _publish(
    ctx: JobContext, interval: Interval, report: DriftReport, distributions: Mapping[str, Distribution]
) -> None:
    shared = {
        "job": report.job,
        "interval_start": report.start,
        "interval_end": report.end,
        "interval_verdict": report.verdict,
        "interval_tier": report.tier,
        "model_version": report.model_version,
        "detector": report.detector,
        "reference": report.reference,
        "window_rows": report.rows,
    }
    faults = {fault.column or "": fault.kind for fault in report.faults}
    rows: list[dict[str, Any]] = [
        {**shared, **column.model_dump(), "signals": ",".join(column.signals), "fault": faults.get(column.column)}
        for column in report.columns
    ]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    with ctx.storage.stage(ctx.target("monitoring/drift", interval), _SCHEMA) as staged:
        for batch in table.to_batches():
            staged.write(batch)
        staged.publish(expected_rows=table.num_rows)
    history = ctx.ledger.drift(ctx.job.name, ended_by=report.start, last=_SHOWN)
    performance = ctx.ledger.performance(ctx.job.name, as_of=report.end, last=_SHOWN)
    page = pages.drift_page(report, distributions, history, performance)
    if report.report_uri and ctx.storage.read_text(report.report_uri) != page:
        ctx.storage.write_text(report.report_uri, page, durable=False)


_INSTANT = pa.timestamp("us", "UTC")
_SCHEMA = pa.schema(
    [
        ("job", pa.string()),
        ("interval_start", _INSTANT),
        ("interval_end", _INSTANT),
        ("interval_verdict", pa.string()),
        ("model_version", pa.int32()),
        ("detector", pa.string()),
        ("window_rows", pa.int64()),
        ("column", pa.string()),
        ("role", pa.string()),
        ("kind", pa.string()),
        ("verdict", pa.string()),
        ("p_value", pa.float64()),
        ("effect", pa.float64()),
        ("threshold", pa.float64()),
        ("psi", pa.float64()),
        ("null_share", pa.float64()),
        ("reference_null_share", pa.float64()),
        ("unseen_share", pa.float64()),
        ("rows", pa.int64()),
        ("reason", pa.string()),
        ("interval_tier", pa.string()),
        ("reference", pa.string()),
        ("moved", pa.bool_()),
        ("signals", pa.string()),
        ("fault", pa.string()),
        ("expected", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("jensen_shannon", pa.float64()),
        ("importance", pa.float64()),
        ("impact", pa.float64()),
        ("tier", pa.string()),
    ]
)
