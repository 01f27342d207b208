"""A metric over rows in groups: roc_auc within them, against pairs counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import grouped
from pipeline.metrics import Outcomes, evaluator


def outcomes(rng: np.random.Generator, rows: int, decimals: int = 1) -> Outcomes:
    truth = (rng.random(rows) < 0.4).astype(np.int64)
    up = np.round(1 / (1 + np.exp(-truth - rng.normal(size=rows))), decimals)
    return Outcomes(truth, (up > 0.5).astype(np.int64), np.column_stack([1 - up, up]), (0, 1))


def test_auc_within_groups_counts_the_pairs_of_each_group_by_its_positives_times_negatives_over_rows(
    rng: np.random.Generator,
) -> None:
    made, group = outcomes(rng, 300), rng.integers(6, size=300)
    total = weights = 0.0
    for code in range(6):
        scores, truth = made.scores[group == code, 1], made.truth[group == code]  # type: ignore[index]
        ups, downs = scores[truth == 1], scores[truth == 0]
        won = (ups[:, None] > downs).mean() + 0.5 * (ups[:, None] == downs).mean()
        weight = len(ups) * len(downs) / len(truth)
        total, weights = total + weight * won, weights + weight
    assert grouped.value("roc_auc", made, group) == pytest.approx(total / weights, rel=1e-12)


def test_one_group_is_the_metric_over_all_rows(rng: np.random.Generator) -> None:
    made = outcomes(rng, 200)
    for metric in ("roc_auc", "log_loss", "accuracy", "macro_f1"):
        expected = evaluator(metric, made)(np.ones(200))  # type: ignore[arg-type]
        assert grouped.value(metric, made, np.full(200, 7)) == pytest.approx(expected, rel=1e-12)  # type: ignore[arg-type]


def test_what_rows_add_sums_up_to_what_their_group_is_off(rng: np.random.Generator) -> None:
    made, group = outcomes(rng, 240), rng.integers(4, size=240)
    found = grouped.ranking(made, group, 4)
    share = found.weights / found.weights.sum()
    expected = 240 * share * (found.areas - found.area)
    assert np.bincount(group, found.pulls, 4) == pytest.approx(expected, abs=1e-9)


def test_pulls_are_what_a_row_that_is_left_out_changes(rng: np.random.Generator) -> None:
    made, group = outcomes(rng, 400, 6), np.zeros(400, dtype=np.int64)
    found = grouped.ranking(made, group, 1)
    for row in range(5):
        rest = np.delete(np.arange(400), row)
        without = grouped.value("roc_auc", made.take(rest), group[rest])
        assert found.pulls[row] == pytest.approx(399 * (found.area - without), rel=0.02, abs=0.02)


def test_groups_with_a_single_class_count_nothing_and_without_another_there_is_no_value(
    rng: np.random.Generator,
) -> None:
    made = outcomes(rng, 100)
    group = np.where(np.arange(100) < 80, 0, 1 + made.truth)
    assert grouped.value("roc_auc", made, group) == grouped.value("roc_auc", made.take(group == 0), np.zeros(80))
    assert np.isnan(grouped.value("roc_auc", made, np.arange(100)))


def test_a_missing_score_is_never_ranked(rng: np.random.Generator) -> None:
    made = outcomes(rng, 50)
    made.scores[3, 1] = np.nan  # type: ignore[index]
    assert np.isnan(grouped.value("roc_auc", made, np.zeros(50, dtype=np.int64)))
