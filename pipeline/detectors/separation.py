"""The classifier two-sample test: how well boosted trees tell the rows of a window from those of the reference.

Both backends of `pipeline.detectors` share the choice of rows, the features, the trees, the folds and the test of the
probabilities; what a backend adds is how these are found out of fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import ks_2samp, rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import StratifiedKFold

from pipeline import threads
from pipeline.detectors.encoding import Codes, as_numbers, levels
from pipeline.effects import Array, Kinds, Sample

FOLDS = 3
# Fewer rows teach a classifier nothing that would hold in the next fold.
_MIN_ROWS = 100
# More rows of one side than this many per row of the other take time and add hardly any power.
_MOST_PER_ROW = 3
# Half as many trees that learn one and a half times as fast see as much as 40 at 0.1, but for a little of a correlation.
_TREES: dict[str, Any] = {
    "max_iter": 20,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 20,
    "learning_rate": 0.15,
    "early_stopping": False,
}
# Without significance there is nothing to explain; the ranking takes as long again.
_RANKED_BELOW = 0.05
_RANKED_ROWS = 500
_MOST_RANKED = 20
# Values that a model is asked about in one call, which costs more than a few rows: 16 MB.
_VALUES_AT_ONCE = 2_000_000
# What a column loses below this share of the largest loss is chance.
_LEAST_LOSS = 0.1


@dataclass(frozen=True, slots=True)
class Separation:
    """How well a classifier that has not seen a row tells whether it is of the reference or of the window.

    ``auc`` is the area under its ROC curve, 0.5 (not at all, or worse than guessing) to 1. ``p_value`` is that of a one-sided
    Kolmogorov-Smirnov test of its probabilities, from the asymptotic distribution; the folds learn from each other's rows,
    which makes it a little small: without drift 2.4 % of 900 samples were below 0.01, so judge the AUC as well. ``ranked``
    holds up to 20 columns with the AUC that is lost when their values are shuffled, the most telling first, without those
    that lose less than a tenth of what the first loses; empty unless ``p_value`` is below 0.05 and ``auc`` is as large as asked
    for. ``rows`` were compared per side (of the smaller one, where they differ).
    """

    auc: float
    p_value: float
    ranked: tuple[tuple[str, float], ...]
    rows: int


class Trees:
    """Boosted trees that keep the model of every fold; a classifier to alibi-detect, which forgets all but the last."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.fitted: list[Any] = []

    def __sklearn_clone__(self) -> Trees:
        """Itself: alibi-detect fits a clone, which would take the models with it."""
        return self

    def fit(self, features: Array, labels: Array) -> Trees:
        """One more model, of these rows only."""
        self.fitted.append(HistGradientBoostingClassifier(random_state=self._seed, **_TREES).fit(features, labels))
        return self

    def predict_proba(self, features: Array) -> Array:
        """By the latest model. Raises ``NotFittedError`` before there is one, as alibi-detect expects."""
        if not self.fitted:
            raise NotFittedError("no fold has been fitted")
        probabilities: Array = self.fitted[-1].predict_proba(features)
        return probabilities


@dataclass(frozen=True, slots=True)
class Sides:
    """What the classifier sees: the rows of the reference, then those of the window, and the columns that vary.

    ``features`` has shape (rows, columns), ``labels`` is 1 for rows of the window.
    """

    names: tuple[str, ...]
    features: Array
    labels: Array

    @classmethod
    def of(cls, reference: Sample, current: Sample, kinds: Kinds, rows: int, seed: int) -> Sides | None:
        """At most ``rows`` rows per side; None when a side has fewer than 100 or no column varies."""
        first, second = (len(next(iter(side.values()), ())) for side in (reference, current))
        smaller = min(first, second, rows)
        if smaller < _MIN_ROWS or not kinds:
            return None
        columns = np.stack([as_numbers(reference[name], current[name], kind) for name, kind in kinds.items()])
        hashes = _hashes(columns, seed)
        most = min(rows, _MOST_PER_ROW * smaller)
        chosen = [_evenly(hashes[:first], most), first + _evenly(hashes[first:], most)]
        compared = zip(kinds.items(), columns[:, np.concatenate(chosen)], strict=True)
        features = {name: levels(column) if kind == "number" else column for (name, kind), column in compared}
        varying = {name: column for name, column in features.items() if len(np.unique(column)) > 1}
        if not varying:
            return None
        labels = np.repeat([0, 1], [len(side) for side in chosen])
        return cls(tuple(varying), np.stack([*varying.values()], axis=1), labels)

    def folds(self, seed: int) -> Iterable[tuple[Codes, Codes]]:
        """The rows to learn from and the rows to tell apart, fold by fold, as alibi-detect draws them."""
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        pairs: Iterable[tuple[Codes, Codes]] = folds.split(self.labels, self.labels)
        return pairs

    def apart(self, values: Array) -> tuple[Array, Array]:
        """One value per row, as those of the reference and those of the window."""
        reference = np.count_nonzero(self.labels == 0)
        return values[:reference], values[reference:]


OutOfFold = Callable[[Sides, Trees], Array]


def compare(sides: Sides | None, out_of_fold: OutOfFold, seed: int, ranked_from: float) -> Separation | None:
    """What `Detector.separation` promises; None when there are no sides.

    ``out_of_fold`` fits the trees on the folds of ``Sides.folds(seed)`` in order; it returns each row's probability of being
    of the window, by the trees that have not seen the row.
    """
    if sides is None:
        return None
    trees = Trees(seed)
    # On so few rows a second thread gains little; where other processes want the cores, threads wait for each other.
    with threads.one():
        probabilities = out_of_fold(sides, trees)
        p_value = float(ks_2samp(*sides.apart(probabilities), alternative="greater", method="asymp").pvalue)
        auc = max(0.5, _auc(probabilities, sides.labels))
        ranked = _ranked(sides, trees, seed) if p_value < _RANKED_BELOW and auc >= ranked_from else ()
    return Separation(auc, p_value, ranked, min(len(side) for side in sides.apart(sides.labels)))


def _ranked(sides: Sides, trees: Trees, seed: int) -> tuple[tuple[str, float], ...]:
    """Permutation importance (Breiman 2001, Random Forests) for the out-of-fold AUC."""
    rng = np.random.default_rng(seed)
    tests = [test[:: max(1, len(test) // _RANKED_ROWS)] for _, test in sides.folds(seed)]
    orders = [rng.permutation(len(test)) for test in tests]
    features = [sides.features[test] for test in tests]
    labels = sides.labels[np.concatenate(tests)]

    def aucs(places: Sequence[int | None]) -> list[float]:
        """The AUC with the column at each place shuffled, or with none, from one call of each model."""
        said = []
        for model, rows, order in zip(trees.fitted, features, orders, strict=True):
            asked = np.tile(rows, (len(places), 1, 1))
            for copy, place in zip(asked, places, strict=True):
                if place is not None:
                    copy[:, place] = rows[order, place]
            said.append(model.predict_proba(asked.reshape(-1, rows.shape[1]))[:, 1].reshape(len(places), -1))
        return [_auc(scores, labels) for scores in np.concatenate(said, axis=1)]

    most = max(1, _VALUES_AT_ONCE // max(rows.size for rows in features))
    whole = aucs([None])[0]
    lost: dict[str, float] = {}
    for start in range(0, len(sides.names), most):
        names = sides.names[start : start + most]
        shuffled = aucs(range(start, start + len(names)))
        lost |= {name: whole - auc for name, auc in zip(names, shuffled, strict=True)}
    telling = {name: loss for name, loss in lost.items() if loss > max(0.0, _LEAST_LOSS * max(lost.values()))}
    return tuple(sorted(telling.items(), key=lambda item: (-item[1], item[0]))[:_MOST_RANKED])


def _auc(scores: Array, labels: Array) -> float:
    """Probability that a row of the window scores higher than one of the reference, ties counted half."""
    positive = np.count_nonzero(labels)
    ranks = float(rankdata(scores)[labels == 1].sum())
    return (ranks - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))


def _evenly(hashes: Array, most: int) -> Codes:
    """Positions of at most ``most`` rows in the order of their hashes, evenly spaced, so that equal rows keep their share."""
    order: Codes = np.argsort(hashes, kind="stable")
    spaced: Codes = order[np.arange(most) * len(order) // most]
    return order if len(order) <= most else spaced


def _hashes(columns: Array, seed: int) -> Array:
    """A number per row that depends on its values only; columns are mixed in by SplitMix64 (Steele et al. 2014)."""
    state = np.full(columns.shape[1], seed % 2**64, dtype=np.uint64)
    for column in columns:
        state = (state ^ column.view(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state
