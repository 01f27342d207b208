"""Who is champion, and the one way to change it: the ledger's promotions and the registry's alias, kept in agreement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.errors import AliasConflict, InvalidRequest, NoChampion, PromotionConflict
from pipeline.intervals import format_instant
from pipeline.reports import Decision, Promotion

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.reports import ModelRef
    from pipeline.steps.context import JobContext

Move = Literal["promotion", "rollback"]
ANCHOR = "chain"  # the tag of a model version that names the end of the record when the version became champion
_SHORTEST_REASON = 3


def at(ctx: JobContext, instant: datetime) -> ModelRef:
    """The version that is champion at ``instant``.

    Raises `NoChampion` when none is, and what `latest` raises.
    """
    latest(ctx)
    promotion = ctx.ledger.champion(ctx.job.name, instant)
    if promotion is None:
        raise _no_champion(ctx, f"job {ctx.job.name!r} had no champion as of {format_instant(instant)}")
    return promotion.model


def current(ctx: JobContext) -> ModelRef:
    """The version that the alias names now; raises `NoChampion` without one, and what `latest` raises."""
    promotion = latest(ctx)
    if promotion is None:
        raise _no_champion(ctx, f"model {ctx.job.model_name!r} has no alias 'champion'")
    return promotion.model


def latest(ctx: JobContext) -> Promotion | None:
    """The last move of the alias, proven to be where the alias is; ``None`` before the first one.

    A move that a killed process left half done, alias moved and promotion not recorded, is completed here: its decision
    is in the ledger. Any other disagreement raises `AliasConflict`; a registry that does not answer raises
    `RegistryUnavailable`.
    """
    promotion, alias = _both(ctx)
    if alias == _version(promotion):
        return promotion
    # Perhaps somebody is between the two writes.
    with ctx.ledger.moving(ctx.job.name):
        promotion, alias = _both(ctx)
        if alias == _version(promotion):
            return promotion
        finished = _unfinished(ctx, promotion, alias)
        if finished is None:
            raise _conflict(ctx, promotion, alias)
        ctx.ledger.record_promotion(finished)
        return finished


def move(
    ctx: JobContext,
    effective_at: datetime,
    model: ModelRef,
    reason: str,
    kind: Move,
    *,
    instead_of: Promotion | None,
    adopt: bool = False,
) -> Promotion:
    """Record the decision, anchor the record in the registry, move the alias, record the promotion.

    One move of a job at a time, and only while ``instead_of`` is the latest promotion (``None``: there is none): else
    `PromotionConflict`, and nothing is written. A repeated call converges. Raises `AliasConflict` when the alias is not
    where the ledger says, unless ``adopt`` takes over whatever it names.
    """
    with ctx.ledger.moving(ctx.job.name):
        if (latest := ctx.ledger.champion(ctx.job.name)) != instead_of:
            raise _lost(ctx, instead_of, latest)
        return carry_out(ctx, effective_at, model, reason, kind, adopt=adopt)


def carry_out(
    ctx: JobContext, effective_at: datetime, model: ModelRef, reason: str, kind: Move, *, adopt: bool = False
) -> Promotion:
    """What `move` does, for a caller who holds the ledger's lock ``moving`` and has looked at who is champion."""
    previous = _version(ctx.ledger.champion(ctx.job.name))
    decision = Decision.of(
        ctx.job.name, kind, effective_at, model.name, reason, {"version": model.version, "previous_version": previous}
    )
    ctx.ledger.record_decision(decision)
    # Before the alias: whoever finds the alias moved also finds how long the record was by then.
    ctx.registry.tag(model.name, model.version, {ANCHOR: anchor(*ctx.ledger.head(ctx.job.name))})
    alias = ctx.registry.champion(model.name)
    if alias != model.version:
        ctx.registry.move_alias(model.name, model.version, expected=alias if adopt else previous)
    promotion = _promotion(decision, model)
    ctx.ledger.record_promotion(promotion)
    return promotion


def anchor(position: int, chain: str) -> str:
    """The text of the anchor that says: the record had this link at this position."""
    return f"{position}:{chain}"


def stated(job: str, reason: str) -> str:
    """The reason that somebody gave for overruling the loop, stripped; raises `InvalidRequest` when it says nothing."""
    if len("".join(reason.split())) < _SHORTEST_REASON:
        raise InvalidRequest(
            f"job {job!r}: whoever overrules the loop says why",
            expected=f"a reason of at least {_SHORTEST_REASON} characters",
            got=repr(reason),
            left_behind="nothing was changed",
            next_step="run the same command again with --reason TEXT",
        )
    return reason.strip()


def withdrawable(ctx: JobContext) -> tuple[Promotion, Promotion]:
    """The promotion that a rollback would undo, and the one that would rule again; each rollback goes one further back.

    Raises `InvalidRequest` when there is no earlier champion.
    """
    standing, _ = _standing(ctx)
    if len(standing) < 2:
        name = ctx.job.name
        raise InvalidRequest(
            f"job {name!r} has no earlier champion to go back to",
            expected="a champion that replaced another one",
            got=f"version {standing[0].model.version}, the first one" if standing else "no promotion",
            next_step=f"pipeline promote {name} --version N --reason TEXT",
        )
    return standing[-1], standing[-2]


def withdrawn(ctx: JobContext) -> Promotion | None:
    """The promotion that the last move undid; ``None`` when the last move was no rollback."""
    return _standing(ctx)[1]


def moved_versions(ctx: JobContext, before: datetime) -> tuple[set[int], set[int]]:
    """The versions that promotions effective before that instant made champion, and those that rollbacks took away."""
    moves = [p for p in ctx.ledger.promotions(ctx.job.name) if p.effective_at < before]
    back = {p.previous_version for p in moves if is_rollback(p) and p.previous_version is not None}
    return {p.model.version for p in moves if not is_rollback(p)}, back


def _standing(ctx: JobContext) -> tuple[list[Promotion], Promotion | None]:
    """The promotions that no rollback has undone, oldest first, and the one that the last move undid."""
    standing: list[Promotion] = []
    undone = None
    for promotion in ctx.ledger.promotions(ctx.job.name):
        if not is_rollback(promotion):
            undone = None
            if not standing or standing[-1].model != promotion.model:
                standing.append(promotion)
        elif standing[-1].model != promotion.model:
            undone = standing.pop()
            while len(standing) > 1 and standing[-1].model != promotion.model:
                standing.pop()
    return standing, undone


def is_rollback(promotion: Promotion) -> bool:
    """Whether the move went back; the id of its decision names the kind."""
    return promotion.decision_id.startswith("rollback-")


def _both(ctx: JobContext) -> tuple[Promotion | None, int | None]:
    return ctx.ledger.champion(ctx.job.name), ctx.registry.champion(ctx.job.model_name)


def _version(promotion: Promotion | None) -> int | None:
    return promotion.model.version if promotion else None


def _unfinished(ctx: JobContext, before: Promotion | None, alias: int | None) -> Promotion | None:
    """The promotion that the last decided move lacks, provided that the alias shows that it was carried out."""
    decided = ctx.ledger.decisions(ctx.job.name, kind=("promotion", "rollback"), last=1)
    if alias is None or not decided:
        return None
    (decision,) = decided
    done = {"version": alias, "previous_version": _version(before)}
    if decision.details != done or (before is not None and before.decision_id == decision.id):
        return None
    return _promotion(decision, ctx.registered(alias).model)


def _promotion(decision: Decision, model: ModelRef) -> Promotion:
    return Promotion(
        job=decision.job,
        model=model,
        effective_at=decision.at,
        previous_version=decision.details["previous_version"],
        decision_id=decision.id,
        reason=decision.reason,
    )


def _conflict(ctx: JobContext, promotion: Promotion | None, alias: int | None) -> AliasConflict:
    name, model = ctx.job.name, ctx.job.model_name
    known = [m.model.version for m in ctx.ledger.models(name)]
    return AliasConflict(
        f"alias 'champion' of model {model!r} was moved outside of this deployment",
        expected=f"version {promotion.model.version}, promoted by decision {promotion.decision_id}"
        if promotion
        else "no alias: the ledger knows no promotion",
        got="no alias" if alias is None else f"version {alias}",
        next_step=f"pipeline promote {name} --version N --reason TEXT records which version is right (known: "
        f"{', '.join(map(str, known))})"
        if known
        else "set PIPELINE_LEDGER_URL to the ledger of the deployment that promoted it, or give the job another model.name",
    )


def _lost(ctx: JobContext, seen: Promotion | None, latest: Promotion | None) -> PromotionConflict:
    def told(promotion: Promotion | None) -> str:
        return f"version {promotion.model.version} by {promotion.decision_id}" if promotion else "no promotion"

    return PromotionConflict(
        f"the champion of job {ctx.job.name!r} changed while this move was prepared",
        expected=told(seen),
        got=told(latest),
        left_behind="nothing was changed by this move",
        next_step="run the same command again, if it is still right",
    )


def _no_champion(ctx: JobContext, what: str) -> NoChampion:
    name = ctx.job.name
    promotions = ctx.ledger.promotions(name)
    if promotions:
        first = min(promotions, key=lambda promotion: promotion.effective_at)
        return NoChampion(
            what,
            expected="a promotion at or before that instant",
            got=f"the first one, version {first.model.version}, takes effect at {format_instant(first.effective_at)}",
            next_step=f"pipeline score {name} --start T --model current, or --model {first.model.version}",
        )
    return NoChampion(
        what,
        expected="a promoted version",
        got="no promotion in the ledger",
        next_step=f"pipeline retrain {name} --as-of T --bootstrap",
    )
