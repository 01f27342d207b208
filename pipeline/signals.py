"""What of one column may move: its distribution, its missing values, its unseen categories. And how much counts.

Pure functions of values; must not know what other columns show, nor earlier intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr
from scipy.stats import fisher_exact

from pipeline import clusters, effects
from pipeline.policies import MISSING
from pipeline.pooling import encoded, present

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.effects import Sizes
    from pipeline.policies import Drift
    from pipeline.pooling import Array, Kind, Mask, Sample
    from pipeline.verdicts import Signal

_FEWEST_FOR_NORMAL = 5

SIGNALS: tuple[Signal, ...] = ("distribution", "missing", "unseen")


def limits(policy: Drift, name: str, kind: Kind, natural: Mapping[str, float]) -> dict[Signal, float]:
    """From which change on each signal of a column counts."""
    base = policy.effect if kind == "number" else policy.mass
    usual, missing = (_finite(natural.get(key)) for key in (name, MISSING + name))
    effect = policy.thresholds.get(name, max(base, usual))
    # What is natural to a category's effect includes its missing rows; a number's missing share has its own.
    gone = effect if kind == "category" else policy.thresholds.get(MISSING + name, missing)
    unseen = effect if kind == "category" else 0.0
    return {"distribution": effect, "missing": max(policy.mass, gone), "unseen": max(policy.mass, unseen)}


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What one column shows on both sides."""

    rows: int
    reference_rows: int
    values: int
    reference_values: int
    unseen: int
    unseen_usual: float
    sizes: Sizes | None

    @classmethod
    def of(cls, reference: Array, current: Array, kind: Kind, seed: int) -> Seen:
        """What the values of a window show beside those of the reference."""
        held, reference_held = present(current, kind), present(reference, kind)
        unseen, usual = _unseen(reference[reference_held], current[held]) if kind == "category" else (0, 0.0)
        return cls(
            rows=len(current),
            reference_rows=len(reference),
            values=int(np.count_nonzero(held)),
            reference_values=int(np.count_nonzero(reference_held)),
            unseen=unseen,
            unseen_usual=usual,
            sizes=effects.sizes(reference, current, kind, seed=seed),
        )

    @property
    def rows_per_side(self) -> int:
        """Rows of the smaller side."""
        return min(self.rows, self.reference_rows)

    @property
    def values_per_side(self) -> int:
        """Values, that is rows that are not missing, of the side that has fewer."""
        return min(self.values, self.reference_values)

    @property
    def null_share(self) -> float:
        """Missing values of the window, as a fraction of its rows."""
        return 1 - self.values / self.rows if self.rows else 0.0

    @property
    def reference_null_share(self) -> float:
        """Missing values of the reference, as a fraction of its rows."""
        return 1 - self.reference_values / self.reference_rows if self.reference_rows else 0.0

    @property
    def unseen_share(self) -> float:
        """Rows with a category that the reference does not have, as a fraction of the window's."""
        return self.unseen / max(self.rows, 1)

    def change(self, signal: Signal) -> float:
        """How large the change of a signal is, in the units of its limit; nothing is said of chance."""
        if signal == "missing":
            return abs(self.null_share - self.reference_null_share)
        if signal == "unseen":
            return self.unseen_share - self.unseen_usual
        return self.sizes.effect.corrected if self.sizes is not None else -1.0

    def numbers(self) -> dict[str, float | int | None]:
        """The fields of `ColumnDrift` that only say what was seen."""
        found = self.sizes
        return {
            "effect": found.effect.corrected if found else None,
            "expected": found.effect.expected if found else None,
            "low": found.effect.low if found else None,
            "high": found.effect.high if found else None,
            "psi": found.psi.corrected if found else None,
            "jensen_shannon": found.jensen_shannon.corrected if found else None,
            "null_share": self.null_share,
            "reference_null_share": self.reference_null_share,
            "unseen_share": self.unseen_share,
            "rows": self.rows,
        }

    def missing_p_value(self) -> float:
        """Two-sided test of equal missing shares: Fisher's exact one where the normal approximation does not hold."""
        gone, reference_gone = self.rows - self.values, self.reference_rows - self.reference_values
        pooled = (gone + reference_gone) / (self.rows + self.reference_rows)
        if pooled in (0.0, 1.0):
            return 1.0
        if min(pooled, 1 - pooled) * self.rows_per_side < _FEWEST_FOR_NORMAL:
            return float(fisher_exact([[reference_gone, self.reference_values], [gone, self.values]])[1])
        error = math.sqrt(pooled * (1 - pooled) * (1 / self.rows + 1 / self.reference_rows))
        return float(2 * ndtr(-abs(self.null_share - self.reference_null_share) / error))

    def unseen_p_value(self) -> float:
        """One-sided test that no more rows are unseen than the reference's own rare categories promise."""
        usual = min(max(self.unseen_usual, 1 / max(self.reference_values, 1)), 1.0)
        error = math.sqrt(usual * (1 - usual) * (1 / max(self.rows, 1) + 1 / max(self.reference_rows, 1)))
        return float(ndtr(-(self.unseen_share - usual) / error)) if error else 1.0


@dataclass(frozen=True, slots=True)
class Intervals:
    """Which interval each row comes from: of the window, and of ``history``, the rows that the reference is taken from."""

    of_window: Array
    history: Sample
    of_history: Array

    def bear_out(self, signal: Signal, limit: float, level: float, column: Column) -> bool:
        """Whether intervals as witnesses, rather than their rows, say that the signal moved beyond its limit.

        No single interval may have done it alone, and chance must not explain it at the ``level`` for as many rows as those
        of so many intervals are worth, when they are as alike as those of one interval are in the history.
        """
        distinct = np.unique(self.of_window)
        if len(distinct) < 2:
            return True
        without = (column.seen(self.of_window != one).change(signal) for one in distinct)
        return all(change >= limit for change in without) and self._p_value(signal, column) < level

    def _p_value(self, signal: Signal, column: Column) -> float:
        reference, current, kind = column.reference, column.current, column.kind
        known = self.history.get(column.name)
        past = reference if known is None else known
        if signal != "distribution":
            reference, current, past = (column.flags(signal, values) for values in (reference, current, past))
            kind = "category"
        usual = None if known is None else clusters.likeness(past, kind, self.of_history)
        # A history in which all values are equal does not say how alike they are when they differ.
        alike = clusters.likeness(current, kind, self.of_window) if usual is None else usual
        past_intervals = len(np.unique(self.of_history)) * len(reference) / max(len(self.of_history), 1)
        counts = ((len(reference), past_intervals), (len(current), len(np.unique(self.of_window))))
        before, now = (clusters.effective(rows, intervals, alike or 0.0) for rows, intervals in counts)
        return clusters.p_value(reference, current, kind, (before, now))


@dataclass(frozen=True, slots=True)
class Column:
    """One column on both sides."""

    name: str
    reference: Array
    current: Array
    kind: Kind
    seed: int

    def seen(self, kept: Mask) -> Seen:
        """What some rows of the window show."""
        return Seen.of(self.reference, self.current[kept], self.kind, self.seed)

    def flags(self, signal: Signal, values: Array) -> Array:
        """Which of the values are missing, or unseen, as categories."""
        held = present(values, self.kind)
        if signal == "missing":
            return np.where(held, "present", "missing").astype(object)
        levels = set(self.reference[present(self.reference, self.kind)])
        is_unseen = np.array([value not in levels for value in values], dtype=bool) & held
        return np.where(is_unseen, "unseen", "known").astype(object)


def _unseen(reference: Array, current: Array) -> tuple[int, float]:
    """How many of ``current`` the reference does not have, and the share that is to be expected of such.

    Expected is what the categories that the reference has once make up (Good 1953): about as likely as those it missed.
    """
    codes, size = encoded(np.concatenate([reference, current]))
    before, after = (np.bincount(side, minlength=size) for side in (codes[: len(reference)], codes[len(reference) :]))
    return int(after[before == 0].sum()), float(np.count_nonzero(before == 1) / max(len(reference), 1))
