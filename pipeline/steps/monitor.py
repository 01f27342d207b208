"""Compare an interval's inputs and predictions with what its model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from pipeline import detectors, drift, engine, pages, windows
from pipeline.errors import ContractViolation, InvalidRequest, NoData
from pipeline.intervals import format_instant
from pipeline.reports import DriftReport
from pipeline.steps import plan, validate
from pipeline.steps.context import PREDICTION
from pipeline.steps.sampling import KeySample, comparable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.intervals import Interval
    from pipeline.registry import LoadedModel
    from pipeline.steps.context import JobContext

Columns = dict[str, np.ndarray[Any, Any]]


def monitor(ctx: JobContext, interval: Interval, *, quiet: bool = False) -> DriftReport:
    """The drift verdict of a published interval, written to ``monitoring/drift``, the ledger and an HTML page.

    The window's rows are read again and scored by the interval's own model, so the verdict does not depend on which
    other intervals were published before. Earlier intervals of the window whose input breaks the contract are left out,
    and the reason says so. A backfilled interval is always judged quietly. Raises `InvalidRequest` when the interval was
    not published, `NoData` when its input is gone, and `ContractViolation` when it no longer fits the job.
    """
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
    window = windows.monitored(job, interval)
    sample, left_out = _window_sample(ctx, window)
    current = columns(ctx, model, sample)
    reference = reference_columns(ctx, model)
    kinds = comparison_kinds(ctx)
    detector = detectors.detector(job.drift.detector)
    roles: dict[str, Literal["feature", "prediction"]] = {
        name: "prediction" if name == PREDICTION else "feature" for name in kinds
    }
    enough = sample.num_rows >= job.drift.min_rows
    p_values: Mapping[str, float | None] = (
        detector.p_values(reference, current, kinds) if enough else dict.fromkeys(kinds)
    )
    verdict, reason, judged = drift.judge(
        job.drift,
        reference=reference,
        current=current,
        kinds=kinds,
        roles=roles,
        p_values=p_values,
        natural=model.profile.effects,
    )
    named = tuple(c.model_copy(update={"column": "prediction"}) if c.role == "prediction" else c for c in judged)
    report = DriftReport(
        job=job.name,
        start=interval.start,
        end=interval.end,
        verdict=verdict,
        reason=f"{reason.replace(PREDICTION, 'prediction')}{left_out}",
        rows=sample.num_rows,
        window_start=window.start,
        model_version=model.ref.version,
        detector=detector.name,
        columns=named,
        report_uri=ctx.report_uri("drift", interval),
        quiet=quiet or manifest.quiet,
    )
    _publish(ctx, interval, report)
    ctx.ledger.record_drift(report)
    return report


def comparison_kinds(ctx: JobContext) -> dict[str, Literal["number", "category"]]:
    """What is compared: every feature, and the prediction (its probability for a binary job)."""
    return {**ctx.kinds, PREDICTION: "category" if ctx.job.task == "multiclass" else "number"}


def columns(ctx: JobContext, model: LoadedModel, rows: pa.Table) -> Columns:
    """Feature columns and the model's predictions of ``rows``, one array entry per row, as `pipeline.drift.Sample`."""
    frame = engine.to_frame(rows, ctx.model_columns(model))
    arrays: Columns = {name: frame[name].to_numpy() for name in frame.columns}
    arrays[PREDICTION] = (
        predicted(ctx, engine.predict(model.estimator, frame, ctx.job.task)) if len(frame) else np.empty(0)
    )
    return arrays


def predicted(ctx: JobContext, predictions: engine.Predictions) -> np.ndarray[Any, Any]:
    """One array entry per row that stands for its prediction.

    The positive class's probability (binary), the number (regression), or the class as text (multiclass).
    """
    if ctx.job.task == "multiclass":
        return np.array([str(label) for label in predictions.labels], dtype=object)
    if predictions.scores is not None:
        return predictions.scores[:, -1]
    return predictions.labels.astype(np.float64)


def reference_columns(ctx: JobContext, model: LoadedModel) -> Columns:
    """The reference sample that travels with the model, as `pipeline.drift.Sample`.

    Predictions are known for its holdout rows only, so their array is the shorter one.
    """
    frame = engine.to_frame(model.reference, ctx.job.features.columns)
    arrays: Columns = {name: frame[name].to_numpy() for name in frame.columns}
    held = model.reference[PREDICTION].drop_null()
    arrays[PREDICTION] = np.array(held.to_pylist(), dtype=object) if pa.types.is_string(held.type) else held.to_numpy()
    return arrays


def _window_sample(ctx: JobContext, window: Interval) -> tuple[pa.Table, str]:
    """At most ``drift.sample_rows`` rows of the window, and a sentence on the intervals that are not among them."""
    job = ctx.job
    sample = KeySample(job.features.key, job.drift.sample_rows, job.model.seed)
    broken: list[str] = []
    # The monitored interval comes first: it was published, so it did fit; the earlier ones may never have.
    for part in reversed(list(job.cadence.split(window))):
        own = KeySample(job.features.key, job.drift.sample_rows, job.model.seed)
        try:
            files = plan.scored_files(ctx, part)
            for rows in comparable(job, validate.accepted(ctx, part, files) if files else ()):
                own.add(rows)
            if (found := own.table()) is not None:
                sample.add(found)
        except ContractViolation:
            if part.end == window.end:
                raise
            broken.insert(0, format_instant(part.start))
        if part.end == window.end and own.table() is None:
            raise NoData(
                f"job {job.name!r}: the input of {part} is gone, so its drift cannot be judged",
                expected=f"the files that were scored, under {job.features.uri}",
                got="no file",
                next_step="restore the input",
            )
    table = sample.table()
    assert table is not None  # the monitored interval's own rows were added
    said = f"; left out of the window, because their input breaks the contract: {', '.join(broken)}" if broken else ""
    return table, said


def _publish(ctx: JobContext, interval: Interval, report: DriftReport) -> None:
    rows = [
        {
            "job": report.job,
            "interval_start": report.start,
            "interval_end": report.end,
            "interval_verdict": report.verdict,
            "model_version": report.model_version,
            "detector": report.detector,
            "window_rows": report.rows,
            **c.model_dump(),
        }
        for c in report.columns
    ]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    with ctx.storage.stage(ctx.target("monitoring/drift", interval), _SCHEMA) as staged:
        for batch in table.to_batches():
            staged.write(batch)
        staged.publish(expected_rows=table.num_rows)
    page = pages.drift_page(report)
    if report.report_uri and ctx.storage.read_text(report.report_uri) != page:
        ctx.storage.write_text(report.report_uri, page)


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
    ]
)
