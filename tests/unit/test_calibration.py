"""Thresholds that keep the alarms of a resampled history within the budget, and not higher than that needs."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calibration import calibrate

FLOORS = {"x": 0.1, "y": 0.1}
RULE = {"violations": 2, "of_last": 3, "budget": 1 / 90}


def history(rng: np.random.Generator, intervals: int = 120) -> dict[str, np.ndarray]:
    return {"x": np.abs(rng.normal(0, 0.2, intervals)), "y": np.abs(rng.normal(0, 0.05, intervals))}


def test_the_thresholds_keep_the_budget_on_history_and_on_what_comes_after(rng: np.random.Generator) -> None:
    found = calibrate(history(rng), FLOORS, **RULE)
    assert found is not None
    assert found.rate <= 1 / 90
    assert found.at_most >= found.rate
    later = history(rng, 3_000)
    moved = np.column_stack([later[name] >= found.thresholds[name] for name in ("x", "y")])
    alarms = np.any(moved[2:] & (moved[2:].astype(int) + moved[1:-1] + moved[:-2] >= 2), axis=1)
    assert alarms.mean() <= 2 / 90


def test_no_threshold_is_below_its_floor_and_a_noisy_column_needs_a_higher_one(rng: np.random.Generator) -> None:
    found = calibrate(history(rng), FLOORS, **RULE)
    assert found is not None
    assert found.thresholds["x"] > 0.3 > found.thresholds["y"] >= 0.1


def test_intervals_that_are_unusual_together_count_as_they_come(rng: np.random.Generator) -> None:
    apart, together = history(rng, 400), history(rng, 400)
    apart["x"][[5, 65, 125, 185, 245, 305]] = 2.0
    together["x"][60:70] = 2.0
    thresholds = [calibrate(effects, FLOORS, **RULE).thresholds["x"] for effects in (apart, together)]  # type: ignore[union-attr]
    assert thresholds[0] <= 2.0 < thresholds[1]


@pytest.mark.parametrize("intervals", [0, 13])
def test_two_weeks_of_intervals_are_needed(intervals: int) -> None:
    assert calibrate({"x": np.zeros(intervals)}, FLOORS, **RULE) is None


def test_intervals_without_a_value_raise_no_alarm() -> None:
    found = calibrate({"x": np.full(30, np.nan)}, FLOORS, **RULE)
    assert found is not None
    assert (found.rate, found.thresholds) == (0.0, {"x": 0.1})
