"""Train a challenger on what was known at a given time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline import acceleration, engine, trainers, windows
from pipeline.errors import ContractViolation, InvalidRequest, NotEnoughLabels
from pipeline.intervals import Interval, format_instant
from pipeline.steps import champion, contest, disjoint, labels, plan, profile, validate
from pipeline.steps.context import INTERVAL, LABEL
from pipeline.steps.sampling import KeySample, comparable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pipeline.reports import RegisteredModel
    from pipeline.steps.contest import Choice
    from pipeline.steps.context import JobContext


def train(ctx: JobContext, as_of: datetime, since: datetime | None = None) -> RegisteredModel:
    """The challenger trained at ``as_of``, registered with its drift reference; nothing is promoted.

    ``since`` is when the change began for which it is trained, if any; see `pipeline.steps.contest` for what it learns from.
    Safe to repeat: a version already registered for this ``as_of`` is returned as it is. Raises `NotEnoughLabels`
    when too few labelled rows had arrived or the metric is undefined on the holdout, and what `pipeline.trainers.fit` raises.
    """
    for known in ctx.ledger.models(ctx.job.name):
        if known.as_of == as_of:
            return known
    stretches = windows.stretches(ctx.job, as_of, since)
    longest = min(stretches.values(), key=lambda span: span.start)
    found, unreadable, volumes = collect(ctx, longest, as_of)
    rows = _enough(ctx, found, unreadable, as_of)
    choice = contest.choose(ctx.job, rows, stretches, _index)
    window = choice.split
    at = rows[INTERVAL].to_numpy()
    rows = rows.filter(pa.array(at >= _index(window.train.start)))
    held = rows[INTERVAL].to_numpy() >= _index(window.holdout.start)
    frame = engine.to_frame(rows, ctx.job.features.columns)
    target = rows[LABEL].to_numpy()
    estimator = trainers.fit(choice.job, frame[~held], target[~held])
    predictions = engine.predict(estimator, frame[held], ctx.job.task)
    outcomes = contest.outcomes(estimator, predictions, target[held])
    seen = {start: rows for start, rows in volumes.items() if start >= format_instant(window.train.start)}
    made, reference = profile.build(ctx, window, rows, held, estimator, predictions, outcomes, seen)
    accelerated, found = acceleration.optimise(
        engine.FrameScorer(estimator, ctx.job.features.columns, ctx.job.task),
        rows.filter(pa.array(held)),
        remembered=reference,
        wanted=ctx.job.model.acceleration,
        budget=ctx.job.model.acceleration_budget,
        slices=ctx.job.performance.slices,
    )
    registered = ctx.registry.register(
        ctx.job.model_name,
        estimator,
        signature_frame=frame[:1000],
        signature_output=predictions.labels[:1000],
        profile=made,
        reference=reference,
        learnt=disjoint.identities(ctx, rows.filter(pa.array(~held))),
        as_of=as_of,
        parameters=_parameters(choice),
        metrics={f"holdout_{made.baseline.metric}": made.baseline.value, "train_rows": float(made.rows)},
        tags={"job": ctx.job.name, "as_of": format_instant(as_of), "acceleration": found.kind or found.reason},
        accelerated=accelerated,
    )
    facts = {
        "left_out": unreadable,
        "window": choice.window,
        "settings": choice.settings,
        "contest": dict(choice.values),
        "acceleration": found,
    }
    registered = registered.model_copy(update=facts)
    ctx.ledger.record_model(ctx.job.name, registered)
    return registered


def _parameters(choice: Choice) -> dict[str, str]:
    model = choice.job.model
    known = {"trainer": model.trainer, "window": choice.window, "settings": choice.settings}
    return {**known, **{name: str(value) for name, value in model.parameters.items()}}


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
                index = pa.array(np.full(rows.num_rows, _index(interval.start)))
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


def _index(start: datetime) -> int:
    """An integer that grows by at least one from interval to interval: minutes since 1970."""
    return int(start.timestamp() // 60)


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
