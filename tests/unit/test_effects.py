"""Effect sizes against known answers; what is left of them without drift, above the noise, and of odd samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from pipeline import chance
from pipeline.effects import (
    Size,
    Sizes,
    distribution,
    effect,
    jensen_shannon,
    present,
    psi,
    sizes,
    total_variation,
    wasserstein,
)

MEASURES = ("effect", "psi", "jensen_shannon")


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def texts(*values: str | None) -> np.ndarray:
    return np.array(values, dtype=object)


def normal(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.normal(size=rows)


def heavy(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.standard_t(2, rows)


def zeros(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.where(rng.random(rows) < 0.9, 0.0, rng.exponential(size=rows))


def counts(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.poisson(1, rows).astype(float)


def few(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.choice(texts("a", "b", "c", None), rows, p=[0.6, 0.3, 0.08, 0.02])


def many(rng: np.random.Generator, rows: int) -> np.ndarray:
    weights = 1 / np.arange(1, 2001)
    return np.array([f"c{k}" for k in range(2000)], dtype=object)[rng.choice(2000, rows, p=weights / weights.sum())]


def kind_of(values: np.ndarray) -> Any:
    return "category" if values.dtype == object else "number"


def measured(reference: np.ndarray, current: np.ndarray, seed: int = 0) -> Sizes:
    found = sizes(reference, current, kind_of(reference), seed=seed)
    assert found is not None
    return found


# Effect sizes


def test_identical_samples_have_no_effect(rng: np.random.Generator) -> None:
    values, categories = rng.normal(size=500), rng.choice(texts("a", "b", None), 500)
    assert wasserstein(values, rng.permutation(values)) == 0
    assert total_variation(categories, rng.permutation(categories)) == 0
    assert psi(values, values, "number") == 0
    assert psi(categories, categories, "category") == 0
    assert jensen_shannon(values, values, "number") == jensen_shannon(categories, categories, "category") == 0


def test_a_shift_by_one_standard_deviation_has_an_effect_of_about_one(rng: np.random.Generator) -> None:
    values = rng.normal(100, 7, 20_000)
    assert wasserstein(values, values + 7) == pytest.approx(1, abs=0.03)


def test_wasserstein_equals_the_distance_of_scipy_over_the_robust_scale(rng: np.random.Generator) -> None:
    for size in (1, 2, 17, 400):
        reference, current = rng.normal(5, 2, 300), rng.poisson(5, size).astype(float)
        scale = np.subtract(*np.percentile(reference, [75, 25])) / 1.349
        expected = stats.wasserstein_distance(reference, current) / scale
        assert wasserstein(reference, current) == pytest.approx(expected, rel=1e-9)


def test_wasserstein_does_not_depend_on_the_unit_and_ignores_an_outlier_in_its_scale(rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=999), rng.normal(0.3, 1, 800)
    assert wasserstein(reference * 1e6, current * 1e6) == pytest.approx(wasserstein(reference, current))
    with_outlier = np.append(reference, 1e6)
    assert wasserstein(with_outlier, np.append(current + 0.5, 1e6)) > 0.5


def test_the_scale_falls_back_to_the_standard_deviation_where_most_values_are_equal() -> None:
    reference = np.repeat([0.0, 10.0], [90, 10])
    current = np.repeat([0.0, 10.0], [60, 40])
    assert wasserstein(reference, current) == pytest.approx(3 / np.std(reference))


def test_leaving_a_constant_counts_the_same_in_every_unit() -> None:
    for unit in (1e-9, 1.0, 1e9):
        constant = np.full(100, 1000 * unit)
        assert wasserstein(constant, constant + unit) == pytest.approx(1)
        assert wasserstein(constant, np.append(constant[:99], 1001 * unit)) == pytest.approx(0.1)
        assert wasserstein(constant, constant) == 0


def test_values_that_are_missing_or_infinite_do_not_enter_a_distance(rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=300), rng.normal(1, 1, size=200)
    holes = numbers(np.nan, np.inf, -np.inf)
    for measure in (wasserstein, lambda r, c: psi(r, c, "number")):
        assert measure(np.append(reference, holes), np.append(current, holes)) == measure(reference, current)


def test_extreme_values_give_finite_effects() -> None:
    huge, tiny = numbers(-1.7e308, 0, 1.7e308, 1e308), numbers(5e-324, 0, 1e-323, 5e-324)
    for reference, current in ((huge, tiny), (tiny, huge), (huge, -huge[:2]), (tiny, tiny[:1])):
        assert math.isfinite(wasserstein(reference, current))
        assert math.isfinite(psi(reference, current, "number"))
    assert wasserstein(tiny, huge) > 0.5


def test_total_variation_is_the_share_of_rows_that_changed_category() -> None:
    reference = np.repeat(texts("a", "b"), [60, 40])
    assert total_variation(reference, np.repeat(texts("a", "b"), [45, 55])) == pytest.approx(0.15)
    assert total_variation(reference, np.repeat(texts("a", "b", "new"), [6, 4, 10])) == pytest.approx(0.5)
    assert total_variation(reference, np.repeat(texts("a", "b", None), [6, 4, 90])) == pytest.approx(0.9)


def test_disjoint_categories_have_an_effect_of_exactly_one() -> None:
    assert total_variation(texts("a", "b", "c"), texts("x", "y", None)) == 1


def test_not_a_number_and_none_are_the_same_missing_category() -> None:
    odd = np.array(["a", float("nan"), float("nan"), None], dtype=object)
    assert total_variation(odd, texts("a", None, None, None)) == 0


def test_psi_of_categories_equals_the_formula_with_half_a_row_added_to_every_category() -> None:
    reference, current = np.repeat(texts("a", "b"), [70, 30]), np.repeat(texts("a", None), [40, 60])
    expected, actual = np.array([70.5, 30.5, 0.5]) / 101.5, np.array([40.5, 0.5, 60.5]) / 101.5
    assert psi(reference, current, "category") == pytest.approx(((actual - expected) * np.log(actual / expected)).sum())


def test_psi_of_numbers_is_low_for_equal_and_high_for_moved_distributions(rng: np.random.Generator) -> None:
    reference = rng.normal(size=5000)
    assert psi(reference, rng.normal(size=5000), "number") < 0.01
    assert psi(reference, rng.normal(0.5, 1, 5000), "number") == pytest.approx(0.25, abs=0.05)


def test_psi_sees_a_constant_move_in_either_direction() -> None:
    constant = np.full(100, 3.0)
    assert psi(constant, constant, "number") == 0
    assert psi(constant, constant - 1, "number") > 1
    assert psi(constant, constant + 1, "number") > 1


@pytest.mark.parametrize("measure", [wasserstein, lambda r, c: psi(r, c, "number")])
@pytest.mark.parametrize("empty", [numbers(), numbers(np.nan, np.inf)])
def test_a_distance_is_refused_when_a_side_has_no_value(measure: Any, empty: np.ndarray) -> None:
    with pytest.raises(ValueError, match="nothing to compare: 0 values in the reference"):
        measure(empty, numbers(1, 2))
    with pytest.raises(ValueError, match="0 in the current window"):
        measure(numbers(1, 2), empty)


def test_a_category_distance_is_refused_when_a_side_has_no_row() -> None:
    for measure in (total_variation, lambda r, c: psi(r, c, "category")):
        with pytest.raises(ValueError, match="nothing to compare"):
            measure(texts(), texts("a"))


def test_jensen_shannon_equals_the_distance_of_scipy_to_base_two() -> None:
    reference, current = np.repeat(texts("a", "b"), [70, 30]), np.repeat(texts("a", None), [40, 60])
    expected = distance.jensenshannon([0.7, 0.3, 0], [0.4, 0, 0.6], base=2)
    assert jensen_shannon(reference, current, "category") == pytest.approx(expected)
    assert jensen_shannon(texts("a"), texts("b"), "category") == 1


def test_what_is_no_text_and_what_no_encoding_can_write_is_counted_like_text() -> None:
    for reference, current in (
        (np.array([1, 2, None, float("nan")], dtype=object), np.array([2, 1, None, None], dtype=object)),
        (texts("\ud800", "b"), texts("b", "\ud800")),
        (np.array(["a", "b"]), np.array(["b", "a"])),
    ):
        assert total_variation(reference, current) == 0
        assert present(reference, "category").sum() == 2


# What chance shows


@pytest.mark.parametrize(
    ("rows", "marked", "drawn"), [(50, 7, 20), (1000, 3, 100), (1000, 999, 100), (3000, 1500, 1200)]
)
def test_the_noise_of_one_category_is_that_of_a_hypergeometric_count(rows: int, marked: int, drawn: int) -> None:
    inside = np.arange(marked + 1)
    p = stats.hypergeom(rows, marked, drawn).pmf(inside)
    apart = np.abs(inside / drawn - (marked - inside) / (rows - drawn))
    noise = chance.of_area(numbers(1), np.array([marked]), rows - drawn, drawn)
    assert noise.mean == pytest.approx(p @ apart, rel=0.002)
    assert noise.rms == pytest.approx(math.sqrt(p @ apart**2), rel=1e-6)
    square = chance.of_divergence(
        lambda r, c: (c / drawn - r / (rows - drawn)) ** 2, np.array([marked]), rows - drawn, drawn
    )
    assert square == pytest.approx(p @ apart**2, rel=0.002)


@pytest.mark.parametrize("make", [normal, heavy, zeros, counts, few, many])
@pytest.mark.parametrize(("rows", "reference_rows", "times"), [(100, 100, 60), (150, 2000, 40), (2000, 1000, 30)])
def test_what_is_expected_is_the_mean_without_drift_and_little_of_it_is_left(
    rng: np.random.Generator, make: Any, rows: int, reference_rows: int, times: int
) -> None:
    found = [measured(make(rng, reference_rows), make(rng, rows), seed) for seed in range(times)]
    for name in MEASURES:
        value, expected, corrected = (
            np.array([getattr(getattr(one, name), part) for one in found])
            for part in ("value", "expected", "corrected")
        )
        sampling = 3 * np.std(value - expected) / math.sqrt(times)
        assert expected.mean() == pytest.approx(value.mean(), abs=0.05 * value.mean() + sampling)
        # Half of the chi distribution's mass lies above its root mean square: what is left is at most half of the noise.
        assert corrected.mean() < 0.55 * value.mean()
        above = np.mean([getattr(one, name).low > 0 for one in found])
        assert above <= 0.06


@pytest.mark.parametrize(
    ("make", "moved", "truth"),
    [
        (normal, lambda rng, rows: rng.normal(0.3, 1, rows), 0.3),
        (normal, lambda rng, rows: rng.normal(0, 1.5, rows), 0.5 * math.sqrt(2 / math.pi)),
        (lambda rng, rows: rng.poisson(3, rows) * 1.0, lambda rng, rows: rng.poisson(3.5, rows) * 1.0, 0.5 * 1.349 / 2),
        (few, lambda rng, rows: rng.choice(texts("a", "b", "c", None), rows, p=[0.5, 0.3, 0.08, 0.12]), 0.1),
        (many, lambda rng, rows: np.where(rng.random(rows) < 0.2, texts("new"), many(rng, rows)), 0.2),
    ],
)
def test_a_move_above_the_noise_is_measured_without_bias_and_lies_in_the_interval(
    rng: np.random.Generator, make: Any, moved: Any, truth: float
) -> None:
    found = [measured(make(rng, 1500), moved(rng, 1000), seed).effect for seed in range(200)]
    corrected = np.array([one.corrected for one in found])
    assert corrected.mean() == pytest.approx(truth, abs=0.08 * truth)
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.9 <= covered <= 0.995
    assert all(one.low <= one.corrected <= one.high for one in found)


@pytest.mark.parametrize("kind", ["number", "category"])
def test_divergences_are_freed_of_their_mean_and_covered_by_their_interval(rng: np.random.Generator, kind: str) -> None:
    p, q = numbers(0.4, 0.3, 0.2, 0.1), numbers(0.3, 0.3, 0.2, 0.2)
    index = float(np.sum((q - p) * np.log(q / p)))
    names = np.arange(4.0) if kind == "number" else texts("a", "b", "c", "d")
    found = [measured(rng.choice(names, 2000, p=p), rng.choice(names, 600, p=q), seed) for seed in range(200)]
    for name, truth in (("psi", index), ("jensen_shannon", float(distance.jensenshannon(p, q, base=2)))):
        ones = [getattr(one, name) for one in found]
        assert np.mean([one.corrected for one in ones]) == pytest.approx(truth, rel=0.05)
        assert 0.9 <= np.mean([one.low <= truth <= one.high for one in ones]) <= 0.995


def test_the_sizes_hold_what_the_functions_measure(rng: np.random.Generator) -> None:
    for make in (normal, few):
        reference, current = make(rng, 500), make(rng, 300)
        kind, found = kind_of(reference), measured(reference, current)
        assert found.effect.value == pytest.approx(effect(reference, current, kind), rel=1e-12)
        assert found.psi.value == psi(reference, current, kind)
        assert found.jensen_shannon.value == jensen_shannon(reference, current, kind)


def test_a_move_of_one_rare_category_does_not_drown_in_the_noise_of_many(rng: np.random.Generator) -> None:
    reference, current = many(rng, 5000), many(rng, 5000)
    current[:500] = "new"
    found = measured(reference, current).effect
    assert found.expected > 0.15
    assert found.corrected == pytest.approx(0.1, abs=0.03)


def test_the_order_of_rows_changes_no_bit(rng: np.random.Generator) -> None:
    for make in (normal, counts, few, many):
        reference, current = make(rng, 700), make(rng, 400)
        other = rng.permutation(reference), rng.permutation(current)
        assert measured(*other, seed=3) == measured(reference, current, seed=3)
        assert distribution(*other, kind_of(reference)) == distribution(reference, current, kind_of(reference))


def test_a_side_with_nothing_to_compare_has_no_sizes() -> None:
    for empty in (numbers(), numbers(np.nan, np.inf, -np.inf)):
        assert sizes(empty, numbers(1, 2), "number") is None
        assert sizes(numbers(1, 2), empty, "number") is None
    assert sizes(texts(), texts("a"), "category") is None
    assert sizes(texts("a"), texts(), "category") is None


ODD = [
    numbers(3),
    np.full(50, 3.0),
    numbers(3, np.nan, np.inf),
    numbers(-1.7e308, 0, 1.7e308, 1e308),
    numbers(5e-324, 0, 1e-323),
    np.append(np.full(300, 1e9), 1e9 + 1e-6),
    np.arange(60.0),
]


@pytest.mark.parametrize("reference", [*ODD, texts("a"), texts(None), texts(None, "b", "c"), np.repeat(texts("a"), 9)])
def test_odd_samples_have_finite_sizes_and_distributions_that_sum_to_one(reference: np.ndarray) -> None:
    kind = kind_of(reference)
    others = ODD if kind == "number" else [texts("a"), texts(None, None), texts("b"), texts("a", "c", None)]
    for current in others:
        found = measured(reference, current)
        for name in MEASURES:
            one: Size = getattr(found, name)
            assert all(math.isfinite(part) and part >= 0 for part in (one.value, one.expected, one.high))
            assert 0 <= one.low <= one.corrected <= one.high
            assert one.corrected <= one.value
        drawn = distribution(reference, current, kind)
        if drawn is not None:
            assert math.fsum(drawn.reference) == pytest.approx(1)
            assert math.fsum(drawn.current) == pytest.approx(1)


# What is drawn


def test_a_distribution_has_round_bins_open_ends_and_missing_rows_last(rng: np.random.Generator) -> None:
    reference, current = rng.normal(100, 10, 4000), np.append(rng.normal(110, 10, 900), np.full(100, np.nan))
    drawn = distribution(reference, current, "number")
    assert drawn is not None
    assert 10 <= len(drawn.labels) <= 24
    assert drawn.labels[0].startswith("below ")
    assert drawn.labels[-2].endswith(" and above")
    assert drawn.labels[-1] == "(missing)"
    assert (drawn.reference[-1], drawn.current[-1]) == (0, 0.1)
    place = drawn.labels.index("100 to 102.5")
    assert drawn.reference[place] == pytest.approx(np.mean((reference >= 100) & (reference < 102.5)))


def test_few_numbers_and_categories_are_drawn_one_by_one() -> None:
    drawn = distribution(numbers(1, 1, 2.5, 4), numbers(4, 7), "number")
    assert drawn is not None
    assert drawn.labels == ("1", "2.5", "4", "7")
    assert (drawn.reference, drawn.current) == ((0.5, 0.25, 0.25, 0), (0, 0, 0.5, 0.5))
    drawn = distribution(texts("b", "b", None, "a"), texts("a", "a"), "category")
    assert drawn is not None
    assert drawn.labels == ("a", "b", "(missing)")
    assert (drawn.reference, drawn.current) == ((0.25, 0.5, 0.25), (1, 0, 0))


def test_rare_categories_are_drawn_together(rng: np.random.Generator) -> None:
    drawn = distribution(many(rng, 3000), many(rng, 3000), "category")
    assert drawn is not None
    assert len(drawn.labels) == 24
    assert (drawn.labels[0], drawn.labels[-1]) == ("c0", "(other)")


def test_values_that_are_close_to_each_other_but_far_from_zero_have_labels_of_their_own(
    rng: np.random.Generator,
) -> None:
    drawn = distribution(1.7e9 + rng.random(500), 1.7e9 + rng.random(500), "number")
    assert drawn is not None
    assert len(set(drawn.labels)) == len(drawn.labels) >= 10


def test_nothing_is_drawn_of_nothing() -> None:
    assert distribution(numbers(), numbers(1), "number") is None
    assert distribution(numbers(np.nan), numbers(np.inf), "number") is None
    assert distribution(texts(None), texts(None), "category") is None
    gone = distribution(numbers(1, 2), numbers(np.nan), "number")
    assert gone is not None
    assert (gone.labels, gone.current) == (("1", "2", "(missing)"), (0, 0, 1))
