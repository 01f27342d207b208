"""Two sides of one column put together: numbers in one order, rows counted in bins, samples drawn from those counts.

Pure functions of values; no result depends on the order of rows. Must not correct or judge a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Kind = Literal["number", "category"]
# A sample maps each column to a 1-D array with one entry per row: float64 (NaN = missing) for numbers, objects that are
# text or None (missing) for categories.
Sample = Mapping[str, Array]
Kinds = Mapping[str, Kind]

# IQR of a normal distribution in standard deviations: makes IQR / 1.349 comparable with a standard deviation.
IQR_OF_NORMAL = 1.349
_REPLICATES = 100
# Drawing needs few bins: the interval's width, not its place, rests on them.
_DRAWN_BINS = 64


def present(values: Array, kind: Kind) -> Mask:
    """Which rows hold a value. NaN, None and the two infinities hold none: an infinity is no measurement."""
    if kind == "number":
        return np.isfinite(values)
    nothing: Any = None
    objects = values.astype(object, copy=False)
    held: Mask = np.not_equal(objects, nothing).astype(bool) & np.equal(objects, objects).astype(bool)
    return held


def variation(reference: Array, current: Array) -> Array:
    """Half the summed absolute differences of shares, from rows per category along the last axis."""
    rows, moved = reference.sum(axis=-1, keepdims=True), current.sum(axis=-1, keepdims=True)
    # In whole numbers: exact, whatever the order of the categories.
    apart: Array = np.abs(current * rows - reference * moved).sum(axis=-1) / (2 * rows * moved)[..., 0]
    return apart


def require_both(reference: int, current: int) -> None:
    """Raises ``ValueError`` when one of the two numbers of values is 0."""
    if not reference or not current:
        raise ValueError(f"nothing to compare: {reference} values in the reference, {current} in the current window")


@dataclass(frozen=True, slots=True)
class Bins:
    """Rows per bin or category of both sides."""

    reference: Array
    current: Array

    @property
    def pooled(self) -> Array:
        """Rows of both sides per bin."""
        summed: Array = self.reference + self.current
        return summed

    @property
    def rows(self) -> tuple[int, int]:
        """Rows of the reference and of the current side."""
        return int(self.reference.sum()), int(self.current.sum())

    def drawn(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """100 multinomial samples of each side, one per line.

        Of very many bins those with about the same ratio of the sides are put together, which changes neither the total
        variation nor, by much, a divergence.
        """
        reference, current = self.reference, self.current
        if len(reference) > _DRAWN_BINS:
            pooled = self.pooled
            order = np.lexsort([pooled, (current + 0.5) / (pooled + 1)])
            group = (np.cumsum(pooled[order]) - pooled[order]) * _DRAWN_BINS // pooled.sum()
            reference, current = (np.bincount(group, side[order], _DRAWN_BINS) for side in (reference, current))
        return _samples(reference, rng), _samples(current, rng)


@dataclass(frozen=True, slots=True)
class Ordered:
    """The numbers of both sides in ascending order, missing ones left out, divided so that no square overflows."""

    values: Array
    is_current: Mask

    @classmethod
    def of(cls, reference: Array, current: Array) -> Ordered:
        """Both sides put together. Raises ``ValueError`` when a side has no value."""
        reference, current = reference[np.isfinite(reference)], current[np.isfinite(current)]
        require_both(len(reference), len(current))
        values = np.concatenate([reference, current])
        order = np.argsort(values)
        return cls(scaled(values[order]), order >= len(reference))

    @property
    def rows(self) -> tuple[int, int]:
        """Values of the reference and of the current side."""
        current = int(np.count_nonzero(self.is_current))
        return len(self.values) - current, current

    def inside(self) -> Array:
        """How many of the first 0, 1, .. values are current."""
        return np.concatenate([[0], np.cumsum(self.is_current)])

    def unit(self) -> float:
        """The reference's spread; where it is constant, the root mean square of the deviations from the constant."""
        reference = self.values[~self.is_current]
        moved = self.values[self.is_current] - reference[0]
        return spread(reference) or math.sqrt(np.mean(np.square(moved)))

    def between_quantiles(self, count: int) -> Bins:
        """Rows between the reference's quantiles; a value that fills a whole bin gets one to itself."""
        edges = _quantile_edges(self.values[~self.is_current], count)
        ends = np.concatenate([[0], np.searchsorted(self.values, edges), [len(self.values)]])
        current = np.diff(self.inside()[ends])
        return Bins(np.diff(ends) - current, current)

    def at_points(self) -> tuple[Array, Bins]:
        """About 64 points that stand for the values around them, and the rows of both sides at each."""
        starts = starts_of_bins(self.values, _DRAWN_BINS)
        ends = np.append(starts[1:], len(self.values))
        current = np.diff(self.inside()[np.append(starts, len(self.values))])
        return np.add.reduceat(self.values, starts) / (ends - starts), Bins(ends - starts - current, current)


def categories(reference: Array, current: Array) -> Bins:
    """Rows per category, missing being one of them, in an order that does not depend on the rows'.

    Raises ``ValueError`` when a side has no row.
    """
    require_both(len(reference), len(current))
    codes, size = encoded(np.concatenate([reference, current]))
    counts = [np.bincount(side, minlength=size) for side in (codes[: len(reference)], codes[len(reference) :])]
    order = np.lexsort(counts)
    return Bins(counts[0][order], counts[1][order])


def encoded(values: Array) -> tuple[npt.NDArray[np.intp], int]:
    """A number per category, missing included, and how many there are."""
    try:
        text = pa.array(values, type=pa.large_string(), from_pandas=True).dictionary_encode(null_encoding="encode")
    except (TypeError, ValueError):
        return _encoded_one_by_one(values)
    codes: npt.NDArray[np.intp] = text.indices.to_numpy().astype(np.intp, copy=False)
    return codes, len(text.dictionary)


def starts_of_bins(ordered: Array, count: int) -> npt.NDArray[np.intp]:
    """Where about ``count`` bins of the sorted values start; equal values stay together, and alone if they are many.

    One half of the edges lies at quantiles. The other half splits the area between two distribution functions evenly, as
    far as chance makes it (``sqrt(F (1 - F))``): far tails and rare values get bins of their own.
    """
    rank = np.arange(1, len(ordered))
    weight = np.cumsum(np.diff(ordered) * np.sqrt(rank * (len(ordered) - rank)))
    half = np.arange(1, count // 2) / (count // 2)
    edges = (half * len(ordered)).astype(np.intp)
    if len(weight) and weight[-1] > 0:
        edges = np.append(edges, np.searchsorted(weight, half * weight[-1]) + 1)
    marks, times = np.unique(ordered[edges], return_counts=True)
    after = np.searchsorted(ordered, marks[times > 1], side="right")
    starts: npt.NDArray[np.intp] = np.concatenate([[0], np.searchsorted(ordered, marks), after[after < len(ordered)]])
    return np.unique(starts)


def scaled(ordered: Array) -> Array:
    """Sorted values divided by a power of two, which is exact: the largest is below 1, or 1e308 would overflow."""
    divided: Array = np.ldexp(ordered, -math.frexp(max(abs(ordered[0]), abs(ordered[-1])))[1])
    return divided


def spread(ordered: Array) -> float:
    """Robust standard deviation of sorted values; 0 only when they are all equal."""
    if ordered[0] == ordered[-1]:
        return 0.0
    low, high = np.quantile(ordered, [0.25, 0.75])
    return float((high - low) / IQR_OF_NORMAL) or float(np.std(ordered))


def _samples(counts: Array, rng: np.random.Generator) -> Array:
    rows = counts.sum()
    return rng.multinomial(int(rows), counts / rows, size=_REPLICATES)


def _quantile_edges(ordered: Array, bins: int) -> Array:
    """Inner bin edges at the quantiles of sorted values; a value at two quantiles is closed in by edges of its own."""
    inner = np.quantile(ordered, np.arange(1, bins) / bins, method="inverted_cdf")
    edges, times = np.unique(inner, return_counts=True)
    return np.union1d(edges, np.nextafter(edges[times > 1], np.inf))


def _encoded_one_by_one(values: Array) -> tuple[npt.NDArray[np.intp], int]:
    """The same for objects that are not text, or text that no encoding can write."""
    index: dict[Any, int] = {}
    keys = (value if value == value else None for value in values)
    codes = np.fromiter((index.setdefault(key, len(index)) for key in keys), dtype=np.intp, count=len(values))
    return codes, len(index)
