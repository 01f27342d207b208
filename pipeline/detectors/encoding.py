"""Columns as codes: categories counted over both sides, joined for a chi-squared test, or ready for a classifier.

Pure functions of values; no code depends on the order of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.effects import Array, Kind, present

Codes = npt.NDArray[np.intp]

# Cochran's rule: below five expected rows in a cell the chi-squared approximation reports chance as significance.
_MIN_EXPECTED = 5
# alibi-detect compares every row with every code; this bounds its time and costs no power that matters.
_MAX_CODES = 1000
_MIN_CODES = 2
# As many values of a number as a tree can tell apart, and the categories that are not put together.
_LEVELS = 128
_CATEGORIES = 200


@dataclass(frozen=True, slots=True)
class Categories:
    """The rows of both sides as codes, from the most to the least frequent category; equally frequent ones by name.

    ``missing`` is the code of rows without a category, -1 when there are none; ``rows`` the number of rows per code.
    """

    codes: Codes
    missing: int
    rows: Codes

    @classmethod
    def of(cls, reference: Array, current: Array) -> Categories:
        """Both sides put together, the reference first."""
        encoded = _text(np.concatenate([reference, current])).dictionary_encode(null_encoding="encode")
        codes, names = encoded.indices.to_numpy(), encoded.dictionary
        rows = np.bincount(codes, minlength=len(names))
        keys = pa.table({"rows": rows, "name": names.fill_null(b"None"), "missing": names.is_null()})
        order = pc.sort_indices(
            keys, sort_keys=[("rows", "descending"), ("name", "ascending"), ("missing", "ascending")]
        )
        order = order.to_numpy()
        place = np.empty(len(names), dtype=np.intp)
        place[order] = np.arange(len(names))
        missing = place[names.is_null().to_numpy(zero_copy_only=False)]
        return cls(place[codes], int(missing[0]) if len(missing) else -1, rows[order])

    def sides(self, reference: int) -> tuple[Codes, Codes]:
        """The codes of the first ``reference`` rows, and of the others."""
        return self.codes[:reference], self.codes[reference:]


def pooled(reference: Codes, current: Codes) -> tuple[Array, Array]:
    """Both sides as codes fit for a chi-squared test: every code occurs, and nearly always often enough.

    From the most to the least frequent, categories are put together until five rows of the code are expected in the
    smaller side; a frequent one stays alone. Only the counts of both sides together decide, so that the codes of equal
    distributions are equally distributed, and values that the reference does not have are counted like all others.
    What is left over stays apart when a side shows it clearly (all rows have a new value), else joins the last code.
    """
    small = min(reference, current, key=len)
    reached = np.cumsum(np.bincount(np.concatenate([reference, current])))
    needed = math.ceil(int(reached[-1]) * max(_MIN_EXPECTED / len(small), 1 / _MAX_CODES))
    ends: list[int] = []
    rows = 0
    while (end := int(np.searchsorted(reached, rows + needed))) < len(reached):
        ends.append(end + 1)
        rows = int(reached[end])
    if len(ends) >= _MIN_CODES and np.count_nonzero(small >= ends[-1]) < _MIN_EXPECTED:
        ends.pop()
    # The fewer bytes a code has, the less time alibi-detect takes to compare it.
    code = np.searchsorted(ends, np.arange(len(reached)), side="right").astype(np.int16)
    return code[reference], code[current]


def as_numbers(reference: Array, current: Array, kind: Kind) -> Array:
    """A column of both sides as floats: numbers with NaN where missing, categories as codes, missing being one."""
    if kind == "number":
        values = np.concatenate([reference, current]).astype(np.float64)
        # Adding 0.0 makes -0.0 equal to 0.0 in every bit.
        return np.where(np.isfinite(values), values + 0.0, np.nan)
    found = Categories.of(reference, current)
    is_missing = found.codes == found.missing
    names = found.codes - (found.codes > found.missing) if found.missing >= 0 else found.codes
    return np.where(is_missing, _CATEGORIES + 1, np.minimum(names, _CATEGORIES)).astype(np.float64)


def levels(values: Array) -> Array:
    """Numbers as the position among 128 quantiles: no unit, no outlier and no overflow; NaN stays."""
    ordered = np.sort(values[np.isfinite(values)])
    if not len(ordered):
        return values
    edges = np.unique(ordered[np.arange(1, _LEVELS) * len(ordered) // _LEVELS])
    return np.where(np.isnan(values), np.nan, np.searchsorted(edges, values, side="right"))


def _text(values: Array) -> pa.Array:
    """Text as bytes, null for whatever counts as missing."""
    try:
        return pa.array(values, type=pa.large_string(), from_pandas=True).cast(pa.large_binary())
    except (TypeError, ValueError):
        # Not text, or text that UTF-8 cannot write.
        held = present(values, "category")
        texts = (str(value).encode("utf-8", "surrogatepass") for value in values[held])
        written = np.full(len(values), None, dtype=object)
        written[held] = list(texts)
        return pa.array(written, type=pa.large_binary())
