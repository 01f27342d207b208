"""Thresholds that keep false alarms within a budget, measured on a job's own history.

Pure functions of arrays; must not read data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# Consecutive intervals stay together when history is resampled: weather and campaigns last for days.
_BLOCK = 7
_RESAMPLES = 400
# From lax to strict: quantiles of what a column showed, then multiples of the largest.
_QUANTILES = (0.9, 0.95, 0.975, 0.99, 1.0)
_MULTIPLES = (1.1, 1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Thresholds per column, and the alarms per interval that they would have raised: measured, and at most (95 %)."""

    thresholds: dict[str, float]
    rate: float
    at_most: float
    intervals: int


def calibrate(
    effects: Mapping[str, NDArray[np.float64]],
    floors: Mapping[str, float],
    *,
    violations: int,
    of_last: int,
    budget: float,
    seed: int = 0,
) -> Calibrated | None:
    """The lowest thresholds whose alarms stay within ``budget`` (alarms per interval), none below its floor.

    ``effects`` holds per column the effect of each interval against comparable other ones, in order of time, NaN where
    unknown. An interval alarms when a column moved in it and in ``violations`` of ``of_last`` intervals. The rate is that of
    resampled histories: blocks of seven consecutive intervals drawn with replacement (Kuensch 1989), which keeps what
    lasts for days together. ``None`` when there are fewer than two blocks, or no threshold is high enough.
    """
    names = sorted(effects)
    intervals = len(effects[names[0]]) if names else 0
    if intervals < 2 * _BLOCK:
        return None
    seen = np.column_stack([effects[name] for name in names])
    lowest = np.array([floors[name] for name in names])
    order = _resampled(intervals, seed)
    known = [values[np.isfinite(values)] for values in seen.T]
    candidates = [np.array([_quantile(values, q) for values in known]) for q in _QUANTILES]
    candidates += [multiple * candidates[-1] for multiple in _MULTIPLES]
    for candidate in candidates:
        limits = np.maximum(candidate, lowest)
        rates = _alarm_rates(np.nan_to_num(seen) >= limits, order, violations, of_last)
        if rates.mean() <= budget:
            thresholds = {name: float(limit) for name, limit in zip(names, limits, strict=True)}
            return Calibrated(thresholds, float(rates.mean()), float(np.quantile(rates, 0.95)), intervals)
    return None


def _quantile(values: NDArray[np.float64], share: float) -> float:
    return float(np.quantile(values, share, method="higher")) if len(values) else 0.0


def alarm_rate(
    effects: Mapping[str, NDArray[np.float64]],
    thresholds: Mapping[str, float],
    *,
    violations: int,
    of_last: int,
    seed: int = 0,
) -> float:
    """The alarms per interval that given thresholds would have raised in the resampled history of `calibrate`."""
    moved = np.column_stack([np.nan_to_num(values) >= thresholds[name] for name, values in effects.items()])
    return float(_alarm_rates(moved, _resampled(len(moved), seed), violations, of_last).mean())


def _resampled(intervals: int, seed: int) -> NDArray[np.int64]:
    """Per resample the positions of the intervals that make it up, shape (resamples, intervals rounded down to blocks)."""
    rng = np.random.default_rng(seed)
    blocks = intervals // _BLOCK
    firsts = rng.integers(0, intervals - _BLOCK + 1, size=(_RESAMPLES, blocks))
    return (firsts[..., None] + np.arange(_BLOCK)).reshape(_RESAMPLES, -1)


def _alarm_rates(
    moved: NDArray[np.bool_], order: NDArray[np.int64], violations: int, of_last: int
) -> NDArray[np.float64]:
    """The share of alarming intervals in each resample."""
    rates = []
    for positions in order:
        course = moved[positions]
        counted = course.astype(np.int64).copy()
        for back in range(1, of_last):
            counted[back:] += course[:-back]
        rates.append(float(np.mean(np.any(course & (counted >= violations), axis=1))))
    return np.array(rates)
