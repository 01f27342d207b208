"""Realised performance judged: the yardstick's known answers, limits and verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.metrics import Measured, Outcomes, measure
from pipeline.performance import baseline, judge, limit
from pipeline.policies import Performance
from pipeline.reports import Baseline

if TYPE_CHECKING:
    from pipeline.policies import MetricName


def test_the_baseline_holds_the_value_of_all_rows_and_the_robust_spread_between_intervals() -> None:
    # Per interval, the mean absolute error is 1, 2, 3, 4 and 100; their median is 3 and the deviations' median is 1.
    error = np.repeat([1.0, 2.0, 3.0, 4.0, 100.0], 10)
    interval = np.repeat([60, 120, 180, 240, 300], 10)
    found = baseline("mae", Outcomes(np.zeros(50), error), interval)
    assert found is not None
    assert (found.metric, found.value, found.n) == ("mae", 22.0, 50)
    assert found.spread == pytest.approx(1.4826)


def test_the_spread_estimates_the_standard_deviation_of_normal_intervals(rng: np.random.Generator) -> None:
    daily = rng.normal(10.0, 2.0, 4000)
    found = baseline("mae", Outcomes(np.zeros(4000), daily), np.arange(4000))
    assert found is not None
    assert found.spread == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(("interval", "spread"), [([0, 0, 1, 1], 0.0), ([0, 1, 2, 2], 1.4826 * 3)])
def test_the_spread_needs_three_intervals_and_is_zero_before(interval: list[int], spread: float) -> None:
    found = baseline("mae", Outcomes(np.zeros(4), np.array([1.0, 4.0, 9.0, 9.0])), np.array(interval))
    assert found is not None
    assert (found.value, found.spread) == (5.75, pytest.approx(spread))


def test_intervals_where_the_metric_is_undefined_do_not_count_for_the_spread() -> None:
    truth = np.array([0, 1, 0, 1, 0, 1, 1, 1])
    up = np.array([0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.5, 0.5])
    found = baseline("roc_auc", Outcomes(truth, truth, np.column_stack([1 - up, up]), (0, 1)), np.arange(8) // 2)
    assert found is not None
    assert (found.spread, found.n) == (0.0, 8)


def test_there_is_no_baseline_where_the_metric_is_undefined() -> None:
    only = Outcomes(np.ones(9), np.ones(9), np.full((9, 2), 0.5), (0.0, 1.0))
    assert baseline("roc_auc", only, np.zeros(9, dtype=int)) is None


def sure(value: float) -> Measured:
    """A value that is known exactly."""
    return Measured(value, value, value)


@pytest.mark.parametrize(
    ("metric", "value", "spread", "tolerance", "sigmas", "expected"),
    [
        ("roc_auc", 0.8, 0.0, 0.05, 2.0, 0.76),  # the share of the metric
        ("roc_auc", 0.8, 0.1, 0.05, 2.0, 0.6),  # the spread is wider
        ("mae", 10.0, 0.0, 0.05, 2.0, 10.5),
        ("mae", 10.0, 1.0, 0.05, 2.0, 12.0),
        ("log_loss", 0.5, 0.0, 0.0, 0.0, 0.5),
    ],
)
def test_the_limit_is_the_wider_of_share_and_spread_on_the_worse_side(
    metric: MetricName, value: float, spread: float, tolerance: float, sigmas: float, expected: float
) -> None:
    policy = Performance(tolerance=tolerance, sigmas=sigmas)
    yardstick = Baseline(metric=metric, value=value, spread=spread, n=1000)
    assert limit(policy, metric, yardstick) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "value", "verdict"),
    [
        ("roc_auc", 0.99, "stable"),  # better is never degraded
        ("roc_auc", 0.761, "stable"),
        ("roc_auc", 0.759, "drift"),
        ("rmse", 0.01, "stable"),
        ("rmse", 0.839, "stable"),
        ("rmse", 0.841, "drift"),
        ("rmse", float("inf"), "drift"),
    ],
)
def test_an_interval_is_degraded_only_beyond_the_limit_on_the_worse_side(
    metric: MetricName, value: float, verdict: str
) -> None:
    yardstick = Baseline(metric=metric, value=0.8, spread=0.01, n=1000)
    found, reason, bound = judge(Performance(), metric, sure(value), 60, yardstick)
    assert found == verdict
    assert bound == limit(Performance(), metric, yardstick)
    assert ("worse than the limit" if verdict == "drift" else "within the limit") in reason


@pytest.mark.parametrize(("metric", "value"), [("mae", 10.0), ("accuracy", 6.0)])
def test_exactly_the_limit_is_not_degraded(metric: MetricName, value: float) -> None:
    yardstick = Baseline(metric=metric, value=8.0, spread=1.0, n=1000)
    verdict, _, bound = judge(Performance(), metric, sure(value), 60, yardstick)
    assert (verdict, bound) == ("stable", value)


def test_too_few_labels_are_never_a_verdict_on_the_model() -> None:
    policy = Performance(min_labels=50)
    yardstick = Baseline(metric="mae", value=1.0, spread=0.0, n=1000)
    assert judge(policy, "mae", sure(1e9), 49, yardstick) == ("insufficient_data", "49 labelled rows, 50 needed.", None)
    assert judge(policy, "mae", sure(1e9), 50, yardstick)[0] == "drift"


@pytest.mark.parametrize("value", [None, float("nan")])
def test_an_undefined_metric_is_never_stable(value: float | None) -> None:
    yardstick = Baseline(metric="roc_auc", value=0.8, spread=0.0, n=1000)
    found = judge(Performance(), "roc_auc", Measured(value), 60, yardstick)
    assert found == ("insufficient_data", "roc_auc is undefined.", None)


def test_an_undefined_yardstick_never_makes_an_interval_stable() -> None:
    yardstick = Baseline(metric="mae", value=float("nan"), spread=0.0, n=1000)
    verdict, reason, bound = judge(Performance(), "mae", sure(1.0), 60, yardstick)
    assert (verdict, bound) == ("insufficient_data", None)
    assert "at training is undefined" in reason


@pytest.mark.parametrize(
    ("metric", "found", "verdict"),
    [
        ("mae", Measured(1.5, 0.9, 2.1), "stable"),  # beyond the limit, but its interval reaches the champion's 1.0
        ("mae", Measured(1.5, 1.01, 2.0), "drift"),
        ("roc_auc", Measured(0.5, 0.1, 1.0), "stable"),
        ("roc_auc", Measured(0.5, 0.4, 0.99), "drift"),
        ("roc_auc", Measured(0.99, 0.1, 0.995), "stable"),  # within the limit, however unsure
        ("mae", Measured(1.5), "insufficient_data"),
        ("mae", Measured(1.0), "stable"),
    ],
)
def test_what_a_small_interval_shows_by_chance_is_no_degradation(
    metric: MetricName, found: Measured, verdict: str
) -> None:
    yardstick = Baseline(metric=metric, value=1.0, spread=0.0, n=1000)
    assert judge(Performance(), metric, found, 60, yardstick)[0] == verdict


def test_intervals_of_an_unchanged_model_are_rarely_degraded_however_small(rng: np.random.Generator) -> None:
    yardstick = Baseline(metric="mae", value=float(np.sqrt(2 / np.pi)), spread=0.0, n=100_000)
    judged = []
    for rows in [50] * 400 + [200] * 400:
        outcomes = Outcomes(np.zeros(rows), rng.normal(size=rows))
        judged.append(judge(Performance(), "mae", measure("mae", outcomes), rows, yardstick)[0])
    # Two-sided 95 % leaves one in forty beyond its better end; the tolerance alone would call a quarter degraded.
    assert judged.count("drift") / len(judged) < 0.04
