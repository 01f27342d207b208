"""What rows of one interval are worth as witnesses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline import clusters

if TYPE_CHECKING:
    from pipeline.pooling import Kind

DAYS = np.repeat(np.arange(56), 100)


def of_days(rng: np.random.Generator, *, alike: float) -> np.ndarray:
    """Normal values of variance 1, of which the share ``alike`` is the day's own."""
    per_day = rng.normal(scale=alike**0.5, size=56)[DAYS]
    return per_day + rng.normal(scale=(1 - alike) ** 0.5, size=len(DAYS))


@pytest.mark.parametrize("alike", [0.0, 0.3, 0.9])
def test_the_likeness_of_rows_of_one_day_is_found(rng: np.random.Generator, alike: float) -> None:
    values = of_days(rng, alike=alike)
    assert clusters.likeness(values, "number", DAYS) == pytest.approx(alike, abs=0.12)


def test_likeness_is_that_of_ranks_or_of_categories_and_ignores_missing_values(rng: np.random.Generator) -> None:
    values = of_days(rng, alike=0.3)
    usual = clusters.likeness(values, "number", DAYS)
    assert clusters.likeness(np.exp(5 * values), "number", DAYS) == pytest.approx(usual)
    signs = np.where(values > 0, "up", "down").astype(object)
    as_category, as_number = (
        clusters.likeness(signs, "category", DAYS),
        clusters.likeness((values > 0).astype(float), "number", DAYS),
    )
    assert as_category == pytest.approx(as_number)
    values[::3] = np.nan
    assert clusters.likeness(values, "number", DAYS) == pytest.approx(usual, abs=0.05)


def test_equal_values_a_single_day_and_single_rows_say_nothing() -> None:
    assert clusters.likeness(np.ones(len(DAYS)), "number", DAYS) is None
    assert clusters.likeness(np.array(["a"] * len(DAYS), dtype=object), "category", DAYS) is None
    assert clusters.likeness(np.arange(10.0), "number", np.zeros(10)) is None
    assert clusters.likeness(np.arange(10.0), "number", np.arange(10)) is None
    assert clusters.likeness(np.full(10, np.nan), "number", np.arange(10)) is None


def test_rows_count_for_themselves_or_for_their_interval_and_in_between() -> None:
    assert clusters.effective(700, 7, 0.0) == 700
    assert clusters.effective(700, 7, 1.0) == 7
    assert clusters.effective(700, 7, 0.1) == pytest.approx(700 / 10.9)
    assert clusters.effective(5, 7, 1.0) == 5


@pytest.mark.parametrize("kind", ["number", "category"])
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_weeks_of_the_same_kind_are_significant_as_rarely_as_promised(
    rng: np.random.Generator, alike: float, kind: Kind
) -> None:
    found = []
    for _ in range(300):
        values = of_days(rng, alike=alike)
        sides = values if kind == "number" else np.where(values > 0.5, "up", "down").astype(object)
        is_week = DAYS < 7
        worth = (clusters.effective(4900, 49, alike), clusters.effective(700, 7, alike))
        found.append(clusters.p_value(sides[~is_week], sides[is_week], kind, worth))
    assert np.mean(np.array(found) < 0.05) <= 0.08
    assert np.mean(np.array(found) < 0.5) >= 0.05


def test_a_shift_is_significant_for_many_witnesses_and_not_for_few(rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=5_000), rng.normal(0.5, size=700)
    assert clusters.p_value(reference, current, "number", (5_000, 700)) < 1e-9
    assert clusters.p_value(reference, current, "number", (56, 7)) > 0.05
    assert clusters.p_value(reference, np.full(5, np.nan), "number", (56, 7)) == 1
    before, after = (np.array(["a"] * a + ["b"] * b, dtype=object) for a, b in ((600, 400), (100, 600)))
    assert clusters.p_value(before, after, "category", (1_000, 700)) < 1e-9
    assert clusters.p_value(before, after, "category", (10, 7)) > 0.05
