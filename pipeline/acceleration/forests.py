"""Forests and single trees, walked for blocks of rows at once: their leaves are too many for a look-up.

Trees of `sklearn.tree` compare features in float32, so a limit is rounded down to float32 without changing an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.acceleration.features import Category, NotAccelerable
from pipeline.acceleration.programs import Program, Refused, Term, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.acceleration.features import Feature
    from pipeline.acceleration.programs import Input

MODELS = (
    *("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"),
    *("DecisionTreeClassifier", "DecisionTreeRegressor"),
)
_MOST_FEATURES = 2_000
_ROWS = 8_192
_NO_CHILD = -1
_SIGN, _ALL = np.uint32(1 << 31), np.uint32(2**32 - 1)


def build(model: Any, features: Sequence[Feature], inputs: Sequence[Input]) -> Program:
    """The program of a fitted model on ``features``. Raises `NotAccelerable`."""
    if model.n_outputs_ != 1:
        raise NotAccelerable("it has several outputs")
    if len(features) > _MOST_FEATURES:
        raise NotAccelerable(f"it has {len(features)} features after encoding, more than {_MOST_FEATURES}")
    trees = [model.tree_] if hasattr(model, "tree_") else [one.tree_ for one in model.estimators_]
    starts = np.cumsum([0, *(tree.node_count for tree in trees)])
    parts = [_flat(tree, int(start)) for tree, start in zip(trees, starts, strict=False)]
    names = [i.column for i in inputs]
    category = [_keys(np.asarray(f.values, dtype=np.float32)) for f in features if isinstance(f, Category)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays |= {
        "roots": starts[:-1].astype(np.uint32),
        "depths": np.array([tree.max_depth for tree in trees], dtype=np.int64),
        "codes": np.concatenate([np.empty(0, dtype=np.uint32), *category]),
        "shifts": np.cumsum([0, *(len(f.values) if isinstance(f, Category) else 0 for f in features)]).astype(np.int64),
    }
    terms = tuple(Term(names.index(f.column), () if isinstance(f, Category) else f.steps) for f in features)
    link = "probabilities" if hasattr(model, "classes_") else "identity"
    return Program("walk", link, tuple(inputs), terms, arrays)


def sums(program: Program, values: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """The mean over the trees, shape (n, classes or 1), of the values that `Program.read` gave. Raises `Refused`."""
    from pipeline import kernels  # numba takes half a second to import

    a, n = program.arrays, len(values[0])
    out = np.zeros((n, a["values"].shape[1]))
    for start in range(0, n, _ROWS):
        block = slice(start, min(start + _ROWS, n))
        keys = np.empty((len(program.terms), block.stop - start), dtype=np.uint32)
        for j, term in enumerate(program.terms):
            mine = values[term.input][block]
            if program.inputs[term.input].levels is None:
                with np.errstate(over="ignore"):
                    narrow = term.numbers(mine).astype(np.float32)
                # What is too large for float32 is refused like infinity.
                if np.isinf(narrow).any():
                    raise Refused("infinite")
                keys[j] = _keys(narrow)
            else:
                np.take(a["codes"][a["shifts"][j] : a["shifts"][j + 1]], mine, out=keys[j])
        kernels.walk(keys, a["nodes"], a["roots"], a["depths"], a["values"], out[block])
    out /= len(a["roots"])
    return out


def edges(program: Program) -> dict[str, NDArray[np.float64]]:
    """The limits at which predictions may jump, by column; of columns whose values are split as they are."""
    found: dict[str, NDArray[np.float64]] = {}
    nodes = program.arrays["nodes"]
    inner = nodes[nodes[:, 2] != np.arange(len(nodes))]
    # The last key that goes left, whichever the first one is.
    last = inner[:, 0] + inner[:, 1]
    for j, term in enumerate(program.terms):
        if not term.steps and program.inputs[term.input].levels is None:
            mine = np.unique(last[inner[:, 3] == j])
            # The next number that float32 can tell from a limit goes right.
            found[program.inputs[term.input].column] = _floats(np.union1d(mine, mine + np.uint32(1)))
    return found


def verify(program: Program) -> None:
    """Raise ``ValueError`` unless every index that the kernels follow is inside its array."""
    a, p = program.arrays, len(program.terms)
    nodes, count = a["nodes"], len(a["nodes"])
    check(nodes.dtype == a["roots"].dtype == a["codes"].dtype == np.uint32 and a["depths"].dtype == np.int64)
    check(nodes.shape[1:] == (4,) and a["values"].dtype == np.float64 and a["values"].shape[:1] == (count,))
    is_leaf = (nodes[:, 2] == np.arange(count)) & (nodes[:, 1] == _ALL)
    check(bool((is_leaf | (nodes[:, 2].astype(np.int64) + 1 < count)).all()) and bool((nodes[:, 3] < max(p, 1)).all()))
    check(bool((a["roots"] < count).all()) and len(a["roots"]) == len(a["depths"]) > 0)
    check(len(a["shifts"]) == p + 1 and a["shifts"][-1] == len(a["codes"]))
    for j, term in enumerate(program.terms):
        levels = program.inputs[term.input].levels
        check(a["shifts"][j + 1] - a["shifts"][j] == (0 if levels is None else len(levels) + 2))


def _flat(tree: Any, start: int) -> dict[str, NDArray[Any]]:
    """The nodes of one tree, level by level, each left child right before its right one; numbered from ``start``."""
    left, right = tree.children_left, tree.children_right
    levels, frontier = [np.zeros(1, dtype=np.int64)], np.zeros(1, dtype=np.int64)
    while len(frontier):
        inner = frontier[left[frontier] != _NO_CHILD]
        frontier = np.column_stack([left[inner], right[inner]]).ravel()
        levels.append(frontier)
    order = np.concatenate(levels)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    is_leaf = left[order] == _NO_CHILD
    limit = _keys(_down(np.where(is_leaf, 0.0, tree.threshold[order])))
    # Missing has the last key, from which keys run on to the first: left are all from there to the limit, or none.
    takes_missing = tree.missing_go_to_left[order].astype(bool)
    nodes = np.column_stack(
        [
            np.where(is_leaf | ~takes_missing, 0, _ALL),
            np.where(is_leaf, _ALL, limit + takes_missing.astype(np.uint32)),
            start + np.where(is_leaf, np.arange(len(order)), place[left[order]]),
            np.where(is_leaf, 0, tree.feature[order]),
        ]
    )
    values = np.ascontiguousarray(tree.value[order, 0, :], dtype=np.float64)
    return {"nodes": nodes.astype(np.uint32), "values": values}


def _down(limits: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is not above each limit."""
    with np.errstate(over="ignore"):
        near = limits.astype(np.float32)
    lower: NDArray[np.float32] = np.where(near > limits, np.nextafter(near, np.float32(-np.inf)), near)
    return lower


def _keys(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Integers in the order of the values: of equal numbers the same, and of NaN the largest."""
    bits = (values + np.float32(0.0)).view(np.uint32)  # the sum makes one zero of two
    keys = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    keys[np.isnan(values)] = _ALL
    return keys


def _floats(keys: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The finite values of `_keys`."""
    values = np.where(keys & _SIGN, keys & ~_SIGN, ~keys).astype(np.uint32).view(np.float32)
    finite: NDArray[np.float64] = values[np.isfinite(values)].astype(np.float64)
    return finite
