"""Metrics: each against scikit-learn or a known answer, and how often its confidence interval is right."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn import metrics as reference

from pipeline.metrics import Outcomes, bootstrapped, evaluate, evaluator, measure
from pipeline.policies import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.policies import MetricName

ROWS = 400
EVERY_METRIC = [(task, metric) for task, metrics in METRICS.items() for metric in metrics]
WEIGHTED = [(task, metric) for task, metric in EVERY_METRIC if metric != "calibration_error"]

REFERENCE: dict[MetricName, Callable[[Outcomes, np.ndarray], float]] = {
    "roc_auc": lambda o, w: reference.roc_auc_score(o.truth == o.classes[-1], o.scores[:, -1], sample_weight=w),
    "log_loss": lambda o, w: reference.log_loss(o.truth, o.scores, sample_weight=w, labels=list(o.classes)),
    "brier": lambda o, w: reference.brier_score_loss(o.truth == o.classes[-1], o.scores[:, -1], sample_weight=w),
    "accuracy": lambda o, w: reference.accuracy_score(o.truth, o.prediction, sample_weight=w),
    "macro_f1": lambda o, w: reference.f1_score(o.truth, o.prediction, average="macro", sample_weight=w),
    "mae": lambda o, w: reference.mean_absolute_error(o.truth, o.prediction, sample_weight=w),
    "rmse": lambda o, w: reference.root_mean_squared_error(o.truth, o.prediction, sample_weight=w),
    "bias": lambda o, w: np.average(o.prediction - o.truth, weights=w),
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


@pytest.mark.parametrize(("task", "metric"), WEIGHTED)
def test_every_metric_agrees_with_scikit_learn(task: str, metric: MetricName, rng: np.random.Generator) -> None:
    for rows in (7, 50, ROWS):
        outcomes = made(task, rng, rows)
        assert evaluate(metric, outcomes) == pytest.approx(REFERENCE[metric](outcomes, np.ones(rows)), rel=1e-12)


@pytest.mark.parametrize(("task", "metric"), WEIGHTED)
def test_every_weighted_metric_agrees_with_scikit_learn(
    task: str, metric: MetricName, rng: np.random.Generator
) -> None:
    outcomes = made(task, rng)
    value = evaluator(metric, outcomes)
    for weights in (rng.random(ROWS) + 0.01, rng.integers(1, 5, ROWS).astype(float), np.full(ROWS, 1e-6)):
        assert value(weights) == pytest.approx(REFERENCE[metric](outcomes, weights), rel=1e-10)


@pytest.mark.parametrize(("task", "metric"), WEIGHTED)
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
    none = outcomes.take(np.array([], dtype=int))
    assert (evaluate(metric, none), measure(metric, none).value) == (None, None)
    if metric == "calibration_error":
        with pytest.raises(ValueError, match="cannot be weighted"):
            evaluator(metric, outcomes)
    else:
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


@pytest.mark.parametrize("metric", METRICS["binary"][:4])
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


@pytest.mark.parametrize("metric", METRICS["binary"][:4])
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


@pytest.mark.parametrize(("task", "metric"), EVERY_METRIC)
def test_a_measured_value_is_the_evaluated_one_and_lies_within_its_interval(
    task: str, metric: MetricName, rng: np.random.Generator
) -> None:
    for rows in (7, 50, ROWS):
        found = measure(metric, made(task, rng, rows))
        assert found.low <= found.value <= found.high
    outcomes = made(task, rng)
    found, again = measure(metric, outcomes), measure(metric, outcomes.take(rng.permutation(ROWS)))
    assert found.value == pytest.approx(evaluate(metric, outcomes), rel=1e-12)
    assert (again.low, again.high) == (pytest.approx(found.low), pytest.approx(found.high))


def drawn(task: str, rng: np.random.Generator, rows: int) -> Outcomes:
    """Outcomes of a known law: a model that is overconfident, or errs by more where the outcome is larger."""
    if task == "regression":
        truth = rng.gamma(2.0, 5.0, rows)
        return Outcomes(truth, truth + 0.3 + rng.normal(size=rows) * (1 + truth / 10))
    if task == "binary":
        logit = 1.5 * rng.normal(size=rows)
        truth = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
        told = 1 / (1 + np.exp(-2 * logit))
        return Outcomes(truth, (told > 0.5).astype(int), np.column_stack([1 - told, told]), (0, 1))
    truth = rng.choice(4, rows, p=[0.5, 0.3, 0.15, 0.05])
    raw = rng.gamma(1.0, size=(rows, 4)) * 0.5 + 0.6 * np.eye(4)[truth]
    scores = raw / raw.sum(axis=1, keepdims=True)
    return Outcomes(truth, scores.argmax(axis=1), scores, (0, 1, 2, 3))


@pytest.mark.parametrize("task", list(METRICS))
def test_intervals_hold_the_truth_about_as_often_as_they_promise(task: str, rng: np.random.Generator) -> None:
    everything = drawn(task, rng, 400_000)
    truths = {metric: evaluate(metric, everything) for metric in METRICS[task]}
    for rows in (100, 1000):
        hits: dict[str, list[bool]] = {metric: [] for metric in truths}
        for _ in range(250):
            outcomes = drawn(task, rng, rows)
            for metric, truth in truths.items():
                found = measure(metric, outcomes)
                hits[metric].append(found.low <= truth <= found.high)
        coverage = {metric: float(np.mean(hit)) for metric, hit in hits.items()}
        assert all(0.90 <= share <= 0.995 for share in coverage.values()), (rows, coverage)


def test_the_calibration_error_of_a_calibrated_model_is_about_zero_and_its_interval_reaches_zero(
    rng: np.random.Generator,
) -> None:
    values = []
    for _ in range(100):
        told = rng.beta(2, 5, 500)
        truth = rng.random(500) < told
        found = measure(
            "calibration_error", Outcomes(truth, told > 0.5, np.column_stack([1 - told, told]), (False, True))
        )
        values.append(found.value)
        assert found.low == 0.0
    # Uncorrected, ten bins of 50 rows show about 0.05 by chance.
    assert np.median(values) < 0.02


def test_the_calibration_error_is_the_distance_between_what_was_promised_and_what_came() -> None:
    told = np.repeat([0.1, 0.4, 0.8], 100_000)
    came = np.repeat([0.2, 0.4, 0.6], 100_000)
    truth = (np.arange(300_000) % 100_000) < came * 100_000
    found = measure("calibration_error", Outcomes(truth, truth, np.column_stack([1 - told, told]), (False, True)))
    assert found.value == pytest.approx((0.1 + 0.0 + 0.2) / 3, abs=1e-4)


def test_equal_scores_share_a_bin_whatever_their_order(rng: np.random.Generator) -> None:
    told = np.full(400, 0.3)
    truth = np.arange(400) < 120
    scores = np.column_stack([1 - told, told])
    for order in (np.arange(400), rng.permutation(400)):
        assert measure("calibration_error", Outcomes(truth[order], truth, scores, (False, True))).value == 0.0


def test_bias_tells_the_direction_of_the_error() -> None:
    truth = np.array([1.0, 2.0, 3.0])
    assert evaluate("bias", Outcomes(truth, truth - 0.5)) == pytest.approx(-0.5)


def test_a_perfect_ranking_of_few_rows_is_not_certain() -> None:
    up = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    for truth, expected in ((up > 0.5, (1.0, 0.025 ** (1 / 3), 1.0)), (up < 0.5, (0.0, 0.0, 1 - 0.025 ** (1 / 3)))):
        found = measure("roc_auc", Outcomes(truth, truth, np.column_stack([1 - up, up]), (False, True)))
        assert (found.value, found.low, found.high) == pytest.approx(expected)


def test_accuracy_of_only_right_predictions_is_not_certain() -> None:
    found = measure("accuracy", Outcomes(np.zeros(20), np.zeros(20)))
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.8 < found.low < 0.9


@pytest.mark.parametrize("metric", METRICS["regression"])
def test_a_single_row_has_a_value_and_no_interval(metric: MetricName) -> None:
    found = measure(metric, Outcomes(np.array([1.0]), np.array([3.0])))
    assert (found.value, found.low, found.high) == (2.0, None, None)


def test_a_users_metric_has_the_interval_that_its_own_formula_gives(rng: np.random.Generator) -> None:
    outcomes = Outcomes(np.zeros(30_000), rng.normal(size=30_000))

    def mean_error(truth: Any, prediction: Any, scores: Any) -> float:
        assert scores is None
        return float(np.mean(prediction - truth))

    found, known = bootstrapped(mean_error, outcomes, seed=1), measure("bias", outcomes)
    assert found.value == pytest.approx(known.value)
    # Of 30,000 rows 20,000 are resampled; the interval is that of all.
    assert found.high - found.low == pytest.approx(known.high - known.low, rel=0.3)
    assert bootstrapped(mean_error, outcomes, seed=1) == found


def test_a_users_metric_without_a_number_is_undefined_and_one_without_resamplings_has_no_interval(
    rng: np.random.Generator,
) -> None:
    outcomes = Outcomes(np.zeros(50), rng.normal(size=50))
    assert bootstrapped(lambda *_: float("nan"), outcomes, seed=0).value is None
    answers = iter([3.0, *[float("nan")] * 200])
    found = bootstrapped(lambda *_: next(answers), outcomes, seed=0)
    assert (found.value, found.low) == (3.0, None)


def test_a_million_rows_are_measured_within_seconds(rng: np.random.Generator) -> None:
    outcomes = made("binary", rng, 1_000_000)
    start = time.process_time()
    for metric in METRICS["binary"]:
        assert measure(metric, outcomes).low is not None
    assert time.process_time() - start < 2.5
