"""Metrics of predictions against what really happened, each with a 95 % confidence interval.

Pure functions of numpy arrays; no result depends on the order of rows. What a value means for a model is judged in
`pipeline.performance`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit, logit, stdtrit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.policies import MetricName

    Floats = NDArray[np.float64]
    UserMetric = Callable[[NDArray[Any], NDArray[Any], "Floats | None"], float]

# Probabilities are kept this far from 0 and 1 before a logarithm is taken: the float64 machine epsilon.
_EPSILON = float(np.finfo(np.float64).eps)
# Two-sided 95 %: the normal quantile, and the share that is left out at either end.
_NORMAL_95, _TAIL = 1.959963984540054, 0.025
_BINS = 10
_REPLICATES, _REPLICATE_ROWS = 100, 20_000


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Predictions of ``n`` rows beside what really happened.

    ``truth`` and ``prediction`` hold class labels or numbers, shape ``(n,)``. ``scores`` is ``(n, k)`` with one
    probability per entry of ``classes`` for classification, and ``None`` for regression.
    """

    truth: NDArray[Any]
    prediction: NDArray[Any]
    scores: Floats | None = None
    classes: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: NDArray[Any]) -> Outcomes:
        """The outcomes of the selected rows (a mask or an index array)."""
        scores = None if self.scores is None else self.scores[rows]
        return Outcomes(self.truth[rows], self.prediction[rows], scores, self.classes)


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric in its own unit; ``None`` where it is undefined. ``low`` and ``high`` are the ends of its 95 % interval.

    Both ends are ``None`` where the rows tell nothing about the metric's uncertainty, such as a single row.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float, low: float = math.nan, high: float = math.nan) -> Measured:
        """The same with ``None`` for what is not finite."""
        if not math.isfinite(value):
            return cls(None)
        is_known = math.isfinite(low) and math.isfinite(high)
        return cls(float(value), float(low), float(high)) if is_known else cls(float(value))


def measure(metric: MetricName, outcomes: Outcomes) -> Measured:
    """The metric over all rows and its 95 % interval; undefined without rows, and roc_auc with a single class.

    ``calibration_error`` is the expected calibration error over 10 bins with equal numbers of rows, freed of what it is
    under perfect calibration; ``bias`` the mean of prediction minus truth; the others are defined in `evaluator`.

    Intervals: roc_auc by DeLong, DeLong & Clarke-Pearson (1988) on the logit scale, and where one class wholly outranks the
    other by the probability that as many independent pairs all agree; accuracy by Wilson (1927); means of losses by
    Student's t; rmse and macro_f1 by the delta method.
    """
    if len(outcomes) == 0:
        return Measured(None)
    if metric == "roc_auc":
        return _measure_roc_auc(outcomes)
    if metric == "macro_f1":
        return _measure_macro_f1(outcomes)
    if metric == "calibration_error":
        return _measure_calibration(outcomes)
    losses = row_losses(metric, outcomes)
    if metric == "accuracy":
        return _wilson(losses)
    if metric == "rmse":
        return _measure_root(losses)
    return _around(
        losses, lowest=-math.inf if metric == "bias" else 0.0, highest=1.0 if metric == "brier" else math.inf
    )


def evaluate(metric: MetricName, outcomes: Outcomes) -> float | None:
    """The metric over all rows with equal weights; ``None`` when it is undefined (no rows, one class for roc_auc)."""
    if metric == "calibration_error":
        return measure(metric, outcomes).value
    if len(outcomes) == 0:
        return None
    value = evaluator(metric, outcomes)(np.ones(len(outcomes)))
    return value if math.isfinite(value) else None


def evaluator(metric: MetricName, outcomes: Outcomes) -> Callable[[Floats], float]:
    """A function from row weights ``(n,)`` to the metric's value; NaN where the metric is undefined.

    A bootstrap replicate is one more weighting of the same arrays instead of a copy of them, and what does not depend on the
    weights is computed once. Sources: ``roc_auc`` is the Mann-Whitney probability that a random positive scores above a
    random negative, ties counting one half (Hanley & McNeil 1982); ``brier`` is the mean squared error of the positive
    class probability (Brier 1950); ``macro_f1`` is the unweighted mean over classes of ``2 tp / (2 tp + fp + fn)``, a
    class that neither occurs nor is predicted being left out. Raises ``ValueError`` for ``calibration_error``, whose bins
    and correction are those of unweighted rows.
    """
    if metric == "calibration_error":
        raise ValueError("calibration_error cannot be weighted; measure it")
    if metric == "roc_auc":
        return _roc_auc(outcomes)
    if metric == "macro_f1":
        return _macro_f1(outcomes)
    losses = row_losses(metric, outcomes)
    if metric == "rmse":
        return lambda weights: math.sqrt(_mean(losses, weights))
    return lambda weights: _mean(losses, weights)


def bootstrapped(function: UserMetric, outcomes: Outcomes, *, seed: int) -> Measured:
    """A user's metric over all rows, and its interval from 100 resamplings with ``seed`` of at most 20,000 rows.

    The deviation of fewer rows is scaled to all of them. There is no interval when most resamplings have no finite value.
    """
    rng, n = np.random.default_rng(seed), len(outcomes)
    value = function(outcomes.truth, outcomes.prediction, outcomes.scores)
    if n == 0 or not math.isfinite(value):
        return Measured(None)
    rows = min(n, _REPLICATE_ROWS)
    base = outcomes if rows == n else outcomes.take(np.sort(rng.choice(n, rows, replace=False)))
    drawn = (base.take(rng.integers(rows, size=rows)) for _ in range(_REPLICATES))
    values = np.array([function(part.truth, part.prediction, part.scores) for part in drawn])
    values = values[np.isfinite(values)]
    if n < 2 or len(values) < _REPLICATES / 2:
        return Measured.of(value)
    reach = _NORMAL_95 * float(np.std(values, ddof=1)) * math.sqrt(rows / n)
    return Measured.of(value, value - reach, value + reach)


def _mean(values: Floats, weights: Floats) -> float:
    total = float(weights.sum())
    return float(values @ weights) / total if total else math.nan


def row_losses(metric: MetricName, outcomes: Outcomes) -> Floats:
    """Per row what the metric is the mean of; hits for accuracy, squares for rmse. Not for roc_auc and macro_f1."""
    truth, prediction = outcomes.truth, outcomes.prediction
    losses: Floats
    if metric in ("mae", "rmse", "bias"):
        error = prediction.astype(np.float64) - truth.astype(np.float64)
        losses = np.abs(error) if metric == "mae" else error**2 if metric == "rmse" else error
    elif metric == "accuracy":
        losses = (prediction == truth).astype(np.float64)
    elif metric == "brier":
        losses = (_scores(outcomes)[:, -1] - _is_positive(outcomes)) ** 2
    else:
        # log_loss: the probability that was given to what happened; a class the model does not know had none.
        scores, column = _scores(outcomes), _column(outcomes)
        known = column >= 0
        given = np.full(len(outcomes), _EPSILON)
        given[known] = scores[np.flatnonzero(known), column[known]]
        losses = -np.log(np.clip(given, _EPSILON, 1.0))
    return losses


def _scores(outcomes: Outcomes) -> Floats:
    if outcomes.scores is None:
        raise ValueError("a metric of probabilities needs scores; these outcomes are of a regression")
    return outcomes.scores


def _is_positive(outcomes: Outcomes) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = outcomes.truth == outcomes.classes[-1]
    return found


def _column(outcomes: Outcomes) -> NDArray[np.int64]:
    """Which column of the scores belongs to what happened; -1 for a class that the model does not know."""
    truth = pa.array(outcomes.truth)
    classes = pa.array(list(outcomes.classes)).cast(truth.type)
    found: NDArray[np.int64] = pc.fill_null(pc.index_in(truth, classes), -1).to_numpy().astype(np.int64)
    return found


def _around(losses: Floats, *, lowest: float, highest: float) -> Measured:
    """The mean with Student's interval, cut to the metric's range."""
    n, mean = len(losses), float(np.mean(losses))
    if n < 2 or not math.isfinite(mean):
        return Measured.of(mean)
    reach = float(stdtrit(n - 1, 1 - _TAIL)) * float(np.std(losses, ddof=1)) / math.sqrt(n)
    return Measured.of(mean, max(lowest, mean - reach), min(highest, mean + reach))


def _measure_root(squares: Floats) -> Measured:
    found = _around(squares, lowest=-math.inf, highest=math.inf)
    if found.value is None:
        return found
    root = math.sqrt(found.value)
    if found.high is None:
        return Measured.of(root)
    # d sqrt(m) = dm / (2 sqrt(m))
    reach = (found.high - found.value) / (2 * root) if root else 0.0
    return Measured.of(root, max(0.0, root - reach), root + reach)


def _wilson(hits: Floats) -> Measured:
    """A share, with an interval that is right for shares near 0 and 1 as well."""
    n, share, z = len(hits), float(np.mean(hits)), _NORMAL_95
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Measured.of(share, max(0.0, centre - reach), min(1.0, centre + reach))


def _ranked(outcomes: Outcomes) -> tuple[Floats, Floats, NDArray[np.intp], NDArray[np.intp]] | None:
    """Sorted scores of positives and of negatives, and their rows in that order; ``None`` with a missing score."""
    scores = _scores(outcomes)[:, -1]
    if not np.isfinite(scores).all():
        # Sorting would quietly rank a missing score above every other one.
        return None
    happened = _is_positive(outcomes)
    ups, downs = (rows[np.argsort(scores[rows])] for rows in (np.flatnonzero(happened), np.flatnonzero(~happened)))
    return scores[ups], scores[downs], ups, downs


def _roc_auc(outcomes: Outcomes) -> Callable[[Floats], float]:
    ranked = _ranked(outcomes)
    if ranked is None:
        return lambda weights: math.nan
    high, low, positives, negatives = ranked
    # Per positive: how many negatives score below it, and how many at most as high.
    below, reached = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")

    def value(weights: Floats) -> float:
        beaten = np.concatenate([[0.0], np.cumsum(weights[negatives])])
        ups = weights[positives]
        pairs = float(ups.sum() * beaten[-1])
        return float(ups @ (beaten[below] + beaten[reached])) / (2 * pairs) if pairs else math.nan

    return value


def _measure_roc_auc(outcomes: Outcomes) -> Measured:
    ranked = _ranked(outcomes)
    if ranked is None or not (len(ranked[0]) and len(ranked[1])):
        return Measured(None)
    high, low = ranked[:2]
    won, lost = _wins(high, low), 1 - _wins(low, high)
    area, few = float(np.mean(won)), min(len(high), len(low))
    if few < 2:
        return Measured.of(area)
    if area in (0.0, 1.0):
        # Of an area A, all of `few` pairs without a common row agree with probability A ** few.
        end = _TAIL ** (1 / few)
        return Measured.of(area, end, 1.0) if area else Measured.of(area, 0.0, 1 - end)
    variance = float(np.var(won, ddof=1)) / len(high) + float(np.var(lost, ddof=1)) / len(low)
    reach = _NORMAL_95 * math.sqrt(variance) / (area * (1 - area))
    return Measured.of(area, float(expit(logit(area) - reach)), float(expit(logit(area) + reach)))


def _wins(scores: Floats, others: Floats) -> Floats:
    """Per score the share of the others that lie below it, ties counting one half; both sorted."""
    below, reached = np.searchsorted(others, scores, side="left"), np.searchsorted(others, scores, side="right")
    return (below + reached) / (2 * len(others))


def class_codes(outcomes: Outcomes) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """What happened and what was predicted as numbers ``(n,)``, and how many classes occur in either."""
    both = pa.array(np.concatenate([outcomes.truth, outcomes.prediction])).dictionary_encode()
    happened, predicted = np.split(both.indices.to_numpy(), 2)
    return happened, predicted, len(both.dictionary)


def _macro_f1(outcomes: Outcomes) -> Callable[[Floats], float]:
    happened, predicted, count = class_codes(outcomes)
    hit = happened == predicted

    def value(weights: Floats) -> float:
        sizes = np.bincount(happened, weights, count) + np.bincount(predicted, weights, count)
        hits = np.bincount(happened, np.where(hit, weights, 0.0), count)
        present = sizes > 0
        return float(np.mean(2 * hits[present] / sizes[present])) if present.any() else math.nan

    return value


def macro_f1_pulls(outcomes: Outcomes) -> tuple[float, Floats]:
    """The macro_f1 of at least one row, and per row how much one more of its kind changes it, ``n`` times (delta method)."""
    happened, predicted, count = class_codes(outcomes)
    hit = happened == predicted
    sizes = np.bincount(happened, minlength=count) + np.bincount(predicted, minlength=count)
    scores = 2 * np.bincount(happened[hit], minlength=count) / sizes
    # d(2 h / s) = (2 dh - f ds) / s
    pull = (2 * hit - scores[happened]) / sizes[happened] - scores[predicted] / sizes[predicted]
    return float(np.mean(scores)), pull * (len(outcomes) / count)


def _measure_macro_f1(outcomes: Outcomes) -> Measured:
    found, pulls = macro_f1_pulls(outcomes)
    if (n := len(outcomes)) < 2:
        return Measured.of(found)
    reach = float(stdtrit(n - 1, 1 - _TAIL)) * float(np.std(pulls, ddof=1)) / math.sqrt(n)
    return Measured.of(found, max(0.0, found - reach), min(1.0, found + reach))


def _measure_calibration(outcomes: Outcomes) -> Measured:
    """The row-weighted mean distance between the bins' mean probability and their share of positives.

    Chance alone shows a distance in every bin; its root mean square under perfect calibration is taken off in quadrature,
    from the value and from both ends of its interval.
    """
    scores, n = _scores(outcomes)[:, -1], len(outcomes)
    if not np.isfinite(scores).all():
        return Measured(None)
    gap, bin_of = calibration_bins(outcomes)
    size = np.bincount(bin_of)
    sums, squares = np.bincount(bin_of, gap, len(size)), np.bincount(bin_of, gap**2, len(size))
    chance = np.sqrt(np.bincount(bin_of, np.clip(scores * (1 - scores), 0, None), len(size))) / n
    # The mean of a folded normal distribution is sqrt(2/pi) of its deviation.
    expected = float(chance.sum()) * math.sqrt(2 / math.pi)
    noise = math.hypot(expected, math.sqrt((1 - 2 / math.pi) * float(np.sum(chance**2))))
    value = float(np.abs(sums).sum()) / n
    spread = np.clip(squares - sums**2 / np.maximum(size, 1), 0, None)
    reach = _NORMAL_95 * max(math.sqrt(float(spread.sum())), math.sqrt(float(np.sum((chance * n) ** 2)))) / n
    ends = (_without(end, noise) for end in (value, value - reach, value + reach))
    return Measured.of(*ends)


def calibration_bins(outcomes: Outcomes) -> tuple[Floats, NDArray[np.intp]]:
    """Per row what happened (0 or 1) minus its finite probability, and which of up to 10 equally full bins it lies in."""
    scores, n = _scores(outcomes)[:, -1], len(outcomes)
    at = (np.arange(1, _BINS) * n) // _BINS
    # Equal scores share a bin, whatever their order; the least score may be an edge, with nothing below.
    edges = np.unique(np.partition(scores, at)[at])
    return _is_positive(outcomes) - scores, np.searchsorted(edges, scores, side="right")


def _without(value: float, noise: float) -> float:
    return math.sqrt(max(0.0, value - noise) * (value + noise)) if value > 0 else 0.0
