"""How far columns moved away from the reference, and whether that amounts to drift.

Effect sizes measure how much, p-values (made by `pipeline.detectors`) whether chance explains it; drift needs both.
Pure functions of values; must not read a file or a clock, and no result depends on the order of rows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import fisher_exact

from pipeline.reports import ColumnDrift

if TYPE_CHECKING:
    from pipeline.policies import Drift
    from pipeline.reports import Verdict

Array = npt.NDArray[Any]
Kind = Literal["number", "category"]
# A sample maps each column to a 1-D array with one entry per row: float64 (NaN = missing) for numbers, objects that are
# text or None (missing) for categories.
Sample = Mapping[str, Array]
Kinds = Mapping[str, Kind]
Role = Literal["feature", "prediction"]

# IQR of a normal distribution in standard deviations: makes IQR / 1.349 comparable with a standard deviation.
_IQR_OF_NORMAL = 1.349
# The natural effect is a 95th percentile, so one ordinary window in twenty exceeds it by construction, and it rests on
# the few seasons that the training period holds; a quarter more must be seen before a change counts as new.
_NATURAL_HEADROOM = 1.25
_NATURAL_QUANTILE = 0.95
# Fewer stretches say nothing about the upper tail of natural variation.
_MIN_RUNS = 4
# Neighbouring runs share most of their rows; more than these, evenly spaced, cost time and say nothing new.
_MAX_RUNS = 200
# However much the missing share wandered in training, this many more rows without a value are never natural.
_MISSING_CEILING = 0.5
_NAMED_COLUMNS = 3


def present(values: Array, kind: Kind) -> npt.NDArray[np.bool_]:
    """Which rows hold a value. NaN, None and the two infinities hold none: an infinity is no measurement."""
    if kind == "number":
        return np.isfinite(values)
    return np.fromiter((value is not None and value == value for value in values), dtype=bool, count=len(values))


def wasserstein(reference: Array, current: Array) -> float:
    """First Wasserstein distance in units of the reference's spread; 1 = as if all moved by one standard deviation.

    The spread is IQR / 1.349 (robust against outliers), or the standard deviation where the IQR is 0. Against a constant
    reference the unit is the root mean square of the deviations from the constant, so that the result lies in [0, 1]
    whatever the column's unit: 1 when every row moved by the same amount. Rows without a value are left out.
    Raises ``ValueError`` when a side has no value.
    """
    return effect(reference, current, "number")


def total_variation(reference: Array, current: Array) -> float:
    """Half the summed absolute differences of the categories' shares, in [0, 1]; missing is a category of its own.

    It is the share of rows that would have to change category. Raises ``ValueError`` when a side has no row.
    """
    return effect(reference, current, "category")


def effect(reference: Array, current: Array, kind: Kind) -> float:
    """The effect size of a column: `wasserstein` for numbers, `total_variation` for categories."""
    values = np.concatenate([reference, current])
    is_current = np.arange(len(values)) >= len(reference)
    return _comparison(values, kind)(is_current)


def psi(reference: Array, current: Array, kind: Kind, bins: int = 10) -> float:
    """Population stability index; by convention below 0.1 is stable and from 0.25 on is a large shift.

    The sum over bins of ``(q - p) * ln(q / p)``, the symmetric Kullback-Leibler divergence of Jeffreys (1946), with the
    reading of the credit scoring literature (Siddiqi 2006, Credit Risk Scorecards).

    Numbers are counted in bins between the reference's quantiles (a value that fills a whole bin gets one to itself), over
    the rows that hold a value; categories one by one, missing included. Half a row is added to every bin, which keeps the
    index finite where a side has an empty bin. Raises ``ValueError`` when a side has nothing to count.
    """
    if kind == "number":
        reference, current = reference[present(reference, kind)], current[present(current, kind)]
        _require_both(len(reference), len(current))
        edges = _quantile_edges(reference, bins)
        size = len(edges) + 1
        binned = [np.searchsorted(edges, side, side="right") for side in (reference, current)]
    else:
        _require_both(len(reference), len(current))
        codes, size = _codes(np.concatenate([reference, current]))
        binned = [codes[: len(reference)], codes[len(reference) :]]
    expected, actual = ((np.bincount(side, minlength=size) + 0.5) / (len(side) + 0.5 * size) for side in binned)
    return max(0.0, math.fsum((actual - expected) * np.log(actual / expected)))


def stretch_effects(sample: Sample, kinds: Kinds, stretch: Array, window: int, min_rows: int) -> dict[str, float]:
    """How far stretches of the training period lie from the rest of it: the variation that is natural to each column.

    ``stretch`` is the interval index of each row; its sorted distinct values count as consecutive intervals. Every run of
    ``window`` of them with at least ``min_rows`` rows is compared with all other rows (of very many runs, 200 evenly
    spaced ones); per column the 95th percentile of these effects is returned. A column is left out when fewer than four
    runs hold ``min_rows`` values of it; with fewer than four runs the result is empty.
    """
    distinct, position = np.unique(stretch, return_inverse=True)
    rows = np.bincount(position, minlength=len(distinct))
    runs = [
        first
        for first in range(len(distinct) - window + 1)
        if min_rows <= rows[first : first + window].sum() < len(stretch)
    ]
    if len(runs) < _MIN_RUNS:
        return {}
    if len(runs) > _MAX_RUNS:
        runs = [runs[i] for i in np.linspace(0, len(runs) - 1, _MAX_RUNS).round().astype(int)]
    natural: dict[str, float] = {}
    for column, kind in kinds.items():
        held = present(sample[column], kind)
        compare = _comparison(sample[column], kind)
        effects = []
        for first in runs:
            inside = (position >= first) & (position < first + window)
            if np.count_nonzero(held & inside) >= max(min_rows, 1) and np.any(held & ~inside):
                effects.append(compare(inside))
        if len(effects) >= _MIN_RUNS:
            natural[column] = float(np.quantile(effects, _NATURAL_QUANTILE, method="higher"))
    return natural


def judge(
    policy: Drift,
    *,
    reference: Sample,
    current: Sample,
    kinds: Kinds,
    roles: Mapping[str, Role],
    p_values: Mapping[str, float | None],
    natural: Mapping[str, float],
) -> tuple[Verdict, str, tuple[ColumnDrift, ...]]:
    """The verdict on the current window, its reason in one sentence, and the evidence for every column of ``kinds``.

    A column drifts when its p-value is significant after the correction *and* its effect reaches the threshold: the
    policy's, raised to 1.25 times what is natural to the column; or when its share of missing values moved. It has
    ``insufficient_data`` when a side holds fewer than ``policy.min_rows`` values or it has no p-value. The window drifts
    when a prediction column does, or at least ``policy.share`` of the feature columns that could be judged.
    Every number in the result is finite or None.
    """
    seen = {name: _Seen.of(reference[name], current[name], kind) for name, kind in kinds.items()}
    tested = {
        name: p
        for name, p in ((name, p_values.get(name)) for name in kinds)
        if p is not None and math.isfinite(p) and seen[name].values_per_side >= policy.min_rows
    }
    gone = {name: s.missing_p_value() for name, s in seen.items() if s.rows_per_side >= policy.min_rows}
    is_significant = _significant(tested, policy)
    is_gone = _significant(gone, policy)
    columns = []
    for name, kind in kinds.items():
        usual = natural.get(name, 0.0) * _NATURAL_HEADROOM
        threshold = max(policy.effect, usual if math.isfinite(usual) else 0.0)
        verdict, reason = _judge_column(
            seen[name], policy, threshold, tested.get(name), name in is_significant, name in is_gone
        )
        columns.append(
            ColumnDrift(
                column=name,
                role=roles[name],
                kind=kind,
                verdict=verdict,
                p_value=tested.get(name),
                effect=seen[name].effect,
                threshold=threshold,
                psi=seen[name].psi,
                null_share=seen[name].null_share,
                reference_null_share=seen[name].reference_null_share,
                unseen_share=seen[name].unseen_share,
                rows=seen[name].rows,
                reason=reason,
            )
        )
    rows = max((s.rows for s in seen.values()), default=0)
    return *_judge_window(policy, rows, columns), tuple(columns)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one column shows on both sides."""

    kind: Kind
    rows: int
    reference_rows: int
    values: int
    reference_values: int
    unseen_share: float
    effect: float | None
    psi: float | None

    @classmethod
    def of(cls, reference: Array, current: Array, kind: Kind) -> _Seen:
        held, reference_held = present(current, kind), present(reference, kind)
        values, reference_values = int(np.count_nonzero(held)), int(np.count_nonzero(reference_held))
        unseen = 0
        if kind == "category":
            known = set(reference[reference_held])
            unseen = sum(value not in known for value in current[held])
        comparable = min(values, reference_values) if kind == "number" else min(len(current), len(reference))
        return cls(
            kind=kind,
            rows=len(current),
            reference_rows=len(reference),
            values=values,
            reference_values=reference_values,
            unseen_share=unseen / max(len(current), 1),
            effect=effect(reference, current, kind) if comparable else None,
            psi=psi(reference, current, kind) if comparable else None,
        )

    @property
    def rows_per_side(self) -> int:
        return min(self.rows, self.reference_rows)

    @property
    def values_per_side(self) -> int:
        return min(self.values, self.reference_values)

    @property
    def null_share(self) -> float:
        return 1 - self.values / self.rows if self.rows else 0.0

    @property
    def reference_null_share(self) -> float:
        return 1 - self.reference_values / self.reference_rows if self.reference_rows else 0.0

    def missing_p_value(self) -> float:
        """Fisher's exact test of equal missing shares: unlike the z-test it stays valid when few values are missing."""
        if self.values == self.rows and self.reference_values == self.reference_rows:
            return 1.0
        table = [
            [self.reference_rows - self.reference_values, self.reference_values],
            [self.rows - self.values, self.values],
        ]
        return float(fisher_exact(table)[1])

    def missing_moved(self, policy: Drift, threshold: float) -> bool:
        """Whether the missing shares differ by enough to matter.

        What is natural to a category's effect includes its missing rows; a number's does not, so there the policy decides.
        """
        limit = policy.effect if self.kind == "number" else threshold
        return abs(self.null_share - self.reference_null_share) >= min(limit, _MISSING_CEILING)


def _judge_column(
    seen: _Seen, policy: Drift, threshold: float, p_value: float | None, is_significant: bool, is_gone: bool
) -> tuple[Verdict, str]:
    if is_gone and seen.missing_moved(policy, threshold):
        return (
            "drift",
            f"missing in {seen.null_share:.1%} of the rows, in {seen.reference_null_share:.1%} of the reference",
        )
    if seen.values_per_side < policy.min_rows:
        return "insufficient_data", (
            f"{seen.values} values in the window and {seen.reference_values} in the reference, {policy.min_rows} needed"
        )
    if p_value is None or seen.effect is None:
        return "insufficient_data", "no test is possible on these values"
    evidence = f"effect {seen.effect:.3g} against threshold {threshold:.3g}, p = {p_value:.2g}"
    if is_significant and seen.effect >= threshold:
        return "drift", evidence
    return "stable", evidence if is_significant else f"{evidence} (not significant after correction)"


def _judge_window(policy: Drift, rows: int, columns: list[ColumnDrift]) -> tuple[Verdict, str]:
    if rows < policy.min_rows:
        return "insufficient_data", f"the window has {rows} rows, {policy.min_rows} are needed"
    judged = [column for column in columns if column.verdict != "insufficient_data"]
    if not judged:
        return "insufficient_data", f"none of {len(columns)} columns has enough values to be tested in {rows} rows"
    features = [column for column in judged if column.role == "feature"]
    drifted = [column for column in judged if column.verdict == "drift"]
    predictions = [column for column in drifted if column.role == "prediction"]
    moved = len(drifted) - len(predictions)
    share = moved / len(features) if features else 0.0
    verdict: Verdict = "drift" if predictions or (moved and share >= policy.share) else "stable"
    reason = (
        f"{moved} of {len(features)} testable feature columns drifted ({share:.0%}, limit {policy.share:.0%})"
        f"{' and the predictions did' if predictions else ''} in {rows} rows"
    )
    worst = sorted(drifted or judged, key=_severity, reverse=True)[: _NAMED_COLUMNS if drifted else 1]
    named = "; ".join(f"{column.column}: {column.reason}" for column in worst)
    return verdict, f"{reason}; {'worst' if drifted else 'largest effect'} {named}"


def _severity(column: ColumnDrift) -> tuple[bool, float]:
    """Predictions first, then by the larger of effect over threshold and the move of the missing share."""
    ratio = (column.effect or 0.0) / max(column.threshold, sys.float_info.min)
    return column.role == "prediction", max(ratio, abs(column.null_share - column.reference_null_share))


def _significant(p_values: Mapping[str, float], policy: Drift) -> set[str]:
    """The columns that stay significant after the correction for testing all of them.

    Bonferroni bounds the chance of any false find; fdr (Benjamini and Hochberg 1995) the expected share of false finds.
    """
    ranked = sorted(p_values, key=lambda name: p_values[name])
    count = len(ranked)
    if policy.correction == "bonferroni":
        return {name for name in ranked if p_values[name] <= policy.p_value / count}
    passed = [k for k, name in enumerate(ranked, start=1) if p_values[name] <= policy.p_value * k / count]
    return set(ranked[: max(passed, default=0)])


def _comparison(values: Array, kind: Kind) -> Callable[[npt.NDArray[np.bool_]], float]:
    """A function from 'which rows are current' to the effect of those rows against all others.

    Sorting and coding happen once here, so that many splits of one column can be measured.
    """
    if kind == "category":
        codes, size = _codes(values)
        return lambda is_current: _variation(codes, size, is_current)
    held = present(values, kind)
    order = np.argsort(values[held], kind="stable")
    ordered = values[held][order]
    return lambda is_current: _distance(ordered, is_current[held][order])


def _distance(ordered: Array, is_current: npt.NDArray[np.bool_]) -> float:
    """Area between the two empirical distribution functions, in units of the reference's spread."""
    inside = np.cumsum(is_current)
    moved = int(inside[-1]) if len(inside) else 0
    rest = len(ordered) - moved
    _require_both(rest, moved)
    # The result has no unit, so an exact power of two may be taken out; without it 1e308 overflows.
    ordered = np.ldexp(ordered, -math.frexp(max(abs(ordered[0]), abs(ordered[-1])))[1])
    gap = np.abs(inside / moved - (np.arange(1, len(ordered) + 1) - inside) / rest)
    area = float(np.sum(gap[:-1] * np.diff(ordered)))
    if area == 0:
        return 0.0
    reference = ordered[~is_current]
    spread = _spread(reference) or math.sqrt(np.mean(np.square(ordered[is_current] - reference[0])))
    return min(area / spread, sys.float_info.max)


def _spread(ordered: Array) -> float:
    """Robust standard deviation of sorted values; 0 only when they are all equal."""
    if ordered[0] == ordered[-1]:
        return 0.0
    low, high = np.quantile(ordered, [0.25, 0.75])
    return float((high - low) / _IQR_OF_NORMAL) or float(np.std(ordered))


def _variation(codes: Array, size: int, is_current: npt.NDArray[np.bool_]) -> float:
    moved = int(np.count_nonzero(is_current))
    _require_both(len(codes) - moved, moved)
    inside = np.bincount(codes[is_current], minlength=size) / moved
    rest = np.bincount(codes[~is_current], minlength=size) / (len(codes) - moved)
    return min(1.0, math.fsum(np.abs(inside - rest)) / 2)


def _codes(values: Array) -> tuple[npt.NDArray[np.intp], int]:
    """A number per category, missing included, and how many there are."""
    index: dict[Any, int] = {}
    keys = (value if value == value else None for value in values)
    codes = np.fromiter((index.setdefault(key, len(index)) for key in keys), dtype=np.intp, count=len(values))
    return codes, len(index)


def _quantile_edges(reference: Array, bins: int) -> Array:
    """Inner bin edges at the reference's quantiles; a value at two quantiles is closed in by edges of its own."""
    inner = np.quantile(reference, np.arange(1, bins) / bins, method="inverted_cdf")
    edges, times = np.unique(inner, return_counts=True)
    return np.union1d(edges, np.nextafter(edges[times > 1], np.inf))


def _require_both(reference: int, current: int) -> None:
    if not reference or not current:
        raise ValueError(f"nothing to compare: {reference} values in the reference, {current} in the current window")
