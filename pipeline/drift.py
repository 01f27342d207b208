"""Whether columns and a window have drifted: effect, significance and persistence together.

A column *moved* when its effect reaches its threshold and chance does not explain it; it *drifts* when it moved in several
of the latest intervals. Pure functions of values; must not read a file or a clock, and no result depends on the order of rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline import signals
from pipeline.signals import Seen
from pipeline.verdicts import ColumnDrift, Multivariate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.policies import Drift
    from pipeline.pooling import Kinds, Sample
    from pipeline.signals import Intervals
    from pipeline.verdicts import Fault, Role, Signal, Tier, Verdict

# A change of the missing share that is told as early as an effect at its threshold.
_MANY_MISSING = 0.5
# A feature with less than this share of the importance moves no prediction worth a message.
NEGLIGIBLE = 0.01
_SEPARATION_P = 0.01
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
    intervals: Intervals | None = None,
    seed: int = 0,
) -> tuple[ColumnDrift, ...]:
    """The evidence and the verdict of every column of ``kinds``, in their order. Every number is finite or None.

    Three signals are watched, each with significance corrected over the columns and a limit of its own: the distribution
    (the effect against the threshold: ``policy.thresholds``, else ``policy.effect`` or ``policy.mass`` raised to what is
    ``natural`` to the column), the share of missing values, and the share of unseen categories. A column moved when one
    of them did and ``intervals`` bear it out: rows of one interval are no independent witnesses.

    It drifts when it also moved in enough of ``earlier``, the columns of the latest intervals before, oldest first. It has
    ``insufficient_data`` when it moved in no way and a side holds too few values or no test is possible, when it is at
    ``faults``, and, for a prediction, when anything is: it rests on what is broken.
    """
    seen = {name: Seen.of(reference[name], current[name], kind, seed) for name, kind in kinds.items()}
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
    level = policy.p_value / (len(signals.SIGNALS) * len(kinds))
    found = []
    for name, kind in kinds.items():
        limits = signals.limits(policy, name, kind, natural)
        moved = tuple(s for s in signals.SIGNALS if name in significant[s] and seen[name].change(s) >= limits[s])
        if intervals is not None:
            column = signals.Column(name, reference[name], current[name], kind, seed)
            moved = tuple(s for s in moved if intervals.bear_out(s, limits[s], level, column))
        detail = broken.get(name)
        if detail is None and broken and roles[name] != "feature":
            detail = "rests on broken data: " + next(iter(broken.values()))
        verdict, reason = _verdict(policy, name, seen[name], limits, moved, tested.get(name), detail, earlier)
        share = None if importance is None or roles[name] != "feature" else importance.get(name)
        found.append(
            ColumnDrift(
                column=name,
                role=roles[name],
                kind=kind,
                verdict=verdict,
                moved=bool(moved) and detail is None,
                signals=moved,
                p_value=tested.get(name),
                **seen[name].numbers(),
                threshold=limits["distribution"],
                importance=share,
                tier=_column_tier(policy, roles[name], share) if verdict == "drift" else None,
                reason=reason,
            )
        )
    return tuple(found)


def separation_threshold(policy: Drift, natural: float | None) -> float:
    """The AUC from which a classifier tells a window from its reference beyond what is ``natural`` (see `multivariate`)."""
    return max(policy.separation, natural or 0.0)


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
    limit = separation_threshold(policy, natural)
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


def _verdict(
    policy: Drift,
    name: str,
    seen: Seen,
    limits: Mapping[Signal, float],
    moved: Sequence[Signal],
    p_value: float | None,
    broken: str | None,
    earlier: Sequence[Sequence[ColumnDrift]],
) -> tuple[Verdict, str]:
    if broken is not None:
        return "insufficient_data", broken
    told = _told(seen, limits, moved, p_value)
    if moved:
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


def _told(seen: Seen, limits: Mapping[Signal, float], moved: Sequence[Signal], p_value: float | None) -> str:
    parts = []
    if "missing" in moved:
        parts.append(
            f"missing in {seen.null_share:.1%} of the rows, in {seen.reference_null_share:.1%} of the reference"
        )
    if "unseen" in moved:
        parts.append(f"{seen.unseen_share:.1%} of the rows have categories that the reference does not have")
    if "distribution" in moved or not parts:
        size = seen.sizes.effect if seen.sizes else None
        shown = f"{size.corrected:.3g} ({size.low:.3g} to {size.high:.3g})" if size else "unknown"
        test = "no test is possible" if p_value is None else f"p = {p_value:.2g}"
        parts.append(f"effect {shown} against threshold {limits['distribution']:.3g}, {test}")
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
