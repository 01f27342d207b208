"""Histogram gradient boosting by look-up: for each value of each feature, the leaves of every tree that it leaves possible.

A feature has few values that the trees can tell apart, because its numbers are split at few limits. The bitwise "and" of one
row of bits per feature leaves exactly one leaf of each tree (after QuickScorer: Lucchese et al., SIGIR 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.acceleration.features import Category, NotAccelerable, Number, transformed
from pipeline.acceleration.programs import Program, Term, check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.acceleration.features import Feature
    from pipeline.acceleration.programs import Input

MODELS = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
_LINKS = {"LogitLink": "expit", "MultinomialLogit": "softmax", "IdentityLink": "identity"}
# Leaves per word: bit 0 stays free, so that a word without a leaf adds nothing.
_LEAVES = 31
_MOST_NODES = 400_000
_MOST_TABLE = 32 * 2**20  # bytes; what does not fit the processor's caches is no longer fast
# A de Bruijn sequence: the upper five bits of its product with 1 << i are different for every i, and 0 for i = 0.
_DE_BRUIJN = np.uint32(0x077CB531)


def build(model: Any, features: Sequence[Feature], inputs: Sequence[Input]) -> Program:
    """The program of a fitted model on ``features``. Raises `NotAccelerable`."""
    link = _LINKS.get(type(model._loss.link).__name__)
    if link is None:
        raise NotAccelerable(f"its loss {model.loss!r} has a link of its own")
    if model._preprocessor is not None:
        features = transformed(model._preprocessor, list(features), [""] * len(features))
    outputs = list(zip(*model._predictors, strict=True))
    trees = [_Tree.of(predictor, model._bin_mapper) for output in outputs for predictor in output]
    if sum(len(tree.nodes) for tree in trees) > _MOST_NODES:
        raise NotAccelerable(f"its trees have more than {_MOST_NODES} nodes")
    per_output = [sum(tree.words for tree in trees[i * len(o) : (i + 1) * len(o)]) for i, o in enumerate(outputs)]
    starts = np.concatenate([[0], np.cumsum(per_output)]).astype(np.int64)
    terms, arrays = _tables(trees, features, [i.column for i in inputs], int(starts[-1]))
    arrays |= {"starts": starts, "baseline": np.asarray(model._baseline_prediction, dtype=np.float64).ravel()}
    return Program("lookup", link, tuple(inputs), terms, arrays)


def sums(program: Program, values: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """The sums of the leaves, shape (n, outputs), of the values that `Program.read` gave."""
    from pipeline import kernels  # numba takes half a second to import

    arrays, n = program.arrays, len(values[0])
    rows = np.empty((len(program.terms) + len(arrays["neutral"]), n), dtype=np.uint32)
    for j, term in enumerate(program.terms):
        first, last = arrays["rows"][j : j + 2]
        mine = arrays["limits"][arrays["bounds"][j] : arrays["bounds"][j + 1]]
        if program.inputs[term.input].levels is None:
            kernels.rank(term.numbers(values[term.input]), mine, np.uint64(first), np.uint64(last - 1), rows[j])
        else:
            np.take(arrays["codes"][arrays["shifts"][j] : arrays["shifts"][j + 1]], values[term.input], out=rows[j])
    rows[len(program.terms) :] = arrays["neutral"][:, None]
    out = np.empty((n, len(arrays["baseline"])))
    kernels.lookup(rows, arrays["table"], arrays["leaves"], arrays["starts"], arrays["baseline"], _DE_BRUIJN, out)
    return out


def edges(program: Program) -> dict[str, NDArray[np.float64]]:
    """The limits at which predictions may jump, by column; of columns whose values are split as they are."""
    found: dict[str, NDArray[np.float64]] = {}
    for j, term in enumerate(program.terms):
        limits = program.arrays["limits"][program.arrays["bounds"][j] : program.arrays["bounds"][j + 1]]
        if not term.steps and len(limits):
            found[program.inputs[term.input].column] = np.unique(limits[np.isfinite(limits)])
    return found


def verify(program: Program) -> None:
    """Raise ``ValueError`` unless every index that the kernels follow is inside its array."""
    a = program.arrays
    p, words = len(program.terms), a["table"].shape[1]
    check(a["table"].dtype == np.uint32 and a["leaves"].dtype == np.float64 and a["leaves"].shape == (words, 32))
    check(a["starts"].dtype == np.int64 and a["baseline"].dtype == np.float64 and a["codes"].dtype == np.uint32)
    check(len(a["starts"]) == len(a["baseline"]) + 1 and a["starts"][0] == 0 and a["starts"][-1] == words)
    check(bool((np.diff(a["starts"]) >= 0).all()) and (p + len(a["neutral"])) % 2 == 0 and p + len(a["neutral"]) > 0)
    check(bool((a["neutral"] < len(a["table"])).all()) and bool((a["codes"] < len(a["table"])).all()))
    check(len(a["rows"]) == p + 1 and len(a["bounds"]) == p + 1 and len(a["shifts"]) == p + 1)
    check(a["rows"][0] == 0 and a["rows"][-1] <= len(a["table"]) and bool((np.diff(a["rows"]) > 0).all()))
    for j, term in enumerate(program.terms):
        levels = program.inputs[term.input].levels
        limits = a["limits"][a["bounds"][j] : a["bounds"][j + 1]]
        if levels is None:
            check(len(limits) > 0 and len(limits) & (len(limits) + 1) == 0)
            check(np.searchsorted(limits, np.inf) + 1 < a["rows"][j + 1] - a["rows"][j])
            check(bool((np.diff(limits[np.isfinite(limits)]) > 0).all()) and not np.isnan(limits).any())
        else:
            check(a["shifts"][j + 1] - a["shifts"][j] == len(levels) + 2)


@dataclass(frozen=True)
class _Tree:
    """One tree: its nodes, and for each the first of the leaves below it and their number, counted from left to right."""

    nodes: NDArray[Any]
    first: NDArray[np.int64]
    below: NDArray[np.int64]
    is_left: NDArray[Any]  # of each categorical split, which categories go left
    is_known: NDArray[Any]  # of each categorical feature, which categories the trees know
    known_of: NDArray[Any]

    @classmethod
    def of(cls, predictor: Any, bins: Any) -> _Tree:
        nodes = predictor.nodes
        left, right, is_leaf = nodes["left"].tolist(), nodes["right"].tolist(), nodes["is_leaf"].tolist()
        order, todo = [], [0]
        while todo:
            node = todo.pop()
            order.append(node)
            if not is_leaf[node]:
                todo += (right[node], left[node])
        first, below = np.zeros(len(nodes), dtype=np.int64), np.ones(len(nodes), dtype=np.int64)
        for node in reversed(order):
            if not is_leaf[node]:
                below[node] = below[left[node]] + below[right[node]]
        for node in order:
            if not is_leaf[node]:
                first[left[node]], first[right[node]] = first[node], first[node] + below[left[node]]
        known, known_of = bins.make_known_categories_bitsets()
        return cls(nodes, first, below, _unpacked(predictor.raw_left_cat_bitsets), _unpacked(known), known_of)

    @property
    def words(self) -> int:
        return -(-int(self.below[0]) // _LEAVES)

    @property
    def inner(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.nodes["is_leaf"] == 0)

    def bits(self, start: int, stop: int) -> NDArray[np.uint32]:
        """The words in which the leaves from ``start`` to ``stop`` are set."""
        numbers = np.arange(self.words * _LEAVES).reshape(self.words, _LEAVES)
        chosen = (numbers >= start) & (numbers < stop)
        weights = np.uint32(1) << np.arange(1, _LEAVES + 1, dtype=np.uint32)
        words: NDArray[np.uint32] = np.where(chosen, weights, np.uint32(0)).sum(axis=1, dtype=np.uint32)
        return words

    def values(self) -> NDArray[np.float64]:
        """The value of the leaf behind each bit of each word, where the kernel looks for it; 0 for no leaf."""
        placed = np.zeros((self.words, _LEAVES + 1))
        bit = np.arange(_LEAVES + 1, dtype=np.uint32)
        place = ((np.uint32(1) << bit) * _DE_BRUIJN) >> np.uint32(27)
        for node in np.flatnonzero(self.nodes["is_leaf"]):
            word, leaf = divmod(int(self.first[node]), _LEAVES)
            placed[word, place[leaf + 1]] = self.nodes["value"][node]
        return placed

    def goes_left(self, node: int, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the values of its feature a node sends left."""
        split = self.nodes[node]
        missing = np.isnan(values)
        if split["is_categorical"]:
            # Negative and unknown categories count as missing; numbers from 256 on wrap around, as they do there.
            category = np.where(missing | (values < 0), 0, values).astype(np.int64) & 255
            left = self.is_left[split["bitset_idx"]][category]
            missing |= (values < 0) | ~(left | self.is_known[self.known_of[split["feature_idx"]]][category])
        else:
            left = values <= split["num_threshold"]
        return np.where(missing, bool(split["missing_go_to_left"]), left)


def _unpacked(bitsets: NDArray[Any]) -> NDArray[np.bool_]:
    packed = np.ascontiguousarray(bitsets, dtype="<u4").view(np.uint8)
    return np.unpackbits(packed, axis=1, bitorder="little").astype(bool)


def _tables(
    trees: Sequence[_Tree], features: Sequence[Feature], columns: Sequence[str], words: int
) -> tuple[tuple[Term, ...], dict[str, NDArray[Any]]]:
    """The terms that the trees look at, and the arrays of the look-up."""
    at = np.concatenate([[0], np.cumsum([tree.words for tree in trees])])
    neutral = np.concatenate([tree.bits(0, int(tree.below[0])) for tree in trees])
    blocks: list[NDArray[np.uint32]] = []
    terms: list[Term] = []
    limits: list[NDArray[np.float64]] = []
    codes: list[NDArray[np.uint32]] = []
    used = np.unique(np.concatenate([tree.nodes["feature_idx"][tree.inner] for tree in trees]))
    for index in used.tolist():
        feature = features[index]
        tested = _tested(trees, index) if isinstance(feature, Number) else np.empty(0)
        values = _different(feature, tested)
        if (len(values) + sum(map(len, blocks))) * words * 4 > _MOST_TABLE:
            raise NotAccelerable(f"its table of leaves would have more than {_MOST_TABLE // 2**20} MiB")
        block = np.tile(neutral, (len(values), 1))
        for tree, start in zip(trees, at, strict=False):
            for node, left, right in _splits(tree, index):
                is_left = tree.goes_left(node, values)
                mine = block[:, start : start + tree.words]
                mine[is_left] &= ~right
                mine[~is_left] &= ~left
        first = sum(map(len, blocks))
        if isinstance(feature, Category):
            block, which = np.unique(block, axis=0, return_inverse=True)
            codes.append((first + which.ravel()).astype(np.uint32))
            limits.append(np.empty(0))
        else:
            codes.append(np.empty(0, dtype=np.uint32))
            limits.append(_filled_up(tested))
        blocks.append(block)
        terms.append(Term(columns.index(feature.column), feature.steps if isinstance(feature, Number) else ()))
    # The kernel takes features in pairs.
    spare = 2 if not terms else len(terms) % 2
    rows = np.cumsum([0, *map(len, blocks)])
    arrays = {
        "table": np.concatenate([*blocks, neutral[None, :]]),
        "leaves": np.concatenate([tree.values() for tree in trees]),
        "neutral": np.full(spare, rows[-1], dtype=np.uint32),
        "rows": rows.astype(np.int64),
        "limits": np.concatenate([np.empty(0), *limits]),
        "bounds": np.cumsum([0, *map(len, limits)]).astype(np.int64),
        "codes": np.concatenate([np.empty(0, dtype=np.uint32), *codes]),
        "shifts": np.cumsum([0, *map(len, codes)]).astype(np.int64),
    }
    return tuple(terms), arrays


def _splits(tree: _Tree, index: int) -> Iterator[tuple[int, NDArray[np.uint32], NDArray[np.uint32]]]:
    """Each node that splits a feature, and the bits of the leaves below its left and right child."""
    for node in tree.inner[tree.nodes["feature_idx"][tree.inner] == index].tolist():
        start, end = int(tree.first[node]), int(tree.first[node] + tree.below[node])
        middle = int(tree.first[tree.nodes["right"][node]])
        yield node, tree.bits(start, middle), tree.bits(middle, end)


def _tested(trees: Sequence[_Tree], index: int) -> NDArray[np.float64]:
    """The limits at which the trees split a feature of numbers, ascending."""
    found = []
    for tree in trees:
        mine = tree.nodes[tree.inner[tree.nodes["feature_idx"][tree.inner] == index]]
        if mine["is_categorical"].any():
            raise NotAccelerable("it splits a column of numbers as categories")
        found.append(mine["num_threshold"])
    limits: NDArray[np.float64] = np.unique(np.concatenate(found))
    return limits


def _different(feature: Feature, tested: NDArray[np.float64]) -> NDArray[np.float64]:
    """One value for each that the trees can tell apart: of a number, one per stretch between limits, and missing."""
    if isinstance(feature, Category):
        return np.asarray(feature.values, dtype=np.float64)
    beyond = np.nextafter(tested[-1], np.inf) if np.isfinite(tested[-1]) else np.inf
    return np.concatenate([tested, [beyond, np.nan]])


def _filled_up(tested: NDArray[np.float64]) -> NDArray[np.float64]:
    """The limits with as many infinities behind them as the kernel's halving needs."""
    size = 1
    while size < len(tested):
        size = 2 * size + 1
    return np.concatenate([tested, np.full(size - len(tested), np.inf)])
