"""Watch a promoted model on what really happens; when the one before is proven better there, go back and restate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import engine, gates, metrics, windows
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

    import pyarrow as pa

    from pipeline.metrics import Outcomes
    from pipeline.reports import GateDecision, Manifest, Promotion
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import PerformanceReport


def watch(ctx: JobContext, as_of: datetime) -> Watched | None:
    """What is found of the champion while it is watched; ``None`` when it is not, or nothing new has matured.

    A champion that a gate has promoted is watched over its first ``promote.watch.intervals`` intervals, as they mature: it and
    the one before predict the labelled rows of all of them. The one before comes back when it is better in each of the latest
    ``violations`` intervals and over all of them with a confidence that allows for a look after each. The rollback is
    recorded before it is made, and opens an incident; it takes effect when the promotion did, and what the withdrawn version
    had published is scored again (``restate``). A call that finds an earlier one unfinished completes it.
    Nothing happens unless ``promote.mode`` is ``enabled``.
    """
    if not ctx.job.promote.watch.enabled or ctx.job.promote.mode != "enabled":
        return None
    latest = champion.latest(ctx)
    if latest is None or latest.previous_version is None:
        return None
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
    gate, lost = compared
    if gate.outcome != "promote" or lost < ctx.job.promote.watch.violations:
        return Watched(
            outcome="kept", version=latest.model.version, reason=gate.reason, intervals=len(matured), lost=lost
        )
    return _go_back(ctx, latest, _decide(ctx, as_of, latest, gate, len(matured), lost))


def _decide(ctx: JobContext, as_of: datetime, latest: Promotion, gate: GateDecision, seen: int, lost: int) -> Decision:
    """The recorded decision to undo the promotion ``latest``."""
    reason = (
        f"Version {latest.model.version} is worse than version {latest.previous_version}, which it replaced, in each of the "
        f"last {lost} matured intervals, and over all {seen} since {format_instant(latest.effective_at)}: {gate.reason}"
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
