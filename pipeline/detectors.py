"""Two-sample tests per column: Kolmogorov-Smirnov for numbers, chi-squared homogeneity for categories.

The alibi and the scipy backend give the same p-values. What a p-value means is judged in `pipeline.drift`; this module must
not decide. Only this module may import alibi_detect.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Literal, Protocol

import numpy as np

from pipeline.drift import Array, Kind, Kinds, Sample, present
from pipeline.errors import TerminalError

DetectorName = Literal["alibi", "scipy"]
_Test = Callable[[Array, Array], float]

# Cochran's rule: below five expected rows in a cell the chi-squared approximation reports chance as significance.
_MIN_EXPECTED = 5
# alibi-detect compares every row with every code; this bounds its time and costs no power that matters.
_MAX_CODES = 1000
_MIN_VALUES = 2
_MIN_CODES = 2


class Detector(Protocol):
    """A backend of two-sample tests: Kolmogorov-Smirnov for numbers, Pearson's chi-squared for categories."""

    name: DetectorName

    def p_values(self, reference: Sample, current: Sample, kinds: Kinds) -> dict[str, float | None]:
        """The two-sided p-value of every column of ``kinds``; never NaN.

        None where no test is possible: fewer than two values on a side, or categories that are all too rare to be counted.
        A column that holds one and the same value on both sides has 1.0. NaN and infinities are missing: numbers are tested
        without them, for categories missing is a category. The samples are not changed.
        """
        ...


def detector(name: DetectorName) -> Detector:
    """The backend of that name. Raises ``TerminalError`` when alibi-detect is asked for and not installed."""
    return AlibiDetector() if name == "alibi" else ScipyDetector()


class ScipyDetector:
    """The tests of scipy, with the settings that alibi-detect uses."""

    name: DetectorName = "scipy"

    def p_values(self, reference: Sample, current: Sample, kinds: Kinds) -> dict[str, float | None]:
        """The p-values that `Detector.p_values` promises."""
        from scipy.stats import chi2_contingency, ks_2samp

        def kolmogorov_smirnov(reference: Array, current: Array) -> float:
            return float(ks_2samp(reference, current, method="asymp").pvalue)

        def chi_squared(reference: Array, current: Array) -> float:
            size = int(max(reference.max(), current.max())) + 1
            table = np.stack([np.bincount(side, minlength=size) for side in (reference, current)])
            # Two codes get Yates' correction (scipy's default), because alibi-detect does not switch it off.
            return float(chi2_contingency(table).pvalue)

        return _test_columns(reference, current, kinds, {"number": kolmogorov_smirnov, "category": chi_squared})


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
            from alibi_detect.cd import ChiSquareDrift, KSDrift
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

    def p_values(self, reference: Sample, current: Sample, kinds: Kinds) -> dict[str, float | None]:
        """The p-values that `Detector.p_values` promises."""
        return _test_columns(reference, current, kinds, self._tests)


def _only_p_value(prediction: dict[str, dict[str, Array]]) -> float:
    return float(prediction["data"]["p_val"][0])


def _test_columns(
    reference: Sample, current: Sample, kinds: Kinds, tests: dict[Kind, _Test]
) -> dict[str, float | None]:
    return {column: _p_value(reference[column], current[column], kind, tests[kind]) for column, kind in kinds.items()}


def _p_value(reference: Array, current: Array, kind: Kind, test: _Test) -> float | None:
    held, held_now = present(reference, kind), present(current, kind)
    if min(np.count_nonzero(held), np.count_nonzero(held_now)) < _MIN_VALUES:
        return None
    if kind == "number":
        pair = reference[held], current[held_now]
    else:
        keys, keys_now = _keys(reference, held), _keys(current, held_now)
        if len({*keys, *keys_now}) == 1:
            return 1.0
        pair = _encode(keys, keys_now)
        if len(np.union1d(*pair)) == 1:
            return None
    p_value = test(*pair)
    return p_value if math.isfinite(p_value) else None


def _keys(values: Array, held: Array) -> list[Hashable]:
    """The categories, with None for whatever counts as missing."""
    return [value if is_held else None for value, is_held in zip(values, held, strict=True)]


def _encode(reference: list[Hashable], current: list[Hashable]) -> tuple[Array, Array]:
    """Both sides as integer codes fit for a chi-squared test: every code occurs, and nearly always often enough.

    From the most to the least frequent, categories are put together until five rows of the code are expected in the
    smaller side; a frequent one stays alone. Only the counts of both sides together decide, so that the codes of equal
    distributions are equally distributed, and values that the reference does not have are counted like all others.
    What is left over stays apart when a side shows it clearly (all rows have a new value), else joins the last code.
    """
    counts = Counter(reference) + Counter(current)
    small = min(reference, current, key=len)
    needed = counts.total() * max(_MIN_EXPECTED / len(small), 1 / _MAX_CODES)
    mapping: dict[Hashable, int] = {}
    code, rows = 0, 0
    for key in sorted(counts, key=lambda key: (-counts[key], str(key))):
        mapping[key] = code
        rows += counts[key]
        if rows >= needed:
            code, rows = code + 1, 0
    left = {key for key in mapping if mapping[key] == code}
    if code >= _MIN_CODES and sum(key in left for key in small) < _MIN_EXPECTED:
        mapping |= dict.fromkeys(left, code - 1)
    first, second = (np.array([mapping[key] for key in side], dtype=np.int64) for side in (reference, current))
    return first, second
