"""Watch a promoted model on what really happens; when the one before is proven better there, go back and restate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import engine, gates, metrics
from pipeline.errors import ContractViolation
from pipeline.intervals import Interval, format_instant
from pipeline.policies import HIGHER_IS_BETTER
from pipeline.release import Promote
from pipeline.reports import Decision, Watched
from pipeline.steps import champion, comparison, restate, retrain
from pipeline.steps.context import INTERVAL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import pyarrow as pa

    from pipeline.metrics import Outcomes
    from pipeline.reports import GateDecision, Manifest, ModelRef, Promotion
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import PerformanceReport


def watch(ctx: JobContext, as_of: datetime) -> Watched | None:
    """What is found of the champion while it is watched; ``None`` when it is not, or nothing has matured since its promotion.

    A champion that a gate has promoted is watched over ``promote.watch.intervals`` matured intervals: it and the one before
    predict the labelled rows of all of them. The one before comes back when it is better in each of the latest
    ``violations`` intervals and over all of them with a confidence that allows for a look after each. The rollback is
    recorded before it is made; it takes effect when the promotion did, and what the withdrawn version had published is
    scored again (``restate``). A call that finds an earlier one unfinished completes it.
    """
    if not ctx.job.promote.watch.enabled:
        return None
    if (undone := champion.withdrawn(ctx)) is not None and _decision(ctx, undone) is not None:
        left = restate.affected(ctx, undone.model.version, undone.effective_at) if ctx.job.promote.watch.restate else []
        return _finished(ctx, as_of, undone, left) if left else None
    latest = champion.latest(ctx)
    if latest is None or latest.previous_version is None or not _is_by_gate(ctx, latest):
        return None
    matured = _matured(ctx, latest, as_of)
    if not matured or len(matured) > ctx.job.promote.watch.intervals:
        return None
    compared = _compare(ctx, latest, matured, as_of)
    if compared is None:
        return None
    gate, lost = compared
    if gate.outcome != "promote" or lost < ctx.job.promote.watch.violations:
        return Watched(
            outcome="kept", version=latest.model.version, reason=gate.reason, intervals=len(matured), lost=lost
        )
    return _go_back(ctx, as_of, latest, gate, len(matured), lost)


def _go_back(ctx: JobContext, as_of: datetime, latest: Promotion, gate: GateDecision, seen: int, lost: int) -> Watched:
    found = restate.withdrawal(ctx, restated=ctx.job.promote.watch.restate)
    reason = (
        f"Version {latest.model.version} is worse than version {found.back.version}, which it replaced, in each of the last "
        f"{lost} matured intervals, and over all {seen} since {format_instant(latest.effective_at)}: {gate.reason}"
    )
    details = {
        "version": latest.model.version,
        "back_to": found.back.version,
        "promotion": latest.decision_id,
        "intervals": seen,
        **gate.model_dump(mode="json", include={"metric", "champion", "challenger", "gain", "low", "n"}),
    }
    ctx.ledger.record_decision(Decision.of(ctx.job.name, "watch", as_of, "rolled_back", reason, details))
    champion.move(ctx, found.withdrawn.effective_at, found.back, reason, "rollback", instead_of=latest)
    done = restate.restate(ctx, found.affected, found.back.version)
    return _told(latest.model, found.back, reason, seen, lost, done)


def _finished(ctx: JobContext, as_of: datetime, undone: Promotion, left: list[Manifest]) -> Watched:
    decision = _decision(ctx, undone)
    assert decision is not None  # `watch` has seen it
    back = champion.current(ctx)
    done = restate.restate(ctx, left, back.version)
    return _told(undone.model, back, decision.reason, decision.details["intervals"], 0, done)


def _told(model: ModelRef, back: ModelRef, reason: str, seen: int, lost: int, done: Sequence[Manifest]) -> Watched:
    starts = tuple(manifest.start for manifest in done)
    facts = {"version": model.version, "back_to": back.version, "intervals": seen, "lost": lost}
    return Watched(outcome="rolled_back", reason=reason, restated=starts, **facts)


def _decision(ctx: JobContext, promotion: Promotion) -> Decision | None:
    """The decision of a watch to undo a promotion."""
    decided = ctx.ledger.decisions(ctx.job.name, kind="watch", since=promotion.effective_at)
    return next((d for d in reversed(decided) if d.details["promotion"] == promotion.decision_id), None)


def _is_by_gate(ctx: JobContext, promotion: Promotion) -> bool:
    """Whether a gate let the version through, for the first time: what a person brought back, only a person takes away."""
    ruled = [known.model.version for known in ctx.ledger.promotions(ctx.job.name)]
    if champion.is_rollback(promotion) or ruled.count(promotion.model.version) > 1:
        return False
    gated = ctx.ledger.decisions(ctx.job.name, kind="gate", until=promotion.effective_at)
    return any(d.outcome == "promote" and d.details["challenger_version"] == promotion.model.version for d in gated)


def _matured(ctx: JobContext, latest: Promotion, as_of: datetime) -> list[PerformanceReport]:
    """The reports on intervals that the promoted version has scored, by start."""
    reports = ctx.ledger.performance(ctx.job.name, since=latest.effective_at, as_of=as_of, loud_on=latest.model.version)
    return [report for report in reports if report.value is not None]


def _compare(
    ctx: JobContext, latest: Promotion, matured: Sequence[PerformanceReport], as_of: datetime
) -> tuple[GateDecision, int] | None:
    """The former champion as challenger on all matured rows, and in how many of the latest intervals in a row it is better."""
    assert latest.previous_version is not None  # `watch` has seen to it
    rows, _, _ = retrain.collect(ctx, Interval(matured[0].start, matured[-1].end), as_of)
    if rows is None:
        return None
    new, old = ctx.load(latest.model.version), ctx.load(latest.previous_version)
    try:
        now, before = (
            comparison.outcomes(ctx, model, engine.to_frame(rows, ctx.model_columns(model)), rows)
            for model in (new, old)
        )
    except ContractViolation:  # the former one takes other columns
        return None
    policy = ctx.job.promote.watch
    # A look after each interval: each may be wrong in as many times fewer cases.
    confidence = 1 - (1 - policy.confidence) / policy.intervals
    gate = gates.compare(
        Promote(confidence=confidence, max_calibration_loss=None),
        ctx.job.metric,
        champion=now,
        challenger=before,
        interval=comparison.blocks(rows[INTERVAL].to_numpy()),
        seed=ctx.job.model.seed,
    )
    return gate, _lost(ctx, rows, now, before)


def _lost(ctx: JobContext, rows: pa.Table, now: Outcomes, before: Outcomes) -> int:
    """In how many of the latest intervals in a row the former champion is better."""
    sign, at, lost = (1.0 if HIGHER_IS_BETTER[ctx.job.metric] else -1.0), rows[INTERVAL].to_numpy(), 0
    for start in sorted(set(at.tolist()), reverse=True):
        values = [metrics.measure(ctx.job.metric, side.take(at == start)).value for side in (before, now)]
        if values[0] is None or values[1] is None or sign * (values[0] - values[1]) <= 0:
            break
        lost += 1
    return lost
