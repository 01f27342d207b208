"""Decide whether to train, and train a challenger on what was known at a given time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import engine, trainers, triggers, windows
from pipeline.errors import ContractViolation, InvalidRequest, NotEnoughLabels
from pipeline.intervals import Interval, format_instant
from pipeline.metrics import Outcomes
from pipeline.reports import Decision, RegisteredModel, TriggerDecision
from pipeline.steps import champion, labels, plan, profile, validate
from pipeline.steps.context import INTERVAL, LABEL
from pipeline.steps.sampling import KeySample, comparable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pipeline.steps.context import JobContext
    from pipeline.windows import TrainingWindow


def decide(ctx: JobContext, as_of: datetime) -> TriggerDecision:
    """The recorded decision whether to train at ``as_of``; raises `NoChampion` before the first promotion."""
    job = ctx.job
    version = champion.at(ctx, as_of).version
    trained = [m.as_of for m in ctx.ledger.models(job.name) if m.as_of <= as_of]
    decision = triggers.decide(
        job.retrain,
        as_of,
        champion_version=version,
        drift=ctx.ledger.drift(job.name, ended_by=as_of, last=job.retrain.of_last, loud_on=version),
        performance=ctx.ledger.performance(job.name, as_of=as_of, last=job.retrain.of_last, loud_on=version),
        last_trained=max(trained),
    )
    record_trigger(ctx, as_of, decision)
    return decision


def record_trigger(ctx: JobContext, as_of: datetime, decision: TriggerDecision) -> str:
    """Record a decision whether to train at ``as_of`` and return its id, ``trigger-`` and 12 hex digits."""
    outcome = "fire" if decision.fire else "hold"
    record = Decision.of(ctx.job.name, "trigger", as_of, outcome, decision.reason, {"cause": decision.cause})
    ctx.ledger.record_decision(record)
    return record.id


def train(ctx: JobContext, as_of: datetime) -> RegisteredModel:
    """The challenger trained at ``as_of``, registered with its drift reference; nothing is promoted.

    Safe to repeat: a version already registered for this ``as_of`` is returned as it is. Raises `NotEnoughLabels`
    when too few labelled rows had arrived or the metric is undefined on the holdout, and what `pipeline.trainers.fit` raises.
    """
    for known in ctx.ledger.models(ctx.job.name):
        if known.as_of == as_of:
            return known
    found, unreadable, volumes = collect(ctx, windows.history(ctx.job, as_of), as_of)
    rows = _enough(ctx, found, unreadable, as_of)
    window = _split(ctx, rows, as_of)
    cut = _index(ctx, window.holdout.start)
    held = rows[INTERVAL].to_numpy() >= cut
    frame = engine.to_frame(rows, ctx.job.features.columns)
    target = rows[LABEL].to_numpy()
    estimator = trainers.fit(ctx.job, frame[~held], target[~held])
    predictions = engine.predict(estimator, frame[held], ctx.job.task)
    outcomes = class_outcomes(estimator, predictions, target[held])
    made, reference = profile.build(ctx, window, rows, held, estimator, predictions, outcomes, volumes)
    registered = ctx.registry.register(
        ctx.job.model_name,
        estimator,
        signature_frame=frame[:1000],
        signature_output=predictions.labels[:1000],
        profile=made,
        reference=reference,
        as_of=as_of,
        parameters={"trainer": ctx.job.model.trainer, **{k: str(v) for k, v in ctx.job.model.parameters.items()}},
        metrics={f"holdout_{made.baseline.metric}": made.baseline.value, "train_rows": float(made.rows)},
        tags={"job": ctx.job.name, "as_of": format_instant(as_of)},
    )
    registered = registered.model_copy(update={"left_out": unreadable})
    ctx.ledger.record_model(ctx.job.name, registered)
    return registered


def collect(ctx: JobContext, span: Interval, as_of: datetime) -> tuple[pa.Table | None, dict[str, str], dict[str, int]]:
    """Accepted, labelled rows of ``span``, the intervals that had to be left out with the reason, and the rows of each.

    Columns: key, time and features as of `pipeline.steps.sampling.comparable`, ``__label__``, and the interval index
    ``__interval__`` (minutes since 1970). At most ``retrain.max_rows`` rows, a uniform sample by key beyond that, in order
    of time and file; ``None`` when no labelled row had arrived. An interval whose features or labels break the contract
    is left out: one bad delivery must not stop every training for as long as the window reaches back. So is one whose
    drift report found its data broken: what is learnt from it would be wrong.
    """
    job = ctx.job
    sample = KeySample(job.features.key, job.retrain.max_rows, job.model.seed)
    broken, volumes = _faulty(ctx, span), {}
    for interval in job.cadence.split(span):
        start = format_instant(interval.start)
        if start in broken:
            continue
        try:
            rows, seen = _labelled(ctx, interval, as_of)
            if seen:
                volumes[start] = seen
            if rows is not None and rows.num_rows:
                index = pa.array(np.full(rows.num_rows, _index(ctx, interval.start)))
                sample.add(rows.append_column(INTERVAL, index))
        except ContractViolation as error:
            broken[start] = error.what
    return sample.table(), broken, volumes


def _faulty(ctx: JobContext, span: Interval) -> dict[str, str]:
    """The intervals of ``span`` whose latest drift report found the delivered data broken: start -> what."""
    reports = ctx.ledger.drift(ctx.job.name, since=span.start, ended_by=span.end)
    return {format_instant(report.start): report.reason for report in reports if report.faults}


def _labelled(ctx: JobContext, interval: Interval, as_of: datetime) -> tuple[pa.Table | None, int]:
    """The labelled rows of one interval, and how many rows it has, labelled or not.

    Of a huge one a sample is taken before labels are looked up.
    """
    job, files = ctx.job, plan.scored_files(ctx, interval)
    if not files:
        return None, 0
    sample = KeySample(job.features.key, job.retrain.max_rows, job.model.seed)
    for rows in comparable(job, validate.accepted(ctx, interval, files)):
        sample.add(rows)
    table = sample.table()
    return None if table is None else labels.join(ctx, table, interval, as_of), sample.seen


def left_out(intervals: Mapping[str, str]) -> str:
    """A sentence on the intervals that `collect` had to leave out; empty when there are none."""
    if not intervals:
        return ""
    first, problem = next(iter(intervals.items()))
    return f"{len(intervals)} interval(s) of the history could not be used; the first is {first}: {problem}."


def _enough(ctx: JobContext, rows: pa.Table | None, unreadable: Mapping[str, str], as_of: datetime) -> pa.Table:
    found = 0 if rows is None else rows.num_rows
    if rows is None or found < ctx.job.retrain.min_rows:
        raise NotEnoughLabels(
            f"job {ctx.job.name!r}: too few labelled rows in {windows.history(ctx.job, as_of)} had arrived by "
            f"{format_instant(as_of)}",
            expected=f"at least {ctx.job.retrain.min_rows} rows (retrain.min_rows)",
            got=f"{found} rows. {left_out(unreadable)}".rstrip(". "),
            next_step=f"pipeline retrain {ctx.job.name} --as-of T with a later T, or a longer retrain.window",
        )
    return rows


def class_outcomes(estimator: Any, predictions: engine.Predictions, truth: np.ndarray[Any, Any]) -> Outcomes:
    """Predictions that were just made beside ``truth``, the labels of the same rows, as metrics take them."""
    if predictions.scores is None:
        return Outcomes(truth.astype(np.float64), predictions.labels)
    return Outcomes(truth, predictions.labels, predictions.scores, tuple(estimator.classes_))


def _index(ctx: JobContext, start: datetime) -> int:
    """An integer that grows by at least one from interval to interval: minutes since 1970."""
    return int(start.timestamp() // 60)


def _split(ctx: JobContext, rows: pa.Table, as_of: datetime) -> TrainingWindow:
    span = windows.history(ctx.job, as_of)
    first = min(i.start for i in ctx.job.cadence.split(span) if _index(ctx, i.start) == _first(rows))
    window = windows.training(ctx.job, Interval(first, span.end))
    if window is None:
        raise NotEnoughLabels(
            f"job {ctx.job.name!r}: all labelled rows known at {format_instant(as_of)} lie in one interval",
            expected="at least two intervals, one to learn from and one to compare on",
            got=f"rows from {format_instant(first)} on",
            next_step=f"pipeline retrain {ctx.job.name} --as-of T with a later T",
        )
    return window


def _first(rows: pa.Table) -> int:
    return int(rows[INTERVAL].to_numpy().min())


def require_champion_absent(ctx: JobContext, as_of: datetime) -> None:
    """Raise `InvalidRequest` when a bootstrap is asked for although a champion exists that is not this bootstrap's.

    Raises `AliasConflict` when the registry has a champion that the ledger does not know.
    """
    champion.latest(ctx)
    promotions = ctx.ledger.promotions(ctx.job.name)
    if promotions and ctx.registered(promotions[0].model.version).as_of != as_of:
        first = promotions[0]
        raise InvalidRequest(
            f"job {ctx.job.name!r} has a champion since {format_instant(first.effective_at)}; a bootstrap makes the first one",
            expected="no promotion in the ledger",
            got=f"version {promotions[-1].model.version}",
            next_step=f"pipeline retrain {ctx.job.name} --as-of T --reason TEXT",
        )
