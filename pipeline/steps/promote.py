"""Compare a challenger with the champion, and move the champion alias: forwards through the gate, or back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline import engine, gates, pages
from pipeline.errors import ContractViolation, InvalidRequest
from pipeline.intervals import Interval, format_instant
from pipeline.reports import Decision, GateDecision, Promotion, RetrainReport
from pipeline.steps import champion, retrain, rollout
from pipeline.steps.context import INTERVAL, LABEL

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.metrics import Outcomes
    from pipeline.registry import LoadedModel
    from pipeline.reports import ModelRef, RegisteredModel, TriggerDecision
    from pipeline.steps.context import JobContext

Outcome = Literal["promoted", "rollout", "not_considered", "kept", "dry_run", "insufficient_data", "disabled"]
_OUTCOMES: dict[str, Outcome] = {"promote": "promoted", "keep": "kept", "insufficient_data": "insufficient_data"}
_MINUTES_PER_DAY = 24 * 60


def consider(
    ctx: JobContext, as_of: datetime, trigger: TriggerDecision, challenger: RegisteredModel, *, force: bool = False
) -> RetrainReport:
    """What became of a freshly trained challenger: gated against the champion, and promoted if that is proven and allowed.

    With a ``promote.rollout`` other than direct, a challenger that the gate lets through starts one instead; while it is
    under way no other challenger is considered.

    ``force`` promotes without asking the gate (the ``always`` policy of a replay). Every decision is recorded before it
    is acted upon; a repeated call records and moves nothing twice. A version that was champion before, and a training
    of a time before the latest promotion, never move the alias by themselves.
    """
    ref, mode = challenger.model, ctx.job.promote.mode
    ruling = ctx.ledger.champion(ctx.job.name, as_of)
    if ruling is not None and ruling.model == ref:
        reason = f"Version {ref.version} is already the champion."
        return _report(ctx, as_of, trigger, challenger, "promoted", reason)
    settled = _settled(ctx, as_of, ref)
    if ruling is None or force:
        first = f"Version {ref.version} is the first champion: there is none to compare with."
        forced = f"Version {ref.version} replaces the champion without a comparison, as the policy says."
        reason = first if ruling is None else forced
        if settled:
            return _report(ctx, as_of, trigger, challenger, "kept", settled)
        done = champion.move(ctx, as_of, ref, reason, "promotion")
        return _report(ctx, as_of, trigger, challenger, "promoted", reason, ids=(done.decision_id,))
    if mode == "disabled":
        reason = f"Version {ref.version} is registered; promote.mode is disabled, so it is not compared."
        return _report(ctx, as_of, trigger, challenger, "disabled", reason)
    busy = rollout.running(ctx, as_of)
    if busy is not None and busy.challenger != ref.version:
        reason = f"Version {ref.version} is registered and not considered: version {busy.challenger} is in rollout ({busy.id})."
        return _report(ctx, as_of, trigger, challenger, "not_considered", reason)
    gate = _gate(ctx, as_of, ruling.model.version, challenger)
    decision, uri = _record(ctx, as_of, trigger, ruling.model.version, ref, gate)
    ids: tuple[str, ...] = (decision.id,)
    outcome, reason = _OUTCOMES[gate.outcome], gate.reason
    if gate.outcome == "promote" and settled:
        outcome, reason = "kept", f"{reason} {settled}"
    elif gate.outcome == "promote" and mode == "dry_run":
        outcome = "dry_run"
    elif gate.outcome == "promote" and ctx.job.promote.rollout.kind != "direct":
        outcome, reason, begun = _roll_out(ctx, as_of, ruling.model, ref, reason)
        ids = (*ids, *begun)
    elif gate.outcome == "promote":
        done = champion.move(ctx, as_of, ref, reason, "promotion")
        ids = (*ids, done.decision_id)
    return _report(ctx, as_of, trigger, challenger, outcome, reason, gate, ids, uri)


def promote(ctx: JobContext, at: datetime, version: int, reason: str) -> Promotion:
    """Make a registered version the champion from ``at`` on because somebody said so; ``reason`` is kept.

    It rules over every promotion recorded before, also later ones. Takes over an alias that was moved outside of this
    product, so it also settles an `AliasConflict`. Raises `InvalidRequest` for an unknown version, for the champion
    itself, and for an ``at`` at which the version's training data was not known yet.
    """
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
    return champion.move(ctx, at, registered.model, reason, "promotion", adopt=True)


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
    ctx: JobContext, as_of: datetime, trigger: TriggerDecision, ruling: int, challenger: ModelRef, gate: GateDecision
) -> tuple[Decision, str]:
    """Put the gate's decision into the ledger, onto the version and on a page; returns it and the page's URI."""
    details = {
        "champion_version": ruling,
        "challenger_version": challenger.version,
        **gate.model_dump(mode="json", exclude={"outcome", "reason"}),
    }
    decision = Decision.of(ctx.job.name, "gate", as_of, gate.outcome, gate.reason, details)
    ctx.ledger.record_decision(decision)
    ctx.registry.tag(challenger.name, challenger.version, {"gate": gate.outcome, "gate_reason": gate.reason})
    uri = f"{ctx.output}/reports/gates/{decision.id}.html"
    ctx.storage.write_text(uri, pages.gate_page(ctx.job.name, format_instant(as_of), trigger, challenger, gate))
    return decision, uri


def _gate(ctx: JobContext, as_of: datetime, ruling: int, challenger: RegisteredModel) -> GateDecision:
    """Both models on the same labelled rows, none of which either was trained on."""
    old, new = ctx.load(ruling), ctx.load(challenger.model.version)
    start = max(challenger.train_end, old.profile.train_end)
    rows = None
    if start < challenger.holdout_end:
        rows, _, _ = retrain.collect(ctx, Interval(start, challenger.holdout_end), as_of)
    if rows is None:
        return gates.insufficient(ctx.job.metric, 0, "There is no labelled row that neither model was trained on")
    try:
        made = [_outcomes(ctx, model, rows) for model in (old, new)]
    except ContractViolation as error:
        return gates.insufficient(ctx.job.metric, 0, f"The two cannot be compared: {error.what}")
    return gates.compare(
        ctx.job.promote,
        ctx.job.metric,
        champion=made[0],
        challenger=made[1],
        interval=_blocks(rows[INTERVAL].to_numpy()),
        seed=ctx.job.model.seed,
    )


def _outcomes(ctx: JobContext, model: LoadedModel, rows: pa.Table) -> Outcomes:
    frame = engine.to_frame(rows, ctx.model_columns(model))
    predictions = engine.predict(model.estimator, frame, ctx.job.task)
    return retrain.class_outcomes(model.estimator, predictions, rows[LABEL].to_numpy())


def _blocks(interval: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bootstrap block of each row: its day. Noise that a whole day shares makes hours far from independent.

    Measured on 14 days of hourly intervals with noise per day: equal models are promoted in 31 % of trials when hours are
    the blocks, in 6 % when days are.
    """
    days: NDArray[np.int64] = interval // _MINUTES_PER_DAY
    return days


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
