"""The expected mean loss of rows by a second model, the nanny, which learns where the first one is wrong.

Owns this package's use of scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from pipeline.estimation.rows import Found, Rows, Sides
from pipeline.estimation.weighting import likeness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.policies import MetricName

    Floats = NDArray[np.float64]

# Between these quantiles of a feature there are rows enough to learn a trend; beyond them trees stand still.
_USUAL = (0.01, 0.99)
_TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Nannies:
    """Two models of the loss of a row, each of every other row of the holdout, and what they miss on the rest of it."""

    losses: Floats
    missed: Floats
    _models: tuple[HistGradientBoostingRegressor, ...]

    @classmethod
    def of(cls, metric: MetricName, rows: Rows, held: Floats) -> Nannies:
        """Fitted on the holdout's ``rows``, encoded as ``held``."""
        losses = _losses(metric, rows)
        # Rows are in the order of their hashes: every other row is a fair half.
        half = np.arange(len(losses)) % 2 == 0
        expected = np.empty(len(losses))
        models = []
        for learn in (half, ~half):
            nanny = HistGradientBoostingRegressor(
                max_iter=40, learning_rate=0.1, max_leaf_nodes=8, min_samples_leaf=20, early_stopping=False
            ).fit(held[learn], losses[learn])
            expected[~learn] = nanny.predict(held[~learn])
            models.append(nanny)
        return cls(losses, losses - expected, tuple(models))

    def expected(self, now: Floats) -> Floats:
        """The loss of each encoded row of a window, shape (rows,)."""
        on_window: Floats = sum(nanny.predict(now) / len(self._models) for nanny in self._models)
        return on_window


def from_losses(metric: MetricName, held: Rows, now: Rows, sides: Sides, nannies: Nannies) -> Found:
    """The expected mean loss (or share of hits) of the window's rows.

    A nanny model predicts the loss of a row. What it misses on holdout rows that it did not see, weighted towards the window,
    is added: the estimate is right when either the nanny or the weights are (Robins, Rotnitzky & Zhao 1994).
    """
    weights = likeness(sides.most_moved())
    on_window, missed = nannies.expected(sides.now), nannies.missed
    bias = float(np.average(missed, weights=weights))
    doubt = float(np.sum((weights * (missed - bias)) ** 2)) / float(weights.sum()) ** 2
    chance = float(np.average((missed - bias) ** 2, weights=weights)) / len(on_window)
    unseen = 0.0 if metric == "accuracy" else unseen_rise(metric, held, now)
    deviation = float(np.sqrt(doubt + chance))
    return Found(float(on_window.mean()) + bias, deviation, float(nannies.losses.mean()), unseen)


def _losses(metric: MetricName, held: Rows) -> Floats:
    if metric == "accuracy":
        return np.asarray(held.prediction == held.known_truth, dtype=np.float64)
    error: Floats = held.prediction.astype(np.float64) - held.known_truth.astype(np.float64)
    losses: Floats = np.abs(error) if metric == "mae" else error**2
    return losses


def unseen_rise(metric: MetricName, held: Rows, now: Rows) -> float:
    """By how much the mean loss may rise because of values that were never or hardly seen, whose trend the model may miss.

    As if the predictions' linear trend in every feature went on outside its usual range and the model stood still.
    """
    names = list(held.features.select_dtypes("number"))
    before, after = (side.features[names].to_numpy(dtype=np.float64) for side in (held, now))
    with np.errstate(all="ignore"):
        before, after = (np.where(np.isfinite(side), side, np.nan) for side in (before, after))
    usable = ~np.isnan(before).all(axis=0)
    before, after = before[:, usable], after[:, usable]
    low, high = np.nanquantile(before, _USUAL, axis=0)
    usual = np.clip(before, low, high)
    centre, scale = np.nanmean(usual, axis=0), np.nanstd(usual, axis=0) + _TINY
    columns = np.nan_to_num((usual - centre) / scale)
    said = held.prediction.astype(np.float64)
    trend = np.linalg.solve(columns.T @ columns + np.eye(columns.shape[1]), columns.T @ (said - said.mean()))

    def missed(side: Floats) -> float:
        beyond = np.nan_to_num(np.abs(side - np.clip(side, low, high)) / scale) @ np.abs(trend)
        return float(np.mean(beyond if metric == "mae" else beyond**2))

    return max(missed(after) - missed(before), 0.0)
