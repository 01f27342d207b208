"""Whether a challenger may replace the champion: a pure comparison on the same rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, stdtrit

from pipeline.metrics import Outcomes, evaluator
from pipeline.policies import HIGHER_IS_BETTER, MetricName, Promote
from pipeline.reports import GateDecision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_REPLICATES = 1000
# Rows of one interval share its weather, its outages and its campaigns, so intervals are resampled as blocks;
# with fewer blocks than this a block bootstrap has too few distinct replicates, and rows are resampled instead.
_FEWEST_BLOCKS = 7
# A gain below this share of the metric is rounding of float64 sums, not a difference between models.
_ROUNDING = 1e-9


def compare(
    policy: Promote,
    metric: MetricName,
    *,
    champion: Outcomes,
    challenger: Outcomes,
    interval: NDArray[np.int64],
    seed: int,
) -> GateDecision:
    """The decision from both models' outcomes on the same held-out rows.

    Both `Outcomes` hold the same rows in the same order; ``interval`` is the interval index of each row. The gain is
    the difference of the metric, positive when the challenger is better. Its lower bound is the one-sided percentile
    bootstrap bound (Efron & Tibshirani 1993, ch. 13) at ``policy.confidence``, paired: one replicate weighs both
    models' rows alike. The bound is widened for few intervals (see `_tail`). The challenger wins only when that bound
    is above 0 and the gain reaches ``policy.min_gain``; a tie keeps the champion.
    """
    n = len(challenger)
    if n < policy.min_labels:
        return insufficient(metric, n, f"{n} labelled holdout rows, {policy.min_labels} needed")
    old, new = evaluator(metric, champion), evaluator(metric, challenger)
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    ones = np.ones(n)
    value_old, value_new = old(ones), new(ones)
    gain = sign * (value_new - value_old)
    if not np.isfinite(gain):
        return insufficient(metric, n, f"{metric} is undefined on the holdout")
    unit, units = _units(interval)
    gains = np.array([sign * (new(w) - old(w)) for w in _weights(unit, units, seed)])
    # A replicate without a row of one class has no roc_auc; that is at most about one in e of them.
    low = float(np.quantile(gains[np.isfinite(gains)], _tail(policy.confidence, units)))
    better = low > _ROUNDING * abs(value_old) and gain >= policy.min_gain
    numbers = (
        f"{metric} {value_new:.5g} against the champion's {value_old:.5g} on the same {n} rows: gain {gain:.4g}, "
        f"lower {100 * policy.confidence:g}% bound {low:.4g} over {units} resampled {'rows' if units == n else 'days'}"
    )
    needed = f"above 0 and a gain of at least {policy.min_gain:g}" if policy.min_gain else "above 0"
    reason = f"{numbers}; a bound {needed} is needed; the {'challenger wins' if better else 'champion stays'}."
    return GateDecision(
        outcome="promote" if better else "keep",
        reason=reason,
        metric=metric,
        champion=value_old,
        challenger=value_new,
        gain=gain,
        low=low,
        n=n,
    )


def _units(interval: NDArray[np.int64]) -> tuple[NDArray[np.intp], int]:
    """What is resampled, as a code per row, and how many there are: the intervals, or the rows of too few intervals."""
    blocks, block = np.unique(interval, return_inverse=True)
    if len(blocks) < _FEWEST_BLOCKS:
        return np.arange(len(interval)), len(interval)
    return block, len(blocks)


def _weights(unit: NDArray[np.intp], units: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield the row weights of each replicate: how often the row's unit was drawn."""
    rng = np.random.default_rng(seed)
    for _ in range(_REPLICATES):
        yield np.bincount(rng.integers(units, size=units), minlength=units)[unit].astype(np.float64)


def _tail(confidence: float, units: int) -> float:
    """The quantile of the replicates that is the lower bound at ``confidence``.

    ``1 - confidence`` itself is too narrow for few units: the bootstrap has neither the heavier tail of Student's t
    nor the ``n - 1`` of an unbiased variance. This is the expanded percentile bound (Hesterberg 2015).
    """
    return float(ndtr(-np.sqrt(units / (units - 1)) * stdtrit(units - 1, confidence)))


def refused(metric: MetricName, n: int, why: str) -> GateDecision:
    """The decision when the comparison would not be fair: the champion stays."""
    return insufficient(metric, n, why).model_copy(update={"outcome": "refused"})


def insufficient(metric: MetricName, n: int, why: str) -> GateDecision:
    """The decision when the models cannot be compared: the champion stays."""
    return GateDecision(
        outcome="insufficient_data",
        reason=f"{why}; the champion stays.",
        metric=metric,
        champion=None,
        challenger=None,
        gain=None,
        low=None,
        n=n,
    )
