"""The evidence that the gate decides on: both models' outcomes on the same rows, slices, model sizes and scoring speed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pipeline import engine, gates, guards, paired
from pipeline.errors import ContractViolation
from pipeline.job import Column
from pipeline.steps import contest
from pipeline.steps.context import INTERVAL, LABEL, PREDICTION

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.guards import Levels
    from pipeline.metrics import Outcomes
    from pipeline.registry import LoadedModel
    from pipeline.reports import GateDecision
    from pipeline.steps.context import JobContext

_AS_TEXT = Column(type="category")
# Speed: rows that are scored at most, the fastest of so many times counts, and a limit that is exceeded must be so again
# and again. A difference below so many seconds is the machine's, and nobody's concern.
_TIMED_ROWS, _TIMES, _ROUNDS, _NO_DIFFERENCE = 20_000, 3, 3, 0.05


def decide(ctx: JobContext, old: LoadedModel, new: LoadedModel, rows: pa.Table, look: int = 1) -> GateDecision:
    """The gate's decision on champion ``old`` and challenger ``new``, on labelled rows of `retrain.collect`.

    ``look`` says how often they are compared with this one (see `pipeline.release.Promote.at_look`).
    Nothing in it depends on the machine, but for the time that scoring took where that keeps the challenger out.
    """
    try:
        frames = [engine.to_frame(rows, ctx.model_columns(model)) for model in (old, new)]
        made = [outcomes(ctx, model, frame, rows) for model, frame in zip((old, new), frames, strict=True)]
        slices = {name: _levels(ctx, name, rows) for name in ctx.job.performance.slices}
    except ContractViolation as error:
        return gates.insufficient(ctx.job.metric, 0, f"The two cannot be compared: {error.what}")
    return gates.compare(
        ctx.job.promote.at_look(look),
        ctx.job.metric,
        champion=made[0],
        challenger=made[1],
        interval=paired.days(rows[INTERVAL].to_numpy()),
        seed=ctx.job.model.seed,
        slices=slices,
        min_slice=ctx.job.performance.min_slice,
        sizes=(old.size, new.size),
        slowdown=slowdown(ctx, (old, new), frames),
        learnt=_learnt(new),
    )


def first(ctx: JobContext, new: LoadedModel, rows: pa.Table) -> GateDecision:
    """The gate's decision on a first champion, on the labelled rows of its holdout."""
    frame = engine.to_frame(rows, ctx.model_columns(new))
    return gates.first(
        ctx.job.promote,
        ctx.job.metric,
        outcomes=outcomes(ctx, new, frame, rows),
        learnt=_learnt(new),
        interval=paired.days(rows[INTERVAL].to_numpy()),
        seed=ctx.job.model.seed,
    )


def _learnt(model: LoadedModel) -> NDArray[Any]:
    """The labels of a sample of the rows that the model was trained on."""
    # Only the rows that it was not trained on have a prediction.
    known: NDArray[Any] = model.reference.filter(model.reference[PREDICTION].is_null())[LABEL].to_numpy()
    return known


def slowdown(ctx: JobContext, models: tuple[LoadedModel, LoadedModel], frames: list[pd.DataFrame]) -> float | None:
    """How many times as long the second model takes to score its frame; ``None`` unless that is beyond the job's limit.

    The fastest of three times counts for each; beyond the limit is what is so in three rounds of these.
    """
    limit = ctx.job.promote.max_slowdown
    found: list[float] = []
    if limit is None:
        return None
    parts = [frame.iloc[:_TIMED_ROWS] for frame in frames]
    for _ in range(_ROUNDS):
        # In turn, so that a machine that is busy for a while slows down both.
        spent = [[_seconds(ctx, model, part) for model, part in zip(models, parts, strict=True)] for _ in range(_TIMES)]
        champion, challenger = map(min, zip(*spent, strict=True))
        if challenger <= limit * champion or challenger - champion < _NO_DIFFERENCE:
            return None
        found.append(challenger / champion)
    return min(found)


def _seconds(ctx: JobContext, model: LoadedModel, frame: pd.DataFrame) -> float:
    began = time.perf_counter()
    engine.predict(model.estimator, frame, ctx.job.task)
    return time.perf_counter() - began


def outcomes(ctx: JobContext, model: LoadedModel, frame: pd.DataFrame, rows: pa.Table) -> Outcomes:
    """What the model predicts for the frame of labelled rows of `retrain.collect`, beside their labels."""
    predictions = engine.predict(model.estimator, frame, ctx.job.task)
    return contest.outcomes(model.estimator, predictions, rows[LABEL].to_numpy())


def _levels(ctx: JobContext, name: str, rows: pa.Table) -> Levels:
    """The slices of one column: its values as text, as performance is broken down, or its quarters."""
    column = ctx.job.features.columns[name]
    texts = engine.to_frame(rows, {name: _AS_TEXT})[name].to_numpy()
    numbers = engine.to_frame(rows, {name: column})[name].to_numpy() if column.type == "number" else None
    return guards.levels(texts, numbers)
