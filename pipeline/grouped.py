"""A metric over rows that come in groups, such as days: what is compared is what is watched, interval by interval.

A mean of rows is the same either way. roc_auc is not: over all rows at once it also ranks the rows of one day against those of
another, and one stormy day, on which everything scores low or everything happens, moves it more than any model does. So a
positive is ranked against the negatives of its own group only. Measured on 20 days of flights: the same gain, 0.03, has a
standard error of 0.005 within days and of 0.014 over all of them.

Pure functions of numpy arrays; no result depends on the order of rows beyond the rounding of sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.metrics import Outcomes, evaluator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.policies import MetricName

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """roc_auc within groups, as van Elteren (1960) puts them together.

    ``areas`` ``(groups,)`` is the Mann-Whitney probability of each group (0 where it has a single class), ``weights`` how much it
    counts: its positives times its negatives over its rows. ``pulls`` ``(n,)`` is what each row adds to the weighted mean,
    ``n`` times: its structural component (DeLong, DeLong & Clarke-Pearson 1988) beside its group's area, and its share of what
    its group is off. All NaN where a score is missing.
    """

    areas: Floats
    weights: Floats
    pulls: Floats

    @property
    def area(self) -> float:
        """The weighted mean of the areas; NaN when no group has both classes."""
        total = float(self.weights.sum())
        return float(self.areas @ self.weights) / total if total else math.nan


def codes(group: NDArray[np.int64]) -> tuple[NDArray[np.intp], int]:
    """The groups of rows as numbers from 0 on, and how many there are."""
    known, code = np.unique(group, return_inverse=True)
    return code, len(known)


def value(metric: MetricName, outcomes: Outcomes, group: NDArray[np.int64]) -> float:
    """The metric over all rows, roc_auc within groups; NaN where it is undefined."""
    if metric == "roc_auc":
        return ranking(outcomes, *codes(group)).area
    return evaluator(metric, outcomes)(np.ones(len(outcomes)))


def ranking(outcomes: Outcomes, group: NDArray[np.intp], groups: int) -> Ranking:
    """The ranking within groups of a classifier's outcomes; ``group`` ``(n,)`` is the code of each row's group."""
    assert outcomes.scores is not None  # roc_auc is a metric of classification only
    scores = np.asarray(outcomes.scores[:, -1], dtype=np.float64)
    if not np.isfinite(scores).all():
        # Sorting would quietly rank a missing score above every other one.
        return Ranking(np.full(groups, np.nan), np.full(groups, np.nan), np.full(len(scores), np.nan))
    # One whole number per row, which orders by group and then by score: one look-up serves all groups.
    ranked, rank = np.unique(scores, return_inverse=True)
    place = group * np.int64(len(ranked)) + rank
    positive = outcomes.truth == outcomes.classes[-1]
    starts = np.arange(groups + 1) * np.int64(len(ranked))
    ups, downs = (np.bincount(group[rows], minlength=groups).astype(np.float64) for rows in (positive, ~positive))
    won = np.empty(len(scores))
    for rows, others in ((positive, ~positive), (~positive, positive)):
        against = np.sort(place[others])
        before, here = np.searchsorted(against, starts), place[rows]
        beaten = np.searchsorted(against, here, side="left") + np.searchsorted(against, here, side="right")
        there = group[rows]
        # Ties count one half; a row without a row of the other class in its group has nothing to be ranked against.
        won[rows] = (beaten - 2 * before[there]) / np.maximum(2 * (before[there + 1] - before[there]), 1)
    won[~positive] = 1 - won[~positive]
    pairs, rows_per_group = ups * downs, np.maximum(ups + downs, 1)
    areas = np.where(pairs > 0, np.bincount(group, won * positive, groups) / np.maximum(ups, 1), 0.0)
    found = Ranking(areas, pairs / rows_per_group, np.full(len(scores), np.nan))
    if not pairs.any():
        return found
    share = len(scores) * found.weights / found.weights.sum()
    of_class = np.where(positive, np.maximum(ups, 1)[group], np.maximum(downs, 1)[group])
    within = share[group] * (won - areas[group]) / of_class
    between = share * (areas - found.area) / rows_per_group
    return replace(found, pulls=within + between[group])
