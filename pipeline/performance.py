"""Realised performance judged: the champion's yardstick, the limit that it sets, and the verdict on one interval.

Pure functions of values; the metrics themselves are in `pipeline.metrics`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pipeline import grouped
from pipeline.metrics import Measured, Outcomes, evaluate
from pipeline.policies import HIGHER_IS_BETTER, MetricName, Performance
from pipeline.reports import Baseline

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.verdicts import Verdict

# The median absolute deviation of a normal distribution times this is its standard deviation.
_MAD_TO_SD = 1.4826


def baseline(metric: MetricName, outcomes: Outcomes, interval: NDArray[np.int64]) -> Baseline | None:
    """The yardstick from holdout rows: the metric over all of them and its robust spread between intervals.

    ``interval`` holds the interval index of each row. What later intervals are measured against must be measured as they are:
    roc_auc is that within intervals (`pipeline.grouped`). The spread is 1.4826 times the median absolute deviation of the
    metric between intervals (0 with fewer than three intervals). ``None`` when the metric is undefined.
    """
    overall = grouped.value(metric, outcomes, interval) if len(outcomes) else math.nan
    if not math.isfinite(overall):
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
    policy: Performance, metric: MetricName, found: Measured, n: int, yardstick: Baseline
) -> tuple[Verdict, str, float | None]:
    """The verdict on one interval, its reason in one sentence, and the limit that was applied.

    Degraded (``drift``) is an interval whose value lies beyond the limit while the better end of its confidence interval
    does not reach the champion's value at training: what a small interval shows by chance is no degradation.
    """
    if n < policy.min_labels:
        return "insufficient_data", f"{n} labelled rows, {policy.min_labels} needed.", None
    if found.value is None or math.isnan(found.value):
        return "insufficient_data", f"{metric} is undefined.", None
    bound = limit(policy, metric, yardstick)
    if math.isnan(bound):
        return "insufficient_data", f"The champion's {metric} at training is undefined.", None
    value, is_higher_better = found.value, HIGHER_IS_BETTER[metric]
    is_beyond = value < bound if is_higher_better else value > bound
    better = found.high if is_higher_better else found.low
    if is_beyond and better is None:
        return "insufficient_data", f"{metric} {value:.4g} on {n} labelled rows has no confidence interval.", bound
    reaches = better is not None and (better >= yardstick.value if is_higher_better else better <= yardstick.value)
    band = f" (95 %: {found.low:.4g} to {found.high:.4g})" if found.low is not None else ""
    relation = "within the limit" if not is_beyond else "worse than the limit"
    reason = (
        f"{metric} {value:.4g}{band} on {n} labelled rows is {relation} {bound:.4g} "
        f"(at training {yardstick.value:.4g}, spread {yardstick.spread:.2g})"
    )
    if is_beyond and reaches:
        return "stable", f"{reason}, but so few rows may show that by chance.", bound
    return ("drift" if is_beyond else "stable"), f"{reason}.", bound
