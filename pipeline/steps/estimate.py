"""The job's metric before any label has come, and what such estimates have been worth so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline import engine, estimates, estimation, performance
from pipeline.estimates import Matured
from pipeline.steps import kept, reference
from pipeline.steps.context import LABEL, PREDICTION

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.intervals import Interval
    from pipeline.registry import LoadedModel
    from pipeline.steps.context import JobContext
    from pipeline.steps.reference import Columns
    from pipeline.verdicts import Estimate

# Matured intervals by which estimates are checked.
_COMPARED = 20


def estimate(
    ctx: JobContext, model: LoadedModel, rows: pa.Table, columns: Columns, interval: Interval
) -> Estimate | None:
    """The estimate for the window of ``rows``, whose predictions are in ``columns``; ``None`` where none can be made.

    Earlier estimates of the same model are held against what was realised by the interval's end.
    """
    job = ctx.job
    holdout = kept.with_model(ctx, model, "holdout", lambda: _holdout(ctx, model))
    if holdout is None or rows.num_rows == 0:
        return None
    expected = estimation.expect(
        job.task,
        job.metric,
        holdout,
        estimation.Window(
            features=engine.to_frame(rows, job.features.columns),
            scores=columns[PREDICTION] if job.task == "binary" else None,
            prediction=_labels(ctx, model, columns[PREDICTION]),
        ),
        seed=job.model.seed,
    )
    if expected is None:
        return None
    limit = performance.limit(job.performance, job.metric, model.profile.baseline)
    history = _history(ctx, interval, model.ref.version)
    return estimates.judge(expected, metric=job.metric, limit=limit, history=history)


def _holdout(ctx: JobContext, model: LoadedModel) -> estimation.Holdout | None:
    """The labelled rows of the model's reference sample; ``None`` without any."""
    held = reference.held_out(model.reference)
    if held.num_rows == 0:
        return None
    predicted = reference.values(held[PREDICTION])
    return estimation.Holdout(
        features=engine.to_frame(held, ctx.job.features.columns),
        scores=predicted if ctx.job.task == "binary" else None,
        prediction=_labels(ctx, model, predicted),
        truth=_truth(ctx, model, held),
    )


def _labels(ctx: JobContext, model: LoadedModel, predictions: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """What was predicted: the number or class; of a binary job whether the positive class is the likelier one."""
    return (predictions >= 0.5).astype(np.float64) if ctx.job.task == "binary" else predictions


def _truth(ctx: JobContext, model: LoadedModel, held: pa.Table) -> np.ndarray:  # type: ignore[type-arg]
    """What happened: the number, the class as text, or of a binary job whether it was the positive class."""
    values = held[LABEL].to_pylist()
    if ctx.job.task == "regression":
        return np.array(values, dtype=np.float64)
    if ctx.job.task == "multiclass":
        return np.array([str(value) for value in values], dtype=object)
    positive = np.asarray(model.estimator.classes_).tolist()[-1]
    return np.array([value == positive for value in values], dtype=np.float64)


def _history(ctx: JobContext, interval: Interval, version: int) -> list[Matured]:
    """Earlier estimates of the same model beside what labels had shown by the interval's end, oldest first."""
    since = ctx.job.cadence.shift(interval.start, -10 * _COMPARED)
    realised = {
        report.start: report
        for report in ctx.ledger.performance(ctx.job.name, as_of=interval.end, last=10 * _COMPARED)
        if report.model_version == version and report.value is not None
    }
    found = []
    for report in ctx.ledger.drift(ctx.job.name, since=since, ended_by=interval.start):
        made, real = report.estimate, realised.get(report.start)
        if made is not None and real is not None and real.value is not None and report.model_version == version:
            found.append(Matured(made.value, made.low, made.high, real.value, report.start, real.low, real.high))
    return found[-_COMPARED:]
