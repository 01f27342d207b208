"""Performance before labels: what a metric is expected to be on rows whose outcomes are not known yet.

Learns from a labelled holdout how far the model can be believed, and carries that over to the window's rows. Right as
long as the labels still follow from the inputs as they did; `pipeline.estimates` judges whether they do. Must not read data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import threads
from pipeline.estimates import Expected
from pipeline.estimation.calibration import calibrated
from pipeline.estimation.nanny import Nannies, from_losses
from pipeline.estimation.rows import Encoding, Rows, usable

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.policies import MetricName, Task

__all__ = ["Expected", "Holdout", "Window", "expect"]

# Fewer labelled rows cannot tell a good model from a bad one.
_MIN_HOLDOUT = 100
_MAX_HOLDOUT, _MAX_WINDOW = 20_000, 50_000
# Standard deviation of an estimate that a shift has moved, as a share of the movement.
_DOUBT = 0.25
_Z95 = 1.959964
_AT_MOST_ONE = ("roc_auc", "brier", "accuracy", "calibration_error")


@dataclass(frozen=True, eq=False)
class Holdout:
    """Labelled rows that the model was not trained on.

    ``features`` as `pipeline.engine.to_frame` makes them; ``scores`` (n,) the probability of the positive class, ``None``
    unless the task is binary; ``prediction`` and ``truth`` (n,) numbers or classes. The positive class is the last one.
    What is learned from it alone is kept with it, for all windows that it is asked about.
    """

    features: pd.DataFrame
    scores: NDArray[Any] | None
    prediction: NDArray[Any]
    truth: NDArray[Any]
    _nannies: dict[MetricName, Nannies] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def rows(self) -> Rows:
        """Its complete rows, at most 20,000, in an order that only their content decides."""
        return usable(Rows(self.features, self.scores, self.prediction, self.truth), _MAX_HOLDOUT)

    @cached_property
    def encoding(self) -> Encoding:
        """How the rows of a window become numbers that can be compared with its own."""
        return Encoding.of(self.rows)

    def nannies(self, metric: MetricName) -> Nannies:
        """The models of the loss of a row."""
        if metric not in self._nannies:
            self._nannies[metric] = Nannies.of(metric, self.rows, self.encoding.held)
        return self._nannies[metric]


@dataclass(frozen=True)
class Window:
    """Scored rows whose labels are not known; fields as in `Holdout`."""

    features: pd.DataFrame
    scores: NDArray[Any] | None
    prediction: NDArray[Any]


def expect(task: Task, metric: MetricName, holdout: Holdout, window: Window, *, seed: int = 0) -> Expected | None:
    """The metric that the window's labels are expected to show, with a 95 % interval; does not depend on row order.

    The interval holds what the holdout leaves open and the chance in the labels themselves. Binary: the scores are calibrated on
    the holdout, which is weighted towards the window, and the metric is taken over all labels that the calibrated
    probabilities allow. Otherwise a second model predicts the loss of each row. Rows without a finite score or prediction are
    left out. ``None`` when no estimate can be made: fewer than 100 holdout rows, a single class, an empty window, or a metric
    that cannot be had so (log_loss and macro_f1 of several classes, bias).
    """
    if metric not in _ESTIMATED[task] or (task == "binary" and (holdout.scores is None or window.scores is None)):
        return None
    held, now = holdout.rows, usable(Rows(window.features, window.scores, window.prediction, None), _MAX_WINDOW)
    if len(held) < _MIN_HOLDOUT or len(now) == 0:
        return None
    if task != "regression" and len(np.unique(held.known_truth)) < 2:
        return None
    # On rows as few as these, several threads wait for each other longer than they work.
    with threads.one():
        sides = holdout.encoding.beside(now)
        if task == "binary":
            found = calibrated(metric, held, now, sides, np.random.default_rng(seed))
        else:
            found = from_losses(metric, held, now, sides, holdout.nannies(metric))
    # The farther a shift has carried the metric, the more of it rests on what was learned from few rows.
    spread = _Z95 * float(np.hypot(found.deviation, _DOUBT * (found.value - found.in_holdout)))
    value, low, high = found.value, found.value - spread, found.value + spread + found.unseen
    if metric == "rmse":
        # Estimated as the mean squared error, of which a sum of rows is closer to normal.
        value, low, high = (float(np.sqrt(max(mean, 0.0))) for mean in (value, low, high))
    high = min(high, 1.0) if metric in _AT_MOST_ONE else high
    return Expected(value, max(low, 0.0), high, len(now), sides.support)


_ESTIMATED: dict[Task, frozenset[MetricName]] = {
    "binary": frozenset({"roc_auc", "log_loss", "brier", "accuracy", "calibration_error"}),
    "multiclass": frozenset({"accuracy"}),
    "regression": frozenset({"mae", "rmse"}),
}
