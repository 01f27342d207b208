"""Compare a challenger with the champion, and move the champion alias: forwards through the gate, or back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline import engine, gates, pages
from pipeline.errors import InvalidRequest
from pipeline.intervals import Interval, format_instant
from pipeline.reports import Decision, GateDecision, Promotion, RetrainReport
from pipeline.steps import retrain
from pipeline.steps.context import INTERVAL, LABEL

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.reports import ModelRef, RegisteredModel, TriggerDecision
    from pipeline.steps.context import JobContext

_MINUTES_PER_DAY = 24 * 60


def consider(
    ctx: JobContext, as_of: datetime, trigger: TriggerDecision, challenger: RegisteredModel, *, force: bool = False
) -> RetrainReport:
    """What became of a freshly trained challenger: gated against the champion, and promoted if that is proven and allowed.

    ``force`` promotes without asking the gate (the ``always`` policy of a replay). Every decision is recorded before it
    is acted upon; a repeated call records and moves nothing twice.
    """
    job = ctx.job
    champion = ctx.ledger.champion(job.name, as_of)
    if champion is not None and champion.model == challenger.model:
        reason = f"Version {challenger.model.version} is already the champion."
        return _report(ctx, as_of, trigger, challenger.model, "promoted", reason, None, ())
    if champion is None or force:
        reason = (
            f"Version {challenger.model.version} is the first champion: there is none to compare with."
            if champion is None
            else f"Version {challenger.model.version} replaces the champion without a comparison, as the policy says."
        )
        done = act(ctx, as_of, challenger.model, reason, "promotion")
        return _report(ctx, as_of, trigger, challenger.model, "promoted", reason, None, (done.decision_id,))
    if job.promote.mode == "disabled":
        reason = f"Version {challenger.model.version} is registered; promote.mode is disabled, so it is not compared."
        return _report(ctx, as_of, trigger, challenger.model, "disabled", reason, None, ())
    gate = _gate(ctx, as_of, champion.model.version, challenger)
    decision = Decision.of(
        job.name,
        "gate",
        as_of,
        gate.outcome,
        gate.reason,
        {
            "champion_version": champion.model.version,
            "challenger_version": challenger.model.version,
            **gate.model_dump(mode="json", exclude={"outcome", "reason"}),
        },
    )
    ctx.ledger.record_decision(decision)
    ctx.registry.tag(
        challenger.model.name, challenger.model.version, {"gate": gate.outcome, "gate_reason": gate.reason}
    )
    uri = f"{ctx.output}/reports/gates/{decision.id}.html"
    ctx.storage.write_text(uri, pages.gate_page(job.name, format_instant(as_of), trigger, challenger.model, gate))
    ids: tuple[str, ...] = (decision.id,)
    outcome: Literal["promoted", "kept", "dry_run", "insufficient_data"] = "kept"
    if gate.outcome == "insufficient_data":
        outcome = "insufficient_data"
    elif gate.outcome == "promote" and job.promote.mode == "dry_run":
        outcome = "dry_run"
    elif gate.outcome == "promote":
        done = act(ctx, as_of, challenger.model, gate.reason, "promotion")
        outcome, ids = "promoted", (*ids, done.decision_id)
    return _report(ctx, as_of, trigger, challenger.model, outcome, gate.reason, gate, ids, uri)


def act(
    ctx: JobContext, effective_at: datetime, model: ModelRef, reason: str, kind: Literal["promotion", "rollback"]
) -> Promotion:
    """Record the decision, move the alias by compare-and-set, record the promotion; raises `AliasConflict`."""
    promotions = ctx.ledger.promotions(ctx.job.name)
    previous = promotions[-1].model.version if promotions else None
    decision = Decision.of(
        ctx.job.name, kind, effective_at, model.name, reason, {"version": model.version, "previous_version": previous}
    )
    ctx.ledger.record_decision(decision)
    if ctx.registry.champion(model.name) != model.version:
        ctx.registry.move_alias(model.name, model.version, expected=previous)
    promotion = Promotion(
        job=ctx.job.name,
        model=model,
        effective_at=effective_at,
        previous_version=previous,
        decision_id=decision.id,
        reason=reason,
    )
    ctx.ledger.record_promotion(promotion)
    return promotion


def promote(ctx: JobContext, at: datetime, version: int, reason: str) -> Promotion:
    """Make a registered version the champion from ``at`` on because somebody said so; ``reason`` is kept.

    Adopts the version when the alias was moved outside of this product, so it also settles an `AliasConflict`.
    """
    registered = ctx.registered(version)
    promotions = ctx.ledger.promotions(ctx.job.name)
    alias = ctx.registry.champion(ctx.job.model_name)
    if promotions and promotions[-1].model.version == version == alias:
        raise InvalidRequest(
            f"version {version} of model {ctx.job.model_name!r} is already the champion",
            expected="another version",
            got=f"version {version}",
            next_step=f"pipeline status {ctx.job.name}",
        )
    if promotions and alias != promotions[-1].model.version and alias != version:
        ctx.registry.move_alias(ctx.job.model_name, promotions[-1].model.version, expected=alias)
    return act(ctx, at, registered.model, reason, "promotion")


def previous_champion(ctx: JobContext) -> tuple[Promotion, int]:
    """The promotion that a rollback undoes, and the version it goes back to; `InvalidRequest` when there is none."""
    promotions = ctx.ledger.promotions(ctx.job.name)
    if not promotions or promotions[-1].previous_version is None:
        raise InvalidRequest(
            f"job {ctx.job.name!r} has no earlier champion to go back to",
            expected="at least two promotions",
            got=str(len(promotions)),
            next_step=f"pipeline promote {ctx.job.name} --version N --reason TEXT",
        )
    return promotions[-1], promotions[-1].previous_version


def _gate(ctx: JobContext, as_of: datetime, champion: int, challenger: RegisteredModel) -> GateDecision:
    """Both models on the same labelled rows, none of which either was trained on."""
    old, new = ctx.load(champion), ctx.load(challenger.model.version)
    start = max(challenger.train_end, old.profile.train_end)
    rows = None
    if start < challenger.holdout_end:
        rows = retrain.collect(ctx, Interval(start, challenger.holdout_end), as_of)
    if rows is None:
        return gates.insufficient(ctx.job.metric, 0, "There is no labelled row that neither model was trained on")
    frame = engine.to_frame(rows, ctx.job.features.columns)
    truth = rows[LABEL].to_numpy()
    made = [
        retrain.class_outcomes(m.estimator, engine.predict(m.estimator, frame, ctx.job.task), truth) for m in (old, new)
    ]
    return gates.compare(
        ctx.job.promote,
        ctx.job.metric,
        champion=made[0],
        challenger=made[1],
        interval=_blocks(rows[INTERVAL].to_numpy()),
        seed=ctx.job.model.seed,
    )


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
    model: ModelRef,
    outcome: Literal["promoted", "kept", "dry_run", "insufficient_data", "disabled"],
    reason: str,
    gate: GateDecision | None,
    ids: tuple[str, ...],
    uri: str | None = None,
) -> RetrainReport:
    return RetrainReport(
        job=ctx.job.name,
        as_of=as_of,
        trigger=trigger,
        outcome=outcome,
        reason=reason,
        model=model,
        gate=gate,
        decision_ids=ids,
        report_uri=uri,
    )
