"""What the training period showed by itself is natural: per season, and for missing values too."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.decisions.worlds import MONDAY
from pipeline import variation
from pipeline.policies import Drift

DAYS = 56
ROWS = 300
STARTS = np.repeat(MONDAY + 1440 * np.arange(DAYS), ROWS)
WEEKEND = (STARTS - MONDAY) // 1440 % 7 >= 5


def test_a_weekly_rhythm_is_natural_to_the_whole_and_absent_within_a_weekday(rng: np.random.Generator) -> None:
    sample = {"x": rng.normal(size=len(STARTS)) + 0.8 * WEEKEND}
    whole, weekday = (
        variation.natural(Drift(), sample, {"x": "number"}, STARTS, season) for season in ("all", "weekday")
    )
    assert whole["x"] > 0.5
    assert weekday["x"] < 0.25


def test_the_missing_share_of_a_number_varies_by_itself(rng: np.random.Generator) -> None:
    gone = rng.random(len(STARTS)) < 0.3 * (STARTS // 1440 % 4 == 0)
    sample = {"x": np.where(gone, np.nan, rng.normal(size=len(STARTS)))}
    found = variation.natural(Drift(), sample, {"x": "number"}, STARTS, "all")
    assert found["missing:x"] > 0.15
    assert found["x"] < 0.2


def test_a_category_has_one_entry_that_includes_its_missing_rows(rng: np.random.Generator) -> None:
    values = rng.choice(np.array(["a", "b"], dtype=object), len(STARTS))
    values[(rng.random(len(STARTS)) < 0.4) & (STARTS // 1440 % 7 == 0)] = None
    found = variation.natural(Drift(), {"x": values}, {"x": "category"}, STARTS, "all")
    assert list(found) == ["x"]
    assert found["x"] == pytest.approx(0.35, abs=0.1)


def test_too_short_a_history_says_nothing(rng: np.random.Generator) -> None:
    few = STARTS < MONDAY + 3 * 1440
    sample = {"x": rng.normal(size=int(few.sum()))}
    assert variation.natural(Drift(), sample, {"x": "number"}, STARTS[few], "all") == {}


def test_the_next_window_exceeds_the_limit_as_rarely_as_promised(rng: np.random.Generator) -> None:
    policy = Drift(violations=1, of_last=1)
    past, following = np.abs(rng.normal(size=(400, 60))), np.abs(rng.normal(size=(400, 2000)))
    limits = np.array([variation.limit(policy, effects, 5, 60) for effects in past])
    assert variation.exceedance(policy, 5) == pytest.approx(0.0002)
    assert np.mean(following >= limits[:, None]) < 0.0002


def test_fewer_stretches_and_more_columns_make_a_higher_limit(rng: np.random.Generator) -> None:
    effects = np.abs(rng.normal(size=60))
    limits = [variation.limit(Drift(), effects, signals, many) for signals, many in ((10, 8), (10, 60), (100, 60))]
    limits.append(variation.limit(Drift(window=7), effects, 10, 60))
    assert limits[1] < min(limits[0], limits[2], limits[3])
    assert variation.limit(Drift(), np.zeros(20), 10, 20) == 0


def test_windows_that_overlap_get_no_credit_for_persistence() -> None:
    alone, daily, weekly = Drift(violations=1, of_last=1), Drift(), Drift(window=7)
    assert variation.exceedance(weekly, 4) == variation.exceedance(alone, 4) == 0.001 / 4
    assert variation.exceedance(daily, 4) == pytest.approx((0.001 / 8) ** 0.5)


def test_rows_of_one_distribution_have_no_natural_variation_however_few_they_are(rng: np.random.Generator) -> None:
    starts = np.repeat(MONDAY + 1440 * np.arange(DAYS), 300)
    levels = np.array([f"level {level}" for level in range(20)], dtype=object)
    sample = {"x": rng.normal(size=len(starts)), "c": rng.choice(levels, len(starts))}
    found = variation.natural(Drift(), sample, {"x": "number", "c": "category"}, starts, "weekday")
    assert found["x"] < 0.1
    assert found["c"] < 0.06
