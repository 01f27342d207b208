"""Paired tests: each against an independent computation, and what they do where rows tell little."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import binomtest, norm, ttest_rel
from sklearn.metrics import f1_score, roc_auc_score

from pipeline import grouped, paired
from pipeline.metrics import Outcomes, evaluator
from pipeline.resampling import totals


def pair(rng: np.random.Generator, rows: int, *, grain: int = 0) -> tuple[Outcomes, Outcomes]:
    """Two correlated binary models on the same rows; with ``grain``, scores of so many decimals, hence with ties."""
    truth = (rng.random(rows) < 0.4).astype(np.int64)
    signal = truth + rng.normal(size=rows)
    made = []
    for noise in (0.8, 0.6):
        score = 1 / (1 + np.exp(-signal - noise * rng.normal(size=rows)))
        score = np.round(score, grain) if grain else score
        made.append(Outcomes(truth, (score > 0.5).astype(np.int64), np.column_stack([1 - score, score]), (0, 1)))
    return made[0], made[1]


def numbers(rng: np.random.Generator, rows: int) -> tuple[Outcomes, Outcomes]:
    truth = rng.normal(size=rows)
    return Outcomes(truth, truth + rng.normal(size=rows)), Outcomes(truth, truth + 0.9 * rng.normal(size=rows))


def positive(outcomes: Outcomes) -> np.ndarray:
    assert outcomes.scores is not None
    return outcomes.scores[:, 1]


@pytest.mark.parametrize("grain", [0, 1])
def test_delong_is_the_variance_of_all_pairs_counted_one_by_one(rng: np.random.Generator, grain: int) -> None:
    champion, challenger = pair(rng, 150, grain=grain)
    wins = []
    for outcomes in (champion, challenger):
        ups, downs = (positive(outcomes)[outcomes.truth == code] for code in (1, 0))
        wins.append((ups[:, None] > downs) + 0.5 * (ups[:, None] == downs))
    difference = wins[1] - wins[0]
    by_up, by_down = difference.mean(axis=1), difference.mean(axis=0)
    error = np.sqrt(by_up.var(ddof=1) / len(by_up) + by_down.var(ddof=1) / len(by_down))
    gain = roc_auc_score(champion.truth, positive(challenger)) - roc_auc_score(champion.truth, positive(champion))
    found = paired.by_rows("roc_auc", champion, challenger, np.zeros(len(champion), dtype=np.int64))
    assert found is not None
    assert found.name == "DeLong's test on 150 rows"
    assert found.low(0.9) == pytest.approx(gain - norm.ppf(0.9) * error, rel=1e-9)
    assert found.exceeds(0.01) == pytest.approx(norm.sf((gain - 0.01) / error), rel=1e-9)
    assert found.falls_short(0.2) == pytest.approx(norm.cdf((gain - 0.2) / error), rel=1e-9)


def test_delong_agrees_with_a_jackknife_of_sklearns_auc(rng: np.random.Generator) -> None:
    champion, challenger = pair(rng, 300)

    def gain(rows: np.ndarray) -> float:
        old, new = (roc_auc_score(side.truth[rows], positive(side)[rows]) for side in (champion, challenger))
        return float(new - old)

    left_out = np.array([gain(np.delete(np.arange(300), row)) for row in range(300)])
    error = np.sqrt(299 / 300 * np.sum((left_out - left_out.mean()) ** 2))
    found = paired.by_rows("roc_auc", champion, challenger, np.zeros(len(champion), dtype=np.int64))
    assert found is not None
    assert gain(np.arange(300)) - found.low(norm.cdf(1.0)) == pytest.approx(error, rel=0.02)


def test_mcnemar_is_the_exact_binomial_test_of_the_rows_that_one_model_alone_gets_right(
    rng: np.random.Generator,
) -> None:
    champion, challenger = pair(rng, 400)
    right = [side.prediction == side.truth for side in (champion, challenger)]
    wins, losses = int(np.sum(right[1] & ~right[0])), int(np.sum(right[0] & ~right[1]))
    found = paired.by_rows("accuracy", champion, challenger, np.arange(400))
    assert found is not None
    assert found.exceeds(0.0) == pytest.approx(binomtest(wins, wins + losses, alternative="greater").pvalue)
    assert found.falls_short(0.0) == pytest.approx(binomtest(wins, wins + losses, alternative="less").pvalue)
    low = binomtest(wins, wins + losses, alternative="greater").proportion_ci(0.95, method="exact").low
    assert found.low(0.95) == pytest.approx((wins + losses) * (2 * low - 1) / 400)
    assert f"({wins} rows right with the challenger alone, {losses} with the champion alone)" in found.name


@pytest.mark.parametrize(
    ("wins", "losses", "bar", "expected"),
    [
        # Nothing differs: no gain is proven, and none of more than the bar is possible.
        (0, 0, 0.0, 1.0),
        (0, 0, -0.01, 0.0),
        (0, 5, 0.0, 1.0),
        # Of 10 rows in 1,000 no gain can come that exceeds 2 %, and a loss beyond 2 % is impossible.
        (10, 0, 0.02, 1.0),
        (0, 10, -0.02, 0.0),
        (3, 0, 0.0, 0.125),
    ],
)
def test_mcnemar_knows_what_few_different_rows_can_show(wins: int, losses: int, bar: float, expected: float) -> None:
    assert paired.McNemar(wins, losses, 1000).exceeds(bar) == expected


def test_the_loss_of_rows_is_compared_by_students_paired_t(rng: np.random.Generator) -> None:
    champion, challenger = numbers(rng, 120)
    old, new = (np.abs(side.prediction - side.truth) for side in (champion, challenger))
    found = paired.by_rows("mae", champion, challenger, np.arange(120))
    assert found is not None
    expected = ttest_rel(old, new, alternative="greater")
    assert found.exceeds(0.0) == pytest.approx(expected.pvalue)
    assert found.low(0.95) == pytest.approx(expected.confidence_interval(0.95).low)


@pytest.mark.parametrize("metric", ["rmse", "macro_f1"])
def test_the_delta_method_agrees_with_a_bootstrap_of_rows(metric: str, rng: np.random.Generator) -> None:
    champion, challenger = numbers(rng, 500) if metric == "rmse" else pair(rng, 500)

    def gain(rows: np.ndarray) -> float:
        if metric == "rmse":
            old, new = (np.sqrt(np.mean((s.prediction - s.truth)[rows] ** 2)) for s in (champion, challenger))
            return float(old - new)
        old, new = (f1_score(s.truth[rows], s.prediction[rows], average="macro") for s in (champion, challenger))
        return float(new - old)

    drawn = np.std([gain(rng.integers(500, size=500)) for _ in range(400)])
    found = paired.by_rows(metric, champion, challenger, np.arange(500))  # type: ignore[arg-type]
    assert found is not None
    assert gain(np.arange(500)) - found.low(norm.cdf(1.0)) == pytest.approx(drawn, rel=0.15)


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "macro_f1"])
def test_a_replicate_is_the_metric_with_each_days_rows_as_often_as_it_was_drawn(
    metric: str, rng: np.random.Generator
) -> None:
    outcomes, _ = pair(rng, 200, grain=1)
    day = rng.integers(9, size=200)
    drawn = rng.multinomial(9, np.full(9, 1 / 9), size=20).astype(float)
    found = totals(metric, outcomes, day, 9).values(drawn)  # type: ignore[arg-type]
    expected = [evaluator(metric, outcomes)(weights[day]) for weights in drawn]  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_replicate_of_auc_is_that_of_a_data_set_with_each_day_as_often_as_it_was_drawn(
    rng: np.random.Generator,
) -> None:
    outcomes, _ = pair(rng, 200, grain=1)
    day = np.arange(200) % 5
    drawn = np.array([[2.0, 0.0, 1.0, 1.0, 1.0]])
    # A day that was drawn twice is two days, whose rows are not ranked against each other.
    rows = np.concatenate([np.flatnonzero(day == code) for code in (0, 0, 2, 3, 4)])
    apart = np.repeat(np.arange(5), 40)
    expected = grouped.value("roc_auc", outcomes.take(rows), apart)
    assert totals("roc_auc", outcomes, day, 5).values(drawn)[0] == pytest.approx(expected, rel=1e-12)


def test_what_moves_a_whole_day_proves_nothing_and_hides_nothing(rng: np.random.Generator) -> None:
    # On every other day all labels are likelier and one model gives all rows a higher score: over all rows at once it
    # seems to know something, and a true gain within the days would drown.
    day = np.repeat(np.arange(14), 200)
    stormy = (day % 2).astype(float)
    truth = (rng.random(2800) < 0.2 + 0.5 * stormy).astype(np.int64)
    signal = truth + rng.normal(size=2800)

    def model(score: np.ndarray) -> Outcomes:
        up = 1 / (1 + np.exp(-score))
        return Outcomes(truth, (up > 0.5).astype(np.int64), np.column_stack([1 - up, up]), (0, 1))

    plain, lifted, better = (
        model(signal + 2 * rng.normal(size=2800)),
        model(signal + 2 * rng.normal(size=2800) + 5 * stormy),
        model(signal + rng.normal(size=2800)),
    )
    assert evaluator("roc_auc", lifted)(np.ones(2800)) > evaluator("roc_auc", plain)(np.ones(2800)) + 0.1
    vain = paired.compare("roc_auc", plain, lifted, day, 1)
    assert vain is not None
    assert vain.low(0.95) < 0
    true = paired.compare("roc_auc", lifted, better, day, 1)
    assert true is not None
    assert true.low(0.99) > 0


def test_days_with_a_single_class_are_no_units_of_a_test_of_auc(rng: np.random.Generator) -> None:
    champion, challenger = pair(rng, 400)
    day = np.where(champion.truth == 1, rng.integers(2, size=400), rng.integers(14, size=400))
    found = paired.compare("roc_auc", champion, challenger, day, 1)
    assert found is not None
    told = np.isin(day, (0, 1))
    assert found.name == f"DeLong's test on {np.count_nonzero(told)} rows"
    same = paired.compare("roc_auc", champion.take(told), challenger.take(told), day[told], 1)
    assert same is not None
    assert found.low(0.95) == same.low(0.95)


def test_sums_of_days_are_as_sure_as_the_block_bootstrap(rng: np.random.Generator) -> None:
    champion, challenger = pair(rng, 4000)
    day = np.arange(4000) % 28
    drawn = paired.compare("roc_auc", champion, challenger, day, 1)
    sums = paired.by_sums("roc_auc", champion, challenger, day)
    assert drawn is not None
    assert sums is not None
    assert isinstance(drawn, paired.Braked)
    gain = paired.values("roc_auc", champion, challenger, day)[2]
    assert gain - drawn.first.low(0.95) == pytest.approx(gain - sums.low(0.95), rel=0.1)
    assert sums.name == "Student's t on 28 days"


@pytest.mark.parametrize("day", [np.zeros(3, dtype=np.int64), np.arange(3)])
def test_rows_that_cannot_tell_have_no_test(day: np.ndarray) -> None:
    scores = np.array([0.2, 0.6, 0.7])
    lonely = Outcomes(np.array([0, 1, 1]), np.array([0, 1, 1]), np.column_stack([1 - scores, scores]), (0, 1))
    assert paired.compare("roc_auc", lonely, lonely, day, 1) is None
    one = Outcomes(np.zeros(1), np.ones(1))
    assert paired.compare("mae", one, one, day[:1], 1) is None


def test_ten_thousand_replicates_of_auc_at_twenty_thousand_rows_take_less_than_two_seconds(
    rng: np.random.Generator,
) -> None:
    champion, challenger = pair(rng, 20_000)
    began = time.process_time()
    found = paired.compare("roc_auc", champion, challenger, np.arange(20_000) % 14, 1)
    assert found is not None
    assert time.process_time() - began < 2.0
