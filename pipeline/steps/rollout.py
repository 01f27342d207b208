"""Which rollout is under way, at an instant or now, and how one starts.

The state is what the recorded decisions say, each from the instant on from which it takes effect. So an interval that is
scored again, in a rerun or a backfill, finds the state that it was scored with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pipeline.intervals import format_instant, parse_instant
from pipeline.reports import Challenger, Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from pipeline.job import JobSpec
    from pipeline.ledger import Ledger
    from pipeline.reports import ModelRef, Promotion
    from pipeline.steps.context import JobContext

Kind = Literal["shadow", "canary", "ab"]
# Nearly every rollout has fewer decisions.
FEW = 16


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
    decided = recent(ctx.ledger, ctx.job.name, effective_by=instant)
    found = state(decision for decision in decided if effective(decision) <= instant)
    if found is None or found.champion != ruling.version or found.kind != ctx.job.promote.rollout.kind:
        return None
    model = ctx.registered(found.challenger).model
    return Challenger(model=model, kind=found.kind, share=found.share, salt=found.id, key=found.key)


def running(ctx: JobContext, as_of: datetime) -> Running | None:
    """The rollout that decisions by ``as_of`` left under way, for the job's present kind and champion."""
    if ctx.job.promote.rollout.kind == "direct":
        return None
    return under_way(ctx.job, recent(ctx.ledger, ctx.job.name, until=as_of), lambda: ctx.ledger.champion(ctx.job.name))


def under_way(job: JobSpec, decided: Sequence[Decision], ruling: Callable[[], Promotion | None]) -> Running | None:
    """The rollout that ``decided``, the latest decisions on rollouts, left under way beside the champion ``ruling``."""
    found = state(decided)
    if found is None or found.kind != job.promote.rollout.kind:
        return None
    promotion = ruling()
    return found if promotion is not None and promotion.model.version == found.champion else None


def recent(
    ledger: Ledger, job: str, *, until: datetime | None = None, effective_by: datetime | None = None
) -> list[Decision]:
    """The latest decisions on rollouts, in order of recording, as far back as their `state` depends on them.

    That is to the start of a rollout, of one that was ``effective_by`` an instant; only decisions made ``until`` one.
    """
    count = FEW
    while True:
        found = ledger.decisions(job, kind="rollout", until=until, last=count)
        starts = (d for d in found if d.outcome == "started" and (effective_by is None or effective(d) <= effective_by))
        if len(found) < count or next(starts, None) is not None:
            return found
        count *= 4


def refusal(ctx: JobContext, as_of: datetime, challenger: ModelRef) -> str:
    """Why no rollout of ``challenger`` starts at ``as_of``; empty when nothing forbids it."""
    decided = ctx.ledger.decisions(ctx.job.name, kind="rollout")
    if mine := [d for d in decided if d.details["challenger_version"] == challenger.version]:
        return f"Nothing is moved: the rollout of version {challenger.version} was {mine[-1].outcome} before."
    if later := [d for d in decided if d.at > as_of]:
        return f"Nothing is moved: a rollout was {later[-1].outcome} later, at {format_instant(later[-1].at)}."
    if busy := running(ctx, as_of):
        return f"Nothing is moved: version {busy.challenger} is in rollout ({busy.id})."
    return ""


def started(ctx: JobContext, version: int) -> Decision | None:
    """The decision that started the rollout of that version; ``None`` when there was none."""
    decided = ctx.ledger.decisions(ctx.job.name, kind="rollout")
    mine = (d for d in decided if (d.outcome, d.details["challenger_version"]) == ("started", version))
    return next(mine, None)


def start(ctx: JobContext, as_of: datetime, ruling: ModelRef, challenger: ModelRef, reason: str) -> Decision:
    """The recorded start of a rollout of ``challenger`` beside the champion; a repeated call records nothing twice."""
    policy = ctx.job.promote.rollout
    details = {
        "effective_at": format_instant(next_end(ctx, as_of)),
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


def state(decided: Iterable[Decision]) -> Running | None:
    """What the decisions, in order of recording, leave under way."""
    found: Running | None = None
    for decision in decided:
        d = decision.details
        if decision.outcome == "started":
            since = effective(decision)
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


def effective(decision: Decision) -> datetime:
    """From which interval's end on a decision on a rollout holds."""
    return parse_instant(decision.details["effective_at"])


def next_end(ctx: JobContext, as_of: datetime) -> datetime:
    """The end of the first interval that ends after ``as_of``: what ended by then is scored already."""
    return ctx.job.cadence.shift(ctx.job.cadence.floor(as_of), 1)
