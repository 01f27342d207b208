"""Loops over rows and trees, compiled by numba once per machine and kept in its cache on disk.

They take arrays only, hold no lock while they run, and check no bound: `pipeline.acceleration` checks what they are given.
None depends on the batch that a row comes in: sums have one order, and nothing is fused or reordered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_UPPER = np.uint32(27)
_BLOCK = 256  # rows whose features stay in the first-level cache


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    try:
        compiled = njit(function, nogil=True, cache=True)
    except RuntimeError:  # no folder to keep it in: every process compiles its own
        compiled = njit(function, nogil=True)
    made: Callable[..., None] = compiled
    return made


@_compiled
def rank(values: NDArray[Any], limits: NDArray[Any], first: np.uint64, missing: np.uint64, out: NDArray[Any]) -> None:
    """``out[i] = first +`` how many of the ascending ``limits`` are below ``values[i]``; ``missing`` for NaN.

    ``limits`` has 2**k - 1 entries, filled up with infinity.
    """
    top = np.uint64((limits.size + 1) >> 1)
    for i in range(values.size):
        value, at, step = values[i], np.uint64(0), top
        while step > 0:
            if limits[at + step - np.uint64(1)] < value:
                at += step
            step >>= np.uint64(1)
        out[i] = first + at if value == value else missing


@_compiled
def lookup(
    rows: NDArray[Any],
    table: NDArray[Any],
    leaves: NDArray[Any],
    starts: NDArray[Any],
    baseline: NDArray[Any],
    multiplier: np.uint32,
    out: NDArray[Any],
) -> None:
    """``out[i, c]``: the baseline and the leaves' values of row ``i``, added in the order of the words of output ``c``.

    ``rows[j, i]`` is the row of ``table`` for the value of feature ``j``: which leaves that value leaves possible, one bit
    each. What all features leave is one leaf of each tree; ``multiplier`` turns its bit into a place among ``leaves``.
    """
    words = table.shape[1]
    left = np.empty(words, dtype=np.uint32)
    for i in range(rows.shape[1]):
        one, two = rows[0, i], rows[1, i]
        for w in range(words):
            left[w] = table[one, w] & table[two, w]
        for j in range(2, rows.shape[0], 2):
            one, two = rows[j, i], rows[j + 1, i]
            for w in range(words):
                left[w] &= table[one, w] & table[two, w]
        for c in range(baseline.size):
            total = baseline[c]
            for w in range(starts[c], starts[c + 1]):
                total += leaves[w, np.uint32(left[w] * multiplier) >> _UPPER]
            out[i, c] = total


@_compiled
def walk(
    keys: NDArray[Any],
    nodes: NDArray[Any],
    roots: NDArray[Any],
    depths: NDArray[Any],
    values: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """``out[i, c]``: the sum of the values of the leaves that row ``i`` reaches, tree after tree, added to what is there.

    ``keys[f, i]`` are features as unsigned integers of the same order. ``nodes[n]`` are the first key that goes left, how
    many further ones do, the left child, which the right one follows, and the feature. Keys run on from the last to the
    first. A leaf is its own left child, and sends everything there.
    """
    at = np.empty(_BLOCK, dtype=np.uint32)
    for start in range(0, keys.shape[1], _BLOCK):
        block = keys[:, start : start + _BLOCK]
        count = np.uint64(block.shape[1])
        for tree in range(roots.size):
            for i in range(count):
                at[i] = roots[tree]
            for _ in range(depths[tree]):
                for i in range(count):
                    node = at[i]
                    beyond = np.uint32(block[nodes[node, 3], i] - nodes[node, 0]) > nodes[node, 1]
                    at[i] = nodes[node, 2] + np.uint32(beyond)
            for i in range(count):
                for c in range(values.shape[1]):
                    out[start + i, c] += values[at[i], c]


def prepare(kind: str) -> None:
    """Compile the loops of a kind of accelerated model for the types they are called with, or take them from the cache."""
    one = np.zeros(1)
    words, index = np.zeros((2, 1), dtype=np.uint32), np.zeros(2, dtype=np.int64)
    if kind == "lookup":
        # A column without missing values is read where Arrow has it.
        frozen = np.frombuffer(one.tobytes())
        for values in (one, frozen):
            rank(values, one, np.uint64(0), np.uint64(0), words[0])
        lookup(words, words, np.zeros((1, 32)), index, one, np.uint32(1), np.zeros((1, 1)))
    elif kind == "walk":
        nodes = np.zeros((1, 4), dtype=np.uint32)
        walk(words[:1], nodes, words[0], index[:1], np.zeros((1, 1)), np.zeros((1, 1)))
