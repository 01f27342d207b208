"""What one side of a column holds, and how far two sides lie apart; missing values are counted and otherwise left out.

Pure functions of values; must not call anything a fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.effects import Array

_QUANTILES = 200
_MAD_OF_NORMAL = math.sqrt(2 / math.pi)
_ROUNDING = 1e-9
# Enough of the commonest categories to recognise a column by.
_LEVELS = 1000
# Shares differ surely when by this many standard errors: about once in three million comparisons by chance.
_SURELY = 5.0


@dataclass(frozen=True)
class Numbers:
    """The numbers of one side: ``ordered`` are its ``count`` finite values, ascending, of ``rows`` rows."""

    ordered: Array
    rows: int

    @classmethod
    def of(cls, values: Array) -> Numbers:
        """The numbers among ``values``: NaN and the two infinities are missing."""
        numbers = np.asarray(values, dtype=np.float64)
        held = numbers[np.isfinite(numbers)]
        held.sort()
        return cls(held, len(numbers))

    @property
    def count(self) -> int:
        """How many rows hold a value."""
        return len(self.ordered)

    @property
    def distinct(self) -> int:
        """How many different values there are."""
        return len(self._runs)

    @property
    def top(self) -> float:
        """The commonest value, the smallest of equally common ones."""
        return float(self.ordered[self._runs[np.argmax(self._lengths)]])

    @property
    def top_share(self) -> float:
        """The commonest value's share of the values."""
        return float(self._lengths.max()) / self.count

    @property
    def median(self) -> float:
        """The value in the middle of all."""
        return float(self.quantiles[_QUANTILES // 2])

    @cached_property
    def quantiles(self) -> Array:
        """Two hundred quantiles, ascending; the outermost 0.25 % of either tail have no part in them."""
        ranks = ((np.arange(_QUANTILES) + 0.5) * self.count / _QUANTILES).astype(np.int64)
        return self.ordered[ranks]

    def share(self, value: float) -> float:
        """The share of the values that equal ``value``."""
        first, last = (np.searchsorted(self.ordered, value, side=side) for side in ("left", "right"))
        return float(last - first) / self.count

    def spans(self, value: float) -> bool:
        """Whether ``value`` lies within the values."""
        return bool(self.ordered[0] <= value <= self.ordered[-1])

    def without(self, value: float) -> Numbers:
        """The numbers that are left without ``value``."""
        rest = self.ordered[self.ordered != value]
        return Numbers(rest, self.rows - self.count + len(rest))

    @cached_property
    def spread(self) -> float:
        """The `deviation` of the quantiles."""
        return deviation(self.quantiles)

    def distance(self, other: Numbers) -> float:
        """How far the other numbers lie off, in standard deviations; see `apart`."""
        return apart(self.quantiles, other.quantiles, min(self.spread, other.spread))

    def noise(self, count: int) -> float:
        """The distance, in standard deviations, at which chance puts the mean of ``count`` other such numbers."""
        return self._heaviness * math.sqrt(1 / self.count + 1 / count)

    @cached_property
    def _heaviness(self) -> float:
        return float(np.std(self.quantiles)) / self.spread if self.spread else 0.0

    @cached_property
    def _runs(self) -> Array:
        """Where each different value starts in ``ordered``."""
        return np.flatnonzero(np.concatenate([[True], self.ordered[1:] != self.ordered[:-1]])[: self.count])

    @cached_property
    def _lengths(self) -> Array:
        return np.diff(np.append(self._runs, self.count))


@dataclass(frozen=True)
class Categories:
    """The categories of one side with their numbers of rows, the commonest first, of ``rows`` rows in all."""

    counts: dict[str, int]
    rows: int

    @classmethod
    def of(cls, values: Array) -> Categories:
        """The categories among ``values``: None and NaN are missing."""
        found = pa.RecordBatch.from_struct_array(texts(values).drop_null().value_counts())
        ranked = found.sort_by([("counts", "descending"), ("values", "ascending")])
        return cls(dict(zip(ranked["values"].to_pylist(), ranked["counts"].to_pylist(), strict=True)), len(values))

    @cached_property
    def count(self) -> int:
        """How many rows hold a value."""
        return sum(self.counts.values())

    @property
    def distinct(self) -> int:
        """How many different categories there are."""
        return len(self.counts)

    @property
    def top(self) -> str:
        """The commonest of the categories."""
        return next(iter(self.counts))

    @property
    def top_share(self) -> float:
        """The commonest category's share of the values."""
        return self.share(self.top)

    def share(self, value: str) -> float:
        """The category's share of the values."""
        return self.counts.get(value, 0) / self.count

    def spans(self, value: str) -> bool:
        """Whether the category occurs at all."""
        return value in self.counts

    def without(self, value: str) -> Categories:
        """The categories that are left without ``value``."""
        rest = {category: count for category, count in self.counts.items() if category != value}
        return Categories(rest, self.rows - self.counts.get(value, 0))

    def distance(self, other: Categories) -> float:
        """Total variation distance in [0, 1]: one less the shares that both have in common.

        The thousand commonest categories are compared; what lies beyond counts as different.
        """
        shares, others = sorted((self._shares, other._shares), key=len)
        return max(0.0, 1 - sum(min(share, others.get(value, 0.0)) for value, share in shares.items()))

    def noise(self, count: int) -> float:
        """The distance that chance shows on average for ``count`` other such values: of normal deviations per category."""
        return self._raggedness * math.sqrt(1 / self.count + 1 / count)

    @cached_property
    def _raggedness(self) -> float:
        shares = np.array(list(self.counts.values())) / self.count
        return float(_MAD_OF_NORMAL * np.sum(np.sqrt(shares * (1 - shares))) / 2)

    @cached_property
    def _shares(self) -> dict[str, float]:
        return {value: self.share(value) for value in list(self.counts)[:_LEVELS]}


def apart(left: Array, right: Array, unit: float) -> float:
    """The first Wasserstein distance between two sets of quantiles, in units of ``unit``; infinite when that is 0.

    As a unit, the smaller `deviation` of both makes a division count like a multiplication.
    """
    area = float(np.mean(np.abs(left - right)))
    if area == 0:
        return 0.0
    return area / unit if unit > 0 else math.inf


def ranks_apart(left: Array, right: Array, unit: float) -> float:
    """The largest difference of the ranks that one number has in two sets of as many quantiles, in [0, 1].

    Numbers count as equal when they differ by no more than arithmetic explains, measured in ``unit``.
    """
    points = np.concatenate([left, right]) + _ROUNDING * unit
    ranks = np.searchsorted(left, points, side="right") - np.searchsorted(right, points, side="right")
    return float(np.max(np.abs(ranks))) / len(left)


def deviation(quantiles: Array) -> float:
    """The mean absolute deviation from the median, as the standard deviation of a normal distribution with the same."""
    return float(np.mean(np.abs(quantiles - quantiles[len(quantiles) // 2]))) / _MAD_OF_NORMAL


def texts(values: Array) -> pa.Array:
    """The values of a category as Arrow text; other values than text are written out."""
    try:
        return pa.array(values, pa.string(), from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None or value != value else str(value) for value in values], pa.string())


def is_sure(share: float, before: float, rows: int, rows_before: int) -> bool:
    """Whether ``share`` of ``rows`` rows is above ``before`` by more than sampling explains."""
    pooled = (share * rows + before * rows_before) / (rows + rows_before)
    error = math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / rows + 1 / rows_before))
    return share - before > _SURELY * error


Contents = Numbers | Categories
