"""How far stretches of the training period lie from the rest of it: the variation that is natural to each column.

Pure functions of values; no result depends on the order of rows. Must not know what the effect is compared with.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline import chance
from pipeline.pooling import (
    IQR_OF_NORMAL,
    Array,
    Kind,
    Kinds,
    Mask,
    Sample,
    encoded,
    present,
    scaled,
    spread,
    starts_of_bins,
    variation,
)

# Fewer stretches say nothing about natural variation.
_MIN_RUNS = 4
# Neighbouring runs share most of their rows; more than these, evenly spaced, cost time and say nothing new.
_MAX_RUNS = 200
_BINS = 256
# Below this share of the overall mean square, a variance that was computed from sums is rounding error.
_ROUNDING = 1e-9


def stretch_effects(sample: Sample, kinds: Kinds, stretch: Array, window: int, min_rows: int) -> dict[str, Stretches]:
    """How far stretches of the training period lie from the rest of it: the variation that is natural to each column.

    ``stretch`` is the interval index of each row; its sorted distinct values count as consecutive intervals. Every run of
    ``window`` of them with at least ``min_rows`` rows is compared with all other rows (of very many runs, 200 evenly
    spaced ones); per column these effects, freed of chance, are returned, and how much of them chance still explains. A
    column is left out when fewer than four runs hold ``min_rows`` values of it; with fewer than four runs the result is
    empty. Distances of numbers are measured in 256 bins; they are right to about one percent.
    """
    runs = _Runs.of(stretch, window, min_rows)
    if runs is None:
        return {}
    natural: dict[str, Stretches] = {}
    for column, kind in kinds.items():
        found = _effects(sample[column], kind, runs, max(min_rows, 1))
        if len(found.effects) >= _MIN_RUNS:
            natural[column] = found
    return natural


def course(sample: Sample, kinds: Kinds, stretch: Array, window: int, min_rows: int) -> dict[str, Array]:
    """Per column the effect of every run of ``window`` intervals against all other rows, in order of time.

    NaN where a run holds fewer than ``min_rows`` values, else as of `stretch_effects`.
    """
    runs = _Runs.of(stretch, window, min_rows, at_most=None)
    found: dict[str, Array] = {}
    for column, kind in kinds.items() if runs else ():
        assert runs is not None
        held = present(sample[column], kind)
        is_usable = runs.usable(held, max(min_rows, 1))
        found[column] = np.full(len(runs.first), np.nan)
        if np.count_nonzero(is_usable) >= _MIN_RUNS:
            found[column][is_usable] = _effects(sample[column], kind, runs, max(min_rows, 1)).effects
    return found


@dataclass(frozen=True, slots=True)
class Stretches:
    """Effects of runs, and the mean of their squares that chance alone would leave after the correction."""

    effects: Array
    by_chance: Array


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of intervals, each made of whole segments ``first`` to before ``last``; ``segment`` is that of each row."""

    segment: npt.NDArray[np.intp]
    first: npt.NDArray[np.intp]
    last: npt.NDArray[np.intp]
    segments: int

    @classmethod
    def of(cls, stretch: Array, window: int, min_rows: int, at_most: int | None = _MAX_RUNS) -> _Runs | None:
        distinct, position = np.unique(stretch, return_inverse=True)
        before = np.concatenate([[0], np.cumsum(np.bincount(position, minlength=len(distinct)))])
        rows = before[window:] - before[: max(len(before) - window, 0)]
        firsts = np.flatnonzero((rows >= min_rows) & (rows < len(stretch)))
        if len(firsts) < _MIN_RUNS:
            return None
        if at_most is not None and len(firsts) > at_most:
            firsts = firsts[np.linspace(0, len(firsts) - 1, at_most).round().astype(np.intp)]
        edges = np.union1d(firsts, firsts + window)
        segment = np.searchsorted(edges, position, side="right")
        first, last = (np.searchsorted(edges, ends) + 1 for ends in (firsts, firsts + window))
        return cls(segment, first, last, len(edges) + 1)

    def usable(self, held: Mask, min_rows: int) -> Mask:
        """Which runs hold ``min_rows`` values of a column, and leave some to the others."""
        inside, outside = (side[:, 0] for side in self.sums(self.segment[held], np.zeros(held.sum(), np.intp), 1))
        found: Mask = (inside >= min_rows) & (outside > 0)
        return found

    def sums(self, segment: Array, cell: Array, cells: int, weights: Array | None = None) -> tuple[Array, Array]:
        """Sums of ``weights`` (or rows) over each cell, inside and outside of each run: two arrays, runs by cells."""
        flat = np.bincount(segment * cells + cell, weights, self.segments * cells)
        steps = np.cumsum(np.vstack([np.zeros((1, cells)), flat.reshape(self.segments, cells)]), axis=0)
        inside: Array = steps[self.last] - steps[self.first]
        return inside, steps[-1] - inside


def _effects(values: Array, kind: Kind, runs: _Runs, min_rows: int) -> Stretches:
    held = present(values, kind)
    is_usable = runs.usable(held, min_rows)
    usable = _Runs(runs.segment, runs.first[is_usable], runs.last[is_usable], runs.segments)
    if np.count_nonzero(is_usable) < _MIN_RUNS:
        return Stretches(np.empty(0), np.empty(0))
    return _variations(values, usable) if kind == "category" else _distances(values, held, usable)


def _variations(values: Array, runs: _Runs) -> Stretches:
    """Total variation of each run against the other rows, corrected."""
    codes, size = encoded(values)
    # In the order of segments a run is one slice.
    codes = codes[np.argsort(runs.segment, kind="stable")]
    ends = np.concatenate([[0], np.cumsum(np.bincount(runs.segment, minlength=runs.segments))])
    counts = np.bincount(codes, minlength=size)
    effects, by_chance = [], []
    for first, last in zip(ends[runs.first], ends[runs.last], strict=True):
        inside = np.bincount(codes[first:last], minlength=size)
        outside = counts - inside
        moves = chance.Moves.of(outside, inside)
        effects.append(moves.corrected(float(variation(outside, inside))))
        by_chance.append(moves.noise.left_over)
    return Stretches(np.array(effects), np.array(by_chance))


def _distances(values: Array, held: Mask, runs: _Runs) -> Stretches:
    """Wasserstein distance of each run to the other rows in units of their spread, corrected."""
    order = np.argsort(values[held])
    ordered, segment = scaled(values[held][order]), runs.segment[held][order]
    bins = _Bins.of(ordered)
    inside, outside = runs.sums(segment, bins.cell, len(bins.left))
    moved, rows = inside.sum(axis=1), outside.sum(axis=1)
    # The area under a distribution function is exact in every bin; only where two of them cross within a bin is it too small.
    right = np.append(bins.left[1:], ordered[-1])
    room, other_room = runs.sums(segment, bins.cell, len(bins.left), right[bins.cell] - ordered)
    under = ((np.cumsum(inside, axis=1) - inside) * (right - bins.left) + room) / moved[:, None]
    other = ((np.cumsum(outside, axis=1) - outside) * (right - bins.left) + other_room) / rows[:, None]
    areas = np.sum(np.abs(under - other), axis=1)
    units = _units(ordered, segment, bins, outside, runs)
    usual, scaling = _noise(ordered, rows, moved)
    noise = usual.rms * scaling
    left = np.sqrt(np.maximum(0, 1 - np.square(np.divide(noise, areas, out=np.ones_like(areas), where=areas > noise))))
    corrected = areas * left
    with np.errstate(over="ignore"):
        ratio = np.divide(corrected, units, out=np.zeros_like(areas), where=corrected > 0)
        by_chance = np.divide(usual.left_over * scaling**2, units**2, out=np.zeros_like(areas), where=units > 0)
    return Stretches(*(np.minimum(found, sys.float_info.max) for found in (ratio, by_chance)))


@dataclass(frozen=True, slots=True)
class _Bins:
    """Bins of sorted values: the bin of each value, and each bin's smallest and largest value."""

    cell: npt.NDArray[np.intp]
    left: Array
    top: Array

    @classmethod
    def of(cls, ordered: Array) -> _Bins:
        starts = starts_of_bins(ordered, _BINS)
        ends = np.append(starts[1:], len(ordered))
        return cls(np.repeat(np.arange(len(starts)), ends - starts), ordered[starts], ordered[ends - 1])

    def quantile(self, counts: Array, share: float) -> Array:
        """The quantile of each line of ``counts``, the rows per bin, which are taken as evenly spread within a bin."""
        below = np.cumsum(counts, axis=1)
        place = share * (below[:, -1] - 1)
        cell = np.argmax(below > place[:, None], axis=1)
        line = np.arange(len(counts))
        depth = (place - below[line, cell] + counts[line, cell]) / np.maximum(counts[line, cell] - 1, 1)
        found: Array = self.left[cell] + np.minimum(depth, 1) * (self.top[cell] - self.left[cell])
        return found


def _noise(ordered: Array, rows: Array, moved: Array) -> tuple[chance.Noise, Array]:
    """The area under chance for a run of middling length, and the scale of each run, which goes by the root of its rows."""
    gaps = np.diff(ordered)
    ranks = np.flatnonzero(gaps) + 1
    typical = int(np.clip(np.mean(moved), 1, len(ordered) - 1))
    usual = chance.of_area(gaps[ranks - 1], ranks, len(ordered) - typical, typical)
    scaling: Array = np.sqrt((1 / rows + 1 / moved) / (1 / typical + 1 / (len(ordered) - typical)))
    return usual, scaling


def _units(ordered: Array, segment: Array, bins: _Bins, outside: Array, runs: _Runs) -> Array:
    """The spread of the rows outside of each run, as `pipeline.effects.wasserstein` has it."""
    apart = bins.quantile(outside, 0.75) - bins.quantile(outside, 0.25)
    cell = np.zeros(len(ordered), np.intp)
    centred = ordered - np.mean(ordered)
    rows = outside.sum(axis=1)
    sums, squares = (runs.sums(segment, cell, 1, weights)[1][:, 0] / rows for weights in (centred, centred**2))
    variance = squares - sums**2
    units = np.where(apart > 0, apart / IQR_OF_NORMAL, np.sqrt(np.maximum(variance, 0)))
    for run in np.flatnonzero((apart == 0) & (variance <= _ROUNDING * np.mean(centred**2))):
        is_inside = (segment >= runs.first[run]) & (segment < runs.last[run])
        constant = ordered[~is_inside]
        units[run] = spread(constant) or math.sqrt(np.mean(np.square(ordered[is_inside] - constant[0])))
    return units
