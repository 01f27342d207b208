"""What a window is compared with: rows of the same season, out of the model's training data or of the windows before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from pipeline import engine, seasons
from pipeline.errors import ContractViolation
from pipeline.intervals import Interval, parse_instant
from pipeline.steps import kept, plan, validate
from pipeline.steps.context import INTERVAL, PREDICTION
from pipeline.steps.sampling import KeySample, comparable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.registry import LoadedModel
    from pipeline.seasons import Season
    from pipeline.steps.context import JobContext

Columns = dict[str, np.ndarray[Any, Any]]

# Fewer past partitions say nothing about how large one usually is; more than these are history.
_VOLUMES = 60


@dataclass(frozen=True, slots=True)
class Compared:
    """The reference of one window: a sample per column, what variation is natural to each, and both in words.

    ``history`` has the features of more than the like of the window, if there are any, and ``starts`` the interval start of
    each of its rows, in minutes since 1970.
    """

    sample: Columns
    history: Columns
    starts: NDArray[np.int64]
    natural: Mapping[str, float]
    described: str


def comparison_kinds(ctx: JobContext) -> dict[str, Literal["number", "category"]]:
    """What is compared: every feature, and the prediction (its probability for a binary job)."""
    return {**ctx.kinds, PREDICTION: "category" if ctx.job.task == "multiclass" else "number"}


def features(ctx: JobContext, rows: pa.Table) -> Columns:
    """The feature columns of ``rows``, one array entry per row, as `pipeline.effects.Sample`."""
    frame = engine.to_frame(rows, ctx.job.features.columns)
    return {name: frame[name].to_numpy() for name in frame.columns}


def columns(ctx: JobContext, model: LoadedModel, rows: pa.Table) -> Columns:
    """`features`, and the model's predictions of the same rows."""
    scorer = ctx.scorer(model)
    arrays = features(ctx, rows)
    arrays[PREDICTION] = predicted(ctx, scorer.predict(rows)) if rows.num_rows else np.empty(0)
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


def compared(ctx: JobContext, model: LoadedModel, window: Interval) -> Compared:
    """What the window is compared with, as ``drift.reference`` says.

    With too few windows before it falls back to the training data, and from a season without enough history to one that
    is less alike.
    """
    if ctx.job.drift.reference.kind == "previous" and (found := _previous(ctx, model, window)):
        return found
    return _training(ctx, model, window)


def usual_rows(ctx: JobContext, model: LoadedModel, interval: Interval) -> list[int]:
    """The rows of comparable intervals: of the latest published ones of the season, else of the training period."""
    job = ctx.job
    since = job.cadence.shift(interval.start, -_VOLUMES)
    past = {m.start: m.rows_scored for m in ctx.ledger.manifests(job.name, since=since, ended_by=interval.start)}
    ladder = seasons.ladder(job.drift.reference, job.cadence, 1)
    starts = seasons.starts_of(past)
    season, alike = _alike(ctx, ladder, starts, interval, min_rows=1)
    found = np.array(list(past.values()), dtype=np.int64)[alike]
    if season != "all" or len(found) >= job.drift.reference.min_intervals:
        return [int(rows) for rows in found]
    trained = seasons.starts_of([parse_instant(start) for start in model.profile.volumes])
    _, alike = _alike(ctx, ladder, trained, interval, min_rows=1)
    volumes = np.array(list(model.profile.volumes.values()), dtype=np.int64)
    return [int(rows) for rows in volumes[alike]]


def _training(ctx: JobContext, model: LoadedModel, window: Interval) -> Compared:
    """Rows of the sample that travels with the model; predictions are known for its holdout rows only."""
    rows = model.reference
    ladder = seasons.ladder(ctx.job.drift.reference, ctx.job.cadence, ctx.job.drift.window)
    season, alike = _alike(ctx, ladder, rows[INTERVAL].to_numpy(), window)
    history = kept.with_model(ctx, model, "features", lambda: features(ctx, rows))
    sample = {name: column[alike] for name, column in history.items()}
    held = held_out(rows)
    own, alike = _alike(ctx, ladder, held[INTERVAL].to_numpy(), window)
    sample[PREDICTION] = values(held.filter(pa.array(alike))[PREDICTION])
    usual = {**natural(model, season), PREDICTION: natural(model, own).get(PREDICTION, 0.0)}
    told = "" if season == "all" else f", {seasons.described(season)}"
    described = f"the training data of version {model.ref.version}{told}"
    return Compared(sample, history, rows[INTERVAL].to_numpy(), usual, described)


def _previous(ctx: JobContext, model: LoadedModel, window: Interval) -> Compared | None:
    """Rows of the latest published windows of the season before this one, scored by the same model."""
    job, policy = ctx.job, ctx.job.drift.reference
    intervals, season = windows_before(ctx, window)
    if len(intervals) < policy.min_intervals:
        return None
    sample = KeySample(job.features.key, job.drift.sample_rows, job.model.seed)
    used = 0
    for interval in intervals:
        try:
            for rows in comparable(job, validate.accepted(ctx, interval, plan.scored_files(ctx, interval))):
                sample.add(
                    rows.append_column(
                        INTERVAL, pa.array(np.repeat(seasons.starts_of([interval.start]), rows.num_rows))
                    )
                )
            used += 1
        except ContractViolation:
            continue
    table = sample.table()
    if table is None or used < policy.min_intervals:
        return None
    told = "" if season == "all" else f", {seasons.described(season)}"
    rows, starts = columns(ctx, model, table), table[INTERVAL].to_numpy()
    return Compared(rows, rows, starts, natural(model, season), f"{used} intervals before{told}")


def windows_before(ctx: JobContext, window: Interval) -> tuple[list[Interval], Season]:
    """The latest ``reference.windows`` windows before, as intervals that were published, of the most alike season."""
    job, policy = ctx.job, ctx.job.drift.reference
    wanted = policy.windows * job.drift.window
    ladder = seasons.ladder(policy, job.cadence, job.drift.window)
    # Of a season only some intervals count: a weekday is one of seven, an hour of working days one of 34.
    since = job.cadence.shift(window.start, -wanted * (1 if ladder == ("all",) else 34))
    past = [m.interval for m in ctx.ledger.manifests(job.name, since=since, ended_by=window.start)]
    season, alike = _alike(ctx, ladder, seasons.starts_of([i.start for i in past]), window, min_rows=1)
    return [interval for interval, is_alike in zip(past, alike, strict=True) if is_alike][-wanted:], season


def _alike(
    ctx: JobContext,
    ladder: tuple[Season, ...],
    starts: NDArray[np.int64],
    window: Interval,
    *,
    min_rows: int | None = None,
) -> tuple[Season, NDArray[np.bool_]]:
    policy = ctx.job.drift
    current = seasons.starts_of([interval.start for interval in ctx.job.cadence.split(window)])
    rows = policy.min_rows if min_rows is None else min_rows
    return seasons.alike(ladder, starts, current, min_intervals=policy.reference.min_intervals, min_rows=rows)


def natural(model: LoadedModel, season: Season) -> Mapping[str, float]:
    """What variation within the season the training period of the model showed to be natural, per signal."""
    return model.profile.effects if season == "all" else model.profile.seasonal.get(season, model.profile.effects)


def values(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """The column as one array of `pipeline.effects.Sample`: float64, or objects for text."""
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    numbers: np.ndarray[Any, Any] = column.to_numpy()
    return numbers


def held_out(rows: pa.Table) -> pa.Table:
    """The rows of a model's reference sample whose prediction is known: its holdout, with labels."""
    return rows.filter(rows[PREDICTION].is_valid())


def natural_seasons(ctx: JobContext) -> Sequence[Season]:
    """The seasons, beside ``all``, for which a profile has to know what variation is natural."""
    ladder = seasons.ladder(ctx.job.drift.reference, ctx.job.cadence, ctx.job.drift.window)
    return [season for season in ladder if season != "all"] if ctx.job.drift.window == 1 else []
