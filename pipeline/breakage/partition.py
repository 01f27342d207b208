"""Faults of a whole partition: too few or too many rows, or rows that came before; and sketches to tell these by.

Pure functions of counts and hashes; must not look into columns.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pipeline.breakage.contents import is_sure
from pipeline.verdicts import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_FEW_ROWS = 10
# Fewer comparable intervals do not show what is usual.
_MIN_INTERVALS = 4
# Half the usual rows or nearly twice as many, and outside of what was ever seen.
_TRUNCATED = 0.5
_BELOW_SMALLEST = 0.8
_SURPLUS = 1.9
# Three deviations of the logarithms (robust ones: median absolute deviation, 0.6745 of a normal distribution's), and of the
# noise of counting.
_DEVIATIONS = 3.0
_MAD_OF_NORMAL = 0.6745

_SKETCH_SIZE = 256
_SAME_PARTITION = 0.9
# Two independent partitions of n rows out of K equally frequent combinations have p / (2 - p) of their distinct rows in
# common, p = 1 - exp(-n / K): 0.9 by nature takes fewer distinct rows than a third of the rows. Unequal ones take fewer still.
_NATURAL_DISTINCT = 1 / 3
# A quarter of the rows delivered twice makes a fifth of the rows repetitions.
_REPEATED = 0.2


def sketch(hashes: NDArray[np.uint64], earlier: tuple[int, ...] = (), size: int = _SKETCH_SIZE) -> tuple[int, ...]:
    """The ``size`` smallest distinct values of ``hashes`` and of the sketch ``earlier``, ascending.

    Built up batch by batch, in any order, it is that of all rows together: a bottom-k sketch (Cohen and Kaplan 2007,
    Summarizing data using bottom-k sketches).
    """
    hashes = np.asarray(hashes, dtype=np.uint64)
    if len(earlier) >= size:
        hashes = hashes[hashes < np.uint64(earlier[size - 1])]
    merged = np.unique(np.concatenate([np.array(earlier, dtype=np.uint64), hashes]))
    return tuple(int(value) for value in merged[:size])


def similarity(a: tuple[int, ...], b: tuple[int, ...], size: int = _SKETCH_SIZE) -> float:
    """The Jaccard similarity of the sets behind two sketches of ``size``, in [0, 1]; 0 when one is empty.

    Exact for sets smaller than ``size``, otherwise an estimate with a standard error of at most ``0.5 / sqrt(size)``.
    """
    if not a or not b:
        return 0.0
    # What a set holds beyond the largest hash of its full sketch is unknown.
    known = min((side[-1] for side in (a, b) if len(side) >= size), default=max(a[-1], b[-1]))
    left, right = ({value for value in side if value <= known} for side in (a, b))
    return len(left & right) / len(left | right)


def volume(rows: int, usual_rows: Sequence[int]) -> Iterator[Fault]:
    """Whether an interval of ``rows`` rows is truncated or has a surplus, if there are comparable ones to tell it by."""
    if len(usual_rows) < _MIN_INTERVALS:
        return
    usual = np.asarray(usual_rows, dtype=np.float64)
    median, smallest, largest = float(np.median(usual)), int(usual.min()), int(usual.max())
    if not _is_unusual(rows, median, usual):
        return
    detail = f"{rows} rows; {len(usual)} comparable intervals had {smallest} to {largest}, their median is {median:g}"
    if rows < min(_TRUNCATED * median, _BELOW_SMALLEST * smallest):
        yield Fault(kind="truncated", column=None, detail=detail)
    elif rows >= _SURPLUS * median and rows > largest:
        yield Fault(kind="surplus", column=None, detail=detail)


def against_history(
    rows: int, usual_rows: Sequence[int], own: tuple[int, ...], earlier: Mapping[str, tuple[int, ...]]
) -> Iterator[Fault]:
    """The faults of an interval that only other intervals can tell: its `volume`, and rows that were `repeated`."""
    yield from volume(rows, usual_rows)
    yield from repeated(rows, own, earlier)


def _is_unusual(rows: int, median: float, usual: NDArray[np.float64]) -> bool:
    """Whether neither the spread of the usual intervals nor the noise of counting explains the number of rows."""
    logs = np.log1p(usual)
    middle = float(np.median(logs))
    spread = float(np.median(np.abs(logs - middle))) / _MAD_OF_NORMAL
    is_far = abs(math.log1p(rows) - middle) > _DEVIATIONS * spread
    return is_far and abs(rows - median) > _DEVIATIONS * math.sqrt(max(median, 1.0))


def repeated(rows: int, own: tuple[int, ...], earlier: Mapping[str, tuple[int, ...]]) -> Iterator[Fault]:
    """Whether the interval repeats an earlier one, though its rows are too diverse for that to happen by nature."""
    distinct = len(own) if len(own) < _SKETCH_SIZE else (_SKETCH_SIZE - 1) / (own[_SKETCH_SIZE - 1] / 2**64)
    if len(own) < _FEW_ROWS or distinct < _NATURAL_DISTINCT * rows:
        return
    alike, start = max(((similarity(own, other), start) for start, other in earlier.items()), default=(0.0, ""))
    if alike >= _SAME_PARTITION:
        detail = f"{alike:.0%} of its distinct feature rows are those of the interval from {start}; few are usual"
        yield Fault(kind="duplicated", column=None, detail=detail)


def repeated_within(rows: int, share: float, usual: float) -> Iterator[Fault]:
    """Whether ``share`` of ``rows`` rows repeating another one is far above what is usual for as many rows."""
    if rows >= _FEW_ROWS and share - usual >= _REPEATED and is_sure(share, usual, rows, rows):
        detail = (
            f"{share:.1%} of {rows} rows repeat another row of the interval in every feature; {usual:.1%} are usual"
        )
        yield Fault(kind="duplicated", column=None, detail=detail)
