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
