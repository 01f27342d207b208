"""Aggregates of a column in pieces are those of the column in one piece, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import pipeline.aggregates
from pipeline.aggregates import INTERPOLATIONS, Numbers, ValueCounts

SHARES = [0, 0.1, 0.25, 0.5, 0.77, 1]


class Memory:
    """A roll of bytes."""

    def __init__(self) -> None:
        self.content = bytearray()

    def append(self, data: memoryview) -> int:
        self.content += data
        return len(self.content) - len(data)

    def read(self, start: int, size: int) -> bytes:
        return bytes(self.content[start : start + size])


def kept(values: np.ndarray[Any, Any], at_once: int) -> Numbers:
    numbers = Numbers(Memory)
    for start in range(0, len(values), at_once):
        numbers.add(values[start : start + at_once])
    return numbers


def column(rng: np.random.Generator, rows: int, kind: str, holes: float) -> np.ndarray[Any, Any]:
    values = (rng.normal(size=rows) * 1e3).astype(kind)
    values[rng.random(rows) < holes] = np.nan
    return values


@pytest.mark.parametrize("rows", [1, 2, 7, 1000, 8193, 131_072, 700_001])
@pytest.mark.parametrize(("kind", "holes"), [("f8", 0.0), ("f8", 0.1), ("f4", 0.0), ("f4", 0.1)])
def test_moments_are_those_of_pandas(rng: np.random.Generator, rows: int, kind: str, holes: float) -> None:
    values = column(rng, rows, kind, holes)
    numbers, series = kept(values, 100_001), pd.Series(values)
    found = [numbers.sum(), numbers.mean(), numbers.deviation(), numbers.median()]
    np.testing.assert_array_equal(found, [series.sum(), series.mean(), series.std(), series.median()])


@pytest.mark.parametrize("rows", [1, 2, 3, 1000, 300_001])
@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_quantiles_are_those_of_pandas(rng: np.random.Generator, rows: int, method: Any) -> None:
    values = column(rng, rows, "f8", 0.1)
    expected = pd.Series(values).quantile(SHARES, interpolation=method).tolist()
    np.testing.assert_array_equal(kept(values, 70_001).quantiles(SHARES, method), expected)


def test_infinities_and_signs_are_ordered() -> None:
    values = np.array([np.inf, -1.0, np.nan, -np.inf, 0.5, -0.25])
    assert kept(values, 2).ordered(range(5)) == [-np.inf, -1.0, -0.25, 0.5, np.inf]


def test_nothing_has_no_moments() -> None:
    numbers = kept(np.array([np.nan, np.nan]), 1)
    assert (len(numbers), numbers.present, numbers.sum()) == (2, 0, 0.0)
    assert np.isnan([numbers.mean(), numbers.deviation(), numbers.median(), *numbers.quantiles([0.5], "linear")]).all()


def named(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas().fillna({"text": "missing"})


@pytest.mark.parametrize("held", [1, 1 << 30])
def test_values_are_counted_exactly_in_memory_and_beyond(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(pipeline.aggregates, "_HELD_BYTES", held)
    monkeypatch.setattr(pipeline.aggregates, "_LEAST_MERGED", 100)
    text = pa.array([f"é{value}" if value else None for value in rng.integers(0, 400, 5000)])
    number = pa.array(rng.integers(-2, 3, 5000).astype(float) * rng.choice([0.0, 1.0, np.nan], 5000))
    table = pa.table({"text": text, "number": number})
    counts = ValueCounts(Memory)
    for start in range(0, 5000, 300):
        counts.add(table.slice(start, 300))
    parts = list(counts.groups())
    assert (len(parts) > 1) == (held == 1)
    found = pd.concat([named(part).assign(rows=rows) for part, rows in parts])
    expected = named(table).groupby(["text", "number"], dropna=False).size().reset_index(name="rows")
    names = ["text", "number"]
    pd.testing.assert_frame_equal(
        found.sort_values(names).reset_index(drop=True), expected.sort_values(names).reset_index(drop=True)
    )
