"""Rows of the holdout and of the window, put into one order and into the same numbers.

No result depends on the order in which the rows came. Must not fit a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import logit, ndtri

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.policies import Task

    Floats = NDArray[np.float64]

# Encoded columns in which the sides are compared: those that moved most.
_MAX_ENCODED = 60
_MAX_CATEGORIES = 8
# A number this far, in ranges of the holdout, outside the holdout's range is still inside its support.
_MARGIN = 0.1
_TINY = 1e-6


@dataclass(frozen=True)
class Found:
    """A metric on the window, its standard deviation, the same in the holdout, and by how much unseen values may raise it."""

    value: float
    deviation: float
    in_holdout: float
    unseen: float = 0.0


@dataclass(frozen=True)
class Rows:
    """One side: rows with what the model said of them and, in the holdout, what happened."""

    features: pd.DataFrame
    scores: NDArray[Any] | None
    prediction: NDArray[Any]
    truth: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.prediction)

    @property
    def known_truth(self) -> NDArray[Any]:
        """What happened; only the holdout knows."""
        assert self.truth is not None
        return self.truth

    @property
    def known_scores(self) -> Floats:
        """The probabilities of the positive class; only a binary model has them."""
        assert self.scores is not None
        return self.scores.astype(np.float64)

    def take(self, rows: NDArray[Any]) -> Rows:
        """The rows at these positions."""
        scores, truth = (None if of is None else of[rows] for of in (self.scores, self.truth))
        return Rows(self.features.iloc[rows], scores, self.prediction[rows], truth)

    def columns(self) -> list[NDArray[Any]]:
        """What a row looks like to a nanny model: its features, and the score or else the prediction."""
        said = self.prediction if self.scores is None else log_odds(self.known_scores)
        return [self.features[name].to_numpy() for name in self.features] + [said]


def usable(side: Rows, task: Task, at_most: int) -> Rows:
    """The complete rows in an order that only their content decides, so that the first ones are a fair sample."""
    if task != "binary":
        side = Rows(side.features, None, side.prediction, side.truth)
    said = [side.prediction] + [of for of in (side.scores, side.truth) if of is not None]
    complete = np.flatnonzero(np.logical_and.reduce([_is_present(values) for values in said]))
    side, said = side.take(complete), [values[complete] for values in said]
    state = pd.util.hash_pandas_object(side.features, index=False).to_numpy()
    for values in said:
        state = state * np.uint64(31) + pd.util.hash_array(values)
    return side.take(np.argsort(state, kind="stable")[:at_most])


def _is_present(values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isfinite(values) if values.dtype.kind == "f" else ~np.asarray(pd.isna(values))


@dataclass(frozen=True)
class Sides:
    """Both sides in the same numbers, centred and scaled by the holdout, and the window's share inside its support."""

    held: Floats
    now: Floats
    support: float

    def most_moved(self) -> Sides:
        """The columns in which the window differs most from the holdout (in position or in spread)."""
        spread = self.now.std(axis=0)
        moved = np.abs(self.now.mean(axis=0)) + np.abs(spread - 1.0)
        chosen = np.argsort(-moved, kind="stable")[:_MAX_ENCODED]
        return Sides(self.held[:, chosen], self.now[:, chosen], self.support)


def encode(held: Rows, now: Rows) -> Sides:
    """Both sides as matrices of the same columns; a column that is constant in the holdout tells nothing and is left out."""
    parts: list[tuple[Floats, Floats]] = []
    inside = np.ones(len(now), dtype=bool)
    for before, after in zip(held.columns(), now.columns(), strict=True):
        is_number = before.dtype.kind in "fiu"
        encoded = _normal_scores(before, after) if is_number else _dummies(before, after)
        parts.append(encoded[:2])
        inside &= encoded[2]
    first, second = (np.hstack(side) for side in zip(*parts, strict=True))
    centre, scale = first.mean(axis=0), first.std(axis=0)
    telling = scale > _TINY
    first, second = ((side[:, telling] - centre[telling]) / scale[telling] for side in (first, second))
    return Sides(first, second, float(inside.mean()))


def _normal_scores(before: NDArray[Any], after: NDArray[Any]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Numbers by their rank in the holdout on a normal scale (outliers cannot dominate), and whether they are missing."""
    known = np.sort(before[~np.isnan(before)].astype(np.float64))

    def encoded(values: Floats) -> Floats:
        missing = np.isnan(values)
        rank = (np.searchsorted(known, values, "left") + np.searchsorted(known, values, "right")) / 2
        scores = ndtri((rank + 0.5) / (len(known) + 1))
        return np.column_stack([np.where(missing, 0.0, scores), missing])

    if len(known) == 0:
        known = np.array([np.nan])
    margin = _MARGIN * np.ptp(known[np.isfinite(known)]) if np.isfinite(known).any() else 0.0
    missing_too = bool(np.isnan(before).any())
    inside = np.where(np.isnan(after), missing_too, (after >= known[0] - margin) & (after <= known[-1] + margin))
    return encoded(before), encoded(after), inside


def _dummies(before: NDArray[Any], after: NDArray[Any]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """One column for each of the most frequent categories of the holdout, and one for missing."""
    counts = pd.Series(before, dtype=object).value_counts()
    names = sorted(counts.index, key=lambda name: (-counts[name], str(name)))
    index = pd.Index(names, dtype=object)

    def encoded(values: NDArray[Any]) -> Floats:
        codes = index.get_indexer(pd.Index(values, dtype=object))
        columns = [codes == code for code in range(min(len(names), _MAX_CATEGORIES))]
        return np.column_stack([*columns, pd.isna(values)]).astype(np.float64)

    missing = np.asarray(pd.isna(after))
    seen = index.get_indexer(pd.Index(after, dtype=object)) >= 0
    return encoded(before), encoded(after), np.where(missing, bool(pd.isna(before).any()), seen)


def log_odds(scores: Floats) -> Floats:
    """The scores on the scale on which a calibration is close to a line."""
    clipped: Floats = logit(np.clip(scores, _TINY, 1 - _TINY))
    return clipped
