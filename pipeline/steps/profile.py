"""What is learnt about a model when it is trained: the reference, the variation that is natural, what it depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import detectors, engine, performance, seasons, variation
from pipeline.errors import NotEnoughLabels
from pipeline.reports import Profile
from pipeline.steps import reference
from pipeline.steps.context import INTERVAL, LABEL, PREDICTION
from pipeline.steps.sampling import KeySample

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.metrics import Outcomes
    from pipeline.reports import Baseline
    from pipeline.seasons import Season
    from pipeline.steps.context import JobContext
    from pipeline.windows import TrainingWindow

# Rows that are enough to rank features.
_IMPORTANCE_ROWS = 2_000


def build(
    ctx: JobContext,
    window: TrainingWindow,
    rows: pa.Table,
    held: NDArray[np.bool_],
    estimator: Any,
    predictions: engine.Predictions,
    outcomes: Outcomes,
    volumes: Mapping[str, int],
) -> tuple[Profile, pa.Table]:
    """The profile of a freshly fitted estimator, and the reference sample that travels with it.

    ``rows`` are the labelled rows of the window, ``held`` says which of them are its holdout; ``predictions`` and
    ``outcomes`` are the holdout's; ``volumes`` the rows of each interval, labelled or not. Raises `NotEnoughLabels` when
    the job's metric is undefined on the holdout.
    """
    sample = _sample(ctx, rows, held, reference.predicted(ctx, predictions))
    profile = Profile(
        train_start=window.train.start,
        train_end=window.train.end,
        holdout_end=window.holdout.end,
        rows=int((~held).sum()),
        baseline=_baseline(ctx, outcomes, rows[INTERVAL].to_numpy()[held]),
        effects=_natural(ctx, sample, "all"),
        seasonal={season: _natural(ctx, sample, season) for season in reference.natural_seasons(ctx)},
        separation=_separation(ctx, sample),
        importance=_importance(ctx, estimator, engine.to_frame(rows.filter(pa.array(held)), ctx.job.features.columns)),
        volumes=dict(volumes),
        classes=tuple(_class_name(c) for c in getattr(estimator, "classes_", ())),
    )
    return profile, sample


def _sample(ctx: JobContext, rows: pa.Table, held: NDArray[np.bool_], predictions: np.ndarray[Any, Any]) -> pa.Table:
    """The sample that travels with the model: features and labels of the whole window, predictions of the holdout only.

    A model is surer of rows that it has learnt from; comparing fresh predictions with those would look like drift.
    """
    columns: np.ndarray[Any, Any] = np.full(rows.num_rows, None, dtype=object)
    columns[held] = predictions
    kind = pa.string() if ctx.job.task == "multiclass" else pa.float64()
    sample = KeySample(ctx.job.features.key, ctx.job.drift.sample_rows, ctx.job.model.seed)
    sample.add(rows.append_column(PREDICTION, pa.array(columns, kind)))
    table = sample.table()
    assert table is not None  # rows were just added
    return table.select([*ctx.job.features.columns, PREDICTION, LABEL, INTERVAL]).combine_chunks()


def _baseline(ctx: JobContext, outcomes: Outcomes, interval: NDArray[np.int64]) -> Baseline:
    made = performance.baseline(ctx.job.metric, outcomes, interval)
    if made is None:
        raise NotEnoughLabels(
            f"job {ctx.job.name!r}: {ctx.job.metric} is undefined on the {len(outcomes)} holdout rows",
            expected="holdout rows of every class",
            got=f"labels {sorted({str(v) for v in outcomes.truth})[:5]}",
            next_step="lengthen retrain.holdout in the job file",
        )
    return made


def _natural(ctx: JobContext, sample: pa.Table, season: Season) -> dict[str, float]:
    """What variation is natural to the features, and to the predictions of the holdout."""
    known, policy = reference.held_out(sample), ctx.job.drift
    kinds = {PREDICTION: reference.comparison_kinds(ctx)[PREDICTION]}
    predictions = {PREDICTION: reference.values(known[PREDICTION])}
    features, watched = reference.features(ctx, sample), len(ctx.kinds) + 1
    found = variation.natural(policy, features, ctx.kinds, sample[INTERVAL].to_numpy(), season, columns=watched)
    starts = known[INTERVAL].to_numpy()
    return found | variation.natural(policy, predictions, kinds, starts, season, columns=watched)


def _separation(ctx: JobContext, sample: pa.Table) -> float | None:
    policy, columns = ctx.job.drift, reference.features(ctx, sample)
    ladder = seasons.ladder(policy.reference, ctx.job.cadence, policy.window)
    starts = sample[INTERVAL].to_numpy()
    found = detectors.natural_separations(policy, columns, ctx.kinds, starts, ladder, ctx.job.model.seed)
    return variation.separation_limit(policy, found) if found is not None else None


def _importance(ctx: JobContext, estimator: Any, frame: pd.DataFrame) -> dict[str, float]:
    """Per feature, how much the predictions move when its values are dealt out anew; the shares add up to 1.

    Permutation importance (Breiman 2001, Random Forests) of the predictions instead of a loss, so that it says what the
    model uses, not what is right. Empty when nothing moves them.
    """
    rng = np.random.default_rng(ctx.job.model.seed)
    rows = frame.iloc[
        : _IMPORTANCE_ROWS * max(len(frame) // _IMPORTANCE_ROWS, 1) : max(len(frame) // _IMPORTANCE_ROWS, 1)
    ]
    usual = reference.predicted(ctx, engine.predict(estimator, rows, ctx.job.task))
    moved = {}
    for name in frame.columns:
        dealt = rows.assign(**{name: rows[name].to_numpy()[rng.permutation(len(rows))]})
        moved[name] = difference(usual, reference.predicted(ctx, engine.predict(estimator, dealt, ctx.job.task)))
    total = sum(moved.values())
    return {name: share / total for name, share in moved.items()} if total > 0 else {}


def difference(usual: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """How far predictions lie apart: mean absolute difference of numbers, share of rows with another class."""
    if usual.dtype == object:
        return float(np.mean(usual != other))
    return float(np.mean(np.abs(usual - other)))


def _class_name(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
