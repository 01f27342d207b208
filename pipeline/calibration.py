"""Thresholds that keep false alarms within a budget, measured on a job's own history.

Pure functions of arrays; must not read data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from pipeline.policies import Drift
    from pipeline.pooling import Kinds

# Consecutive intervals stay together when history is resampled: weather and campaigns last for days.
_BLOCK = 7
_RESAMPLES = 400
FEWEST = 2 * _BLOCK  # intervals, to learn anything from
_FOLDS = 5
# The share of the budget that measured alarms may use up.
_USED = 0.5
# From lax to strict: quantiles of what a signal showed, then multiples of the largest.
_STRICTNESS = (
    *((quantile, 1.0) for quantile in (0.9, 0.95, 0.975, 0.99, 1.0)),
    *((1.0, multiple) for multiple in (1.1, 1.25, 1.5, 2.0, 3.0, 5.0)),
)
_UNIQUE = (1.0, 1.1)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Thresholds per signal, and the alarms per interval that they would have raised: measured, and at most (95 %)."""

    thresholds: dict[str, float]
    rate: float
    at_most: float
    intervals: int


def floors(policy: Drift, kinds: Kinds, signals: Iterable[str], *natural: Mapping[str, float]) -> dict[str, float]:
    """Per signal the least threshold: the policy's smallest effect, and what each of ``natural`` shows; for `calibrate`."""
    least = {name: policy.effect if kinds.get(name) == "number" else policy.mass for name in signals}
    return {name: max((base, *(known.get(name, 0.0) for known in natural))) for name, base in least.items()}


def calibrate(
    effects: Mapping[str, NDArray[np.float64]],
    floors: Mapping[str, float],
    *,
    violations: int,
    of_last: int,
    budget: float,
    window: int = 1,
    seed: int = 0,
) -> Calibrated | None:
    """The lowest thresholds whose alarms stay within ``budget`` (alarms per interval), none below its floor.

    ``effects`` holds per signal the effect of each interval against comparable other ones, in order of time, NaN where
    unknown; each is that of ``window`` intervals. An interval alarms when a signal exceeds its threshold in it and in
    ``violations`` of ``of_last`` intervals.

    The rate is measured where it was not learnt: every fifth block of the history is judged by thresholds of the others, and
    only half of the budget may be used up, because what the future holds is known no better than that. ``None`` when the
    history is shorter than two blocks of seven intervals.
    """
    names = sorted(effects)
    intervals = len(effects[names[0]]) if names else 0
    if intervals < FEWEST:
        return None
    seen = np.column_stack([effects[name] for name in names])
    lowest = np.array([floors[name] for name in names])
    folds = _folds(intervals, window)
    levels = np.zeros(len(names), dtype=np.int64)
    while True:
        alarms = np.zeros(seen.shape, dtype=bool)
        for held, known in folds:
            limits = np.maximum(_limits(seen[known], levels, seen), lowest)
            alarms[held] = _alarms(np.nan_to_num(seen) >= limits, violations, of_last)[held]
        told = alarms.any(axis=1)
        if told.mean() <= _USED * budget:
            limits = np.maximum(_limits(seen, levels, seen), lowest)
            thresholds = {name: float(limit) for name, limit in zip(names, limits, strict=True)}
            return Calibrated(thresholds, float(told.mean()), _at_most(told, seed), intervals)
        # Only signals that give false alarms become less sensitive. At the last level none is left.
        levels += alarms.any(axis=0)


def _limits(known: NDArray[np.float64], levels: NDArray[np.int64], seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per signal the limit of its level, as learnt from what is ``known``; beyond all levels a little above all ``seen``.

    What happened once in the whole history, like the only holiday, is foreseen by no other part of it.
    """
    found = []
    for part, whole, level in zip(known.T, seen.T, levels, strict=True):
        values, (quantile, multiple) = (part, _STRICTNESS[level]) if level < len(_STRICTNESS) else (whole, _UNIQUE)
        finite = values[np.isfinite(values)]
        found.append(multiple * float(np.quantile(finite, quantile, method="higher")) if len(finite) else 0.0)
    return np.array(found)


def _folds(intervals: int, window: int) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Which intervals are judged, and by which: blocks in turn, so that every part of the history teaches all others."""
    block = np.arange(intervals) // max(_BLOCK, 2 * window) % _FOLDS
    found = []
    for fold in np.unique(block):
        held = block == fold
        # Windows that share intervals with those that are judged know too much about them.
        near = np.convolve(held, np.ones(2 * window - 1), "same") > 0 if window > 1 else held
        if not near.all():
            found.append((held, ~near))
    return found


def alarm_rate(
    effects: Mapping[str, NDArray[np.float64]],
    thresholds: Mapping[str, float],
    *,
    violations: int,
    of_last: int,
) -> float:
    """The alarms per interval that given thresholds would have raised in the history."""
    moved = np.column_stack([np.nan_to_num(values) >= thresholds[name] for name, values in effects.items()])
    return float(_alarms(moved, violations, of_last).any(axis=1).mean())


def _alarms(moved: NDArray[np.bool_], violations: int, of_last: int) -> NDArray[np.bool_]:
    """Which of (intervals, signals) that moved alarm."""
    counted = moved.astype(np.int64)
    for back in range(1, min(of_last, len(moved))):
        counted[back:] += moved[:-back]
    found: NDArray[np.bool_] = moved & (counted >= violations)
    return found


def _at_most(alarms: NDArray[np.bool_], seed: int) -> float:
    """The upper end of the rate's 95 % interval.

    Blocks of seven consecutive intervals are drawn with replacement (Kuensch 1989), which keeps what lasts for days
    together; of a history without alarms the rate below which that would happen once in twenty.
    """
    rng = np.random.default_rng(seed)
    firsts = rng.integers(0, len(alarms) - _BLOCK + 1, size=(_RESAMPLES, len(alarms) // _BLOCK))
    rates = alarms[firsts[..., None] + np.arange(_BLOCK)].mean(axis=(1, 2))
    return max(float(np.quantile(rates, 0.95)), 1.0 - math.pow(0.05, 1 / len(alarms)))
