"""Both backends keep the promises of `Detector`, and give the same p-values."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.detectors import detector
from pipeline.errors import TerminalError

# p-values are rounded to single precision.
ROUNDING = 1e-7


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def texts(*values: str | None) -> np.ndarray:
    return np.array(values, dtype=object)


@pytest.fixture(scope="module", params=["scipy", "alibi"])
def p_value(request: pytest.FixtureRequest) -> Any:
    """The p-value of one column by one backend; the kind follows from the dtype."""
    backend = detector(request.param)
    assert backend.name == request.param

    def of(reference: np.ndarray, current: np.ndarray) -> float | None:
        kind = "category" if reference.dtype == object else "number"
        return backend.p_values({"x": reference}, {"x": current}, {"x": kind})["x"]

    return of


def random_column(rng: np.random.Generator, size: int, kind: str, shift: float) -> np.ndarray:
    """Continuous, tied or heavy-tailed numbers, or categories from few to many, with missing values in most."""
    missing = rng.random(size) < rng.choice([0.0, 0.05, 0.4])
    if kind == "number":
        shape = rng.integers(3)
        values = [rng.normal(shift, 1, size), rng.poisson(2 + shift, size), rng.lognormal(shift, 3, size)][shape]
        values = values.astype(float)
        values[missing] = rng.choice([np.nan, np.inf, -np.inf], missing.sum())
        return values
    names = np.array([f"c{i}" for i in range(rng.choice([1, 2, 3, 12, 400]))], dtype=object)
    weights = 1 / np.arange(1, len(names) + 1)
    values = rng.choice(names, size, p=weights / weights.sum())
    if shift > 0.5:
        values[rng.random(size) < 0.2] = f"unseen{rng.integers(3)}"
    values[missing] = None
    return values


def hard_numbers(rng: np.random.Generator, size: int, shift: float) -> np.ndarray:
    """Few values, values far from 0 or far apart, or nearly all of them missing."""
    shape = rng.integers(4)
    if shape == 0:
        return rng.integers(0, rng.integers(1, 4), size) + np.floor(2 * shift)
    if shape == 1:
        return 1e15 + rng.integers(0, 50, size) + shift
    if shape == 2:
        return np.sign(rng.normal(shift, 1, size)) * 10.0 ** rng.integers(-300, 300, size)
    return np.where(rng.random(size) < 0.95, np.nan, rng.normal(shift, 1, size))


def test_both_backends_give_equal_p_values_in_random_cases(rng: np.random.Generator) -> None:
    scipy, alibi = detector("scipy"), detector("alibi")
    got = []
    for case in range(500):
        sizes = np.exp(rng.uniform(np.log(2), np.log(5001), size=2)).astype(int)
        shift, seed = float(rng.choice([0.0, 0.1, 1.0, 20.0])), int(rng.integers(2**32))
        kind = "category" if case % 3 == 0 else "number"
        column = hard_numbers if case % 3 == 1 else partial(random_column, kind=kind)
        reference, current = (
            {"x": column(np.random.default_rng([seed, side]), size, shift=side * shift)}
            for side, size in enumerate(sizes)
        )
        expected, found = (backend.p_values(reference, current, {"x": kind})["x"] for backend in (scipy, alibi))
        assert (expected is None) == (found is None), (case, sizes)
        if expected is not None and found is not None:
            assert found == pytest.approx(expected, abs=min(1e-9, expected * 1e-6)), (case, sizes)
            got.append(expected)
    assert len(got) >= 300
    assert sum(p < 1e-12 for p in got) >= 30
    assert sum(0.01 < p < 0.99 for p in got) >= 100


def test_numbers_get_the_asymptotic_two_sample_kolmogorov_smirnov_test(p_value: Any, rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=300), rng.normal(0.15, 1, size=170)
    gap = max(abs(np.mean(reference <= cut) - np.mean(current <= cut)) for cut in np.concatenate([reference, current]))
    expected = stats.kstwo.sf(gap, round(300 * 170 / 470))
    assert p_value(reference, current) == pytest.approx(expected, abs=ROUNDING)


def test_categories_get_the_chi_squared_test_of_homogeneity(p_value: Any) -> None:
    reference = np.repeat(texts("a", "b", "c"), [50, 30, 20])
    current = np.repeat(texts("c", "a", "b"), [30, 35, 35])
    pooled = np.array([85, 65, 50]) / 200
    statistic = sum(
        ((np.array(side) - 100 * pooled) ** 2 / (100 * pooled)).sum() for side in ([50, 30, 20], [35, 35, 30])
    )
    assert p_value(reference, current) == pytest.approx(stats.chi2.sf(statistic, 2), abs=ROUNDING)


def test_values_that_differ_in_the_last_digits_of_a_double_are_no_ties(p_value: Any) -> None:
    reference = 1.0 + np.arange(100) * 1e-12
    assert p_value(reference, reference + 1e-10) < 1e-20


def test_missing_numbers_and_infinities_are_left_out_of_the_test(p_value: Any, rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=200), rng.normal(0.2, 1, size=200)
    holes = numbers(np.nan, np.inf, -np.inf)
    assert p_value(np.append(reference, holes), np.append(current, holes)) == p_value(reference, current)


def test_a_missing_category_is_a_category_of_its_own(p_value: Any) -> None:
    reference = np.repeat(texts("a", "b"), [100, 100])
    assert p_value(reference, np.repeat(texts("a", "b", None), [70, 70, 60])) < 1e-10


def test_not_a_number_among_categories_counts_as_missing(p_value: Any) -> None:
    reference = np.repeat(texts("a", "b", None), [100, 100, 40])
    odd = np.repeat(np.array(["a", "b", float("nan")], dtype=object), [90, 110, 40])
    assert p_value(reference, odd) == p_value(reference, np.repeat(texts("a", "b", None), [90, 110, 40]))


def test_an_unseen_category_is_evidence_and_not_an_error(p_value: Any) -> None:
    reference = np.repeat(texts("a", "b"), [500, 500])
    assert p_value(reference, np.repeat(texts("a", "b", "new"), [70, 70, 60])) < 1e-10


def test_a_constant_that_became_another_constant_is_evidence_however_small_the_window(p_value: Any) -> None:
    assert p_value(np.repeat(texts("a"), 20_000), np.repeat(texts("b"), 200)) < 1e-10


def test_renaming_every_one_of_many_rare_categories_is_evidence(p_value: Any, rng: np.random.Generator) -> None:
    names = np.array([f"c{i}" for i in range(300)], dtype=object)
    renamed = np.array([name.upper() for name in names], dtype=object)
    assert p_value(rng.choice(names, 20_000), rng.choice(renamed, 200)) < 1e-10


def test_a_single_odd_row_is_no_evidence(p_value: Any) -> None:
    reference = np.repeat(texts("a", "b", "c"), [10_000, 6_000, 4_000])
    current = np.repeat(texts("a", "b", "c", "typo"), [100, 60, 39, 1])
    assert p_value(reference, current) > 0.9


def test_many_rare_categories_do_not_make_chance_look_significant(rng: np.random.Generator) -> None:
    weights = 1 / np.arange(1, 1001) ** 1.2
    names = np.array([f"c{i}" for i in range(1000)], dtype=object)
    backend = detector("scipy")
    p_values = [
        backend.p_values(
            {"x": rng.choice(names, 5000, p=weights / weights.sum())},
            {"x": rng.choice(names, 200, p=weights / weights.sum())},
            {"x": "category"},
        )["x"]
        for _ in range(300)
    ]
    # The plain test on all categories calls a fifth of such windows significant at 0.001.
    assert np.mean(np.array(p_values, dtype=float) < 0.001) <= 0.01
    assert np.mean(np.array(p_values, dtype=float) < 0.05) <= 0.10


@pytest.mark.parametrize(
    ("reference", "current"),
    [
        (numbers(1, 2, 3), numbers()),
        (numbers(), numbers(1, 2, 3)),
        (numbers(), numbers()),
        (numbers(1, 2, 3), numbers(1)),
        (numbers(1, 2, 3), numbers(1, np.nan, np.inf)),
        (numbers(np.nan, np.nan), numbers(np.nan, np.nan)),
        (texts("a", "b", "a"), texts()),
        (texts(), texts("a", "b")),
        (texts("a", "b", "a"), texts("a")),
        (texts("a", "b", "a"), texts(None, None, None)),
        (texts(None, None), texts(None, None)),
        (texts("a", "b", "c"), texts("a", "b", "d")),
    ],
)
def test_there_is_no_p_value_where_no_test_is_possible(
    p_value: Any, reference: np.ndarray, current: np.ndarray
) -> None:
    assert p_value(reference, current) is None


@pytest.mark.parametrize(
    ("reference", "current"),
    [
        (numbers(7, 7, 7), numbers(7, 7)),
        (numbers(0.0, -0.0), numbers(0.0, 0.0)),
        (texts("a", "a", "a"), texts("a", "a")),
    ],
)
def test_one_value_on_both_sides_is_perfect_agreement(p_value: Any, reference: np.ndarray, current: np.ndarray) -> None:
    assert p_value(reference, current) == 1.0


def test_identical_samples_agree_perfectly(p_value: Any, rng: np.random.Generator) -> None:
    assert p_value(*[rng.normal(size=500)] * 2) == pytest.approx(1.0)
    assert p_value(*[rng.choice(texts("a", "b", "c"), 500)] * 2) == pytest.approx(1.0)


def test_the_order_of_rows_changes_nothing(p_value: Any, rng: np.random.Generator) -> None:
    for kind in ("number", "category"):
        reference, current = random_column(rng, 900, kind, 0.0), random_column(rng, 300, kind, 0.2)
        before = p_value(reference, current)
        assert p_value(rng.permutation(reference), rng.permutation(current)) == before


def test_the_samples_are_not_changed_and_no_call_leaks_into_the_next(p_value: Any, rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=100), rng.normal(3, 1, size=100)
    kept = reference.copy()
    first = p_value(reference, current)
    assert p_value(reference, current) == first
    assert np.array_equal(reference, kept)


def test_columns_that_miss_values_in_different_rows_are_tested_side_by_side() -> None:
    reference = {"a": numbers(1, 2, 3, np.nan, 5), "b": texts("x", None, "x", "x", "x")}
    current = {"a": numbers(np.nan, 2, 3), "b": texts("x", "x", "x")}
    for name in ("scipy", "alibi"):
        got = detector(name).p_values(reference, current, {"a": "number", "b": "category"})  # type: ignore[arg-type]
        assert list(got) == ["a", "b"]


@pytest.mark.parametrize("name", ["scipy", "alibi"])
def test_a_high_cardinality_column_is_tested_in_bounded_time(name: Any, rng: np.random.Generator) -> None:
    ids = np.array([f"id{i}" for i in range(150_000)], dtype=object)
    began = time.process_time()
    got = detector(name).p_values({"id": rng.permutation(ids)}, {"id": rng.permutation(ids)}, {"id": "category"})
    assert got["id"] == pytest.approx(1.0)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", ["scipy", "alibi"])
def test_fifty_thousand_rows_a_side_are_tested_within_milliseconds(name: Any, rng: np.random.Generator) -> None:
    names = np.array([f"c{i}" for i in range(50)], dtype=object)
    kinds: Any = {"n": "number", "c": "category"}
    sides = [{"n": rng.normal(size=50_000), "c": rng.choice(names, 50_000)} for _ in range(2)]
    backend, took = detector(name), []
    for _ in range(5):
        began = time.process_time()
        backend.p_values(*sides, kinds)
        took.append(time.process_time() - began)
    # About 15 ms on an idle core; comparing text value by value takes 150.
    assert min(took) < 0.08


def test_alibi_says_nothing_on_stdout_or_stderr() -> None:
    quiet = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    code = (
        "import numpy as np; from pipeline.detectors import detector; alibi = detector('alibi'); "
        "sides = {'x': np.arange(9.)}, {'x': np.arange(9.)}; print(alibi.p_values(*sides, {'x': 'number'})); "
        "sides = {'x': np.arange(999.)}, {'x': np.arange(333.)}; "
        "print(alibi.separation(*sides, {'x': 'number'}, rows=4000, seed=0).rows)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=quiet)
    assert done.stdout == "{'x': 1.0}\n333\n"
    assert done.stderr == ""


def test_scipy_works_and_alibi_names_the_way_out_where_alibi_detect_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "alibi_detect", None)
    monkeypatch.setitem(sys.modules, "alibi_detect.cd", None)
    assert detector("scipy").p_values({"x": numbers(1, 1)}, {"x": numbers(1, 1)}, {"x": "number"}) == {"x": 1.0}
    with pytest.raises(TerminalError, match=r"'alibi' cannot be loaded.*set drift\.detector: scipy"):
        detector("alibi")
