"""A challenger's way to everything: started by the gate, advanced, completed or rolled back on matured intervals.

The state is what the recorded decisions say; each takes effect from the first interval that ends after it was made. So an
interval that is scored again, in a rerun or a backfill, finds the state that it was scored with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from pipeline import rollout, windows
from pipeline.errors import InvalidRequest
from pipeline.intervals import Interval, format_instant, parse_instant
from pipeline.reports import Challenger, Decision
from pipeline.steps import champion

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.reports import ModelRef
    from pipeline.rollout import Judgement
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import Arms

Kind = Literal["shadow", "canary", "ab"]
_OUTCOMES = {"advance": "advanced", "complete": "completed", "rollback": "rolled_back"}


@dataclass(frozen=True, slots=True)
class Running:
    """A rollout under way: its id, which is also its salt, the two versions, and the share since the last decision.

    Intervals that end at or after ``since`` belong to it.
    """

    id: str
    kind: Kind
    champion: int
    challenger: int
    share: float
    key: tuple[str, ...]
    since: datetime


def in_force(ctx: JobContext, instant: datetime, ruling: ModelRef) -> Challenger | None:
    """The challenger beside ``ruling``, the champion at ``instant``; ``None`` without a rollout of the job's present kind."""
    if ctx.job.promote.rollout.kind == "direct":
        return None
    decided = ctx.ledger.decisions(ctx.job.name, kind="rollout")
    found = _state(decision for decision in decided if _effective(decision) <= instant)
    if found is None or found.champion != ruling.version or found.kind != ctx.job.promote.rollout.kind:
        return None
    model = ctx.registered(found.challenger).model
    return Challenger(model=model, kind=found.kind, share=found.share, salt=found.id, key=found.key)


def running(ctx: JobContext, as_of: datetime) -> Running | None:
    """The rollout that decisions by ``as_of`` left under way, for the job's present kind and champion."""
    found = _state(ctx.ledger.decisions(ctx.job.name, kind="rollout", until=as_of))
    ruling = ctx.ledger.champion(ctx.job.name)
    if found is None or found.kind != ctx.job.promote.rollout.kind:
        return None
    return found if ruling is not None and ruling.model.version == found.champion else None


def refusal(ctx: JobContext, as_of: datetime, challenger: ModelRef) -> str:
    """Why no rollout of ``challenger`` starts at ``as_of``; empty when nothing forbids it."""
    decided = ctx.ledger.decisions(ctx.job.name, kind="rollout")
    if mine := [d for d in decided if d.details["challenger_version"] == challenger.version]:
        return f"Nothing is moved: the rollout of version {challenger.version} was {mine[-1].outcome} before."
    if later := [d for d in decided if d.at > as_of]:
        return f"Nothing is moved: a rollout was {later[-1].outcome} later, at {format_instant(later[-1].at)}."
    return ""


def start(ctx: JobContext, as_of: datetime, ruling: ModelRef, challenger: ModelRef, reason: str) -> Decision:
    """The recorded start of a rollout of ``challenger`` beside the champion; a repeated call records nothing twice."""
    policy = ctx.job.promote.rollout
    details = {
        "effective_at": format_instant(_next_end(ctx, as_of)),
        "kind": policy.kind,
        "champion_version": ruling.version,
        "challenger_version": challenger.version,
        "share": policy.first_share,
        "key": list(ctx.job.entity),
    }
    said = f"Version {challenger.version} starts as {policy.kind}"
    said += f" at {policy.first_share:.0%} of the entities" if policy.splits else " beside the champion"
    decision = Decision.of(ctx.job.name, "rollout", as_of, "started", f"{said}. {reason}", details)
    ctx.ledger.record_decision(decision)
    return decision


def advance(ctx: JobContext, as_of: datetime) -> Decision | None:
    """What the intervals that matured by ``as_of`` decide about the rollout under way; ``None`` when it goes on as it is.

    The decision is recorded before it is acted upon: a completed rollout moves the alias. A repeated call finishes what a
    killed one left, and a call for a time before the latest decision does nothing. Nothing happens unless ``promote.mode``
    is ``enabled``. Raises `AliasConflict` when the alias was moved behind the ledger's back.
    """
    job = ctx.job
    decided = ctx.ledger.decisions(job.name, kind="rollout")
    if job.promote.mode != "enabled" or any(decision.at > as_of for decision in decided):
        return None
    if decided and decided[-1].outcome == "completed":
        _promote(ctx, decided[-1])
    found = _state(decided)
    if found is None or found.kind != job.promote.rollout.kind:
        return None
    ruling = champion.current(ctx)
    if ruling.version != found.champion:
        reason = f"The rollout of version {found.challenger} ends: version {ruling.version} became champion meanwhile."
        return _record(ctx, as_of, found, "superseded", reason, {})
    if fault := _fault(ctx, found, as_of):
        return _record(ctx, as_of, found, "rolled_back", f"The challenger is withdrawn: {fault}.", {})
    seen, elapsed = _seen(ctx, found, as_of), _elapsed(ctx, found, as_of)
    judged = rollout.judge(job.promote.rollout, seen, share=found.share, elapsed=elapsed)
    if judged.action == "hold":
        return None
    decision = _record(
        ctx,
        as_of,
        replace(found, share=judged.share),
        _OUTCOMES[judged.action],
        judged.reason,
        _numbers(judged, elapsed),
    )
    if decision.outcome == "completed":
        _promote(ctx, decision)
    return decision


def stop(ctx: JobContext, at: datetime, reason: str) -> Decision:
    """The recorded end of the rollout under way because somebody said so; the champion stays.

    Raises `InvalidRequest` when none is under way.
    """
    found = running(ctx, at)
    if found is None:
        raise InvalidRequest(
            f"job {ctx.job.name!r} has no rollout under way",
            expected="a rollout of the job's present kind that nothing has ended",
            got=f"none at {format_instant(at)} (promote.rollout.kind is {ctx.job.promote.rollout.kind})",
            left_behind="nothing was changed",
            next_step=f"pipeline rollout {ctx.job.name} lists those there were",
        )
    return _record(ctx, at, found, "rolled_back", f"Stopped by hand: {reason}", {})


def _state(decided: Iterable[Decision]) -> Running | None:
    """What the decisions, in order of recording, leave under way."""
    found: Running | None = None
    for decision in decided:
        d = decision.details
        if decision.outcome == "started":
            since = _effective(decision)
            found = Running(
                decision.id,
                d["kind"],
                d["champion_version"],
                d["challenger_version"],
                d["share"],
                tuple(d["key"]),
                since,
            )
        elif found is not None and d["rollout"] == found.id:
            found = replace(found, share=d["share"]) if decision.outcome == "advanced" else None
    return found


def _effective(decision: Decision) -> datetime:
    return parse_instant(decision.details["effective_at"])


def _next_end(ctx: JobContext, as_of: datetime) -> datetime:
    """The end of the first interval that ends after ``as_of``: what ended by then is scored already."""
    return ctx.job.cadence.shift(ctx.job.cadence.floor(as_of), 1)


def _fault(ctx: JobContext, found: Running, as_of: datetime) -> str:
    """Why the challenger could not score a partition by ``as_of``, known before any label; empty when it could."""
    scored = ctx.ledger.manifests(ctx.job.name, since=found.since - timedelta.resolution, ended_by=as_of)
    faults = (m for m in scored if m.challenger_version == found.challenger and m.challenger_fault and not m.quiet)
    first = next(faults, None)
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
    ctx: JobContext, as_of: datetime, found: Running, outcome: str, reason: str, numbers: dict[str, Any]
) -> Decision:
    details = {
        "rollout": found.id,
        "effective_at": format_instant(_next_end(ctx, as_of)),
        "kind": found.kind,
        "champion_version": found.champion,
        "challenger_version": found.challenger,
        "share": found.share,
        **numbers,
    }
    decision = Decision.of(ctx.job.name, "rollout", as_of, outcome, reason, details)
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
    version, effective = completed.details["challenger_version"], _effective(completed)
    promotions = ctx.ledger.promotions(ctx.job.name)
    if any(p.model.version == version and p.effective_at == effective for p in promotions):
        return
    if promotions and promotions[-1].model.version == completed.details["champion_version"]:
        reason = f"Rollout {completed.details['rollout']} is complete. {completed.reason}"
        champion.move(ctx, effective, ctx.registered(version).model, reason, "promotion", instead_of=promotions[-1])
