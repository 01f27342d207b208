"""Whether columns and a window have drifted: effect, significance and persistence together.

A column *moved* when its effect reaches its threshold and chance does not explain it; it *drifts* when it moved in several
of the latest intervals. Pure functions of values; must not read a file or a clock, and no result depends on the order of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr
from scipy.stats import fisher_exact

from pipeline import effects
from pipeline.policies import MISSING
from pipeline.pooling import encoded, present
from pipeline.verdicts import ColumnDrift, Multivariate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.effects import Sizes
    from pipeline.policies import Drift
    from pipeline.pooling import Array, Kind, Kinds, Sample
    from pipeline.verdicts import Fault, Role, Signal, Tier, Verdict

# A change of the missing share that is told as early as an effect at its threshold.
_MANY_MISSING = 0.5
# A feature with less than this share of the importance moves no prediction worth a message.
NEGLIGIBLE = 0.01
_SEPARATION_P = 0.01
_FEWEST_FOR_NORMAL = 5
_NAMED_COLUMNS = 3


def columns(
    policy: Drift,
    *,
    reference: Sample,
    current: Sample,
    kinds: Kinds,
    roles: Mapping[str, Role],
    p_values: Mapping[str, float | None],
    natural: Mapping[str, float],
    importance: Mapping[str, float] | None = None,
    faults: Sequence[Fault] = (),
    earlier: Sequence[Sequence[ColumnDrift]] = (),
    stretch: Array | None = None,
    seed: int = 0,
) -> tuple[ColumnDrift, ...]:
    """The evidence and the verdict of every column of ``kinds``, in their order. Every number is finite or None.

    Three signals are watched, each with significance corrected over the columns and a limit of its own: the distribution
    (the effect against the threshold: ``policy.thresholds``, else ``policy.effect`` or ``policy.mass`` raised to what is
    ``natural`` to the column), the share of missing values, and the share of unseen categories. A column moved when one
    of them did, and when no single interval did it alone, if the window holds several: ``stretch`` is that of each row.

    It drifts when it also moved in enough of ``earlier``, the columns of the latest intervals before, oldest first. It has
    ``insufficient_data`` when it moved in no way and a side holds too few values or no test is possible, when it is at
    ``faults``, and, for a prediction, when anything is: it rests on what is broken.
    """
    seen = {name: _Seen.of(reference[name], current[name], kind, seed) for name, kind in kinds.items()}
    tested = {
        name: p
        for name, p in ((name, p_values.get(name)) for name in kinds)
        if p is not None and math.isfinite(p) and seen[name].values_per_side >= policy.min_rows
    }
    enough = {name: s for name, s in seen.items() if s.rows_per_side >= policy.min_rows}
    significant = {
        "distribution": _significant(tested, policy),
        "missing": _significant({name: s.missing_p_value() for name, s in enough.items()}, policy),
        "unseen": _significant({name: s.unseen_p_value() for name, s in enough.items() if s.unseen}, policy),
    }
    broken = {fault.column: fault.detail for fault in faults}
    found = []
    for name, kind in kinds.items():
        limits = _Limits.of(policy, name, kind, natural)
        signals = tuple(s for s in _SIGNALS if name in significant[s] and seen[name].exceeds(s, limits))
        if signals and stretch is not None:
            without = [current[name][stretch != one] for one in np.unique(stretch)] if np.ptp(stretch) else []
            rest = [_Seen.of(reference[name], values, kind, seed) for values in without]
            signals = tuple(s for s in signals if all(other.exceeds(s, limits) for other in rest))
        detail = broken.get(name)
        if detail is None and broken and roles[name] != "feature":
            detail = "rests on broken data: " + next(iter(broken.values()))
        verdict, reason = _verdict(policy, name, seen[name], limits, signals, tested.get(name), detail, earlier)
        share = None if importance is None or roles[name] != "feature" else importance.get(name)
        found.append(
            ColumnDrift(
                column=name,
                role=roles[name],
                kind=kind,
                verdict=verdict,
                moved=bool(signals) and detail is None,
                signals=signals,
                p_value=tested.get(name),
                **seen[name].numbers(),
                threshold=limits.effect,
                importance=share,
                tier=_column_tier(policy, roles[name], share) if verdict == "drift" else None,
                reason=reason,
            )
        )
    return tuple(found)


def multivariate(
    policy: Drift,
    *,
    auc: float,
    p_value: float,
    ranked: tuple[tuple[str, float], ...],
    rows: int,
    natural: float | None,
    earlier: Sequence[Multivariate | None] = (),
) -> Multivariate:
    """The verdict on how well a classifier tells window and reference apart; it persists like that of a column.

    The limit is ``policy.separation``, raised to what is ``natural``: how far stretches of the training period lie apart.
    """
    limit = max(policy.separation, natural or 0.0)
    moved = auc >= limit and p_value < _SEPARATION_P
    before = [bool(report and report.moved) for report in earlier]
    return Multivariate(
        auc=auc,
        threshold=limit,
        p_value=p_value,
        moved=moved,
        verdict="drift" if _persists(policy, moved, before) else "stable",
        ranked=ranked,
        rows=rows,
    )


def window(
    policy: Drift,
    rows: int,
    judged: Sequence[ColumnDrift],
    separation: Multivariate | None = None,
    faults: Sequence[Fault] = (),
) -> tuple[Verdict, str, Tier | None]:
    """The verdict on the window of ``rows`` rows, its reason in one sentence, and how loudly it is to be told.

    It drifts when a prediction, a feature that the model does not ignore, or the whole (``separation``) does. It is worth
    a page when a prediction drifts or features that make up ``policy.share`` of the importance (without importances: of
    the judged features). Broken data cannot be judged: ``insufficient_data``, and a page unless the model ignores it.
    """
    if faults:
        told = "; ".join(f"{fault.column or 'the partition'}: {fault.detail}" for fault in faults[:_NAMED_COLUMNS])
        more = f"; and {len(faults) - _NAMED_COLUMNS} more" if len(faults) > _NAMED_COLUMNS else ""
        return "insufficient_data", f"broken data: {told}{more}", _fault_tier(judged, faults)
    if rows < policy.min_rows:
        return "insufficient_data", f"the window has {rows} rows, {policy.min_rows} are needed", None
    known = [column for column in judged if column.verdict != "insufficient_data"]
    if not known:
        return "insufficient_data", f"none of {len(judged)} columns has enough values to be tested in {rows} rows", None
    features = [column for column in known if column.role == "feature"]
    drifted = [column for column in known if column.verdict == "drift"]
    predictions = [column for column in drifted if column.role == "prediction"]
    moved = [column for column in drifted if column.role == "feature"]
    tier = _tier(policy, features, moved, predictions, separation)
    verdict: Verdict = "stable" if tier in (None, "log") else "drift"
    reason = f"{len(moved)} of {len(features)} testable features drifted"
    if moved and all(column.importance is not None for column in moved):
        reason += f", with {sum(column.importance or 0.0 for column in moved):.0%} of the importance"
    reason += f"{' and the predictions did' if predictions else ''} in {rows} rows"
    if separation is not None and separation.verdict == "drift":
        telling = ", ".join(name for name, _ in separation.ranked[:_NAMED_COLUMNS])
        reason += f"; a classifier tells the window from the reference (AUC {separation.auc:.2f}"
        reason += f", by {telling})" if telling else ")"
    worst = sorted(drifted or known, key=_severity, reverse=True)[: _NAMED_COLUMNS if drifted else 1]
    named = "; ".join(f"{column.column}: {column.reason}" for column in worst)
    return verdict, f"{reason}; {'worst' if drifted else 'largest effect'} {named}", tier


_SIGNALS: tuple[Signal, ...] = ("distribution", "missing", "unseen")


@dataclass(frozen=True, slots=True)
class _Limits:
    """From which change on each signal of a column counts."""

    effect: float
    missing: float
    unseen: float

    @classmethod
    def of(cls, policy: Drift, name: str, kind: Kind, natural: Mapping[str, float]) -> _Limits:
        base = policy.effect if kind == "number" else policy.mass
        usual, missing = (_finite(natural.get(key)) for key in (name, MISSING + name))
        effect = policy.thresholds.get(name, max(base, usual))
        # What is natural to a category's effect includes its missing rows; a number's missing share has its own.
        gone = effect if kind == "category" else policy.thresholds.get(MISSING + name, missing)
        gone = max(policy.mass, gone)
        return cls(effect, gone, max(policy.mass, effect if kind == "category" else 0.0))


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one column shows on both sides."""

    rows: int
    reference_rows: int
    values: int
    reference_values: int
    unseen: int
    unseen_usual: float
    sizes: Sizes | None

    @classmethod
    def of(cls, reference: Array, current: Array, kind: Kind, seed: int) -> _Seen:
        held, reference_held = present(current, kind), present(reference, kind)
        unseen, usual = _unseen(reference[reference_held], current[held]) if kind == "category" else (0, 0.0)
        return cls(
            rows=len(current),
            reference_rows=len(reference),
            values=int(np.count_nonzero(held)),
            reference_values=int(np.count_nonzero(reference_held)),
            unseen=unseen,
            unseen_usual=usual,
            sizes=effects.sizes(reference, current, kind, seed=seed),
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

    @property
    def unseen_share(self) -> float:
        return self.unseen / max(self.rows, 1)

    def exceeds(self, signal: Signal, limits: _Limits) -> bool:
        """Whether the change is large enough to matter, whatever chance explains."""
        if signal == "missing":
            return abs(self.null_share - self.reference_null_share) >= limits.missing
        if signal == "unseen":
            return self.unseen_share - self.unseen_usual >= limits.unseen
        return self.sizes is not None and self.sizes.effect.corrected >= limits.effect

    def numbers(self) -> dict[str, float | int | None]:
        """The fields of `ColumnDrift` that only say what was seen."""
        found = self.sizes
        return {
            "effect": found.effect.corrected if found else None,
            "expected": found.effect.expected if found else None,
            "low": found.effect.low if found else None,
            "high": found.effect.high if found else None,
            "psi": found.psi.corrected if found else None,
            "jensen_shannon": found.jensen_shannon.corrected if found else None,
            "null_share": self.null_share,
            "reference_null_share": self.reference_null_share,
            "unseen_share": self.unseen_share,
            "rows": self.rows,
        }

    def missing_p_value(self) -> float:
        """Two-sided test of equal missing shares: Fisher's exact one where the normal approximation does not hold."""
        gone, reference_gone = self.rows - self.values, self.reference_rows - self.reference_values
        pooled = (gone + reference_gone) / (self.rows + self.reference_rows)
        if pooled in (0.0, 1.0):
            return 1.0
        if min(pooled, 1 - pooled) * self.rows_per_side < _FEWEST_FOR_NORMAL:
            return float(fisher_exact([[reference_gone, self.reference_values], [gone, self.values]])[1])
        error = math.sqrt(pooled * (1 - pooled) * (1 / self.rows + 1 / self.reference_rows))
        return float(2 * ndtr(-abs(self.null_share - self.reference_null_share) / error))

    def unseen_p_value(self) -> float:
        """One-sided test that no more rows are unseen than the reference's own rare categories promise."""
        usual = min(max(self.unseen_usual, 1 / max(self.reference_values, 1)), 1.0)
        error = math.sqrt(usual * (1 - usual) * (1 / max(self.rows, 1) + 1 / max(self.reference_rows, 1)))
        return float(ndtr(-(self.unseen_share - usual) / error)) if error else 1.0


def _unseen(reference: Array, current: Array) -> tuple[int, float]:
    """How many of ``current`` the reference does not have, and the share that is to be expected of such.

    Expected is what the categories that the reference has once make up (Good 1953): about as likely as those it missed.
    """
    codes, size = encoded(np.concatenate([reference, current]))
    before, after = (np.bincount(side, minlength=size) for side in (codes[: len(reference)], codes[len(reference) :]))
    return int(after[before == 0].sum()), float(np.count_nonzero(before == 1) / max(len(reference), 1))


def _verdict(
    policy: Drift,
    name: str,
    seen: _Seen,
    limits: _Limits,
    signals: Sequence[Signal],
    p_value: float | None,
    broken: str | None,
    earlier: Sequence[Sequence[ColumnDrift]],
) -> tuple[Verdict, str]:
    if broken is not None:
        return "insufficient_data", broken
    told = _told(seen, limits, signals, p_value)
    if signals:
        before = [any(column.column == name and column.moved for column in columns) for columns in earlier]
        if _persists(policy, True, before):
            return "drift", told
        needed = f"{policy.violations} of {policy.of_last} intervals are drift"
        return "stable", f"moved in this interval alone ({needed}): {told}"
    if seen.values_per_side < policy.min_rows:
        return "insufficient_data", (
            f"{seen.values} values in the window and {seen.reference_values} in the reference, {policy.min_rows} needed"
        )
    if p_value is None or seen.sizes is None:
        return "insufficient_data", "no test is possible on these values"
    return "stable", told


def _told(seen: _Seen, limits: _Limits, signals: Sequence[Signal], p_value: float | None) -> str:
    parts = []
    if "missing" in signals:
        parts.append(
            f"missing in {seen.null_share:.1%} of the rows, in {seen.reference_null_share:.1%} of the reference"
        )
    if "unseen" in signals:
        parts.append(f"{seen.unseen_share:.1%} of the rows have categories that the reference does not have")
    if "distribution" in signals or not parts:
        size = seen.sizes.effect if seen.sizes else None
        shown = f"{size.corrected:.3g} ({size.low:.3g} to {size.high:.3g})" if size else "unknown"
        test = "no test is possible" if p_value is None else f"p = {p_value:.2g}"
        parts.append(f"effect {shown} against threshold {limits.effect:.3g}, {test}")
    return "; ".join(parts)


def _persists(policy: Drift, moved: bool, before: Sequence[bool]) -> bool:
    counted = before[-(policy.of_last - 1) :] if policy.of_last > 1 else []
    return moved and 1 + sum(counted) >= policy.violations


def _column_tier(policy: Drift, role: Role, importance: float | None) -> Tier:
    if role == "prediction":
        return "page"
    if importance is None:
        return "ticket"
    return "page" if importance >= policy.share else "log" if importance < NEGLIGIBLE else "ticket"


def _tier(
    policy: Drift,
    features: Sequence[ColumnDrift],
    moved: Sequence[ColumnDrift],
    predictions: Sequence[ColumnDrift],
    separation: Multivariate | None,
) -> Tier | None:
    weights = [column.importance for column in moved]
    known = [weight for weight in weights if weight is not None]
    share = sum(known) if len(known) == len(weights) else len(moved) / max(len(features), 1)
    if predictions or (moved and share >= policy.share):
        return "page"
    if any(column.tier != "log" for column in moved) or (separation is not None and separation.verdict == "drift"):
        return "ticket"
    return "log" if moved else None


def _fault_tier(judged: Sequence[ColumnDrift], faults: Sequence[Fault]) -> Tier:
    importance = {column.column: column.importance for column in judged}
    shares = [importance.get(fault.column) if fault.column else None for fault in faults]
    return "page" if any(share is None or share >= NEGLIGIBLE for share in shares) else "log"


def _severity(column: ColumnDrift) -> tuple[float, float, float]:
    ratio = (column.effect or 0.0) / max(column.threshold, 1e-12)
    gone = abs(column.null_share - column.reference_null_share)
    return (column.role == "prediction", max(ratio, gone / _MANY_MISSING) * (column.importance or 1.0), ratio)


def _significant(p_values: Mapping[str, float], policy: Drift) -> set[str]:
    """The columns that are significant after the correction over all of them."""
    ranked = sorted(p_values.items(), key=lambda item: (item[1], item[0]))
    count = len(ranked)
    if policy.correction == "bonferroni":
        return {name for name, p in ranked if p < policy.p_value / count}
    # Benjamini and Hochberg (1995): the largest rank whose p-value is below its share of the level, and all before it.
    below = [rank for rank, (_, p) in enumerate(ranked, 1) if p <= policy.p_value * rank / count]
    return {name for name, _ in ranked[: max(below, default=0)]}
