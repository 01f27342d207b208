"""What a change is worth when rows of one interval are alike: a window of seven days then has seven witnesses, not its rows.

Pure functions of values; no result depends on the order of rows. Must not know limits or how large a change is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import kolmogorov
from scipy.stats import fisher_exact, rankdata

from pipeline.pooling import encoded, present

if TYPE_CHECKING:
    from pipeline.pooling import Array, Kind

# Categories beyond those whose share changed most have no smaller p-value worth the time.
_TESTED = 20


def likeness(values: Array, kind: Kind, stretch: Array) -> float | None:
    """The intraclass correlation of the values of one interval, 0 to 1; ``stretch`` is the interval of each row.

    By analysis of variance, of the ranks of numbers or of one indicator per category (Donner 1986); ``None`` when all
    values are equal or there are fewer than two intervals, since that says nothing.
    """
    held = present(values, kind)
    group, groups = encoded(stretch[held].astype(object))
    rows = int(held.sum())
    if groups < 2 or rows <= groups:
        return None
    per_group = np.bincount(group, minlength=groups)
    if kind == "number":
        ranks = rankdata(values[held])
        centred = ranks - ranks.mean()
        total = float(np.sum(centred**2))
        between = float(np.sum(np.bincount(group, centred, groups) ** 2 / per_group))
    else:
        codes, size = encoded(values[held])
        counts = np.bincount(group * size + codes, minlength=groups * size).reshape(groups, size).astype(float)
        overall = float(np.sum(counts.sum(axis=0) ** 2) / rows)
        total = rows - overall
        between = float(np.sum(counts**2 / per_group[:, None])) - overall
    if total <= 0:
        return None
    per_interval = (rows - float(np.sum(per_group.astype(float) ** 2)) / rows) / (groups - 1)
    among, within = between / (groups - 1), max(total - between, 0.0) / (rows - groups)
    return float(np.clip((among - within) / (among + (per_interval - 1) * within), 0, 1))


def effective(rows: int, intervals: float, alike: float) -> float:
    """How many independent rows so many rows of so many intervals are worth (Kish 1965, Survey Sampling)."""
    return rows / (1 + max(rows / max(intervals, 1) - 1, 0) * alike)


def p_value(reference: Array, current: Array, kind: Kind, worth: tuple[float, float]) -> float:
    """Two-sided p-value of a change of distribution, with each side ``worth`` so many independent rows; 1 without values.

    Numbers: Kolmogorov and Smirnov, with the correction for few rows of Stephens (1970). Categories: Fisher's exact test of
    each category against the others, corrected over the categories.
    """
    before, after = reference[present(reference, kind)], current[present(current, kind)]
    if not len(before) or not len(after):
        return 1.0
    if kind == "number":
        points, older, newer = np.concatenate([before, after]), np.sort(before), np.sort(after)
        apart = np.searchsorted(older, points, "right") / len(older) - np.searchsorted(newer, points, "right") / len(
            newer
        )
        root = math.sqrt(worth[0] * worth[1] / (worth[0] + worth[1]))
        return float(kolmogorov((root + 0.12 + 0.11 / root) * float(np.max(np.abs(apart)))))
    codes, size = encoded(np.concatenate([before, after]))
    shares = [np.bincount(side, minlength=size) / len(side) for side in (codes[: len(before)], codes[len(before) :])]
    most = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")[:_TESTED]
    whole = [max(round(rows), 1) for rows in worth]
    tables = (
        [[hits := round(share[level] * rows), rows - hits] for share, rows in zip(shares, whole, strict=True)]
        for level in most
    )
    return min(1.0, max(size - 1, 1) * min(float(fisher_exact(table)[1]) for table in tables))
