"""Two-sample tests of a reference and a window: column by column, and of all columns together.

The alibi and the scipy backend give the same numbers. What they mean is judged in `pipeline.drift`; this adapter must not
decide. Only this adapter may import alibi_detect.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from scipy.stats import chi2_contingency, ks_2samp

from pipeline import seasons
from pipeline.detectors.encoding import Categories, pooled
from pipeline.detectors.separation import FOLDS, Separation, Sides, Trees, compare
from pipeline.effects import Array, Kind, Kinds, Sample, present
from pipeline.errors import TerminalError

if TYPE_CHECKING:
    from pipeline.policies import Drift
    from pipeline.seasons import Season

__all__ = [
    "AlibiDetector",
    "Detector",
    "DetectorName",
    "ScipyDetector",
    "Separation",
    "detector",
    "natural_separations",
]

DetectorName = Literal["alibi", "scipy"]
_Test = Callable[[Array, Array], float]

_MIN_VALUES = 2
_STRETCHES, _FEWEST_STRETCHES = 12, 4
_STRETCH_ROWS = 1_000


class Detector(Protocol):
    """A backend of two-sample tests: Kolmogorov-Smirnov, Pearson's chi-squared, and a classifier for all columns."""

    name: DetectorName

    def p_values(self, reference: Sample, current: Sample, kinds: Kinds) -> dict[str, float | None]:
        """The two-sided p-value of every column of ``kinds``; never NaN.

        None where no test is possible: fewer than two values on a side, or categories that are all too rare to be counted.
        A column that holds one and the same value on both sides has 1.0. NaN and infinities are missing: numbers are tested
        without them, for categories missing is a category. The samples are not changed. P-values are single-precision
        numbers, because alibi-detect knows no others: right to seven digits, 0.0 below 1e-45.
        """
        ...

    def separation(
        self, reference: Sample, current: Sample, kinds: Kinds, *, rows: int, seed: int, ranked_from: float = 0.5
    ) -> Separation | None:
        """How well a classifier tells the two sides apart by all columns of ``kinds`` together.

        The classifier two-sample test (Lopez-Paz and Oquab 2017) on out-of-fold probabilities of shallow boosted trees. It
        finds what no column shows alone, such as a correlation that changed. At most ``rows`` rows per side take part, of the
        larger side at most three per row of the smaller; the choice depends on ``seed`` and on the rows, not on their
        order. NaN and infinities are missing, and missing is told apart from any value. The columns are ranked from
        an AUC of ``ranked_from`` on, which takes as long again. None for fewer than 100 rows on a side, or when no column
        varies.
        """
        ...


def detector(name: DetectorName) -> Detector:
    """The backend of that name. Raises ``TerminalError`` when alibi-detect is asked for and not installed."""
    return AlibiDetector() if name == "alibi" else ScipyDetector()


def natural_separations(
    policy: Drift, sample: Sample, kinds: Kinds, starts: Array, ladder: tuple[Season, ...], seed: int
) -> Array | None:
    """The AUCs by which a classifier tells stretches of the training period from the rest of their season.

    ``starts`` is the interval start of each row (minutes since 1970), ``ladder`` as of `pipeline.seasons.ladder`. Up to
    twelve stretches as long as a window, evenly spread, none overlapping. ``None`` when nothing is asked for, or when fewer
    than four could be told.
    """
    if not policy.multivariate:
        return None
    position = np.unique(starts, return_inverse=True)[1]
    intervals = int(position.max(initial=-1)) + 1
    firsts = np.linspace(0, max(intervals - policy.window, 0), min(_STRETCHES, max(intervals // policy.window, 1)))
    found = []
    for first in firsts.round().astype(int):
        inside = (position >= first) & (position < first + policy.window)
        needed = {"min_intervals": policy.reference.min_intervals, "min_rows": policy.min_rows}
        _, alike = seasons.alike(ladder, starts, np.unique(starts[inside]), **needed)
        outside = alike & ~inside
        if min(np.count_nonzero(inside), np.count_nonzero(outside)) < policy.min_rows:
            continue
        rest, own = ({name: values[side] for name, values in sample.items()} for side in (outside, inside))
        separation = ScipyDetector().separation(rest, own, kinds, rows=_STRETCH_ROWS, seed=seed, ranked_from=math.inf)
        found += [separation.auc] if separation is not None else []
    return np.array(found) if len(found) >= _FEWEST_STRETCHES else None


class ScipyDetector:
    """The tests of scipy and scikit-learn, with the settings that alibi-detect uses."""

    name: DetectorName = "scipy"

    def p_values(self, reference: Sample, current: Sample, kinds: Kinds) -> dict[str, float | None]:
        """The p-values that `Detector.p_values` promises."""

        def kolmogorov_smirnov(reference: Array, current: Array) -> float:
            return float(ks_2samp(reference, current, method="asymp").pvalue)

        def chi_squared(reference: Array, current: Array) -> float:
            size = int(max(reference.max(), current.max())) + 1
            table = np.stack([np.bincount(side, minlength=size) for side in (reference, current)])
            # Two codes get Yates' correction (scipy's default), because alibi-detect does not switch it off.
            return float(chi2_contingency(table).pvalue)

        return _test_columns(reference, current, kinds, {"number": kolmogorov_smirnov, "category": chi_squared})

    def separation(
        self, reference: Sample, current: Sample, kinds: Kinds, *, rows: int, seed: int, ranked_from: float = 0.5
    ) -> Separation | None:
        """The result that `Detector.separation` promises."""

        def out_of_fold(sides: Sides, trees: Trees) -> Array:
            probabilities = np.empty(len(sides.labels))
            for train, test in sides.folds(seed):
                trees.fit(sides.features[train], sides.labels[train])
                probabilities[test] = trees.predict_proba(sides.features[test])[:, 1]
            return probabilities

        return compare(Sides.of(reference, current, kinds, rows, seed), out_of_fold, seed, ranked_from)


class AlibiDetector:
    """The detectors of alibi-detect, one per column, because columns miss values in different rows.

    TabularDrift would need complete rows: a single NaN gives it a NaN p-value and no warning. A detector lives for one
    call and never updates its reference.
    """

    name: DetectorName = "alibi"

    def __init__(self) -> None:
        # Read by transformers, which alibi-detect imports, to announce on stderr that no deep learning library is there.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        try:
            from alibi_detect.cd import ChiSquareDrift, ClassifierDrift, KSDrift
        except ImportError as err:
            raise TerminalError(
                "the drift detector 'alibi' cannot be loaded",
                expected="the package alibi-detect",
                got=str(err),
                next_step="install alibi-detect, or set drift.detector: scipy in the job file (the same tests)",
            ) from err

        def kolmogorov_smirnov(reference: Array, current: Array) -> float:
            return _only_p_value(KSDrift(reference[:, None]).predict(current[:, None], drift_type="feature"))

        def chi_squared(reference: Array, current: Array) -> float:
            return _only_p_value(ChiSquareDrift(reference[:, None]).predict(current[:, None], drift_type="feature"))

        self._tests: dict[Kind, _Test] = {"number": kolmogorov_smirnov, "category": chi_squared}
        self._classifier_drift = ClassifierDrift

    def p_values(self, reference: Sample, current: Sample, kinds: Kinds) -> dict[str, float | None]:
        """The p-values that `Detector.p_values` promises."""
        return _test_columns(reference, current, kinds, self._tests)

    def separation(
        self, reference: Sample, current: Sample, kinds: Kinds, *, rows: int, seed: int, ranked_from: float = 0.5
    ) -> Separation | None:
        """The result that `Detector.separation` promises."""

        def out_of_fold(sides: Sides, trees: Trees) -> Array:
            first, second = sides.apart(sides.features)
            # Its own test of the probabilities would spend 50 ms on an exact distribution that it often cannot find.
            test = self._classifier_drift(
                first, trees, backend="sklearn", n_folds=FOLDS, train_size=None, seed=seed, binarize_preds=True
            )
            found = test.predict(second)["data"]
            return np.concatenate([found["probs_ref"], found["probs_test"]])

        return compare(Sides.of(reference, current, kinds, rows, seed), out_of_fold, seed, ranked_from)


def _only_p_value(prediction: dict[str, dict[str, Array]]) -> float:
    return float(prediction["data"]["p_val"][0])


def _test_columns(
    reference: Sample, current: Sample, kinds: Kinds, tests: dict[Kind, _Test]
) -> dict[str, float | None]:
    return {column: _p_value(reference[column], current[column], kind, tests[kind]) for column, kind in kinds.items()}


def _p_value(reference: Array, current: Array, kind: Kind, test: _Test) -> float | None:
    if kind == "number":
        pair = reference[present(reference, kind)], current[present(current, kind)]
        if min(map(len, pair)) < _MIN_VALUES:
            return None
    else:
        found = Categories.of(reference, current)
        sides = found.sides(len(reference))
        if min(np.count_nonzero(side != found.missing) for side in sides) < _MIN_VALUES:
            return None
        if len(found.rows) == 1:
            return 1.0
        pair = pooled(*sides)
        if max(side.max() for side in pair) == 0:
            return None
    # alibi-detect keeps p-values in single precision; rounded likewise, those of scipy are equal.
    p_value = float(np.float32(test(*pair)))
    return p_value if math.isfinite(p_value) else None
