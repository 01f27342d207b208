"""Effect sizes against known answers, and the verdict on quiet, moved, small and broken windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.detectors import detector
from pipeline.drift import effect, judge, psi, stretch_effects, total_variation, wasserstein
from pipeline.policies import Drift

SCIPY = detector("scipy")


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def texts(*values: str | None) -> np.ndarray:
    return np.array(values, dtype=object)


def mixed(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """20 stationary columns: normal, skewed, tied and part-missing numbers, few and many categories, a prediction."""
    sample: dict[str, np.ndarray] = {}
    for i in range(4):
        sample[f"normal{i}"] = rng.normal(10 * i, 1 + i, rows)
        sample[f"skewed{i}"] = rng.lognormal(0, 1, rows)
        sample[f"counts{i}"] = rng.poisson(1 + i, rows).astype(float)
        sample[f"gaps{i}"] = np.where(rng.random(rows) < 0.1, np.nan, rng.normal(size=rows))
    for i, size in enumerate((2, 8, 300)):
        weights = 1 / np.arange(1, size + 1)
        names = np.array([f"c{k}" for k in range(size)], dtype=object)
        sample[f"category{i}"] = rng.choice(names, rows, p=weights / weights.sum())
    sample["prediction"] = rng.beta(2, 5, rows)
    return sample


def report(reference: Any, current: Any, *, natural: Any = None, p_values: Any = None, **policy: Any) -> Any:
    """The judgement with kinds and roles read from the samples: objects are categories, `prediction` is one."""
    kinds: Any = {name: "category" if v.dtype == object else "number" for name, v in reference.items()}
    return judge(
        Drift(**policy),
        reference=reference,
        current=current,
        kinds=kinds,
        roles={name: "prediction" if name == "prediction" else "feature" for name in kinds},
        p_values=SCIPY.p_values(reference, current, kinds) if p_values is None else p_values,
        natural=natural or {},
    )


def only_column(reference: np.ndarray, current: np.ndarray, **options: Any) -> Any:
    """The evidence on a single feature column."""
    return report({"x": reference}, {"x": current}, **options)[2][0]


# Effect sizes


def test_identical_samples_have_no_effect(rng: np.random.Generator) -> None:
    values, categories = rng.normal(size=500), rng.choice(texts("a", "b", None), 500)
    assert wasserstein(values, rng.permutation(values)) == 0
    assert total_variation(categories, rng.permutation(categories)) == 0
    assert psi(values, values, "number") == 0
    assert psi(categories, categories, "category") == 0


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


# Natural variation


def test_natural_variation_is_the_95th_percentile_of_runs_against_the_rest(rng: np.random.Generator) -> None:
    stretch = np.repeat(np.arange(8), 50)
    sample = {"n": rng.normal(stretch * 0.3, 1), "c": rng.choice(texts("a", "b", None), 400)}
    got = stretch_effects(sample, {"n": "number", "c": "category"}, stretch, window=2, min_rows=50)
    for column, kind in (("n", "number"), ("c", "category")):
        effects = []
        for first in range(7):
            inside = (stretch == first) | (stretch == first + 1)
            effects.append(effect(sample[column][~inside], sample[column][inside], kind))  # type: ignore[arg-type]
        assert got[column] == pytest.approx(sorted(effects)[-1])


def test_distinct_interval_indices_count_as_consecutive_whatever_their_values_and_order(
    rng: np.random.Generator,
) -> None:
    values, stretch = rng.normal(size=600), np.repeat(np.arange(6), 100)
    order = rng.permutation(600)
    plain = stretch_effects({"x": values}, {"x": "number"}, stretch, 2, 50)
    shuffled = stretch_effects({"x": values[order]}, {"x": "number"}, (stretch * 7 - 30)[order], 2, 50)
    assert plain == shuffled
    assert plain


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


# Verdicts


@pytest.mark.parametrize(("rows", "batches"), [(200, 100), (1000, 70), (3000, 30)])
def test_stationary_data_raise_an_alarm_in_at_most_2_percent_of_batches(
    rng: np.random.Generator, rows: int, batches: int
) -> None:
    reference = mixed(rng, 2000)
    judged = [report(reference, mixed(rng, rows)) for _ in range(batches)]
    assert sum(verdict == "insufficient_data" for verdict, _, _ in judged) == 0
    assert sum(verdict == "drift" for verdict, _, _ in judged) <= 0.02 * batches
    assert sum(any(c.verdict == "drift" for c in columns) for _, _, columns in judged) <= 0.02 * batches


def test_a_shift_by_half_a_standard_deviation_in_enough_features_is_drift(rng: np.random.Generator) -> None:
    reference, current = mixed(rng, 4000), mixed(rng, 1000)
    for i in range(4):
        current[f"normal{i}"] += 0.5 * (1 + i)
    _, _, columns = report(reference, current)
    assert {c.column for c in columns if c.verdict == "drift"} == {f"normal{i}" for i in range(4)}
    assert report(reference, current)[0] == "stable", "4 of 19 features are fewer than the share of 30 %"
    assert report(reference, current, share=0.2)[0] == "drift"


def test_swapped_categories_are_drift(rng: np.random.Generator) -> None:
    reference = rng.choice(texts("a", "b", "c"), 5000, p=[0.6, 0.3, 0.1])
    current = rng.choice(texts("b", "a", "c"), 1000, p=[0.6, 0.3, 0.1])
    column = only_column(reference, current)
    assert column.verdict == "drift"
    assert column.effect == pytest.approx(0.3, abs=0.05)


def test_unseen_categories_are_drift_and_their_share_is_told(rng: np.random.Generator) -> None:
    reference = rng.choice(texts("a", "b"), 5000)
    column = only_column(reference, rng.choice(texts("a", "b", "new", None), 1000))
    assert column.verdict == "drift"
    assert column.unseen_share == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("kind", ["number", "category"])
def test_missing_values_rising_from_5_to_40_percent_are_drift(rng: np.random.Generator, kind: str) -> None:
    values = rng.normal(size=5000) if kind == "number" else rng.choice(texts("a", "b"), 5000)
    hole = np.nan if kind == "number" else None
    reference, current = values.copy(), values[:1000].copy()
    reference[:250], current[:400] = hole, hole
    column = only_column(reference, rng.permutation(current))
    assert column.verdict == "drift"
    assert column.reason == "missing in 40.0% of the rows, in 5.0% of the reference"
    assert (column.null_share, column.reference_null_share) == (pytest.approx(0.4), pytest.approx(0.05))


def test_missing_values_that_chance_explains_are_no_drift() -> None:
    reference, current = np.arange(1000.0) % 20, np.arange(20.0)
    reference[:100], current[:5] = np.nan, np.nan
    column = only_column(reference, current, min_rows=10)
    assert (column.null_share, column.reference_null_share) == (0.25, pytest.approx(0.1))
    assert column.verdict == "stable"


def test_what_is_natural_to_a_category_covers_its_missing_rows_but_not_those_of_a_number() -> None:
    for values, hole, verdict in (
        (np.arange(1000.0) % 10, np.nan, "drift"),
        (np.tile(texts("a", "b"), 500), None, "stable"),
    ):
        current = values.copy()
        current[:350] = hole
        assert only_column(values, current, natural={"x": 0.3}).verdict == verdict


@pytest.mark.parametrize("natural", [0.0, 5.0])
def test_a_column_that_vanished_is_drift_whatever_is_natural_to_it(rng: np.random.Generator, natural: float) -> None:
    for values, hole in ((rng.normal(size=1000), np.nan), (rng.choice(texts("a", "b"), 1000), None)):
        gone = np.full(1000, hole, dtype=values.dtype)
        assert only_column(values, gone, natural={"x": natural}).verdict == "drift"
        assert only_column(gone, values, natural={"x": natural}).verdict == "drift"


def test_a_column_that_is_missing_on_both_sides_is_insufficient_data_and_never_stable() -> None:
    for gone in (np.full(1000, np.nan), np.full(1000, np.inf), np.full(1000, None, dtype=object)):
        verdict, reason, (column,) = report({"x": gone}, {"x": gone})
        assert verdict == column.verdict == "insufficient_data"
        assert reason == "none of 1 columns has enough values to be tested in 1000 rows"


def test_a_trivially_small_shift_is_significant_in_many_rows_but_no_drift(rng: np.random.Generator) -> None:
    reference = rng.normal(size=200_000)
    column = only_column(reference, reference + 0.02)
    assert column.p_value < 0.001
    assert column.effect == pytest.approx(0.02, abs=0.001)
    assert column.verdict == "stable"
    assert "not significant" not in column.reason


def test_a_large_effect_that_chance_explains_is_no_drift() -> None:
    column = only_column(np.arange(500.0), np.arange(500.0) + 100, p_values={"x": 0.2})
    assert column.effect > 0.1
    assert column.verdict == "stable"
    assert column.reason.endswith("p = 0.2 (not significant after correction)")


def test_a_change_within_a_quarter_above_what_is_natural_is_no_drift(rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=5000), rng.normal(0.5, 1, 5000)
    assert only_column(reference, current, natural={"x": 0.3}).verdict == "drift"
    column = only_column(reference, current, natural={"x": 0.44})
    assert column.verdict == "stable"
    assert column.threshold == pytest.approx(0.55)


def test_too_few_rows_are_insufficient_data(rng: np.random.Generator) -> None:
    reference = mixed(rng, 1000)
    verdict, reason, columns = report(
        reference,
        {name: values + "!" if values.dtype == object else values + 9 for name, values in mixed(rng, 199).items()},
    )
    assert verdict == "insufficient_data"
    assert reason == "the window has 199 rows, 200 are needed"
    assert {column.verdict for column in columns} == {"insufficient_data"}
    assert only_column(reference["normal0"], np.full(199, np.nan)).verdict == "insufficient_data"


def test_a_column_without_a_p_value_is_insufficient_data_and_the_others_decide(rng: np.random.Generator) -> None:
    reference = {"a": rng.normal(size=1000), "b": rng.normal(size=1000)}
    for unusable in (None, float("nan")):
        verdict, reason, columns = report(reference, reference, p_values={"a": unusable, "b": 1.0})
        assert [column.verdict for column in columns] == ["insufficient_data", "stable"]
        assert columns[0].p_value is None
        assert verdict == "stable"
        assert reason.startswith("0 of 1 testable feature columns drifted (0%, limit 30%)")


def test_one_drifted_prediction_column_is_enough(rng: np.random.Generator) -> None:
    reference, current = mixed(rng, 4000), mixed(rng, 1000)
    current["prediction"] = current["prediction"] + 0.2
    verdict, reason, _ = report(reference, current)
    assert verdict == "drift"
    assert "and the predictions did in 1000 rows; worst prediction: effect 1." in reason


def test_a_share_of_zero_still_needs_one_drifted_feature(rng: np.random.Generator) -> None:
    reference = {"x": rng.normal(size=1000)}
    assert report(reference, reference, share=0.0)[0] == "stable"
    assert report(reference, {"x": reference["x"] + 1}, share=0.0)[0] == "drift"


def test_the_reason_names_the_worst_columns_with_their_numbers(rng: np.random.Generator) -> None:
    reference = {name: rng.normal(size=1000) for name in "abcde"}
    current = {name: values + shift for (name, values), shift in zip(reference.items(), (0, 0.5, 3, 2, 1), strict=True)}
    verdict, reason, _ = report(reference, current)
    assert verdict == "drift"
    assert reason.startswith("4 of 5 testable feature columns drifted (80%, limit 30%) in ")
    assert [part.split(":")[0] for part in reason.split("; ")[1:]] == ["worst c", "d", "e"]


def test_bonferroni_and_false_discovery_rate_correct_for_the_number_of_testable_columns(
    rng: np.random.Generator,
) -> None:
    reference = {name: rng.normal(size=500) for name in "abcd"}
    current = {name: values + 1 for name, values in reference.items()}
    p_values = {"a": 0.002, "b": 0.004, "c": 0.007, "d": 0.5}

    def drifted(**policy: Any) -> set[str]:
        columns = report(reference, current, p_values=p_values, p_value=0.01, **policy)[2]
        return {column.column for column in columns if column.verdict == "drift"}

    assert drifted(correction="bonferroni") == {"a"}
    assert drifted(correction="fdr") == {"a", "b", "c"}
    p_values["b"] = p_values["c"] = None  # type: ignore[assignment]
    assert drifted(correction="bonferroni") == {"a"}
    p_values["a"] = 0.005
    assert drifted(correction="bonferroni") == {"a"}, "two columns are tested, not four"


def test_false_discovery_rate_keeps_a_column_that_only_a_larger_rank_lifts(rng: np.random.Generator) -> None:
    reference = {name: rng.normal(size=500) for name in "abc"}
    current = {name: values + 1 for name, values in reference.items()}
    columns = report(reference, current, p_values={"a": 0.009, "b": 0.0095, "c": 0.0099}, correction="fdr")[2]
    assert {column.verdict for column in columns} == {"drift"}


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_hardly_any_rows_are_insufficient_data_even_when_the_policy_asks_for_two(rows: int) -> None:
    reference = {"n": np.arange(100.0), "c": np.repeat(texts("a", "b"), 50)}
    verdict, _, columns = report(reference, {"n": numbers(7, 7)[:rows], "c": texts("z", "z")[:rows]}, min_rows=2)
    assert verdict == ("insufficient_data" if rows < 2 else "stable")
    assert all(column.rows == rows and math.isfinite(column.null_share) for column in columns)


def test_a_job_without_columns_is_insufficient_data() -> None:
    assert report({}, {})[0] == "insufficient_data"


@pytest.mark.parametrize(
    "current",
    [
        numbers(),
        np.full(300, np.nan),
        np.full(300, np.inf),
        np.full(300, 3.0),
        numbers(1.7e308),
        np.linspace(-1, 1, 300) * 1.7e308,
    ],
)
@pytest.mark.parametrize("reference", [numbers(), np.full(300, np.nan), np.full(300, 3.0), np.arange(300.0)])
def test_every_number_of_the_evidence_is_finite_or_none(reference: np.ndarray, current: np.ndarray) -> None:
    verdict, _, (column,) = report({"x": reference}, {"x": current})
    fields = column.model_dump()
    assert all(math.isfinite(value) for value in fields.values() if isinstance(value, float))
    assert (verdict == "stable") <= (column.p_value is not None)


def test_a_constant_that_stayed_is_stable_and_one_that_moved_is_drift() -> None:
    constant = np.full(500, 3.0)
    assert only_column(constant, constant).verdict == "stable"
    assert only_column(constant, constant + 1e-6).verdict == "drift"
    assert only_column(np.repeat(texts("a"), 5000), np.repeat(texts("b"), 300)).verdict == "drift"


def test_the_order_of_rows_and_columns_changes_nothing(rng: np.random.Generator) -> None:
    reference, current = mixed(rng, 2000), mixed(rng, 500)
    current["normal0"] += 1
    current["category1"][:100] = "new"
    before = report(reference, current)
    names = list(reversed(reference))
    after = report(
        {name: rng.permutation(reference[name]) for name in names},
        {name: rng.permutation(current[name]) for name in names},
    )
    assert after[0] == before[0]
    assert after[2] == before[2][::-1]
    assert after[1] == before[1]
