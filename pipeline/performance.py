"""Realised performance: metrics of predictions against labels, the champion's yardstick, and the verdict.

Pure functions of numpy arrays. All metrics take row weights, so that a bootstrap replicate is one more weighting
of the same arrays instead of a copy of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.policies import HIGHER_IS_BETTER, MetricName, Performance
from pipeline.reports import Baseline, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# Probabilities are kept this far from 0 and 1 before a logarithm is taken: the float64 machine epsilon.
_EPSILON = float(np.finfo(np.float64).eps)
# The median absolute deviation of a normal distribution times this is its standard deviation.
_MAD_TO_SD = 1.4826


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Predictions of ``n`` rows beside what really happened.

    ``truth`` and ``prediction`` hold class labels or numbers, shape ``(n,)``. ``scores`` is ``(n, k)`` with one
    probability per entry of ``classes`` for classification, and ``None`` for regression.
    """

    truth: NDArray[Any]
    prediction: NDArray[Any]
    scores: NDArray[np.float64] | None = None
    classes: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: NDArray[Any]) -> Outcomes:
        """The outcomes of the selected rows (a mask or an index array)."""
        scores = None if self.scores is None else self.scores[rows]
        return Outcomes(self.truth[rows], self.prediction[rows], scores, self.classes)


def evaluator(metric: MetricName, outcomes: Outcomes) -> Callable[[NDArray[np.float64]], float]:
    """A function from row weights ``(n,)`` to the metric's value; NaN where the metric is undefined.

    What does not depend on the weights is computed once. Sources: ``roc_auc`` is the Mann-Whitney probability that a
    random positive scores above a random negative, ties counting one half (Hanley & McNeil 1982); ``brier`` is the
    mean squared error of the positive class probability (Brier 1950); ``macro_f1`` is the unweighted mean over
    classes of ``2 tp / (2 tp + fp + fn)``, a class that neither occurs nor is predicted being left out.
    """
    if metric == "roc_auc":
        return _roc_auc(outcomes)
    if metric == "macro_f1":
        return _macro_f1(outcomes)
    losses = _row_losses(metric, outcomes)
    if metric == "rmse":
        return lambda weights: float(np.sqrt(_mean(losses, weights)))
    return lambda weights: _mean(losses, weights)


def evaluate(metric: MetricName, outcomes: Outcomes) -> float | None:
    """The metric over all rows with equal weights; ``None`` when it is undefined (no rows, one class for roc_auc)."""
    if len(outcomes) == 0:
        return None
    value = evaluator(metric, outcomes)(np.ones(len(outcomes)))
    return value if np.isfinite(value) else None


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    total = float(weights.sum())
    return float(values @ weights) / total if total else float("nan")


def _row_losses(metric: MetricName, outcomes: Outcomes) -> NDArray[np.float64]:
    truth, prediction = outcomes.truth, outcomes.prediction
    losses: NDArray[np.float64]
    if metric in ("mae", "rmse"):
        error = prediction.astype(np.float64) - truth.astype(np.float64)
        losses = np.abs(error) if metric == "mae" else error**2
    elif metric == "accuracy":
        losses = (prediction == truth).astype(np.float64)
    elif metric == "brier":
        losses = (_scores(outcomes)[:, -1] - (truth == outcomes.classes[-1])) ** 2
    else:
        # log_loss: the probability that was given to what happened; a class the model does not know had none.
        scores = _scores(outcomes)
        given = np.full(len(outcomes), _EPSILON)
        for column, label in enumerate(outcomes.classes):
            happened = truth == label
            given[happened] = scores[happened, column]
        losses = -np.log(np.clip(given, _EPSILON, 1.0))
    return losses


def _scores(outcomes: Outcomes) -> NDArray[np.float64]:
    if outcomes.scores is None:
        raise ValueError("a metric of probabilities needs scores; these outcomes are of a regression")
    return outcomes.scores


def _roc_auc(outcomes: Outcomes) -> Callable[[NDArray[np.float64]], float]:
    scores = _scores(outcomes)[:, -1]
    if not np.isfinite(scores).all():
        # Sorting would quietly rank a missing score above every other one.
        return lambda weights: float("nan")
    happened = outcomes.truth == outcomes.classes[-1]
    positives, negatives = (
        rows[np.argsort(scores[rows])] for rows in (np.flatnonzero(happened), np.flatnonzero(~happened))
    )
    # Per positive: how many negatives score below it, and how many at most as high.
    below = np.searchsorted(scores[negatives], scores[positives], side="left")
    reached = np.searchsorted(scores[negatives], scores[positives], side="right")

    def value(weights: NDArray[np.float64]) -> float:
        beaten = np.concatenate([[0.0], np.cumsum(weights[negatives])])
        ups = weights[positives]
        pairs = float(ups.sum() * beaten[-1])
        return float(ups @ (beaten[below] + beaten[reached])) / (2 * pairs) if pairs else float("nan")

    return value


def _macro_f1(outcomes: Outcomes) -> Callable[[NDArray[np.float64]], float]:
    labels, codes = np.unique(np.concatenate([outcomes.truth, outcomes.prediction]), return_inverse=True)
    happened, predicted = np.split(codes, 2)
    hit = happened == predicted

    def value(weights: NDArray[np.float64]) -> float:
        sizes = np.bincount(happened, weights, len(labels)) + np.bincount(predicted, weights, len(labels))
        hits = np.bincount(happened, np.where(hit, weights, 0.0), len(labels))
        present = sizes > 0
        return float(np.mean(2 * hits[present] / sizes[present])) if present.any() else float("nan")

    return value


def baseline(metric: MetricName, outcomes: Outcomes, interval: NDArray[np.int64]) -> Baseline | None:
    """The yardstick from holdout rows: the metric over all of them and its robust spread between intervals.

    ``interval`` holds the interval index of each row. The spread is 1.4826 times the median absolute deviation of the
    metric between intervals (0 with fewer than three intervals). ``None`` when the metric is undefined.
    """
    overall = evaluate(metric, outcomes)
    if overall is None:
        return None
    values = [evaluate(metric, outcomes.take(interval == index)) for index in np.unique(interval)]
    known = np.array([value for value in values if value is not None])
    spread = _MAD_TO_SD * float(np.median(np.abs(known - np.median(known)))) if len(known) >= 3 else 0.0
    return Baseline(metric=metric, value=overall, spread=spread, n=len(outcomes))


def limit(policy: Performance, metric: MetricName, yardstick: Baseline) -> float:
    """The metric value from which an interval counts as degraded, in the metric's own unit."""
    slack = max(policy.tolerance * abs(yardstick.value), policy.sigmas * yardstick.spread)
    return yardstick.value - slack if HIGHER_IS_BETTER[metric] else yardstick.value + slack


def judge(
    policy: Performance, metric: MetricName, value: float | None, n: int, yardstick: Baseline
) -> tuple[Verdict, str, float | None]:
    """The verdict on one interval, its reason in one sentence, and the limit that was applied."""
    if n < policy.min_labels:
        return "insufficient_data", f"{n} labelled rows, {policy.min_labels} needed.", None
    if value is None or np.isnan(value):
        return "insufficient_data", f"{metric} is undefined.", None
    bound = limit(policy, metric, yardstick)
    if np.isnan(bound):
        return "insufficient_data", f"The champion's {metric} at training is undefined.", None
    degraded = value < bound if HIGHER_IS_BETTER[metric] else value > bound
    relation = "worse than" if degraded else "within"
    reason = (
        f"{metric} {value:.4g} on {n} labelled rows is {relation} the limit {bound:.4g} "
        f"(at training {yardstick.value:.4g}, spread {yardstick.spread:.2g})."
    )
    return ("drift" if degraded else "stable"), reason, bound
