"""The compiled loops on arrays whose answers are plain to see."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import kernels


@pytest.mark.parametrize("size", [1, 3, 7, 127])
def test_rank_counts_the_limits_below_a_value_and_tells_missing_apart(size: int, rng: np.random.Generator) -> None:
    limits = np.sort(rng.normal(size=size))
    padded = np.concatenate([limits[: size - size // 3], np.full(size // 3, np.inf)])
    values = np.concatenate([rng.normal(size=200), padded, np.nextafter(limits, np.inf), [np.inf, -np.inf, np.nan]])
    out = np.empty(len(values), dtype=np.uint32)
    kernels.rank(values, padded, np.uint64(10), np.uint64(99), out)
    assert out[:-1].tolist() == (10 + np.searchsorted(padded, values[:-1], "left")).tolist()
    assert out[-1] == 99


def test_lookup_adds_the_leaf_that_all_features_leave_and_nothing_for_a_word_without_one() -> None:
    multiplier = np.uint32(0x077CB531)
    place = [int(((1 << bit) * int(multiplier)) % 2**32) >> 27 for bit in range(32)]
    assert sorted(place) == list(range(32))
    assert place[0] == 0
    leaves = np.zeros((2, 32))
    leaves[0, place[1]], leaves[0, place[2]], leaves[1, place[31]] = 0.25, 0.5, 4.0
    # Two features with two values each: they leave the first leaf, the second, or that of the second word.
    table = np.array([[0b010, 0], [0b100, 1 << 31], [0b110, 0], [0b000, 1 << 31]], dtype=np.uint32)
    rows = np.array([[0, 1, 1], [2, 2, 3]], dtype=np.uint32)
    out = np.empty((3, 1))
    kernels.lookup(rows, table, leaves, np.array([0, 2]), np.array([1.0]), multiplier, out)
    assert out.ravel().tolist() == [1.25, 1.5, 5.0]


def test_walk_follows_limits_and_the_side_of_missing_values_to_leaves_of_different_depth() -> None:
    everything = 2**32 - 1
    nodes = np.array(
        [
            [0, 10, 1, 0],  # at most 10: left
            [0, everything, 1, 0],
            [everything, 21, 3, 1],  # missing or at most 20: left
            [0, everything, 3, 0],
            [0, everything, 4, 0],
        ],
        dtype=np.uint32,
    )
    values = np.array([[0.0], [1.0], [0.0], [2.0], [4.0]])
    keys = np.array([[10, 11, 11, 11], [0, 20, 21, everything]], dtype=np.uint32)
    out = np.full((4, 1), 100.0)
    kernels.walk(keys, nodes, np.array([0], dtype=np.uint32), np.array([2]), values, out)
    assert out.ravel().tolist() == [101.0, 102.0, 104.0, 102.0]


def test_every_loop_can_be_compiled_ahead_for_just_the_types_it_is_called_with() -> None:
    kernels.prepare("lookup")
    kernels.prepare("walk")
    test_lookup_adds_the_leaf_that_all_features_leave_and_nothing_for_a_word_without_one()
    test_walk_follows_limits_and_the_side_of_missing_values_to_leaves_of_different_depth()
    loops = (kernels.rank, kernels.lookup, kernels.walk)
    # Values that may be written to and values that may not are two types.
    assert [len(loop.signatures) for loop in loops] == [2, 1, 1]  # type: ignore[attr-defined]
