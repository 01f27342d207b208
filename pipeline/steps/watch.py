"""Watch a promoted model on what really happens; when the one before is proven better there, go back and restate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import engine, gates, metrics, paired, windows
from pipeline.errors import ContractViolation
from pipeline.intervals import Interval, format_instant
from pipeline.policies import HIGHER_IS_BETTER
from pipeline.release import Promote
from pipeline.reports import Decision, Watched
from pipeline.steps import champion, comparison, incidents, restate, retrain
from pipeline.steps.context import INTERVAL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from pipeline.metrics import Outcomes
    from pipeline.registry import LoadedModel
    from pipeline.reports import GateDecision, Manifest, Promotion
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import PerformanceReport


@dataclass(frozen=True, slots=True)
class _Compared:
    """What the former champion is worth: proven over ``over`` intervals, and better in the latest ``lost`` in a row."""

    gate: GateDecision
    lost: int
    over: int
    is_worse: bool


def watch(ctx: JobContext, as_of: datetime) -> Watched | None:
    """What is found of the champion while it is watched; ``None`` when it is not, or nothing new has matured.

    A champion that a gate has promoted is watched over its first ``promote.watch.intervals`` intervals, as they mature: it and
    the one before predict the labelled rows of all of them. The one before comes back when it is better in each of the latest
    ``violations`` intervals and, with a confidence that allows for all looks, over these or over all. The rollback is
    recorded before it is made, and opens an incident; it takes effect when the promotion did, and what the withdrawn version
    had published is scored again (``restate``). A call that finds an earlier one unfinished completes it.
    Nothing happens unless ``promote.mode`` is ``enabled``.
    """
    if not ctx.job.promote.watch.enabled or ctx.job.promote.mode != "enabled":
        return None
    standing = ctx.ledger.champion(ctx.job.name)
    if standing is None or standing.previous_version is None:
        return None
    latest = champion.latest(ctx)
    assert latest is not None  # the ledger knows one
    if champion.is_rollback(latest):
        return _completed(ctx, as_of)
    if (decided := _decision(ctx, latest)) is not None:
        return _go_back(ctx, latest, decided)
    matured = _matured(ctx, latest, as_of)
    if not matured or not _is_by_gate(ctx, latest):
        return None
    compared = _compare(ctx, latest, matured, as_of)
    if compared is None:
        return None
    if not compared.is_worse:
        return Watched(
            outcome="kept",
            version=latest.model.version,
            reason=compared.gate.reason,
            intervals=len(matured),
            lost=compared.lost,
        )
    return _go_back(ctx, latest, _decide(ctx, as_of, latest, compared, len(matured)))


def _decide(ctx: JobContext, as_of: datetime, latest: Promotion, compared: _Compared, seen: int) -> Decision:
    """The recorded decision to undo the promotion ``latest``."""
    gate, lost = compared.gate, compared.lost
    is_part = compared.over == ctx.job.promote.watch.violations < seen
    over = (
        f"the last {compared.over}" if is_part else f"all {compared.over} since {format_instant(latest.effective_at)}"
    )
    reason = (
        f"Version {latest.model.version} is worse than version {latest.previous_version}, which it replaced, in each of the "
        f"last {lost} matured intervals, and over {over}: {gate.reason}"
    )
    details = {
        "version": latest.model.version,
        "back_to": latest.previous_version,
        "promotion": latest.decision_id,
        "intervals": seen,
        "lost": lost,
        **gate.model_dump(mode="json", include={"metric", "champion", "challenger", "gain", "low", "n"}),
    }
    decision = Decision.of(ctx.job.name, "watch", as_of, "rolled_back", reason, details)
    ctx.ledger.record_decision(decision)
    return decision


def _go_back(ctx: JobContext, latest: Promotion, decision: Decision) -> Watched:
    """Carry out a decision to undo the promotion ``latest``."""
    incidents.withdrawn(ctx, decision, latest.model.version)
    back = ctx.registered(decision.details["back_to"]).model
    champion.move(ctx, latest.effective_at, back, decision.reason, "rollback", instead_of=latest)
    return _restated(ctx, latest, decision)


def _completed(ctx: JobContext, as_of: datetime) -> Watched | None:
    """What was left to restate of the last rollback; ``None`` when a person made it, or nothing is left."""
    undone = champion.withdrawn(ctx)
    decision = _decision(ctx, undone) if undone else None
    if undone is None or decision is None or not restate.is_fresh(ctx, decision.at, as_of):
        return None
    found = _restated(ctx, undone, decision)
    return found if found.restated else None


def _restated(ctx: JobContext, undone: Promotion, decision: Decision) -> Watched:
    done: list[Manifest] = []
    if ctx.job.promote.watch.restate:
        left = restate.left(ctx, undone.model.version, undone.effective_at, decision.at)
        done = restate.as_far_as_possible(ctx, left, decision.details["back_to"])
    return Watched(
        outcome="rolled_back",
        version=undone.model.version,
        reason=decision.reason,
        intervals=decision.details["intervals"],
        lost=decision.details["lost"],
        back_to=decision.details["back_to"],
        restated=tuple(manifest.start for manifest in done),
    )


def _decision(ctx: JobContext, promotion: Promotion) -> Decision | None:
    """The decision of a watch to undo a promotion."""
    decided = ctx.ledger.decisions(ctx.job.name, kind="watch", since=promotion.effective_at)
    return next((d for d in reversed(decided) if d.details["promotion"] == promotion.decision_id), None)


def _is_by_gate(ctx: JobContext, promotion: Promotion) -> bool:
    """Whether a gate let the version through, for the first time: what a person brought back, only a person takes away."""
    ruled = [known.model.version for known in ctx.ledger.promotions(ctx.job.name)]
    if ruled.count(promotion.model.version) > 1:
        return False
    gated = ctx.ledger.decisions(ctx.job.name, kind="gate", until=promotion.effective_at)
    return any(d.outcome == "promote" and d.details["challenger_version"] == promotion.model.version for d in gated)


def _matured(ctx: JobContext, latest: Promotion, as_of: datetime) -> list[PerformanceReport]:
    """The reports on the watched intervals that the promoted version has scored, by start; empty when none of them is new.

    So there is at most one look per interval, and once the last label may have come nothing is asked for any more.
    """
    cadence, labels = ctx.job.cadence, ctx.job.labels
    end = cadence.shift(cadence.floor(latest.effective_at), ctx.job.promote.watch.intervals)
    if windows.matured_by(ctx.job, as_of) - labels.overdue_after > cadence.shift(end, 1):
        return []
    known = ctx.ledger.performance(ctx.job.name, since=latest.effective_at, as_of=as_of, loud_on=latest.model.version)
    reports = [report for report in known if report.value is not None and report.end <= end]
    since = cadence.shift(cadence.floor(as_of), -1)
    return reports if any(report.as_of > since and not report.restated for report in reports) else []


def _compare(
    ctx: JobContext, latest: Promotion, matured: Sequence[PerformanceReport], as_of: datetime
) -> _Compared | None:
    """The former champion as challenger on the matured rows: on all, and on those of the latest intervals."""
    assert latest.previous_version is not None  # `watch` has seen to it
    rows, _, _ = retrain.collect(ctx, Interval(matured[0].start, matured[-1].end), as_of)
    if rows is None:
        return None
    models = ctx.load(latest.model.version), ctx.load(latest.previous_version)
    try:
        now, before = (
            comparison.outcomes(ctx, model, engine.to_frame(rows, ctx.model_columns(model)), rows) for model in models
        )
    except ContractViolation:  # the former one takes other columns
        return None
    policy, at = ctx.job.promote.watch, rows[INTERVAL].to_numpy()
    lost, starts = _lost(ctx, at, now, before), np.unique(at)
    confidence = 1 - (1 - policy.confidence) / (2 * policy.intervals)
    first = None
    # A world that has turned back is seen on the latest intervals before it is on all of them.
    for over in dict.fromkeys((len(starts), policy.violations)):
        if first is None or lost >= policy.violations:
            gate = _judge(ctx, models, (now, before), at, at >= starts[-over], confidence)
            found = _Compared(gate, lost, over, lost >= policy.violations and gate.outcome == "promote")
            if found.is_worse:
                return found
            first = first or found
    return first


def _judge(
    ctx: JobContext,
    models: tuple[LoadedModel, LoadedModel],
    outcomes: tuple[Outcomes, Outcomes],
    at: NDArray[np.int64],
    rows: NDArray[np.bool_],
    confidence: float,
) -> GateDecision:
    """The gate's decision on some of the rows; on few days, the gain must exceed what days varied by at both trainings, too."""
    now, before = (side.take(rows) for side in outcomes)
    days = paired.days(at[rows])
    gate = gates.compare(
        Promote(confidence=confidence, max_calibration_loss=None),
        ctx.job.metric,
        champion=now,
        challenger=before,
        interval=days,
        seed=ctx.job.model.seed,
    )
    count = len(np.unique(days))
    spread = sum(model.profile.baseline.spread for model in models if model.profile.baseline.metric == ctx.job.metric)
    if gate.outcome != "promote" or gate.gain is None or count >= paired.FEWEST_BLOCKS or spread == 0:
        return gate
    usual = paired.Student(gate.gain, spread / count**0.5, np.inf, "", count).low(confidence)
    if usual > 0:
        return gate
    told = f"{gate.reason} But {count} days may differ by so much: {spread:.4g} from day to day at both trainings."
    return gate.model_copy(update={"outcome": "keep", "reason": told})


def _lost(ctx: JobContext, at: NDArray[np.int64], now: Outcomes, before: Outcomes) -> int:
    """In how many of the latest intervals in a row the former champion is better."""
    sign, lost = (1.0 if HIGHER_IS_BETTER[ctx.job.metric] else -1.0), 0
    for start in sorted(set(at.tolist()), reverse=True):
        values = [metrics.measure(ctx.job.metric, side.take(at == start)).value for side in (before, now)]
        if values[0] is None or values[1] is None or sign * (values[0] - values[1]) <= 0:
            break
        lost += 1
    return lost
