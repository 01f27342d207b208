"""What matured intervals decide about the rollout under way, and what follows: the next share, the alias, or the way back."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline import rollout as rules
from pipeline import windows
from pipeline.errors import InvalidRequest, PromotionConflict
from pipeline.intervals import Interval, format_instant
from pipeline.reports import Decision
from pipeline.steps import champion, incidents, restate, rollout

if TYPE_CHECKING:
    from pipeline.rollout import Judgement
    from pipeline.steps.context import JobContext
    from pipeline.steps.rollout import Running
    from pipeline.verdicts import Arms

_OUTCOMES = {"advance": "advanced", "complete": "completed"}
# Ends of a rollout that show a defect: of the challenger, or of the split.
_WORTH_A_LOOK = ("fault", "split", "worse")


def advance(ctx: JobContext, as_of: datetime) -> Decision | None:
    """What the intervals that matured by ``as_of`` decide about the rollout under way; ``None`` when it goes on as it is.

    The decision is recorded before it is acted upon: a completed rollout moves the alias; one that is rolled back opens an
    incident, unless only its time is over, and what its challenger had scored of split partitions is made again by the
    champion (``promote.rollout.restate``). A repeated call finishes what a killed one left, and a call for a time before the
    latest decision does nothing. Nothing happens unless ``promote.mode`` is ``enabled``. Raises `AliasConflict` when the
    alias was moved behind the ledger's back, and `PromotionConflict` when somebody else decides at the same time.
    """
    job = ctx.job
    decided = rollout.recent(ctx.ledger, ctx.job.name)
    if job.promote.mode != "enabled" or not decided or _is_past(ctx, as_of):
        return None
    _follow(ctx, as_of, decided[-1])
    found = rollout.state(decided)
    if found is None or found.kind != job.promote.rollout.kind:
        return None
    ruling = champion.current(ctx)
    if ruling.version != found.champion:
        reason = f"The rollout of version {found.challenger} ends: version {ruling.version} became champion meanwhile."
        return _record(ctx, as_of, found, "superseded", reason, {})
    decision = _decided(ctx, as_of, found)
    if decision is not None:
        _follow(ctx, as_of, decision)
    return decision


def stop(ctx: JobContext, at: datetime, reason: str) -> Decision:
    """The recorded end of the rollout under way because somebody said so; the champion stays.

    What the challenger had scored is made again as in `advance`. Raises `InvalidRequest` when none is under way, and for a
    reason that says nothing, and `PromotionConflict` when somebody else decides at the same time.
    """
    reason = champion.stated(ctx.job.name, reason)
    found = rollout.running(ctx, at)
    if found is None:
        raise InvalidRequest(
            f"job {ctx.job.name!r} has no rollout under way",
            expected="a rollout of the job's present kind that nothing has ended",
            got=f"none at {format_instant(at)} (promote.rollout.kind is {ctx.job.promote.rollout.kind})",
            left_behind="nothing was changed",
            next_step=f"pipeline rollout {ctx.job.name} lists those there were",
        )
    decision = _rolled_back(ctx, at, found, f"Stopped by hand: {reason}", "person", {})
    _follow(ctx, at, decision)
    return decision


def _decided(ctx: JobContext, as_of: datetime, found: Running) -> Decision | None:
    """The recorded decision on the rollout ``found``; ``None`` when it goes on as it is."""
    if fault := _fault(ctx, found, as_of):
        return _rolled_back(ctx, as_of, found, f"The challenger is withdrawn: {fault}.", "fault", {})
    seen, elapsed = _seen(ctx, found, as_of), _elapsed(ctx, found, as_of)
    judged = rules.judge(ctx.job.promote.rollout, seen, share=found.share, elapsed=elapsed)
    numbers = _numbers(judged, elapsed)
    if judged.action == "hold":
        return None
    if judged.cause is not None:
        return _rolled_back(ctx, as_of, found, judged.reason, judged.cause, numbers)
    return _record(ctx, as_of, found, _OUTCOMES[judged.action], judged.reason, numbers, share=judged.share)


def _rolled_back(
    ctx: JobContext, as_of: datetime, found: Running, reason: str, cause: str, numbers: dict[str, Any]
) -> Decision:
    """The recorded end of a rollout; with restating, what is scored again at any time finds that there was none."""
    since = found.since if _restates(ctx, found.kind) else None
    return _record(ctx, as_of, found, "rolled_back", reason, {"cause": cause, **numbers}, since=since)


def _follow(ctx: JobContext, as_of: datetime, decision: Decision) -> None:
    """Do what a decision says, as far as that is not done yet."""
    if decision.outcome == "completed":
        _promote(ctx, decision)
    # What a decision of an older release left is left.
    if (
        decision.outcome != "rolled_back"
        or "cause" not in decision.details
        or not restate.is_fresh(ctx, decision.at, as_of)
    ):
        return
    version = decision.details["challenger_version"]
    if decision.details["cause"] in _WORTH_A_LOOK:
        incidents.withdrawn(ctx, decision, version)
    if _restates(ctx, decision.details["kind"]):
        left = restate.left(ctx, version, rollout.effective(decision), decision.at)
        restate.as_far_as_possible(ctx, left, decision.details["champion_version"])


def _restates(ctx: JobContext, kind: str) -> bool:
    """Whether partitions hold rows of the challenger, which are to be made again once it is withdrawn."""
    return kind != "shadow" and ctx.job.promote.rollout.restate


def _is_past(ctx: JobContext, as_of: datetime) -> bool:
    """Whether a later instant has seen a decision on a rollout."""
    later = as_of + timedelta.resolution
    return bool(ctx.ledger.decisions(ctx.job.name, kind="rollout", since=later, last=1))


def _fault(ctx: JobContext, found: Running, as_of: datetime) -> str:
    """Why the challenger could not score a partition by ``as_of``, known before any label; empty when it could."""
    scored = ctx.ledger.manifests(ctx.job.name, since=found.since - timedelta.resolution, ended_by=as_of)
    # The manifest beside a shadow names no challenger, since none of its rows are a challenger's.
    versions = (found.challenger, None)
    first = next((m for m in scored if m.challenger_fault and m.challenger_version in versions and not m.quiet), None)
    return f"{first.challenger_fault} ({format_instant(first.start)})" if first else ""


def _seen(ctx: JobContext, found: Running, as_of: datetime) -> list[Arms]:
    """The intervals of the rollout that were compared; what backfills found has no say."""
    reports = ctx.ledger.performance(ctx.job.name, since=found.since - timedelta.resolution, as_of=as_of)
    return [report.arms for report in reports if report.arms and report.arms.salt == found.id and not report.quiet]


def _elapsed(ctx: JobContext, found: Running, as_of: datetime) -> int:
    """The intervals of the rollout that have matured, or days of shorter ones."""
    cadence = ctx.job.cadence
    first, end = cadence.shift(found.since, -1), cadence.floor(windows.matured_by(ctx.job, as_of))
    if found.since - first < timedelta(days=1):
        return max((end.date() - first.date()).days, 0)
    return len(list(cadence.split(Interval(first, end)))) if first < end else 0


def _record(
    ctx: JobContext,
    as_of: datetime,
    found: Running,
    outcome: str,
    reason: str,
    facts: dict[str, Any],
    *,
    share: float | None = None,
    since: datetime | None = None,
) -> Decision:
    """Record what becomes of the rollout, from the next interval on or, dated back, ``since``; ``share`` is the next one.

    Raises `PromotionConflict` when somebody else, such as a person who stops it, was faster.
    """
    details = {
        "rollout": found.id,
        "effective_at": format_instant(since or rollout.next_end(ctx, as_of)),
        "kind": found.kind,
        "champion_version": found.champion,
        "challenger_version": found.challenger,
        "share": found.share if share is None else share,
        **facts,
    }
    decision = Decision.of(ctx.job.name, "rollout", as_of, outcome, reason, details)
    with ctx.ledger.moving(ctx.job.name):
        decided = rollout.recent(ctx.ledger, ctx.job.name)
        now = rollout.state(decided)
        if now is None or (now.id, now.share) != (found.id, found.share):
            raise PromotionConflict(
                f"the rollout {found.id} of job {ctx.job.name!r} went on while this step was prepared",
                expected=f"version {found.challenger} in rollout at {found.share:.0%}",
                got=f"{decided[-1].outcome} ({decided[-1].id})",
                left_behind="nothing was changed by this step",
                next_step=f"run the same command again, if it is still right; pipeline rollout {ctx.job.name}",
            )
        ctx.ledger.record_decision(decision)
    return decision


def _numbers(judged: Judgement, elapsed: int) -> dict[str, Any]:
    evidence = judged.evidence
    bounds = {"low": evidence.low, "high": evidence.high}
    return {
        "gain": evidence.gain,
        **{name: bound if math.isfinite(bound) else None for name, bound in bounds.items()},
        "units": evidence.units,
        "elapsed": elapsed,
    }


def _promote(ctx: JobContext, completed: Decision) -> None:
    """Move the alias as a completed rollout says, unless that is done or somebody moved it elsewhere since."""
    version, effective = completed.details["challenger_version"], rollout.effective(completed)
    promotions = ctx.ledger.promotions(ctx.job.name)
    if any(p.model.version == version and p.effective_at == effective for p in promotions):
        return
    if promotions and promotions[-1].model.version == completed.details["champion_version"]:
        reason = f"Rollout {completed.details['rollout']} is complete. {completed.reason}"
        champion.move(ctx, effective, ctx.registered(version).model, reason, "promotion", instead_of=promotions[-1])
