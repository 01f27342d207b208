"""The verdict on quiet, moved, small and broken windows: effect, significance and persistence together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline import drift
from pipeline.detectors import detector
from pipeline.policies import Drift
from pipeline.signals import Intervals
from pipeline.verdicts import ColumnDrift, Fault, Multivariate

SCIPY = detector("scipy")
ONCE: dict[str, Any] = {"violations": 1, "of_last": 1}


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


def judged(
    reference: Any, current: Any, *, natural: Any = None, p_values: Any = None, evidence: Any = None, **policy: Any
) -> tuple[ColumnDrift, ...]:
    """The columns with kinds and roles read from the samples: objects are categories, `prediction` is one."""
    kinds: Any = {name: "category" if v.dtype == object else "number" for name, v in reference.items()}
    return drift.columns(
        Drift(**{**ONCE, **policy}),
        reference=reference,
        current=current,
        kinds=kinds,
        roles={name: "prediction" if name == "prediction" else "feature" for name in kinds},
        p_values=SCIPY.p_values(reference, current, kinds) if p_values is None else p_values,
        natural=natural or {},
        **(evidence or {}),
    )


def only_column(reference: np.ndarray, current: np.ndarray, **options: Any) -> ColumnDrift:
    """The evidence on a single feature column."""
    return judged({"x": reference}, {"x": current}, **options)[0]


def column(verdict: str = "drift", **fields: Any) -> ColumnDrift:
    """The evidence on a column of which only the given fields matter."""
    made: dict[str, Any] = {"column": "x", "role": "feature", "kind": "number", "p_value": 0.0, "effect": 0.5}
    made |= {"threshold": 0.1, "psi": 0.1, "null_share": 0.0, "reference_null_share": 0.0, "unseen_share": 0.0}
    made |= {"rows": 1000, "reason": "it moved", "verdict": verdict, "moved": verdict == "drift"}
    tier = fields.pop("tier", "ticket" if verdict == "drift" else None)
    return ColumnDrift(**{**made, "tier": tier, **fields})


class TestColumns:
    def test_stationary_columns_move_in_at_most_their_share_of_the_batches(self, rng: np.random.Generator) -> None:
        reference = mixed(rng, 10_000)
        moved = [any(c.moved for c in judged(reference, mixed(rng, int(n)))) for n in rng.integers(200, 5_000, 40)]
        assert np.mean(moved) <= 0.1

    @pytest.mark.parametrize("name", ["normal2", "skewed1"])
    def test_a_shift_by_half_a_standard_deviation_is_drift(self, rng: np.random.Generator, name: str) -> None:
        reference, current = mixed(rng, 10_000), mixed(rng, 1_000)
        current[name] += 0.5 * reference[name].std()
        found = {c.column: c for c in judged(reference, current)}
        assert {key for key, c in found.items() if c.verdict == "drift"} == {name}
        assert found[name].signals == ("distribution",)
        assert found[name].low < found[name].effect < found[name].high  # type: ignore[operator]

    def test_ten_percent_of_the_rows_in_another_category_are_drift(self, rng: np.random.Generator) -> None:
        reference = texts(*rng.choice(["a", "b", "c"], 5_000, p=[0.5, 0.3, 0.2]))
        current = texts(*rng.choice(["a", "b", "c"], 2_000, p=[0.4, 0.4, 0.2]))
        assert only_column(reference, current).verdict == "drift"

    def test_unseen_categories_are_a_signal_of_their_own(self, rng: np.random.Generator) -> None:
        reference = texts(*rng.choice(["a", "b", "c"], 5_000))
        current = texts(*rng.choice(["a", "b", "new"], 1_000, p=[0.4, 0.3, 0.3]))
        found = only_column(reference, current)
        assert (found.verdict, found.unseen_share) == ("drift", pytest.approx(0.3, abs=0.05))
        assert "unseen" in found.signals
        assert "categories that the reference does not have" in found.reason

    def test_rare_categories_that_were_always_coming_are_not_unseen(self, rng: np.random.Generator) -> None:
        weights = 1 / np.arange(1, 20_001)
        names = np.array([f"c{k}" for k in range(20_000)], dtype=object)
        reference, current = (rng.choice(names, rows, p=weights / weights.sum()) for rows in (5_000, 2_000))
        found = only_column(reference, current)
        assert found.unseen_share > 0.05
        assert "unseen" not in found.signals

    @pytest.mark.parametrize("kind", ["number", "category"])
    def test_missing_values_rising_from_5_to_25_percent_are_drift(self, rng: np.random.Generator, kind: str) -> None:
        def column_of(rows: int, share: float) -> np.ndarray:
            values: Any = rng.normal(size=rows) if kind == "number" else rng.choice(texts("a", "b"), rows)
            values[rng.random(rows) < share] = np.nan if kind == "number" else None
            return values

        found = only_column(column_of(5_000, 0.05), column_of(1_000, 0.25))
        assert (found.verdict, "missing" in found.signals) == ("drift", True)
        assert "missing in 2" in found.reason

    def test_what_is_natural_to_the_missing_share_of_a_number_raises_its_limit(self, rng: np.random.Generator) -> None:
        reference = np.where(rng.random(5_000) < 0.05, np.nan, rng.normal(size=5_000))
        current = np.where(rng.random(2_000) < 0.2, np.nan, rng.normal(size=2_000))
        assert only_column(reference, current).verdict == "drift"
        assert only_column(reference, current, natural={"missing:x": 0.2}).verdict == "stable"

    def test_a_column_that_vanished_moved_whatever_is_natural_to_it(self, rng: np.random.Generator) -> None:
        reference, current = rng.normal(size=2_000), np.full(500, np.nan)
        found = only_column(reference, current, natural={"x": 0.9, "missing:x": 0.9})
        assert (found.verdict, found.effect, found.p_value) == ("drift", None, None)

    def test_a_column_that_is_missing_on_both_sides_is_insufficient_data(self) -> None:
        found = only_column(np.full(500, np.nan), np.full(500, np.nan))
        assert found.verdict == "insufficient_data"

    def test_a_trivially_small_shift_is_stable_with_its_effect_told(self, rng: np.random.Generator) -> None:
        found = only_column(rng.normal(size=300_000), rng.normal(0.02, 1, 300_000))
        assert (found.verdict, found.moved) == ("stable", False)
        assert found.p_value < 0.001  # type: ignore[operator]
        assert found.effect == pytest.approx(0.02, abs=0.01)

    def test_a_large_effect_that_chance_explains_is_no_drift(self) -> None:
        found = only_column(numbers(*range(10)), numbers(*range(5, 15)), min_rows=5)
        assert (found.effect, found.verdict) == (pytest.approx(found.effect), "stable")

    @pytest.mark.parametrize(("changed", "verdict"), [(1, "stable"), (2, "drift"), (7, "drift")])
    def test_what_one_interval_of_the_window_did_alone_is_no_drift(
        self, rng: np.random.Generator, changed: int, verdict: str
    ) -> None:
        days, week = np.repeat(np.arange(56), 100), np.repeat(np.arange(7), 100)
        reference, current = rng.normal(size=5_600), rng.normal(np.where(week < changed, 3.0, 0.0))
        assert only_column(reference, current).verdict == "drift"
        evidence = {"intervals": Intervals(week, {"x": reference}, days)}
        assert only_column(reference, current, evidence=evidence).verdict == verdict

    @pytest.mark.parametrize(
        ("usual", "holidays", "verdict"),
        [(0, 2, "stable"), (0, 7, "drift"), (1, 3, "stable"), (1, 7, "drift")],
    )
    def test_a_window_has_as_many_witnesses_as_intervals_when_their_rows_are_alike(
        self, usual: int, holidays: int, verdict: str
    ) -> None:
        days, week = np.repeat(np.arange(56), 100), np.repeat(np.arange(7), 100)
        reference, current = (days < usual).astype(float), (week < holidays).astype(float)
        assert only_column(reference, current).verdict == "drift"
        evidence = {"intervals": Intervals(week, {"x": reference}, days)}
        assert only_column(reference, current, evidence=evidence).verdict == verdict

    def test_a_change_within_what_is_natural_is_no_drift(self, rng: np.random.Generator) -> None:
        reference, current = rng.normal(size=5_000), rng.normal(0.42, 1, 5_000)
        assert only_column(reference, current, natural={"x": 0.46}).verdict == "stable"
        assert only_column(reference, current, natural={"x": 0.3}).verdict == "drift"

    def test_a_calibrated_threshold_replaces_what_is_natural(self, rng: np.random.Generator) -> None:
        reference, current = rng.normal(size=5_000), rng.normal(0.42, 1, 5_000)
        found = only_column(reference, current, natural={"x": 0.6}, thresholds={"x": 0.2})
        assert (found.threshold, found.verdict) == (0.2, "drift")

    def test_bonferroni_is_stricter_than_the_false_discovery_rate(self) -> None:
        sample = {f"x{i}": np.linspace(0, 1 + (i < 3), 500) for i in range(10)}
        reference = {name: np.linspace(0, 1, 500) for name in sample}
        p_values = {name: (0.004, 0.008, 0.012)[i] if i < 3 else 0.9 for i, name in enumerate(sample)}
        moved = {
            correction: [
                c.column for c in judged(reference, sample, p_values=p_values, correction=correction) if c.moved
            ]
            for correction in ("bonferroni", "fdr")
        }
        assert moved == {"bonferroni": ["x0"], "fdr": ["x0", "x1", "x2"]}

    def test_the_order_of_rows_changes_nothing(self, rng: np.random.Generator) -> None:
        reference, current = mixed(rng, 2_000), mixed(rng, 500)
        shuffled = {name: rng.permutation(values) for name, values in current.items()}
        assert judged(reference, current) == judged(reference, shuffled)

    @pytest.mark.parametrize(
        ("reference", "current"),
        [
            (numbers(), numbers()),
            (numbers(1.0), numbers(2.0)),
            (np.full(300, 3.0), np.full(300, 3.0)),
            (np.full(300, 3.0), np.full(300, 4.0)),
            (np.full(300, np.nan), np.arange(300.0)),
            (np.arange(300.0), np.full(300, np.inf)),
            (np.arange(300.0), np.where(np.arange(300) % 2, np.nan, -np.inf)),
            (np.arange(300.0), np.full(300, 1e300)),
            (texts(), texts()),
            (texts("a"), texts("b")),
            (texts(*["a"] * 300), texts(*[None] * 300)),
            (texts(*[f"c{i}" for i in range(10_000)]), texts(*[f"c{i}" for i in range(0, 20_000, 2)])),
        ],
    )
    def test_every_number_is_finite_or_none_and_no_verdict_is_silently_stable(
        self, reference: np.ndarray, current: np.ndarray
    ) -> None:
        found = only_column(reference, current)
        values = found.model_dump(exclude={"column", "role", "kind", "verdict", "reason", "signals", "tier", "moved"})
        assert all(value is None or math.isfinite(value) for value in values.values())
        if found.p_value is None and not found.signals:
            assert found.verdict == "insufficient_data"


class TestPersistence:
    def test_a_column_drifts_when_it_moved_in_two_of_the_last_three_intervals(self, rng: np.random.Generator) -> None:
        reference, current = rng.normal(size=5_000), rng.normal(1, 1, 1_000)
        policy = {"violations": 2, "of_last": 3}
        quiet, loud = [column("stable", moved=False)], [column("stable", moved=True)]

        def verdict(*earlier: Any) -> str:
            return only_column(reference, current, evidence={"earlier": earlier}, **policy).verdict

        assert verdict() == verdict(quiet, quiet) == verdict(loud, quiet, quiet) == "stable"
        assert verdict(loud, quiet) == verdict(quiet, loud) == "drift"

    def test_a_column_that_moved_once_says_so(self, rng: np.random.Generator) -> None:
        found = only_column(rng.normal(size=5_000), rng.normal(1, 1, 1_000), violations=2, of_last=3)
        assert (found.verdict, found.moved) == ("stable", True)
        assert found.reason.startswith("moved in this interval alone (2 of 3 intervals are drift)")

    def test_what_does_not_move_now_is_no_drift_whatever_came_before(self, rng: np.random.Generator) -> None:
        earlier = [[column(moved=True)], [column(moved=True)]]
        found = only_column(rng.normal(size=5_000), rng.normal(size=1_000), evidence={"earlier": earlier}, **ONCE)
        assert found.verdict == "stable"


class TestFaults:
    FAULT = Fault(kind="unit", column="normal0", detail="as if multiplied by 1000")

    def test_a_broken_column_is_not_judged_and_neither_is_the_prediction(self, rng: np.random.Generator) -> None:
        reference, current = mixed(rng, 5_000), mixed(rng, 1_000)
        current["normal0"] *= 1000
        current["prediction"] += 1
        found = {c.column: c for c in judged(reference, current, evidence={"faults": [self.FAULT]})}
        assert {c.column for c in found.values() if c.verdict == "insufficient_data"} == {"normal0", "prediction"}
        assert not found["normal0"].moved
        assert found["normal0"].reason == self.FAULT.detail

    def test_the_window_says_what_is_broken_and_is_not_judged(self) -> None:
        verdict, reason, tier = drift.window(Drift(), 1000, [column()], None, [self.FAULT])
        assert (verdict, reason, tier) == (
            "insufficient_data",
            "broken data: normal0: as if multiplied by 1000",
            "page",
        )

    def test_a_fault_that_the_model_does_not_see_is_a_log_line(self) -> None:
        known = column("insufficient_data", column="normal0", importance=0.001)
        assert drift.window(Drift(), 1000, [known], None, [self.FAULT])[2] == "log"


class TestWindow:
    @pytest.mark.parametrize(
        ("importance", "tier", "verdict"), [(0.5, "page", "drift"), (0.1, "ticket", "drift"), (0.001, "log", "stable")]
    )
    def test_how_loud_it_is_follows_from_what_the_model_depends_on(
        self, importance: float, tier: str, verdict: str
    ) -> None:
        drifted = column(importance=importance, tier="log" if importance < 0.01 else "ticket")
        found = drift.window(Drift(), 1000, [drifted, column("stable", column="y")])
        assert (found[0], found[2]) == (verdict, tier)

    def test_a_prediction_that_drifts_is_a_page(self) -> None:
        found = drift.window(Drift(), 1000, [column(role="prediction", column="prediction", tier="page")])
        assert (found[0], found[2]) == ("drift", "page")
        assert "and the predictions did" in found[1]

    def test_without_importances_the_share_of_drifted_features_decides(self) -> None:
        columns = [column("drift" if i < 3 else "stable", column=f"x{i}") for i in range(10)]
        assert drift.window(Drift(), 1000, columns)[2] == "page"
        assert drift.window(Drift(share=0.4), 1000, columns)[2] == "ticket"

    def test_a_changed_dependence_between_quiet_columns_is_a_ticket_that_names_them(self) -> None:
        found = Multivariate(
            auc=0.8, threshold=0.6, p_value=0.0, moved=True, verdict="drift", ranked=(("a", 0.2), ("b", 0.1)), rows=1000
        )
        verdict, reason, tier = drift.window(Drift(), 1000, [column("stable")], found)
        assert (verdict, tier) == ("drift", "ticket")
        assert "a classifier tells the window from the reference (AUC 0.80, by a, b)" in reason

    def test_too_few_rows_are_insufficient_data(self) -> None:
        assert drift.window(Drift(), 199, [column()]) == (
            "insufficient_data",
            "the window has 199 rows, 200 are needed",
            None,
        )

    def test_a_window_of_which_no_column_can_be_judged_is_insufficient_data(self) -> None:
        verdict, reason, _ = drift.window(Drift(), 1000, [column("insufficient_data")])
        assert (verdict, reason) == (
            "insufficient_data",
            "none of 1 columns has enough values to be tested in 1000 rows",
        )

    def test_the_reason_names_the_worst_columns_first(self) -> None:
        columns = [column(column=f"x{i}", effect=0.1 * i, reason=f"reason {i}") for i in range(1, 6)]
        assert "worst x5: reason 5; x4: reason 4; x3: reason 3" in drift.window(Drift(), 1000, columns)[1]


class TestMultivariate:
    def judge(self, auc: float, p_value: float, natural: float | None = None, *earlier: Multivariate) -> Multivariate:
        return drift.multivariate(
            Drift(), auc=auc, p_value=p_value, ranked=(), rows=1000, natural=natural, earlier=list(earlier)
        )

    def test_it_needs_effect_and_significance_and_persistence(self) -> None:
        moved = self.judge(0.7, 1e-9)
        assert (moved.moved, moved.verdict) == (True, "stable")
        assert self.judge(0.7, 1e-9, None, moved).verdict == "drift"
        assert not self.judge(0.55, 1e-9).moved
        assert not self.judge(0.7, 0.2).moved

    def test_what_stretches_of_the_training_period_showed_raises_its_limit(self) -> None:
        assert self.judge(0.75, 1e-9, 0.8).threshold == 0.8
        assert not self.judge(0.75, 1e-9, 0.8).moved
