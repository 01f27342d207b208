"""Guards of the promotion gate: what each refuses, what it lets pass, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline import guards
from pipeline.metrics import Outcomes
from pipeline.release import Promote

if TYPE_CHECKING:
    from pipeline.policies import MetricName

POLICY = Promote()


def classified(truth: np.ndarray, score: np.ndarray) -> Outcomes:
    return Outcomes(truth, (score > 0.5).astype(np.int64), np.column_stack([1 - score, score]), (0, 1))


def calibrated(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels that come true exactly as often."""
    score = rng.uniform(0.1, 0.9, rows)
    return (rng.random(rows) < score).astype(np.int64), score


def test_discoveries_are_those_of_benjamini_and_hochberg_by_hand() -> None:
    # Limits 0.01, 0.02, 0.03, 0.04, 0.05: the fourth smallest passes, so the three before it do as well, though
    # the third is above its own limit.
    p_values = [0.2, 0.015, 0.001, 0.035, 0.039]
    assert guards.discoveries(p_values, 0.05) == [False, True, True, True, True]
    assert guards.discoveries([0.011, 0.2, 0.3, 0.4, 0.5], 0.05) == [False] * 5
    assert guards.discoveries([], 0.05) == []


def slices(champion: Outcomes, challenger: Outcomes, *, metric: MetricName = "accuracy", **asked: Any) -> Any:
    days = asked.pop("days", 14)
    return guards.slices(
        Promote(**asked.pop("policy", {})),
        metric,
        champion,
        challenger,
        np.arange(len(champion)) * days // len(champion),
        asked["by"],
        asked.get("min_slice", 30),
    )


@pytest.mark.parametrize("days", [3, 14])
@pytest.mark.parametrize("metric", ["roc_auc", "accuracy", "log_loss", "brier"])
def test_a_slice_that_got_worse_is_named_with_its_numbers(
    metric: MetricName, days: int, rng: np.random.Generator
) -> None:
    truth, score = calibrated(rng, 5000)
    country = rng.choice(["de", "fr", "nl", "at"], 5000).astype(object)
    worse = np.where(country == "nl", rng.permutation(score), score)
    by = {"country": guards.levels(country)}
    guard, told = slices(classified(truth, score), classified(truth, worse), metric=metric, by=by, days=days)
    assert not guard.is_met
    assert [gain.slice for gain in told if gain.is_worse] == ["country=nl"]
    assert guard.detail.startswith(f"1 of 4 slices proven worse; first country=nl: {metric} {told[0].challenger:.4g}")
    assert guard.value > guard.limit == 0.02
    assert len(told) == 3


def test_a_loss_within_the_limit_blocks_nothing_however_sure_it_is() -> None:
    truth = np.tile([0, 1], 10_000)
    score = np.where(truth == 1, 0.8, 0.2)
    wrong = score.copy()
    wrong[:190] = 1 - wrong[:190]
    by = {"side": guards.levels(np.repeat(["a", "b"], 10_000).astype(object))}
    guard, told = slices(classified(truth, score), classified(truth, wrong), by=by, days=1)
    assert guard.is_met
    assert told[0].p_value < 1e-9
    assert (told[0].slice, told[0].gain) == ("side=a", pytest.approx(-0.019))
    assert not slices(
        classified(truth, score), classified(truth, wrong), by=by, days=1, policy={"max_slice_loss": 0.018}
    )[0].is_met


def test_the_limit_of_a_loss_without_an_upper_end_is_a_share_of_the_champions_value(rng: np.random.Generator) -> None:
    truth = rng.normal(size=4000) * 1000
    error = rng.normal(size=4000) * 100
    by = {"all": guards.levels(np.full(4000, "x", dtype=object))}
    for times, met in ((1.01, True), (1.03, False)):
        pair = (Outcomes(truth, truth + error), Outcomes(truth, truth + error * times))
        guard, _ = slices(*pair, metric="mae", by=by)
        assert guard.is_met is met
        assert guard.value == pytest.approx(times - 1)


def test_slices_that_are_too_small_or_lack_a_class_are_not_judged(rng: np.random.Generator) -> None:
    truth, score = calibrated(rng, 400)
    country = np.where(np.arange(400) < 25, "small", np.where(truth == 1, "ones", "mixed")).astype(object)
    country[(country == "mixed") & (np.arange(400) % 2 == 0)] = "ones"
    only = np.where(truth == 1, "ones", "zeros").astype(object)
    model, other = classified(truth, score), classified(truth, rng.permutation(score))
    guard, told = slices(model, other, metric="roc_auc", by={"only": guards.levels(only)})
    assert (guard.is_met, guard.value, told) == (True, None, ())
    assert guard.detail == "no slice with enough labelled rows"
    _, told = slices(model, other, metric="accuracy", by={"country": guards.levels(country)})
    assert "country=small" not in {gain.slice for gain in told}


def test_equal_models_are_blocked_by_some_slice_in_one_trial_of_twenty_at_most(rng: np.random.Generator) -> None:
    blocked = 0
    for _ in range(100):
        truth, score = calibrated(rng, 1000)
        sides = [classified(truth, np.clip(score + rng.normal(0, 0.2, 1000), 0.01, 0.99)) for _ in range(2)]
        by = {"segment": guards.levels(rng.choice(list("abcdefgh"), 1000).astype(object))}
        blocked += not slices(*sides, metric="roc_auc", by=by)[0].is_met
    # 5 % of 100 is 5, with a standard deviation of 2.2.
    assert blocked <= 10


def test_numbers_are_cut_at_their_quartiles_unless_there_are_few_of_them() -> None:
    values = np.append(np.arange(100.0), np.nan)
    texts = np.array([f"{value:g}" for value in values], dtype=object)
    found = guards.levels(texts, values)
    assert found.names == ("below 24.75", "24.75 to 49.5", "49.5 to 74.25", "from 74.25", "(null)")
    assert np.bincount(found.codes).tolist() == [25, 25, 25, 25, 1]
    few = np.array([3.0, 3.0, 4.0])
    assert guards.levels(np.array(["3", "3", "4"], dtype=object), few).names == ("3", "4")
    lopsided = np.append(np.zeros(100), np.arange(1.0, 21.0))
    assert guards.levels(lopsided.astype(str).astype(object), lopsided).names[:2] == ("below 0", "from 0")


def test_of_many_categories_the_hundred_most_frequent_stay() -> None:
    texts = np.array(
        [f"c{number:03}" for number in range(150)] + [f"c{number:03}" for number in range(50, 150)] + [None]
    )
    found = guards.levels(texts.astype(object))
    assert (found.names[0], found.names[99], found.names[100]) == ("c050", "c149", "(other)")
    assert int(np.sum(found.codes == 100)) == 51


def test_a_challenger_that_is_worse_calibrated_is_refused_and_an_equal_one_is_not(rng: np.random.Generator) -> None:
    truth, score = calibrated(rng, 5000)
    day = np.arange(5000) % 14
    skewed = np.clip(score + 0.06, 0, 1)
    guard = guards.calibration(POLICY, classified(truth, score), classified(truth, skewed), day)
    assert (guard.is_met, guard.limit) == (False, 0.02)
    assert guard.value == pytest.approx(0.06, abs=0.015)
    assert "higher by at least 0.0" in guard.detail
    back = guards.calibration(POLICY, classified(truth, skewed), classified(truth, score), day)
    assert back.is_met
    assert back.detail.endswith(", not proven higher")
    assert guards.calibration(
        Promote(max_calibration_loss=None), classified(truth, score), classified(truth, skewed), day
    ).is_met


@pytest.mark.parametrize(("rows", "days"), [(120, 3), (400, 14)])
def test_few_rows_of_equally_calibrated_models_block_nothing(rows: int, days: int, rng: np.random.Generator) -> None:
    blocked = 0
    for _ in range(100):
        truth, score = calibrated(rng, rows)
        other = classified(truth, np.clip(score + rng.normal(0, 0.01, rows), 0, 1))
        day = np.arange(rows) % days
        blocked += not guards.calibration(POLICY, classified(truth, score), other, day).is_met
    assert blocked <= 5


def test_several_classes_are_calibrated_when_the_most_probable_is_right_as_often_as_it_says(
    rng: np.random.Generator,
) -> None:
    scores = rng.dirichlet([1, 1, 1], 5000)
    truth = np.array([rng.choice(3, p=row) for row in scores])
    boast = scores**3 / (scores**3).sum(axis=1, keepdims=True)
    honest, boastful = (Outcomes(truth, s.argmax(axis=1), s, (0, 1, 2)) for s in (scores, boast))
    assert not guards.calibration(POLICY, honest, boastful, np.arange(5000) % 14).is_met
    assert guards.calibration(POLICY, boastful, honest, np.arange(5000) % 14).is_met


def test_numbers_have_no_calibration() -> None:
    model = Outcomes(np.zeros(9), np.ones(9))
    guard = guards.calibration(POLICY, model, model, np.zeros(9, dtype=np.int64))
    assert (guard.is_met, guard.value, guard.detail) == (True, None, "numbers have no calibration")


def test_churn_is_the_share_of_rows_that_are_decided_otherwise() -> None:
    truth = np.tile([0, 1], 50)
    score = np.where(truth == 1, 0.8, 0.2)
    flipped = score.copy()
    flipped[:7] = 1 - flipped[:7]
    sides = (classified(truth, score), classified(truth, flipped))
    told = guards.churn(POLICY, *sides)
    assert (told.value, told.limit, told.is_met, told.detail) == (
        0.07,
        None,
        True,
        "7.00% of the rows that get another class",
    )
    assert guards.churn(Promote(max_churn=0.07), *sides).is_met
    assert not guards.churn(Promote(max_churn=0.06), *sides).is_met


def test_a_number_that_moves_within_the_champions_own_error_is_no_churn() -> None:
    truth = np.tile([-2.0, 2.0], 50)
    champion = Outcomes(truth, np.zeros(100))
    moved = np.where(np.arange(100) < 4, 2.1, 1.9)
    assert guards.churn(POLICY, champion, Outcomes(truth, moved)).value == 0.04


def test_a_time_is_told_only_when_it_decides() -> None:
    assert guards.speed(POLICY, None) == guards.speed(POLICY, 2.9)
    assert guards.speed(POLICY, None).value is None
    slow = guards.speed(POLICY, 3.14159)
    assert (slow.is_met, slow.value, slow.detail) == (
        False,
        3.1,
        "scoring takes 3.1 times as long as with the champion",
    )
    assert guards.speed(Promote(max_slowdown=None), 9.0).is_met


@pytest.mark.parametrize(
    ("old", "new", "met"),
    [(1 << 20, 5 << 20, True), (1 << 20, (5 << 20) + 1, False), (10, (1 << 20) - 1, True), (0, 1 << 20, False)],
)
def test_a_model_may_be_five_times_as_large_or_small_in_any_case(old: int, new: int, met: bool) -> None:
    assert guards.size(POLICY, old, new).is_met is met
    assert guards.size(Promote(max_size_ratio=None), old, new).is_met
