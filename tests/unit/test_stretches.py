"""What variation is natural to a column: runs of intervals against the rest of the training period."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.effects import sizes
from pipeline.stretches import stretch_effects


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def texts(*values: str | None) -> np.ndarray:
    return np.array(values, dtype=object)


def many(rng: np.random.Generator, rows: int) -> np.ndarray:
    weights = 1 / np.arange(1, 2001)
    return np.array([f"c{k}" for k in range(2000)], dtype=object)[rng.choice(2000, rows, p=weights / weights.sum())]


def kind_of(values: np.ndarray) -> Any:
    return "category" if values.dtype == object else "number"


def corrected(values: np.ndarray, inside: np.ndarray) -> float:
    found = sizes(values[~inside], values[inside], kind_of(values))
    assert found is not None
    return found.effect.corrected


def test_the_effect_of_a_run_is_that_of_its_rows_against_all_others(rng: np.random.Generator) -> None:
    stretch = rng.integers(0, 20, 6000)
    shift = np.where(stretch < 10, stretch, 0) * 0.1
    sample = {
        "normal": rng.normal(shift, 1),
        "skewed": rng.lognormal(shift, 1.5),
        "heavy": rng.standard_t(2, 6000) + shift,
        "counts": rng.poisson(1 + shift).astype(float),
        "zeros": np.where(rng.random(6000) < 0.9, 0.0, rng.exponential(size=6000)) + (rng.random(6000) < shift / 10),
        "constant": np.where(stretch == 3, 7.0, 5.0),
        "few": np.where(rng.random(6000) < shift, texts("z"), rng.choice(texts("a", "b", None), 6000)),
        "many": many(rng, 6000),
    }
    got = stretch_effects(sample, {name: kind_of(v) for name, v in sample.items()}, stretch, window=2, min_rows=50)
    assert set(got) == set(sample)
    for name, values in sample.items():
        runs = [(stretch == first) | (stretch == first + 1) for first in range(19)]
        assert got[name].effects == pytest.approx(
            [corrected(values, inside) for inside in runs], rel=0.02, abs=0.006
        ), name


def test_distinct_interval_indices_count_as_consecutive_whatever_their_values_and_order(
    rng: np.random.Generator,
) -> None:
    stretch, order = np.repeat(np.arange(6), 100), rng.permutation(600)
    for values in (rng.normal(size=600), rng.poisson(1, 600) * 1.0, many(rng, 600)):
        plain = stretch_effects({"x": values}, {"x": kind_of(values)}, stretch, 2, 50)
        shuffled = stretch_effects({"x": values[order]}, {"x": kind_of(values)}, (stretch * 7 - 30)[order], 2, 50)
        assert plain["x"].effects == pytest.approx(shuffled["x"].effects, rel=1e-12)
        assert len(plain["x"].effects) == 5


def test_natural_variation_is_unknown_with_fewer_than_four_runs(rng: np.random.Generator) -> None:
    sample = {"x": rng.normal(size=500)}
    stretch = np.repeat(np.arange(5), 100)
    assert stretch_effects(sample, {"x": "number"}, stretch, window=3, min_rows=10) == {}
    assert stretch_effects(sample, {"x": "number"}, stretch, window=1, min_rows=101) == {}
    assert stretch_effects(sample, {"x": "number"}, stretch, window=9, min_rows=1) == {}
    assert stretch_effects({"x": numbers()}, {"x": "number"}, np.array([], dtype=int), window=1, min_rows=1) == {}
    assert set(stretch_effects(sample, {"x": "number"}, stretch, window=2, min_rows=10)) == {"x"}


def test_a_column_without_enough_values_has_no_natural_variation(rng: np.random.Generator) -> None:
    stretch = np.repeat(np.arange(5), 100)
    sample = {"full": rng.normal(size=500), "empty": np.full(500, np.nan), "half": np.where(stretch < 3, 1.0, np.nan)}
    got = stretch_effects(sample, dict.fromkeys(sample, "number"), stretch, window=1, min_rows=50)  # type: ignore[arg-type]
    assert set(got) == {"full"}


def test_what_chance_leaves_of_the_effects_is_told(rng: np.random.Generator) -> None:
    stretch = np.repeat(np.arange(150), 400)
    weights = 1 / np.arange(1, 31)
    sample = {
        "number": rng.normal(size=60_000),
        "skewed": rng.lognormal(size=60_000),
        "category": rng.choice(texts(*"abcdefghijklmnopqrstuvwxyz0123"), 60_000, p=weights / weights.sum()),
    }
    for name, found in stretch_effects(
        sample, {name: kind_of(v) for name, v in sample.items()}, stretch, window=1, min_rows=50
    ).items():
        assert np.mean(found.by_chance) == pytest.approx(np.mean(found.effects**2), rel=0.5), name
