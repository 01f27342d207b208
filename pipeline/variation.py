"""What variation is natural to each column: how far stretches of the training period lie from the rest of it.

Pure functions of arrays; must not read data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline import drift, seasons, stretches
from pipeline.pooling import present

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.policies import Drift
    from pipeline.pooling import Array, Kind, Kinds, Sample
    from pipeline.seasons import Season


def natural(policy: Drift, sample: Sample, kinds: Kinds, starts: NDArray[np.int64], season: Season) -> dict[str, float]:
    """Per column the largest effect of a stretch of ``drift.window`` intervals against the rest of its season.

    ``starts`` holds the interval start of each row (minutes since 1970). The share of missing values of a number varies
    by itself and has an entry of its own, under `pipeline.drift.MISSING` and the column's name. Columns with too few
    stretches are absent.
    """
    largest: dict[str, float] = {}
    full, asked = with_missing(sample, kinds)
    cells = seasons.cells(season, starts)
    for cell in np.unique(cells):
        own = cells == cell
        stretch = np.unique(starts[own], return_inverse=True)[1]
        part = {name: full[name][own] for name in asked}
        for name, effect in stretches.stretch_effects(part, asked, stretch, policy.window, policy.min_rows).items():
            largest[name] = max(effect, largest.get(name, 0.0))
    return largest


def course(
    policy: Drift, sample: Sample, kinds: Kinds, starts: NDArray[np.int64], season: Season
) -> dict[str, NDArray[np.float64]]:
    """Per column the effect of each interval against the others of its season, in order of time; NaN where unknown."""
    distinct = np.unique(starts)
    found = {name: np.full(len(distinct), np.nan) for name in kinds}
    cells = seasons.cells(season, starts)
    for cell in np.unique(cells):
        own = cells == cell
        times = np.unique(starts[own])
        rows = np.bincount(np.searchsorted(times, starts[own]))
        part = {name: sample[name][own] for name in kinds}
        # The last interval of a window stands for it; windows with too few rows are left out.
        ends = times[policy.window - 1 :]
        sums = np.convolve(rows, np.ones(policy.window, dtype=np.int64), "valid")
        kept = ends[(sums >= policy.min_rows) & (sums < rows.sum())]
        for name, effects in stretches.course(part, kinds, starts[own], policy.window, policy.min_rows).items():
            found[name][np.searchsorted(distinct, kept)] = effects
    return found


def with_missing(sample: Sample, kinds: Kinds) -> tuple[dict[str, Array], Kinds]:
    """The sample with a column for each number that says whether it is missing; a category's effect includes that."""
    flags = {drift.MISSING + name: _missing(sample[name]) for name, kind in kinds.items() if kind == "number"}
    asked: dict[str, Kind] = dict(kinds)
    asked.update(dict.fromkeys(flags, "category"))
    return {**{name: sample[name] for name in kinds}, **flags}, asked


def _missing(values: Array) -> Array:
    flags = np.full(len(values), "present", dtype=object)
    flags[~present(values, "number")] = "missing"
    return flags
