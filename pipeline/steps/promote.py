"""Compare a challenger with the champion, and move the champion alias: forwards through the gate, or back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline import gates, pages, windows
from pipeline.errors import FirstChampionRefused, InvalidRequest
from pipeline.intervals import Interval, format_instant
from pipeline.reports import Decision, GateDecision, Promotion, RetrainReport
from pipeline.steps import approval, champion, comparison, disjoint, looks, retrain, rollout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pipeline.reports import ModelRef, RegisteredModel, TriggerDecision
    from pipeline.steps.context import JobContext

Outcome = Literal[
    "promoted",
    "rollout",
    "not_considered",
    "kept",
    "awaiting_approval",
    "dry_run",
    "insufficient_data",
    "refused",
    "disabled",
]
_OUTCOMES: dict[str, Outcome] = {
    "promote": "promoted",
    "keep": "kept",
    "insufficient_data": "insufficient_data",
    "refused": "refused",
}


def consider(
    ctx: JobContext, as_of: datetime, trigger: TriggerDecision, challenger: RegisteredModel, *, force: bool = False
) -> RetrainReport:
    """What became of a challenger: gated against the champion, and promoted if that is proven and allowed.

    Freshly trained it is compared on its holdout; at a later ``as_of`` on all that has been labelled since, too.

    With ``promote.approval.required`` a challenger that wins waits for a person instead. With a ``promote.rollout`` other
    than direct it starts one; while it is under way no other challenger is considered.

    ``force`` promotes without asking the gate or anybody (the ``always`` policy of a replay). Every decision is recorded
    before it is acted upon; a repeated call records and moves nothing twice. A version that was champion before, and a training
    of a time before the latest promotion, never move the alias by themselves.
    """
    ref, mode = challenger.model, ctx.job.promote.mode
    ruling = ctx.ledger.champion(ctx.job.name, as_of)
    if ruling is not None and ruling.model == ref:
        reason = f"Version {ref.version} is already the champion."
        return _report(ctx, as_of, trigger, challenger, "promoted", reason)
    if ruling is None or force:
        return _crown(ctx, as_of, trigger, challenger, ruling)
    if mode == "disabled":
        reason = f"Version {ref.version} is registered; promote.mode is disabled, so it is not compared."
        return _report(ctx, as_of, trigger, challenger, "disabled", reason)
    busy = rollout.running(ctx, as_of)
    if busy is not None and busy.challenger != ref.version:
        reason = f"Version {ref.version} is registered and not considered: version {busy.challenger} is in rollout ({busy.id})."
        return _report(ctx, as_of, trigger, challenger, "not_considered", reason)
    look, span = _look(ctx, as_of, ruling.model.version, challenger)
    gate = _gate(ctx, as_of, ruling.model.version, challenger, look, span)
    seen = {"look": look, "begin": format_instant(span.start), "end": format_instant(span.end)} if span else None
    decision, uri = _record(ctx, as_of, trigger, ruling.model.version, ref, gate, seen)
    outcome, reason = _OUTCOMES[gate.outcome], gate.reason
    ids: tuple[str, ...] = ()
    if gate.outcome == "promote":
        outcome, reason, ids = _follow(ctx, as_of, decision, ruling, ref)
    return _report(ctx, as_of, trigger, challenger, outcome, reason, gate, (decision.id, *ids), uri)


def _crown(
    ctx: JobContext, as_of: datetime, trigger: TriggerDecision, challenger: RegisteredModel, ruling: Promotion | None
) -> RetrainReport:
    """Make a version champion without a comparison: the first one, or because the policy says so."""
    ref = challenger.model
    if settled := _settled(ctx, as_of, ref):
        return _report(ctx, as_of, trigger, challenger, "kept", settled)
    if ruling is None:
        first = f"Version {ref.version} is the first champion: there is none to compare with."
        reason = f"{first} {_first(ctx, as_of, trigger, challenger)}".rstrip()
    else:
        reason = f"Version {ref.version} replaces the champion without a comparison, as the policy says."
    done = champion.move(ctx, as_of, ref, reason, "promotion", instead_of=ruling)
    return _report(ctx, as_of, trigger, challenger, "promoted", reason, ids=(done.decision_id,))


def _follow(
    ctx: JobContext, as_of: datetime, won: Decision, ruling: Promotion, ref: ModelRef
) -> tuple[Outcome, str, tuple[str, ...]]:
    """What follows from a comparison that the challenger won: the outcome, its reason, and the ids of further decisions."""
    policy, reason = ctx.job.promote, won.reason
    if settled := _settled(ctx, as_of, ref):
        return "kept", f"{reason} {settled}", ()
    if policy.mode == "dry_run":
        return "dry_run", reason, ()
    if policy.approval.required:
        request, outcome, told = approval.request(ctx, won, ruling)
        return outcome, f"{reason} {told}", (request.id,)
    if policy.rollout.kind != "direct":
        return _roll_out(ctx, as_of, ruling.model, ref, reason)
    done = champion.move(ctx, as_of, ref, reason, "promotion", instead_of=ruling)
    return "promoted", reason, (done.decision_id,)


def promote(ctx: JobContext, at: datetime, version: int, reason: str) -> Promotion:
    """Make a registered version the champion from ``at`` on because somebody said so; ``reason`` is kept.

    It rules over every promotion recorded before, also later ones. Takes over an alias that was moved outside of this
    product, so it also settles an `AliasConflict`. Raises `InvalidRequest` for an unknown version, for the champion
    itself, for an ``at`` at which the version's training data was not known yet, and for a reason that says nothing, and
    `PromotionConflict` when somebody else moves the champion meanwhile.
    """
    reason = champion.stated(ctx.job.name, reason)
    registered = ctx.registered(version)
    latest = ctx.ledger.champion(ctx.job.name)
    alias = ctx.registry.champion(ctx.job.model_name)
    if latest is not None and latest.model.version == version == alias:
        raise InvalidRequest(
            f"version {version} of model {ctx.job.model_name!r} is already the champion",
            expected="another version",
            got=f"version {version}",
            next_step=f"pipeline status {ctx.job.name}",
        )
    if at < registered.as_of:
        raise InvalidRequest(
            f"version {version} of model {ctx.job.model_name!r} cannot be champion at {format_instant(at)}: it has learnt "
            "from what came later",
            expected=f"an instant at or after {format_instant(registered.as_of)}, when it was trained",
            got=format_instant(at),
            next_step=f"pipeline promote {ctx.job.name} --version {version} --at T with a later T; earlier intervals can be "
            f"scored with --model {version}",
        )
    return champion.move(ctx, at, registered.model, reason, "promotion", instead_of=latest, adopt=True)


def _roll_out(
    ctx: JobContext, as_of: datetime, ruling: ModelRef, challenger: ModelRef, reason: str
) -> tuple[Outcome, str, tuple[str, ...]]:
    """Start the challenger's rollout: the outcome, its reason, and the id of the decision; only what is under way again."""
    busy = rollout.running(ctx, as_of)
    refused = "" if busy is not None else rollout.refusal(ctx, as_of, challenger)
    if refused:
        return "kept", f"{reason} {refused}", ()
    if busy is not None:
        return "rollout", reason, (busy.id,)
    return "rollout", reason, (rollout.start(ctx, as_of, ruling, challenger, reason).id,)


def _settled(ctx: JobContext, as_of: datetime, ref: ModelRef) -> str:
    """Why history forbids that this challenger takes over by itself; empty when nothing does."""
    promotions = ctx.ledger.promotions(ctx.job.name)
    later = [p for p in promotions if p.effective_at > as_of]
    if later:
        since = format_instant(later[-1].effective_at)
        return f"Nothing is moved: version {later[-1].model.version} took over later, at {since}."
    if any(p.model == ref for p in promotions):
        return f"Nothing is moved: version {ref.version} was champion before and was replaced; only a person brings it back."
    return ""


def _record(
    ctx: JobContext,
    as_of: datetime,
    trigger: TriggerDecision,
    ruling: int | None,
    challenger: ModelRef,
    gate: GateDecision,
    seen: Mapping[str, Any] | None = None,
) -> tuple[Decision, str]:
    """Put the gate's decision into the ledger, onto the version and on a page; returns it and the page's URI."""
    details = {
        "champion_version": ruling,
        "challenger_version": challenger.version,
        **gate.model_dump(mode="json", exclude={"outcome", "reason"}),
        **(seen or {}),
    }
    decision = Decision.of(ctx.job.name, "gate", as_of, gate.outcome, gate.reason, details)
    ctx.ledger.record_decision(decision)
    ctx.registry.tag(challenger.name, challenger.version, {"gate": gate.outcome, "gate_reason": gate.reason})
    uri = f"{ctx.output}/reports/gates/{decision.id}.html"
    ctx.storage.write_text(uri, pages.gate_page(ctx.job.name, format_instant(as_of), trigger, challenger, gate))
    return decision, uri


def _look(ctx: JobContext, as_of: datetime, ruling: int, challenger: RegisteredModel) -> tuple[int, Interval | None]:
    """The number of this comparison of the two, and the time on whose rows they are compared: neither has learnt from it."""
    look = 1 + len(looks.earlier(ctx, as_of, ruling, challenger.model.version))
    start = max(challenger.train_end, ctx.load(ruling).profile.train_end)
    end = challenger.holdout_end if look == 1 else windows.labelled_by(ctx.job, as_of)
    return look, Interval(start, end) if start < end else None


def _gate(
    ctx: JobContext, as_of: datetime, ruling: int, challenger: RegisteredModel, look: int, span: Interval | None
) -> GateDecision:
    """Both models on the same labelled rows, none of which either was trained on."""
    old, new = ctx.load(ruling), ctx.load(challenger.model.version)
    rows = None if span is None else retrain.collect(ctx, span, as_of)[0]
    if rows is None:
        return gates.insufficient(ctx.job.metric, 0, "There is no labelled row that neither model was trained on")
    if leak := disjoint.overlap(ctx, rows, (old, new)):
        return gates.refused(ctx.job.metric, rows.num_rows, leak)
    return comparison.decide(ctx, old, new, rows, look)


def _first(ctx: JobContext, as_of: datetime, trigger: TriggerDecision, challenger: RegisteredModel) -> str:
    """The proof, in a sentence, that a first champion may rule; empty where the policy asks for none.

    Raises `FirstChampionRefused` once it is recorded that there is none.
    """
    if ctx.job.promote.first == "any":
        return ""
    new, span = ctx.load(challenger.model.version), Interval(challenger.train_end, challenger.holdout_end)
    rows, _, _ = retrain.collect(ctx, span, as_of)
    found = gates.insufficient(ctx.job.metric, 0, "There is no labelled row on its holdout")
    if rows is not None:
        found = comparison.first(ctx, new, rows)
    if found.outcome == "promote":
        return found.reason
    decision, _ = _record(ctx, as_of, trigger, None, challenger.model, found)
    name, version = ctx.job.name, challenger.model.version
    raise FirstChampionRefused(
        f"version {version} of model {ctx.job.model_name!r} is not made the first champion: {found.reason.rstrip('.')}",
        expected="proof on the holdout that it is better than a constant prediction (promote.first)",
        got=decision.id,
        left_behind=f"version {version} is registered and rules nothing",
        next_step=f"train on more or better labels with pipeline retrain {name} --bootstrap --as-of T, or say that it may "
        f"rule: pipeline promote {name} --version {version} --reason TEXT, or promote.first: any",
    )


def _report(
    ctx: JobContext,
    as_of: datetime,
    trigger: TriggerDecision,
    challenger: RegisteredModel,
    outcome: Outcome,
    reason: str,
    gate: GateDecision | None = None,
    ids: tuple[str, ...] = (),
    uri: str | None = None,
) -> RetrainReport:
    return RetrainReport(
        job=ctx.job.name,
        as_of=as_of,
        trigger=trigger,
        outcome=outcome,
        reason=f"{reason} {retrain.left_out(challenger.left_out)}".rstrip(),
        model=challenger.model,
        gate=gate,
        decision_ids=ids,
        report_uri=uri,
    )
