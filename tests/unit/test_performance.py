"""Realised performance: every metric against scikit-learn, the yardstick's known answers, limits and verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn import metrics as reference

from pipeline.performance import Outcomes, baseline, evaluate, evaluator, judge, limit
from pipeline.policies import METRICS, Performance
from pipeline.reports import Baseline

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.policies import MetricName

ROWS = 400
EVERY_METRIC = [(task, metric) for task, metrics in METRICS.items() for metric in metrics]

REFERENCE: dict[MetricName, Callable[[Outcomes, np.ndarray], float]] = {
    "roc_auc": lambda o, w: reference.roc_auc_score(o.truth == o.classes[-1], o.scores[:, -1], sample_weight=w),
    "log_loss": lambda o, w: reference.log_loss(o.truth, o.scores, sample_weight=w, labels=list(o.classes)),
    "brier": lambda o, w: reference.brier_score_loss(o.truth == o.classes[-1], o.scores[:, -1], sample_weight=w),
    "accuracy": lambda o, w: reference.accuracy_score(o.truth, o.prediction, sample_weight=w),
    "macro_f1": lambda o, w: reference.f1_score(o.truth, o.prediction, average="macro", sample_weight=w),
    "mae": lambda o, w: reference.mean_absolute_error(o.truth, o.prediction, sample_weight=w),
    "rmse": lambda o, w: reference.root_mean_squared_error(o.truth, o.prediction, sample_weight=w),
}


def made(task: str, rng: np.random.Generator, rows: int = ROWS) -> Outcomes:
    """Plausible outcomes with tied scores."""
    if task == "regression":
        truth = rng.gamma(2.0, 5.0, rows)
        return Outcomes(truth, truth + rng.normal(size=rows))
    classes = ("no", "yes") if task == "binary" else ("bus", "car", "tram", "walk")
    codes = rng.integers(len(classes), size=rows)
    raw = rng.random((rows, len(classes))) + 0.6 * np.eye(len(classes))[codes]
    scores = np.round(raw / raw.sum(axis=1, keepdims=True), 2)
    scores[:, 0] = 1 - scores[:, 1:].sum(axis=1)
    names = np.array(classes, dtype=object)
    return Outcomes(names[codes], names[scores.argmax(axis=1)], scores, classes)


@pytest.mark.parametrize(("task", "metric"), EVERY_METRIC)
def test_every_metric_agrees_with_scikit_learn(task: str, metric: MetricName, rng: np.random.Generator) -> None:
    for rows in (7, 50, ROWS):
        outcomes = made(task, rng, rows)
        assert evaluate(metric, outcomes) == pytest.approx(REFERENCE[metric](outcomes, np.ones(rows)), rel=1e-12)


@pytest.mark.parametrize(("task", "metric"), EVERY_METRIC)
def test_every_weighted_metric_agrees_with_scikit_learn(
    task: str, metric: MetricName, rng: np.random.Generator
) -> None:
    outcomes = made(task, rng)
    value = evaluator(metric, outcomes)
    for weights in (rng.random(ROWS) + 0.01, rng.integers(1, 5, ROWS).astype(float), np.full(ROWS, 1e-6)):
        assert value(weights) == pytest.approx(REFERENCE[metric](outcomes, weights), rel=1e-10)


@pytest.mark.parametrize(("task", "metric"), EVERY_METRIC)
def test_a_row_of_weight_k_counts_like_k_copies_of_it_and_one_of_weight_zero_not_at_all(
    task: str, metric: MetricName, rng: np.random.Generator
) -> None:
    outcomes = made(task, rng)
    weights = rng.integers(0, 4, ROWS)
    copies = outcomes.take(np.repeat(np.arange(ROWS), weights))
    assert evaluator(metric, outcomes)(weights.astype(float)) == pytest.approx(evaluate(metric, copies), rel=1e-12)


@pytest.mark.parametrize(("task", "metric"), EVERY_METRIC)
def test_the_order_of_rows_does_not_matter(task: str, metric: MetricName, rng: np.random.Generator) -> None:
    outcomes = made(task, rng)
    assert evaluate(metric, outcomes.take(rng.permutation(ROWS))) == pytest.approx(
        evaluate(metric, outcomes), rel=1e-12
    )


@pytest.mark.parametrize(("task", "metric"), EVERY_METRIC)
def test_every_metric_of_no_rows_and_of_no_weight_is_undefined(
    task: str, metric: MetricName, rng: np.random.Generator
) -> None:
    outcomes = made(task, rng)
    assert evaluate(metric, outcomes.take(np.array([], dtype=int))) is None
    assert np.isnan(evaluator(metric, outcomes)(np.zeros(ROWS)))


def test_roc_auc_of_one_class_is_undefined(rng: np.random.Generator) -> None:
    outcomes = made("binary", rng)
    for label in outcomes.classes:
        assert evaluate("roc_auc", outcomes.take(outcomes.truth == label)) is None


def test_roc_auc_is_one_for_perfect_zero_for_reversed_and_a_half_for_constant_scores() -> None:
    truth = np.array([0, 0, 1, 1])
    for scores, expected in (([0.1, 0.2, 0.8, 0.9], 1.0), ([0.9, 0.8, 0.2, 0.1], 0.0), ([0.3] * 4, 0.5)):
        up = np.array(scores)
        assert evaluate("roc_auc", Outcomes(truth, truth, np.column_stack([1 - up, up]), (0, 1))) == expected


@pytest.mark.parametrize("metric", METRICS["binary"][:3])
def test_a_missing_score_makes_a_metric_of_probabilities_undefined(
    metric: MetricName, rng: np.random.Generator
) -> None:
    outcomes = made("binary", rng)
    assert outcomes.scores is not None
    outcomes.scores[3] = np.nan
    assert evaluate(metric, outcomes) is None


@pytest.mark.parametrize("metric", METRICS["regression"])
def test_a_missing_number_makes_a_regression_metric_undefined(metric: MetricName, rng: np.random.Generator) -> None:
    outcomes = made("regression", rng)
    outcomes.prediction[0] = np.nan
    assert evaluate(metric, outcomes) is None


@pytest.mark.parametrize("metric", METRICS["binary"][:3])
def test_a_metric_of_probabilities_refuses_outcomes_of_a_regression(
    metric: MetricName, rng: np.random.Generator
) -> None:
    with pytest.raises(ValueError, match="needs scores"):
        evaluate(metric, made("regression", rng))


def test_log_loss_charges_an_unseen_class_as_if_it_had_been_thought_impossible() -> None:
    scores = np.array([[0.5, 0.5], [0.5, 0.5]])
    seen = Outcomes(np.array(["a", "b"]), np.array(["a", "a"]), scores, ("a", "b"))
    unseen = Outcomes(np.array(["a", "c"]), np.array(["a", "a"]), scores, ("a", "b"))
    impossible = -np.log(np.finfo(float).eps)
    assert evaluate("log_loss", seen) == pytest.approx(np.log(2))
    assert evaluate("log_loss", unseen) == pytest.approx((np.log(2) + impossible) / 2)


def test_log_loss_of_a_certain_prediction_is_finite_whether_right_or_wrong() -> None:
    truth = np.array([0, 1])
    for scores, expected in ((np.eye(2), 0.0), (np.eye(2)[::-1], -np.log(np.finfo(float).eps))):
        assert evaluate("log_loss", Outcomes(truth, truth, scores, (0, 1))) == pytest.approx(expected)


def test_macro_f1_counts_a_class_that_is_only_predicted_and_leaves_out_one_that_is_neither() -> None:
    scores = np.full((4, 4), 0.25)
    outcomes = Outcomes(np.array([*"aabb"]), np.array([*"aabc"]), scores, tuple("abcd"))
    assert evaluate("macro_f1", outcomes) == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_boolean_and_integer_labels_work_like_text(rng: np.random.Generator) -> None:
    text = made("binary", rng)
    for classes in ((False, True), (0, 1)):
        as_values = [np.array(classes)[(side == "yes").astype(int)] for side in (text.truth, text.prediction)]
        outcomes = Outcomes(as_values[0], as_values[1], text.scores, classes)
        for metric in METRICS["binary"]:
            assert evaluate(metric, outcomes) == evaluate(metric, text)


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


def test_there_is_no_baseline_where_the_metric_is_undefined(rng: np.random.Generator) -> None:
    outcomes = made("binary", rng)
    only = outcomes.take(outcomes.truth == "yes")
    assert baseline("roc_auc", only, np.zeros(len(only), dtype=int)) is None


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
    found, reason, bound = judge(Performance(), metric, value, 60, yardstick)
    assert found == verdict
    assert bound == limit(Performance(), metric, yardstick)
    assert ("worse than the limit" if verdict == "drift" else "within the limit") in reason


@pytest.mark.parametrize(("metric", "value"), [("mae", 10.0), ("accuracy", 6.0)])
def test_exactly_the_limit_is_not_degraded(metric: MetricName, value: float) -> None:
    yardstick = Baseline(metric=metric, value=8.0, spread=1.0, n=1000)
    verdict, _, bound = judge(Performance(), metric, value, 60, yardstick)
    assert (verdict, bound) == ("stable", value)


def test_too_few_labels_are_never_a_verdict_on_the_model() -> None:
    policy = Performance(min_labels=50)
    yardstick = Baseline(metric="mae", value=1.0, spread=0.0, n=1000)
    assert judge(policy, "mae", 1e9, 49, yardstick) == ("insufficient_data", "49 labelled rows, 50 needed.", None)
    assert judge(policy, "mae", 1e9, 50, yardstick)[0] == "drift"


@pytest.mark.parametrize("value", [None, float("nan")])
def test_an_undefined_metric_is_never_stable(value: float | None) -> None:
    yardstick = Baseline(metric="roc_auc", value=0.8, spread=0.0, n=1000)
    found = judge(Performance(), "roc_auc", value, 60, yardstick)
    assert found == ("insufficient_data", "roc_auc is undefined.", None)


def test_an_undefined_yardstick_never_makes_an_interval_stable() -> None:
    yardstick = Baseline(metric="mae", value=float("nan"), spread=0.0, n=1000)
    verdict, reason, bound = judge(Performance(), "mae", 1.0, 60, yardstick)
    assert (verdict, bound) == ("insufficient_data", None)
    assert "at training is undefined" in reason
