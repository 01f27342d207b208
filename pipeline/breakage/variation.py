"""What a column shows by itself from interval to interval of the reference; a fault has to go beyond that.

Pure functions of values; must not look at the delivered rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.variation import predicted

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from pipeline.effects import Array

# Fewer rows of an interval, or fewer intervals, do not show what is natural.
_MIN_ROWS = 20
_MIN_INTERVALS = 4
_EXCEEDED = 1e-4


@dataclass(frozen=True)
class Variation:
    """The intervals of one reference column: ``codes`` are its values as whole numbers, -1 where missing."""

    codes: Array
    stretch: Array

    @classmethod
    def of(cls, values: pa.Array, stretch: Array) -> Variation:
        """The intervals of ``values``, which belong to the intervals ``stretch``, row by row."""
        codes = values.dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
        return cls(codes, np.asarray(stretch))

    def missing(self) -> float:
        """The share of missing values that an interval may reach by itself; 0 if there are too few to tell."""
        interval = np.unique(self.stretch, return_inverse=True)[1]
        rows = np.bincount(interval)
        return _upper((np.bincount(interval, self.codes < 0) / rows)[rows >= _MIN_ROWS])

    def top(self) -> tuple[float, float]:
        """What an interval may reach by itself: a single value's share of it, and how much that is above its usual share."""
        held = self.codes >= 0
        interval = np.unique(self.stretch[held], return_inverse=True)[1]
        codes, usual = self.codes[held], np.bincount(self.codes[held]) / max(np.count_nonzero(held), 1)
        together, counts = np.unique(interval * len(usual) + codes, return_counts=True)
        place, rows = together // max(len(usual), 1), np.bincount(interval)
        shares = counts / rows[place]
        largest, rise = np.zeros(len(rows)), np.zeros(len(rows))
        np.maximum.at(largest, place, shares)
        np.maximum.at(rise, place, shares - usual[together % max(len(usual), 1)])
        return _upper(largest[rows >= _MIN_ROWS]), _upper(rise[rows >= _MIN_ROWS])

    def distance(self, values: Array, measure: Callable[[Array], float]) -> float:
        """The ``measure`` that an interval's present values may reach by themselves; 0 if too few intervals can be measured."""
        held = self.codes >= 0
        order = np.argsort(self.stretch[held], kind="stable")
        firsts = np.unique(self.stretch[held][order], return_index=True)[1]
        parts = np.split(values[held][order], firsts[1:])
        return _upper(np.array([measure(part) for part in parts if len(part) >= _MIN_ROWS]))


def _upper(found: Array) -> float:
    """The upper prediction limit of one more interval (Student's t): one in ten thousand lies above it by itself.

    A job has many columns and lives for years; one broken interval among those of the reference does not hide the next.
    """
    count = len(found)
    if count < _MIN_INTERVALS:
        return 0.0
    deviations, widened = predicted(1 - _EXCEEDED, count)
    return float(np.mean(found) + deviations * widened * np.std(found, ddof=1))
