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


def usable(side: Rows, at_most: int) -> Rows:
    """The complete rows in an order that only their content decides, so that the first ones are a fair sample."""
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


@dataclass(frozen=True, eq=False)
class Encoding:
    """How rows become numbers, as the holdout alone decides; ``held`` are its own rows so, shape (rows, columns).

    A column that is constant in the holdout tells nothing and is left out.
    """

    held: Floats
    _columns: tuple[_Numbers | _Categories, ...]
    _telling: NDArray[np.bool_]
    _centre: Floats
    _scale: Floats

    @classmethod
    def of(cls, held: Rows) -> Encoding:
        """The encoding that a holdout decides."""
        columns = tuple(
            _Numbers.of(values) if values.dtype.kind in "fiu" else _Categories.of(values) for values in held.columns()
        )
        whole = np.hstack([column.encoded(values) for column, values in zip(columns, held.columns(), strict=True)])
        centre, scale = whole.mean(axis=0), whole.std(axis=0)
        telling = scale > _TINY
        centre, scale = centre[telling], scale[telling]
        return cls((whole[:, telling] - centre) / scale, columns, telling, centre, scale)

    def beside(self, now: Rows) -> Sides:
        """The holdout and a window in the same numbers."""
        inside = np.ones(len(now), dtype=bool)
        parts = []
        for column, values in zip(self._columns, now.columns(), strict=True):
            parts.append(column.encoded(values))
            inside &= column.holds(values)
        encoded = (np.hstack(parts)[:, self._telling] - self._centre) / self._scale
        return Sides(self.held, encoded, float(inside.mean()))


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Numbers by their rank in the holdout on a normal scale (outliers cannot dominate), and whether they are missing."""

    known: Floats
    margin: float
    has_missing: bool

    @classmethod
    def of(cls, values: NDArray[Any]) -> _Numbers:
        missing = np.isnan(values)
        known = np.sort(values[~missing].astype(np.float64))
        if len(known) == 0:
            known = np.array([np.nan])
        finite = known[np.isfinite(known)]
        return cls(known, _MARGIN * float(np.ptp(finite)) if len(finite) else 0.0, bool(missing.any()))

    def encoded(self, values: NDArray[Any]) -> Floats:
        missing = np.isnan(values)
        rank = (np.searchsorted(self.known, values, "left") + np.searchsorted(self.known, values, "right")) / 2
        scores = ndtri((rank + 0.5) / (len(self.known) + 1))
        return np.column_stack([np.where(missing, 0.0, scores), missing])

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which values lie in the holdout's range, or near it."""
        near = (values >= self.known[0] - self.margin) & (values <= self.known[-1] + self.margin)
        return np.where(np.isnan(values), self.has_missing, near)


@dataclass(frozen=True, eq=False)
class _Categories:
    """One column for each of the most frequent categories of the holdout, and one for missing."""

    index: pd.Index
    has_missing: bool

    @classmethod
    def of(cls, values: NDArray[Any]) -> _Categories:
        counts = pd.Series(values, dtype=object).value_counts()
        names = sorted(counts.index, key=lambda name: (-counts[name], str(name)))
        return cls(pd.Index(names, dtype=object), bool(pd.isna(values).any()))

    def encoded(self, values: NDArray[Any]) -> Floats:
        codes = self.index.get_indexer(pd.Index(values, dtype=object))
        columns = [codes == code for code in range(min(len(self.index), _MAX_CATEGORIES))]
        return np.column_stack([*columns, pd.isna(values)]).astype(np.float64)

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which values the holdout has."""
        seen = self.index.get_indexer(pd.Index(values, dtype=object)) >= 0
        return np.where(np.asarray(pd.isna(values)), self.has_missing, seen)


def log_odds(scores: Floats) -> Floats:
    """The scores on the scale on which a calibration is close to a line."""
    clipped: Floats = logit(np.clip(scores, _TINY, 1 - _TINY))
    return clipped
