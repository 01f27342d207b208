"""The classifier that looks at all columns together finds what no column shows alone, and only that."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from pipeline.detectors import detector


def correlated(seed: int, correlation: float, rows: int = 1000) -> dict[str, np.ndarray]:
    """Ten columns of normal numbers, of which the fourth goes along with the eighth."""
    values = np.random.default_rng(seed).normal(size=(rows, 10))
    values[:, 7] = correlation * values[:, 3] + np.sqrt(1 - correlation**2) * values[:, 7]
    return {f"x{i}": values[:, i] for i in range(10)}


NUMBERS: Any = {f"x{i}": "number" for i in range(10)}


def test_a_correlation_that_changed_its_sign_is_found_and_both_its_columns_are_named() -> None:
    for seed in range(20):
        reference, current = correlated(2 * seed, 0.8), correlated(2 * seed + 1, -0.8)
        found = detector("scipy").separation(reference, current, NUMBERS, rows=4000, seed=seed)
        assert found is not None
        assert found.p_value < 0.001
        assert found.auc > 0.75
        assert {name for name, _ in found.ranked} == {"x3", "x7"}
        assert found.rows == 1000


def test_equally_distributed_rows_are_rarely_told_apart() -> None:
    found = [
        detector("scipy").separation(correlated(s, 0.8), correlated(1000 + s, 0.8), NUMBERS, rows=4000, seed=s)
        for s in range(40)
    ]
    p_values = np.array([result.p_value for result in found if result is not None])
    assert len(p_values) == 40
    assert np.count_nonzero(p_values < 0.01) <= 2
    assert all(result is not None and result.auc < 0.56 for result in found)
    assert all(result is not None and (result.p_value < 0.05 or result.ranked == ()) for result in found)


def mixed(rng: np.random.Generator, size: int, shift: float) -> dict[str, np.ndarray]:
    """Numbers and categories with and without ties and missing values, of which one of each moves by ``shift``."""
    number = rng.normal(shift, 1, size)
    ties = rng.integers(0, 3, size).astype(float)
    ties[rng.random(size) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
    few = np.array(["a", "b", "c", None], dtype=object)[rng.integers(0, 4, size)]
    few[rng.random(size) < shift / 4] = "new"
    names = np.array([f"id{i}" for i in rng.integers(0, 10_000, size)], dtype=object)
    return {"number": number, "ties": ties, "far": number * 1e306, "few": few, "id": names}


MIXED: Any = {"number": "number", "ties": "number", "far": "number", "few": "category", "id": "category"}


def test_both_backends_tell_the_sides_apart_equally_well(rng: np.random.Generator) -> None:
    scipy, alibi = detector("scipy"), detector("alibi")
    significant = 0
    for seed in range(12):
        sizes = rng.integers(100, 900, size=2)
        sides = [mixed(rng, int(size), side * float(rng.choice([0.0, 0.5]))) for side, size in enumerate(sizes)]
        expected, got = (backend.separation(*sides, MIXED, rows=600, seed=seed) for backend in (scipy, alibi))
        assert expected is not None
        assert got is not None
        assert got.p_value == pytest.approx(expected.p_value, abs=min(1e-9, expected.p_value * 1e-6))
        assert got.auc == pytest.approx(expected.auc, abs=1e-9)
        assert dict(got.ranked) == pytest.approx(dict(expected.ranked), abs=1e-9)
        assert got.rows == expected.rows
        significant += expected.ranked != ()
    assert 3 <= significant < 12


def test_the_order_of_rows_does_not_change_the_separation(rng: np.random.Generator) -> None:
    sides = [mixed(rng, 700, 0.0), mixed(rng, 500, 1.0)]
    orders = [rng.permutation(700), rng.permutation(500)]
    shuffled = [
        {name: values[order] for name, values in side.items()} for side, order in zip(sides, orders, strict=True)
    ]
    found = [detector("scipy").separation(*rows, MIXED, rows=300, seed=3) for rows in (sides, shuffled)]
    assert found[0] == found[1]
    assert found[0] is not None


def test_the_larger_side_is_cut_to_three_rows_for_each_of_the_smaller_side() -> None:
    many, few = correlated(1, 0.8, rows=5000), correlated(2, 0.8, rows=110)
    for sides in ((many, few), (few, many)):
        found = detector("scipy").separation(*sides, NUMBERS, rows=4000, seed=0)
        assert found is not None
        assert found.rows == 110
    found = detector("scipy").separation(many, many, NUMBERS, rows=200, seed=0)
    assert found is not None
    assert found.rows == 200


@pytest.mark.parametrize("name", ["scipy", "alibi"])
def test_there_is_no_separation_of_too_few_rows_or_of_nothing_that_varies(name: Any) -> None:
    rows, none = correlated(1, 0.8, rows=200), {name: values[:0] for name, values in correlated(1, 0.8).items()}
    fewer = {name: values[:99] for name, values in rows.items()}
    backend = detector(name)
    for sides in ((rows, fewer), (fewer, rows), (none, none), (rows, none)):
        assert backend.separation(*sides, NUMBERS, rows=4000, seed=0) is None
    assert backend.separation(rows, rows, NUMBERS, rows=99, seed=0) is None
    assert backend.separation(rows, rows, {}, rows=4000, seed=0) is None
    constant: Any = {"n": np.ones(200), "empty": np.full(200, np.nan), "c": np.full(200, "a", dtype=object)}
    kinds: Any = {"n": "number", "empty": "number", "c": "category"}
    assert backend.separation(constant, constant, kinds, rows=4000, seed=0) is None


def repeated(*categories: str | None) -> np.ndarray:
    return np.repeat(np.array(categories, dtype=object), 300 // len(categories))


NOTHING = np.full(300, np.nan)
FULL = np.arange(300.0)


@pytest.mark.parametrize(
    ("reference", "current"),
    [
        (FULL, NOTHING),
        (NOTHING, np.ones(300)),
        (FULL, np.where(FULL < 150, np.inf, -np.inf)),
        (np.full(300, 1e308), np.full(300, -1e308)),
        (repeated("a", None), repeated(None)),
        (repeated("a"), repeated("b")),
        (np.array([f"id{i}" for i in range(300)], dtype=object), repeated("\udcff")),
    ],
)
@pytest.mark.parametrize("name", ["scipy", "alibi"])
def test_a_column_that_broke_is_told_apart(name: Any, reference: np.ndarray, current: np.ndarray) -> None:
    kinds: Any = {"x": "category" if reference.dtype == object else "number"}
    found = detector(name).separation({"x": reference}, {"x": current}, kinds, rows=4000, seed=0)
    assert found is not None
    assert found.p_value < 1e-10
    assert found.auc > 0.7
    assert found.ranked[0] == ("x", pytest.approx(found.auc - 0.5, abs=0.1))


def test_rows_that_both_sides_share_are_not_told_apart() -> None:
    rows = correlated(1, 0.8)
    found = detector("scipy").separation(rows, rows, NUMBERS, rows=4000, seed=0)
    assert found is not None
    assert found.auc == 0.5
    assert found.p_value > 0.5


def test_four_thousand_rows_of_fifty_columns_are_compared_within_a_second(rng: np.random.Generator) -> None:
    reference, current = ({f"x{i}": rng.normal(size=4000) for i in range(50)} for _ in range(2))
    current["x9"] += 0.3
    kinds: Any = dict.fromkeys(reference, "number")
    took = []
    for _ in range(2):
        began = time.process_time()
        found = detector("scipy").separation(reference, current, kinds, rows=4000, seed=0)
        took.append(time.process_time() - began)
    assert found is not None
    assert found.ranked[0][0] == "x9"
    # 0.45 s on an idle core.
    assert min(took) < 1.5
