"""The expected metric of a binary model, over all labels that calibrated probabilities allow.

Must not decide what the metric means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from pipeline.estimation.rows import Found, Rows, Sides, log_odds
from pipeline.estimation.weighting import inverse_hessian, likeness, ridge_logistic

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.policies import MetricName

    Floats = NDArray[np.float64]
    # A metric as a function of the probability, or the fact, (n,) that each row is positive.
    LabelMetric = Callable[[Floats], float]

_KNOTS = (0.1, 0.35, 0.65, 0.9)
# Ridge penalties, in rows' worth of doubt: the calibration bends less readily than it tilts, and a feature must show that
# the score misjudges it.
_PENALTY_INTERCEPT, _PENALTY_SLOPE, _PENALTY_KNOT, _PENALTY_FEATURE = 1e-3, 0.1, 5.0, 20.0
_DRAWS = 100
_BINS = 10
_TINY = 1e-6
# As in pipeline.metrics: probabilities are kept this far from 0 and 1 before a logarithm is taken.
_EPSILON = float(np.finfo(np.float64).eps)


def calibrated(metric: MetricName, held: Rows, now: Rows, sides: Sides, rng: np.random.Generator) -> Found:
    """The expected metric of a binary model and its standard deviation.

    The chance of a positive is a logistic regression on a spline of the score and on the features, so that rows that the
    model misjudges are judged anew. Its coefficients are drawn from their sandwich distribution (White 1980), labels from them.
    """
    positive = np.unique(held.known_truth)[-1]
    truth = (held.known_truth == positive).astype(np.float64)
    moved = sides.most_moved()
    weights = likeness(moved)
    before, after = _spline(log_odds(held.known_scores), log_odds(now.known_scores))
    penalty = np.concatenate(
        [
            [_PENALTY_INTERCEPT, _PENALTY_SLOPE],
            np.full(len(_KNOTS), _PENALTY_KNOT),
            np.full(moved.held.shape[1], _PENALTY_FEATURE),
        ]
    )
    columns, columns_now = np.hstack([before, moved.held]), np.hstack([after, moved.now])
    # As if the scores were calibrated, which they nearly are.
    said = log_odds(held.known_scores)
    start = np.zeros(len(penalty))
    start[:2] = said.mean(), said.std()
    fitted = ridge_logistic(columns, truth, weights, penalty, start)
    inverse = inverse_hessian(columns, weights, penalty, fitted)
    pull = columns * (weights * (truth - expit(columns @ fitted)))[:, None]
    # A root of the covariance: as many normal deviates as coefficients, not one per row.
    sizes, directions = np.linalg.eigh(pull.T @ pull)
    root = directions * np.sqrt(np.maximum(sizes, 0.0))
    spread = inverse @ (root @ rng.standard_normal((len(root), _DRAWS)))
    measure = _label_metric(metric, now, positive)
    chances: Floats = expit(columns_now @ (fitted[:, None] + spread))
    draws = [measure((rng.random(len(now)) < chances[:, draw]).astype(np.float64)) for draw in range(_DRAWS)]
    in_holdout = _label_metric(metric, held, positive)(truth)
    return Found(measure(expit(columns_now @ fitted)), float(np.nanstd(draws)), in_holdout)


def _spline(before: Floats, after: Floats) -> tuple[Floats, Floats]:
    """Intercept, slope and bends at quantiles of the holdout."""
    centre, scale = before.mean(), max(float(before.std()), _TINY)
    knots = np.quantile((before - centre) / scale, _KNOTS)

    def bent(values: Floats) -> Floats:
        scaled = (values - centre) / scale
        return np.column_stack([np.ones(len(values)), scaled, *(np.maximum(scaled - knot, 0.0) for knot in knots)])

    return bent(before), bent(after)


def _label_metric(metric: MetricName, rows: Rows, positive: Any) -> LabelMetric:
    scores = rows.known_scores
    if metric == "roc_auc":
        return _roc_auc(scores)
    if metric == "calibration_error":
        return _calibration_error(scores)
    if metric == "accuracy":
        agrees = (rows.prediction == positive).astype(np.float64)
        if_positive, if_negative = agrees, 1.0 - agrees
    elif metric == "brier":
        if_positive, if_negative = (1.0 - scores) ** 2, scores**2
    else:
        if_positive, if_negative = (-np.log(np.clip(given, _EPSILON, 1.0)) for given in (scores, 1.0 - scores))
    return lambda chance: float(np.mean(if_negative + chance * (if_positive - if_negative)))


def _roc_auc(scores: Floats) -> LabelMetric:
    """The probability that a positive outranks a negative (Hanley & McNeil 1982), over pairs weighted by their chances."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    below, reached = np.searchsorted(ranked, ranked, "left"), np.searchsorted(ranked, ranked, "right")

    def value(chance: Floats) -> float:
        positive = chance[order]
        negatives = np.concatenate([[0.0], np.cumsum(1.0 - positive)])
        pairs = float(positive.sum() * negatives[-1])
        return float(positive @ (negatives[below] + negatives[reached])) / (2 * pairs) if pairs else float("nan")

    return value


def _calibration_error(scores: Floats) -> LabelMetric:
    """The distance between scores and chances, averaged over bins of equal numbers of rows as in `pipeline.metrics`."""
    edges = np.unique(np.quantile(scores, np.arange(1, _BINS) / _BINS))
    bin_of = np.searchsorted(edges, scores, side="right")
    return lambda chance: float(np.abs(np.bincount(bin_of, chance - scores)).sum()) / len(scores)
