"""A person's last word on a challenger that won the gate: asked, answered once, expiring to "the champion stays"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.errors import InvalidRequest
from pipeline.intervals import format_instant, parse_instant
from pipeline.reports import ApprovalAnswer, Decision
from pipeline.steps import champion, rollout

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.reports import Promotion
    from pipeline.steps.context import JobContext

Verdict = Literal["approved", "rejected", "expired"]


def request(
    ctx: JobContext, won: Decision, ruling: Promotion
) -> tuple[Decision, Literal["awaiting_approval", "rollout", "kept"], str]:
    """Ask for the promotion of the challenger that won ``won`` against ``ruling``; a repeated call asks nothing twice.

    Returns the request, what that means for the challenger, and a sentence that says so. Older requests that nobody has
    answered are superseded.
    """
    expires = won.at + ctx.job.promote.approval.expires
    version = won.details["challenger_version"]
    asked = Decision.of(
        ctx.job.name,
        "approval",
        won.at,
        "requested",
        f"Version {version} won the gate ({won.id}) and waits for approval until {format_instant(expires)}.",
        {
            "gate": won.id,
            "version": version,
            "champion_version": ruling.model.version,
            "expires_at": format_instant(expires),
        },
    )
    with ctx.ledger.moving(ctx.job.name):
        for older in pending(ctx):
            if older.id != asked.id and older.at <= asked.at:
                if asked.at >= expires_at(older):
                    _expire(ctx, older)
                else:
                    _close(ctx, older, asked.at, "superseded", f"Version {version} won the gate later ({asked.id}).")
        ctx.ledger.record_decision(asked)
        answer = _answers(ctx).get(asked.id)
    if answer is not None and (begun := rollout.started(ctx, version)):
        return (
            asked,
            "rollout",
            f"Its approval was {answer.outcome} ({answer.id}), and its rollout started ({begun.id}).",
        )
    if answer is None or answer.outcome == "approved":
        return asked, "awaiting_approval", asked.reason
    return asked, "kept", f"Its approval was {answer.outcome} ({answer.id}): {answer.reason}"


def answer(ctx: JobContext, id: str, verdict: Verdict, reason: str, at: datetime) -> ApprovalAnswer:
    """Answer the request ``id`` at ``at`` and, if it was approved in time, promote exactly the version the gate saw.

    ``expired`` closes a request that people were given until then to answer; an answer that was given before stands.
    With a ``promote.rollout`` other than direct its rollout starts instead. Whatever is said, the answer is ``expired`` from
    the request's ``expires_at`` on, and ``superseded`` when the champion is not the one that the challenger was compared with,
    or another rollout is in the way. The first answer counts: the same again changes nothing, except
    that a promotion which a killed process left undone is completed. Raises `InvalidRequest` for an unknown request, for
    another answer than the first one, for a reason that says nothing, and for an ``at`` before the request.
    """
    if verdict != "expired":
        reason = champion.stated(ctx.job.name, reason)
    asked = named(ctx, id)
    if at < asked.at:
        raise InvalidRequest(
            f"{id} cannot be answered before it was asked",
            expected=f"an instant at or after {format_instant(asked.at)}",
            got=format_instant(at),
            left_behind="nothing was changed",
            next_step=f"pipeline explain {id}",
        )
    # A half-done move is completed before anything is compared.
    champion.latest(ctx)
    with ctx.ledger.moving(ctx.job.name):
        given = _answers(ctx).get(id)
        if given is not None:
            return _again(ctx, asked, given, verdict)
        if verdict == "expired" or at >= expires_at(asked):
            return _expire(ctx, asked)
        if verdict == "rejected":
            return _close(ctx, asked, at, "rejected", reason)
        ruling = ctx.ledger.champion(ctx.job.name)
        if ruling is None or ruling.model.version != asked.details["champion_version"]:
            now = f"version {ruling.model.version}" if ruling else "nobody"
            compared = f"the challenger was compared with version {asked.details['champion_version']}"
            return _close(ctx, asked, at, "superseded", f"The champion is {now}; {compared}.")
        if refused := _refusal(ctx, asked, at):
            return _close(ctx, asked, at, "superseded", refused)
        return _promoted(ctx, asked, _record(ctx, asked, at, "approved", reason))


def named(ctx: JobContext, id: str) -> Decision:
    """The request of that id; raises `InvalidRequest` when there is none."""
    asked = ctx.ledger.decision(id)
    if asked is None or asked.job != ctx.job.name or not is_request(asked):
        waiting = ", ".join(decision.id for decision in pending(ctx)) or "none"
        raise InvalidRequest(
            f"{id} is no request for an approval of job {ctx.job.name!r}",
            expected=f"the id of one that waits for an answer ({waiting})",
            got=id,
            left_behind="nothing was changed",
            next_step=f"pipeline status {ctx.job.name}",
        )
    return asked


def pending(ctx: JobContext) -> list[Decision]:
    """The requests that nobody has answered, in order of recording; expired ones too, until an answer says so."""
    answers = _answers(ctx)
    asked = [decision for decision in ctx.ledger.decisions(ctx.job.name, kind="approval") if is_request(decision)]
    return [decision for decision in asked if decision.id not in answers]


def gate(ctx: JobContext, id: str) -> Decision | None:
    """The gate's decision that the request ``id`` rests on, if it still waits; raises `InvalidRequest` for no request."""
    asked = named(ctx, id)
    return ctx.ledger.decision(asked.details["gate"]) if asked in pending(ctx) else None


def is_request(decision: Decision) -> bool:
    """Whether the decision asks for an approval, and is not the answer to one."""
    return decision.kind == "approval" and decision.outcome == "requested"


def expires_at(asked: Decision) -> datetime:
    """From when on a request cannot be approved any more."""
    return parse_instant(asked.details["expires_at"])


def _again(ctx: JobContext, asked: Decision, given: Decision, verdict: Verdict) -> ApprovalAnswer:
    if verdict != "expired" and given.outcome in ("approved", "rejected") and given.outcome != verdict:
        raise InvalidRequest(
            f"{asked.id} was {given.outcome} at {format_instant(given.at)}: {given.reason}",
            expected="the same answer, or none",
            got=verdict,
            left_behind="nothing was changed",
            next_step=f"pipeline explain {given.id}; pipeline promote and rollback overrule any answer",
        )
    if given.outcome != "approved":
        return ApprovalAnswer(decision=given, promotion=None, replayed=True)
    return _promoted(ctx, asked, given, replayed=True)


def _refusal(ctx: JobContext, asked: Decision, at: datetime) -> str:
    """Why an approval could not start the rollout that the job asks for; empty when it could, or none is asked for."""
    if ctx.job.promote.rollout.kind == "direct":
        return ""
    return rollout.refusal(ctx, at, ctx.registered(asked.details["version"]).model)


def _promoted(ctx: JobContext, asked: Decision, given: Decision, *, replayed: bool = False) -> ApprovalAnswer:
    """Carry out an approval, by a promotion or the start of a rollout, unless that was done or the champion moved since."""
    version, compared = asked.details["version"], asked.details["champion_version"]
    reason = f"Approved ({given.id}): {given.reason}"
    promotions = ctx.ledger.promotions(ctx.job.name)
    done = next(
        (p for p in promotions if (p.model.version, p.effective_at, p.reason) == (version, given.at, reason)), None
    )
    begun = rollout.started(ctx, version)
    if done is None and begun is None and promotions[-1].model.version == compared:
        model = ctx.registered(version).model
        if ctx.job.promote.rollout.kind == "direct":
            done = champion.carry_out(ctx, given.at, model, reason, "promotion")
        else:
            begun = rollout.start(ctx, given.at, promotions[-1].model, model, reason)
    return ApprovalAnswer(decision=given, promotion=done, rollout=begun, replayed=replayed)


def _expire(ctx: JobContext, asked: Decision) -> ApprovalAnswer:
    missed = f"Nobody had answered by {asked.details['expires_at']}; the champion stays."
    return _close(ctx, asked, expires_at(asked), "expired", missed)


def _close(ctx: JobContext, asked: Decision, at: datetime, outcome: str, reason: str) -> ApprovalAnswer:
    return ApprovalAnswer(decision=_record(ctx, asked, at, outcome, reason), promotion=None, replayed=False)


def _record(ctx: JobContext, asked: Decision, at: datetime, outcome: str, reason: str) -> Decision:
    given = Decision.of(ctx.job.name, "approval", at, outcome, reason, {"request": asked.id, **asked.details})
    ctx.ledger.record_decision(given)
    return given


def _answers(ctx: JobContext) -> dict[str, Decision]:
    """The recorded answers by the id of their request."""
    known = ctx.ledger.decisions(ctx.job.name, kind="approval")
    return {decision.details["request"]: decision for decision in known if not is_request(decision)}
