"""A shift taken out again: ranks stay, values are distributed as the reference's, as few categories as possible change."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.impact import undone


def test_numbers_keep_their_order_and_take_the_reference_s_quantiles(rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=5_000), rng.normal(3, 2, 5_000)
    back = undone(reference, current, "number")
    assert np.array_equal(np.argsort(back, kind="stable"), np.argsort(current, kind="stable"))
    assert (back.mean(), back.std()) == (pytest.approx(0, abs=0.05), pytest.approx(1, abs=0.05))


def test_numbers_without_a_value_stay_without(rng: np.random.Generator) -> None:
    back = undone(rng.normal(size=100), np.array([1.0, np.nan, np.inf]), "number")
    assert np.isnan(back[1])
    assert np.isinf(back[2])


def test_only_the_excess_of_a_category_changes(rng: np.random.Generator) -> None:
    reference = np.array(["a"] * 500 + ["b"] * 500, dtype=object)
    current = np.array(["a"] * 700 + ["b"] * 300, dtype=object)
    back = undone(reference, current, "category")
    assert (back == "a").sum() == 500
    assert (back != current).sum() == 200


def test_categories_that_the_reference_does_not_have_take_known_ones() -> None:
    reference = np.array(["a", "b"] * 50, dtype=object)
    back = undone(reference, np.array(["new"] * 40 + [None], dtype=object), "category")
    assert (set(back[:40]), back[40]) == ({"a", "b"}, None)


@pytest.mark.parametrize("kind", ["number", "category"])
def test_without_a_reference_value_nothing_changes(kind: str) -> None:
    current = np.array([1.0, 2.0]) if kind == "number" else np.array(["a", "b"], dtype=object)
    reference = current[:0]
    assert undone(reference, current, kind).tolist() == current.tolist()  # type: ignore[arg-type]
