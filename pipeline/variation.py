"""What variation is natural to each column: how far stretches of the training period lie from the rest of it.

The next stretch may lie further off than any that was seen, the more so the fewer there were; `limit` is a prediction bound.
Pure functions of arrays; must not read data.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaincinv, stdtrit

from pipeline import seasons, stretches
from pipeline.policies import MISSING
from pipeline.pooling import present

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.policies import Drift
    from pipeline.pooling import Array, Kind, Kinds, Sample
    from pipeline.seasons import Season
    from pipeline.stretches import Stretches


# Share of windows in which natural variation may raise an alarm, all signals of a job together. A tenth of what is wanted:
# the tails of real columns are heavier than those of the distributions that bound them.
_FALSE_ALARMS = 0.001
_QUANTILE, _QUANTILE_MISSING = 0.99, 0.95
_NO_SPREAD = 1e-6
_MOST = 300.0  # logarithm of an effect
# Chance itself varies: what it explains on average is taken for this many deviations more.
_DOUBT = 3.0


def natural(
    policy: Drift,
    sample: Sample,
    kinds: Kinds,
    starts: NDArray[np.int64],
    season: Season,
    *,
    columns: int | None = None,
) -> dict[str, float]:
    """Per column the `limit` of the effects of stretches of ``drift.window`` intervals against the rest of their season.

    ``starts`` holds the interval start of each row (minutes since 1970). The share of missing values of a number varies
    by itself and has an entry of its own, under `pipeline.policies.MISSING` and the column's name. Columns with too few
    stretches are absent. ``columns`` is how many columns the job watches, if not those of ``kinds``.
    """
    seen: dict[str, list[Stretches]] = {}
    full, asked = with_missing(sample, kinds)
    cells = seasons.cells(season, starts)
    for cell in np.unique(cells):
        own = cells == cell
        stretch = np.unique(starts[own], return_inverse=True)[1]
        part = {name: full[name][own] for name in asked}
        for name, found in stretches.stretch_effects(part, asked, stretch, policy.window, policy.min_rows).items():
            seen.setdefault(name, []).append(found)
    signals = len(asked) if columns is None else 2 * columns
    # A delivery without values, the commonest fault, may be among those of the training: it must not make the next natural.
    return {
        name: _beyond_chance(policy, found, signals, _QUANTILE_MISSING if name.startswith(MISSING) else _QUANTILE)
        for name, found in seen.items()
    }


def _beyond_chance(policy: Drift, found: list[Stretches], signals: int, quantile: float) -> float:
    """The `limit` of what chance does not explain: of rows that are drawn from one distribution nothing is left."""
    effects, by_chance = (
        np.concatenate(parts) for parts in zip(*((f.effects, f.by_chance) for f in found), strict=True)
    )
    # Stretches of a window longer than an interval overlap and count as so many fewer.
    independent = max(len(effects) / policy.window, 2.0)
    squares, explained = float(np.mean(effects**2)), float(np.mean(by_chance)) * (1 + _DOUBT / math.sqrt(independent))
    if explained >= squares:
        return 0.0
    return math.sqrt(1 - explained / squares) * limit(policy, effects, signals, independent, quantile)


def limit(
    policy: Drift, effects: NDArray[np.float64], signals: int, independent: float, quantile: float = _QUANTILE
) -> float:
    """The effect from which a window is unlike the stretches of the training period, whose ``effects`` are given.

    At least the ``quantile`` of what was seen, and a prediction limit of one more, at a level that leaves all
    ``signals`` together one false alarm in a thousand windows: Student's t for so few ``independent`` ones (Hahn and Meeker
    1991, Statistical Intervals), or the quantile of a gamma distribution of their mean and variance where that is longer,
    since effects are skewed. Effects that vary by more than their mean, such as those of rain, are bounded by their logarithms.
    """
    seen = float(np.quantile(effects, quantile, method="higher"))
    mean, spread = float(np.mean(effects)), float(np.std(effects, ddof=1))
    if spread <= _NO_SPREAD * mean or mean <= 0:
        return seen
    level = 1 - exceedance(policy, signals)
    deviations, widened = predicted(level, independent)
    skewed = float(gammaincinv((mean / spread) ** 2, level)) * spread**2 / mean - mean
    bound = max(seen, mean + max(skewed, deviations * spread) * widened)
    logs = np.log(effects[effects > 0])
    if spread <= mean or len(logs) < 3:
        return bound
    return max(bound, math.exp(min(float(np.mean(logs)) + deviations * widened * float(np.std(logs, ddof=1)), _MOST)))


def separation_limit(policy: Drift, aucs: NDArray[np.float64]) -> float:
    """The AUC from which a window is told from the reference unlike stretches of the training period from the rest of it.

    A prediction limit as `limit`, for the one AUC, which lies around 0.5 and is neither skewed nor heavy in its tails.
    """
    deviations, widened = predicted(1 - exceedance(policy, 1), len(aucs))
    bound = float(np.mean(aucs)) + deviations * widened * float(np.std(aucs, ddof=1))
    return max(float(np.quantile(aucs, _QUANTILE, method="higher")), bound)


def predicted(level: float, independent: float) -> tuple[float, float]:
    """Student's deviations at a level, and the factor by which one more value lies wider than the mean of so many."""
    count = max(independent, 2.0)
    return float(stdtrit(count - 1, level)), math.sqrt(1 + 1 / count)


def exceedance(policy: Drift, signals: int) -> float:
    """How often one signal may exceed its limit by itself, so that windows alarm at the rate that is allowed.

    An alarm takes ``violations`` of ``of_last`` windows; of windows that share intervals, one is as good as several.
    """
    needed = 1 + (policy.violations - 1) // policy.window
    ways = math.comb(policy.of_last - 1, policy.violations - 1) if needed > 1 else 1
    return float((_FALSE_ALARMS / (max(signals, 1) * ways)) ** (1 / needed))


def course(
    policy: Drift, sample: Sample, kinds: Kinds, starts: NDArray[np.int64], season: Season
) -> dict[str, NDArray[np.float64]]:
    """Per signal the effect of each interval against the others of its season, in order of time; NaN where unknown.

    The signals are named as those of `natural`.
    """
    distinct = np.unique(starts)
    full, asked = with_missing(sample, kinds)
    found = {name: np.full(len(distinct), np.nan) for name in asked}
    cells = seasons.cells(season, starts)
    for cell in np.unique(cells):
        own = cells == cell
        times = np.unique(starts[own])
        rows = np.bincount(np.searchsorted(times, starts[own]))
        part = {name: full[name][own] for name in asked}
        # The last interval of a window stands for it; windows with too few rows are left out.
        ends = times[policy.window - 1 :]
        sums = np.convolve(rows, np.ones(policy.window, dtype=np.int64), "valid")
        kept = ends[(sums >= policy.min_rows) & (sums < rows.sum())]
        for name, effects in stretches.course(part, asked, starts[own], policy.window, policy.min_rows).items():
            found[name][np.searchsorted(distinct, kept)] = effects
    return found


def with_missing(sample: Sample, kinds: Kinds) -> tuple[dict[str, Array], Kinds]:
    """The sample with a column for each number that says whether it is missing; a category's effect includes that."""
    flags = {MISSING + name: _missing(sample[name]) for name, kind in kinds.items() if kind == "number"}
    asked: dict[str, Kind] = dict(kinds)
    asked.update(dict.fromkeys(flags, "category"))
    return {**{name: sample[name] for name in kinds}, **flags}, asked


def _missing(values: Array) -> Array:
    flags = np.full(len(values), "present", dtype=object)
    flags[~present(values, "number")] = "missing"
    return flags
