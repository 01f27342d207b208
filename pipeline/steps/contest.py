"""Choose what a challenger learns from: which stretch of history, and with which settings, by backtest on its latest part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import engine, grouped, metrics, paired, trainers, windows
from pipeline.errors import NotEnoughLabels
from pipeline.intervals import Interval
from pipeline.policies import HIGHER_IS_BETTER
from pipeline.steps.context import INTERVAL, LABEL
from pipeline.windows import TrainingWindow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.job import JobSpec

    Index = Callable[[datetime], int]

# A window and settings, by name.
_Pair = tuple[str, str]
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen: the window and the settings by name, the split, and how all candidates did, if they competed."""

    window: str
    settings: str
    job: JobSpec
    split: TrainingWindow
    values: Mapping[str, float] = field(default_factory=dict)


def choose(job: JobSpec, rows: pa.Table, stretches: Mapping[str, Interval], index: Index) -> Choice:
    """The stretch of history and the settings from which the challenger is to be trained.

    ``rows`` are labelled, of the longest of ``stretches`` (in order of preference); ``index`` maps an instant to the values
    of their column ``__interval__``. The holdout is that of the shortest usable stretch, so that after a change it lies
    behind it; nobody learns from it, nor from what is later, and the contest does not look at it. Each candidate is fitted
    without the latest part of what remains and predicts that part. The longest stretch is chosen unless the best of the
    others by the job's metric is proven better: what is best on a few days by chance is often worse on the next. With a
    single candidate nothing is fitted; it, or the first where none could be judged, is chosen. Raises `NotEnoughLabels`
    when no stretch is long enough.
    """
    usable = {name: split for name, span in stretches.items() if (split := _split(job, rows, span, index))}
    if not usable:
        raise _too_short(job, rows)
    if job.retrain.window_policy != "backtest":
        usable = dict([next(iter(usable.items()))])
    shortest = min(usable.values(), key=lambda split: split.span.end - split.span.start)
    splits = {
        name: TrainingWindow(Interval(s.train.start, shortest.holdout.start), shortest.holdout)
        for name, s in usable.items()
    }
    settings = {"default": job, **{name: _with(job, extra) for name, extra in job.model.candidates.items()}}
    first = next(iter(splits))
    contest = windows.training(job, shortest.train)
    if len(splits) * len(settings) == 1 or contest is None:
        return Choice(first, "default", job, splits[first])
    found, days = _compete(job, rows, splits, settings, contest.holdout, index)
    if not found:
        return Choice(first, "default", job, splits[first])
    values = {pair: grouped.value(job.metric, made, days) for pair, made in found.items()}
    longest = min((window for window, _ in found), key=lambda window: splits[window].train.start)
    window, chosen = _winner(job, found, values, days, next(pair for pair in found if pair[0] == longest))
    told = {" ".join(pair): value for pair, value in values.items()}
    return Choice(window, chosen, settings[chosen], splits[window], told)


def _winner(
    job: JobSpec,
    found: Mapping[_Pair, metrics.Outcomes],
    values: Mapping[_Pair, float],
    days: NDArray[np.int64],
    usual: _Pair,
) -> _Pair:
    """The ``usual`` candidate, or the best one if that is proven better."""
    sign = 1.0 if HIGHER_IS_BETTER[job.metric] else -1.0
    best = max(values, key=lambda pair: sign * values[pair])
    if best == usual:
        return usual
    test = paired.compare(job.metric, found[usual], found[best], days, job.model.seed)
    return best if test is not None and test.low(_CONFIDENCE) > 0 else usual


def _compete(
    job: JobSpec,
    rows: pa.Table,
    splits: Mapping[str, TrainingWindow],
    settings: Mapping[str, JobSpec],
    judged: Interval,
    index: Index,
) -> tuple[dict[_Pair, metrics.Outcomes], NDArray[np.int64]]:
    """The outcomes of every candidate on the rows of ``judged``, in order of preference, and the day of each row.

    Candidates that cannot be fitted, or measured, are out.
    """
    at = rows[INTERVAL].to_numpy()
    frame, target = engine.to_frame(rows, job.features.columns), rows[LABEL].to_numpy()
    latest = (at >= index(judged.start)) & (at < index(judged.end))
    days, found = paired.days(at[latest]), dict[_Pair, metrics.Outcomes]()
    for window, split in splits.items():
        known = (at >= index(split.train.start)) & (at < index(judged.start))
        for name, candidate in settings.items():
            made = _outcomes(candidate, frame, target, known, latest)
            if made is not None and np.isfinite(grouped.value(job.metric, made, days)):
                found[window, name] = made
    return found, days


def _outcomes(
    job: JobSpec, frame: pd.DataFrame, target: NDArray[Any], known: NDArray[np.bool_], latest: NDArray[np.bool_]
) -> metrics.Outcomes | None:
    if np.count_nonzero(known) < job.retrain.min_rows // 2 or not latest.any():
        return None
    try:
        estimator = trainers.fit(job, frame[known], target[known])
    except NotEnoughLabels:  # a single class: the others may have both
        return None
    predictions = engine.predict(estimator, frame[latest], job.task)
    return outcomes(estimator, predictions, target[latest])


def outcomes(estimator: Any, predictions: engine.Predictions, truth: NDArray[Any]) -> metrics.Outcomes:
    """Predictions that were just made beside ``truth``, the labels of the same rows, as metrics take them."""
    if predictions.scores is None:
        return metrics.Outcomes(truth.astype(np.float64), predictions.labels)
    return metrics.Outcomes(truth, predictions.labels, predictions.scores, tuple(estimator.classes_))


def _with(job: JobSpec, extra: Mapping[str, Any]) -> JobSpec:
    parameters = {**job.model.parameters, **extra}
    return job.model_copy(update={"model": job.model.model_copy(update={"parameters": parameters})})


def _split(job: JobSpec, rows: pa.Table, span: Interval, index: Index) -> TrainingWindow | None:
    """The split of the part of ``span`` in which there are labelled rows; ``None`` when it holds too few of them."""
    at = rows[INTERVAL].to_numpy()
    held = at[(at >= index(span.start)) & (at < index(span.end))]
    if len(held) < job.retrain.min_rows:
        return None
    first = min(interval.start for interval in job.cadence.split(span) if index(interval.start) == held.min())
    return windows.training(job, Interval(first, span.end))


def _too_short(job: JobSpec, rows: pa.Table) -> NotEnoughLabels:
    return NotEnoughLabels(
        f"job {job.name!r}: {rows.num_rows} labelled rows lie in too few intervals to learn from some and compare on others",
        expected=f"at least two intervals, and {job.retrain.min_rows} rows (retrain.min_rows)",
        got=f"{len(np.unique(rows[INTERVAL].to_numpy()))} intervals with labelled rows",
        next_step=f"pipeline retrain {job.name} --as-of T with a later T",
    )
