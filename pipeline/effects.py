"""How far a column moved: effect sizes of one sample against another, freed of what chance alone shows.

An effect says how much, never whether chance explains it (p-values come from `pipeline.detectors`) and never whether it
matters (`pipeline.drift` judges). Pure functions of values; no result depends on the order of rows.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import rel_entr

from pipeline import chance
from pipeline.pooling import (
    IQR_OF_NORMAL,
    Array,
    Bins,
    Kind,
    Kinds,
    Ordered,
    Sample,
    categories,
    present,
    variation,
)

__all__ = [
    "Array",
    "Distribution",
    "Kind",
    "Kinds",
    "Sample",
    "Size",
    "Sizes",
    "distribution",
    "effect",
    "jensen_shannon",
    "present",
    "psi",
    "sizes",
    "total_variation",
    "wasserstein",
]

_BINS = 10
# Two-sided 95 % of a normal distribution.
_NORMAL_95 = 1.96
_BARS = 24
_MISSING, _OTHER = "(missing)", "(other)"


@dataclass(frozen=True, slots=True)
class Size:
    """One measure of how far a column moved; all numbers are finite and at least 0.

    ``value`` is what was measured, ``expected`` what chance alone shows on average at these numbers of rows, ``corrected``
    the value freed of chance. ``low`` and ``high`` are the ends of its 95 % interval.
    """

    value: float
    expected: float
    corrected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """The measures of one column; `pipeline.drift` judges by ``effect``, the others are told for comparison."""

    effect: Size
    psi: Size
    jensen_shannon: Size


@dataclass(frozen=True, slots=True)
class Distribution:
    """What both sides look like: the share of their rows in each bin, for drawing. Each side's shares sum to 1."""

    labels: tuple[str, ...]
    reference: tuple[float, ...]
    current: tuple[float, ...]


def wasserstein(reference: Array, current: Array) -> float:
    """First Wasserstein distance in units of the reference's spread; 1 = as if all moved by one standard deviation.

    The spread is IQR / 1.349 (robust against outliers), or the standard deviation where the IQR is 0. Against a constant
    reference the unit is the root mean square of the deviations from the constant, so that the result lies in [0, 1]
    whatever the column's unit: 1 when every row moved by the same amount. Rows without a value are left out.
    Raises ``ValueError`` when a side has no value.
    """
    ordered = Ordered.of(reference, current)
    return _over(_area(ordered), ordered.unit())


def total_variation(reference: Array, current: Array) -> float:
    """Half the summed absolute differences of the categories' shares, in [0, 1]; missing is a category of its own.

    It is the share of rows that would have to change category. Raises ``ValueError`` when a side has no row.
    """
    bins = categories(reference, current)
    return float(variation(bins.reference, bins.current))


def effect(reference: Array, current: Array, kind: Kind) -> float:
    """The effect size of a column: `wasserstein` for numbers, `total_variation` for categories."""
    return wasserstein(reference, current) if kind == "number" else total_variation(reference, current)


def psi(reference: Array, current: Array, kind: Kind, bins: int = _BINS) -> float:
    """Population stability index; by convention below 0.1 is stable and from 0.25 on is a large shift.

    The sum over bins of ``(q - p) * ln(q / p)``, the symmetric Kullback-Leibler divergence of Jeffreys (1946), with the
    reading of the credit scoring literature (Siddiqi 2006, Credit Risk Scorecards).

    Numbers are counted in bins between the reference's quantiles (a value that fills a whole bin gets one to itself), over
    the rows that hold a value; categories one by one, missing included. Half a row is added to every bin, which keeps the
    index finite where a side has an empty bin. Raises ``ValueError`` when a side has nothing to count.
    """
    counted = _binned(reference, current, kind, bins)
    return float(_index(counted.reference, counted.current))


def jensen_shannon(reference: Array, current: Array, kind: Kind) -> float:
    """Jensen-Shannon distance with logarithms to base 2, in [0, 1]: the root of the divergence (Lin 1991).

    0 for equal shares, 1 when no bin holds rows of both sides; it obeys the triangle inequality (Endres and Schindelin
    2003). The bins are those of `psi`. Raises ``ValueError`` when a side has nothing to count.
    """
    counted = _binned(reference, current, kind, _BINS)
    return math.sqrt(_divergence(counted.reference, counted.current))


def sizes(reference: Array, current: Array, kind: Kind, *, seed: int = 0) -> Sizes | None:
    """Effect, population stability index and Jensen-Shannon distance, with what chance shows of each at these rows.

    Expectations are those of a permutation test (`pipeline.chance`). A Wasserstein or total variation distance is
    corrected in quadrature, ``sqrt(value^2 - E[value^2])``, but for categories that moved beyond doubt: about unbiased well
    above the noise, without drift about a third of it. The divergences lose their mean, Jensen and Shannon's before the
    root is taken. An interval is the measured value with 1.96 standard deviations either side, corrected like the value;
    the deviation is the larger of that of 100 multinomial samples of binned counts (drawn with ``seed``) and the
    first-order one. ``None`` when a side has nothing to compare: no value of a number, no row of a category.
    """
    rng = np.random.default_rng(seed)
    if kind == "number":
        if not (np.isfinite(reference).any() and np.isfinite(current).any()):
            return None
        ordered = Ordered.of(reference, current)
        bins = ordered.between_quantiles(_BINS)
        return _sizes(_area_size(ordered, rng), bins, bins.drawn(rng))
    if not (len(reference) and len(current)):
        return None
    bins = categories(reference, current)
    drawn = bins.drawn(rng)
    return _sizes(_share_size(bins, drawn), bins, drawn)


def distribution(reference: Array, current: Array, kind: Kind) -> Distribution | None:
    """The shares of both sides in at most 24 bins; rows without a value, if there are any, are the last one.

    Numbers: one bin per value where there are few, else bins of one round width from the 1st to the 99th percentile of both
    sides, open at the ends. Categories: from the most to the least frequent, the rest together. ``None`` when a side has
    no row, or no row has a value.
    """
    held, held_now = present(reference, kind), present(current, kind)
    if not (len(reference) and len(current) and (held.any() or held_now.any())):
        return None
    sides = reference[held], current[held_now]
    has_missing = not (held.all() and held_now.all())
    room = _BARS - has_missing
    labels, counts = _number_bars(*sides, room) if kind == "number" else _category_bars(*sides, room)
    if has_missing:
        labels = [*labels, _MISSING]
        counts = [[*side, rows] for side, rows in zip(counts, ((~held).sum(), (~held_now).sum()), strict=True)]
    shares = (tuple(float(rows) / sum(side) for rows in side) for side in counts)
    return Distribution(tuple(labels), *shares)


def _sizes(effect: Size, bins: Bins, drawn: tuple[Array, Array]) -> Sizes:
    value = float(_index(bins.reference, bins.current))
    smoothed = partial(_jeffreys, rows=bins.rows, bins=len(bins.pooled))
    expected = chance.of_divergence(smoothed, bins.pooled, *bins.rows)
    ends = (max(0.0, end - expected) for end in _ends(value, float(np.std(_index(*drawn)))))
    index = Size(value, expected, max(0.0, value - expected), *ends)
    value = float(_divergence(bins.reference, bins.current))
    expected = chance.of_divergence(partial(_lin, rows=bins.rows), bins.pooled, *bins.rows)
    ends = (_root(end - expected) for end in _ends(value, float(np.std(_divergence(*drawn)))))
    usual = math.sqrt(expected) * chance.root_mean(np.count_nonzero(bins.pooled))
    return Sizes(effect, index, Size(math.sqrt(value), usual, _root(value - expected), *ends))


def _area_size(ordered: Ordered, rng: np.random.Generator) -> Size:
    unit = ordered.unit()
    if unit == 0:
        return Size(0.0, 0.0, 0.0, 0.0, 0.0)
    area, noise = _area(ordered), _area_noise(ordered)
    deviation = max(_area_deviation(ordered, rng), noise.deviation)
    ends = (noise.without(end) for end in _ends(area, deviation))
    return Size(*(_over(part, unit) for part in (area, noise.mean, noise.without(area), *ends)))


def _share_size(bins: Bins, drawn: tuple[Array, Array]) -> Size:
    value = float(variation(bins.reference, bins.current))
    noise, moves = chance.of_shares(bins.pooled, *bins.rows), chance.Moves.of(bins.reference, bins.current)
    rows, moved = bins.rows
    excess = np.sign(bins.current * rows - bins.reference * moved)
    linear = _linear_deviation(excess / 2, bins)
    sampled = max(linear, float(np.std(variation(*drawn))))
    margin = _NORMAL_95 * math.hypot(sampled, moves.noise.deviation)
    middle = moves.corrected(value)
    # What is sure has no noise to be freed of, but varies as well.
    low = min(middle - margin, moves.corrected(value - margin))
    high = max(middle + margin, moves.corrected(value + margin))
    return Size(value, noise.mean, middle, max(0.0, low), min(1.0, high))


def _ends(value: float, deviation: float) -> tuple[float, float]:
    return value - _NORMAL_95 * deviation, value + _NORMAL_95 * deviation


def _root(share: float) -> float:
    """Never beyond 0 and 1, between which a Jensen-Shannon distance lies."""
    return math.sqrt(min(1.0, max(0.0, share)))


def _over(area: float, unit: float) -> float:
    return min(area / unit, sys.float_info.max) if area else 0.0


def _area(ordered: Ordered) -> float:
    """Area between the two empirical distribution functions."""
    rows, moved = ordered.rows
    inside = ordered.inside()[1:-1]
    gap = np.abs(inside / moved - (np.arange(1, len(ordered.values)) - inside) / rows)
    return float(np.sum(gap * np.diff(ordered.values)))


def _area_noise(ordered: Ordered) -> chance.Noise:
    gaps = np.diff(ordered.values)
    ranks = np.flatnonzero(gaps) + 1
    return chance.of_area(gaps[ranks - 1], ranks, *ordered.rows)


def _area_deviation(ordered: Ordered, rng: np.random.Generator) -> float:
    """Standard deviation of the area in constant units: a larger area and a smaller unit count alike."""
    points, bins = ordered.at_points()
    widths = np.diff(points)
    apart = _apart(np.cumsum(bins.reference), np.cumsum(bins.current))[:-1]
    linear = _linear_deviation(np.append(0.0, np.cumsum(np.sign(apart) * widths)), bins)
    reference, current = bins.drawn(rng)
    areas = np.abs(_apart(np.cumsum(reference, axis=1), np.cumsum(current, axis=1)))[:, :-1] @ widths
    units = _drawn_units(points, reference, current)
    usual = float(np.mean(units))
    if usual == 0:
        return linear
    return max(linear, float(np.std(areas / np.where(units > 0, units / usual, 1.0))))


def _apart(reference: Array, current: Array) -> Array:
    """Difference of the two sides' distribution functions, from cumulated rows."""
    shares: Array = current / current[..., -1:] - reference / reference[..., -1:]
    return shares


def _linear_deviation(scores: Array, bins: Bins) -> float:
    """Standard deviation of the difference of the two sides' mean scores, from the score of each bin.

    A distance that is well above the noise is such a difference: each row counts by the side on which its bin is in excess.
    """
    variance = 0.0
    for counts in (bins.reference, bins.current):
        rows = counts.sum()
        mean = counts @ scores / rows
        variance += float(counts @ (scores - mean) ** 2 / rows**2)
    return math.sqrt(variance)


def _drawn_units(points: Array, reference: Array, current: Array) -> Array:
    """`Ordered.unit` of samples given by their rows at each point."""
    share = reference / reference.sum(axis=1, keepdims=True)
    below = np.cumsum(share, axis=1)
    low, high = (points[np.argmax(below >= quantile, axis=1)] for quantile in (0.25, 0.75))
    centre = share @ points
    deviation = np.sqrt(np.maximum(share @ points**2 - centre**2, 0))
    apart = np.sqrt(np.sum(current * (points - centre[:, None]) ** 2, axis=1) / current.sum(axis=1))
    is_constant = (reference > 0).sum(axis=1) == 1
    return np.where(high > low, (high - low) / IQR_OF_NORMAL, np.where(is_constant, apart, deviation))


def _binned(reference: Array, current: Array, kind: Kind, count: int) -> Bins:
    if kind == "number":
        return Ordered.of(reference, current).between_quantiles(count)
    return categories(reference, current)


# From rows per bin (along the last axis, so that many samples can be measured at once) to a measure.


def _index(reference: Array, current: Array) -> Array:
    rows = reference.sum(axis=-1, keepdims=True), current.sum(axis=-1, keepdims=True)
    terms = _jeffreys(reference, current, rows, reference.shape[-1])
    index: Array = np.maximum(terms.sum(axis=-1), 0.0)
    return index


def _divergence(reference: Array, current: Array) -> Array:
    rows = reference.sum(axis=-1, keepdims=True), current.sum(axis=-1, keepdims=True)
    divergence: Array = np.clip(_lin(reference, current, rows).sum(axis=-1), 0.0, 1.0)
    return divergence


def _jeffreys(reference: Array, current: Array, rows: tuple[Any, Any], bins: int) -> Array:
    p, q = (reference + 0.5) / (rows[0] + 0.5 * bins), (current + 0.5) / (rows[1] + 0.5 * bins)
    terms: Array = (q - p) * np.log(q / p)
    return terms


def _lin(reference: Array, current: Array, rows: tuple[Any, Any]) -> Array:
    p, q = reference / rows[0], current / rows[1]
    middle = (p + q) / 2
    terms: Array = (rel_entr(p, middle) + rel_entr(q, middle)) / (2 * math.log(2))
    return terms


def _category_bars(reference: Array, current: Array, room: int) -> tuple[list[str], list[list[int]]]:
    sides = [Counter(side.tolist()) for side in (reference, current)]
    pooled = sides[0] + sides[1]
    names = sorted(pooled, key=lambda name: (-pooled[name], str(name)))
    shown = names if len(names) <= room else names[: room - 1]
    counts = [[side[name] for name in shown] for side in sides]
    if len(shown) == len(names):
        return [str(name) for name in shown], counts
    return [*map(str, shown), _OTHER], [
        [*rows, side.total() - sum(rows)] for rows, side in zip(counts, sides, strict=True)
    ]


def _number_bars(reference: Array, current: Array, room: int) -> tuple[list[str], list[list[int]]]:
    pooled = np.concatenate([reference, current])
    distinct = np.unique(pooled)
    if len(distinct) <= room:
        sides = [np.searchsorted(distinct, side) for side in (reference, current)]
        return [f"{value:.12g}" for value in distinct], [
            np.bincount(s, minlength=len(distinct)).tolist() for s in sides
        ]
    edges, step = _round_edges(pooled)
    digits = max(1, math.ceil(math.log10(max(abs(edges[0]), abs(edges[-1])) / step)) + 2)
    marks = [f"{edge:.{min(digits, 17)}g}" for edge in edges]
    labels = [f"below {marks[0]}", *(f"{a} to {b}" for a, b in pairwise(marks)), f"{marks[-1]} and above"]
    sides = [np.searchsorted(edges, side, side="right") for side in (reference, current)]
    counts = [np.bincount(side, minlength=len(labels)).tolist() for side in sides]
    return labels, counts


def _round_edges(values: Array) -> tuple[list[float], float]:
    """At most 22 edges that are multiples of a round step, and the step; they enclose all but the outer percentiles."""
    low, high = (float(end) for end in np.quantile(values, [0.01, 0.99]))
    if low == high:
        low, high = float(values.min()), float(values.max())
    least = max((high / 2 - low / 2) / 10, sys.float_info.min)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= least)
    marks = (index * step for index in range(math.floor(low / step), math.ceil(high / step) + 1))
    return [mark for mark in marks if math.isfinite(mark)], step
