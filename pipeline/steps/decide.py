"""Decide whether to train, from what the ledger knows, and keep record of what became of every training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline import incidents, triggers
from pipeline.reports import Decision, TriggerDecision
from pipeline.steps import champion, looks, rollout
from pipeline.triggers import Known, Training

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.errors import PipelineError
    from pipeline.reports import RetrainReport
    from pipeline.steps.context import JobContext
    from pipeline.triggers import Starter
    from pipeline.verdicts import Incident

# Reports and trainings beyond which history does not matter to a decision.
_REPORTS, _TRAININGS = 60, 60
# By the recorded cause; all others are changes.
_STARTERS: dict[str, Starter] = {"manual": "person", "bootstrap": "person", "schedule": "calendar"}
_OUTCOMES: dict[str, Literal["promoted", "rejected", "open", "running"]] = {
    "promoted": "promoted",
    "started": "running",
    "kept": "rejected",
    "insufficient_data": "rejected",
    "refused": "rejected",
    "failed": "rejected",
}


def decide(ctx: JobContext, as_of: datetime) -> TriggerDecision:
    """The recorded decision whether to train at ``as_of``; raises `NoChampion` before the first promotion.

    It rests on what was recorded for earlier times only, so that a repeated call decides the same. Opens an incident when
    trainings stop because they lead to nothing, and closes it when one was promoted; closes those of withdrawn versions when
    they are over.
    """
    decision = triggers.decide(ctx.job, as_of, _known(ctx, as_of))
    record_trigger(ctx, as_of, decision)
    ruling = ctx.ledger.champion(ctx.job.name, as_of)
    assert ruling is not None  # `_known` has asked for the champion

    def revise(known: list[Incident]) -> list[Incident]:
        breaker = incidents.of_breaker(known, ctx.job.name, as_of, decision.halted, decision.reason)
        return [*breaker, *incidents.outlived(known, as_of, ruling.effective_at)]

    ctx.ledger.revise_incidents(ctx.job.name, revise)
    return decision


def record_trigger(ctx: JobContext, as_of: datetime, decision: TriggerDecision) -> str:
    """Record a decision whether to train at ``as_of`` and return its id, ``trigger-`` and 12 hex digits."""
    outcome = "fire" if decision.fire else "hold"
    details: dict[str, Any] = decision.model_dump(mode="json", exclude={"fire", "reason"}, exclude_defaults=True)
    record = Decision.of(ctx.job.name, "trigger", as_of, outcome, decision.reason, {"cause": "none", **details})
    ctx.ledger.record_decision(record)
    return record.id


def record_start(ctx: JobContext, as_of: datetime, trigger: TriggerDecision) -> None:
    """Record that a training began, so that no other one starts beside it."""
    _record(ctx, as_of, "started", trigger.reason, {"cause": trigger.cause})


def record_end(ctx: JobContext, report: RetrainReport) -> None:
    """Record what became of a training."""
    details = {"cause": report.trigger.cause, "version": report.model.version if report.model else None}
    _record(ctx, report.as_of, report.outcome, report.reason, details)


def record_failure(ctx: JobContext, as_of: datetime, trigger: TriggerDecision, error: PipelineError) -> None:
    """Record that a training could not be carried out, and why."""
    _record(ctx, as_of, "failed", error.what, {"cause": trigger.cause, "error": type(error).__name__})


def _record(ctx: JobContext, as_of: datetime, outcome: str, reason: str, details: dict[str, Any]) -> None:
    ctx.ledger.record_decision(Decision.of(ctx.job.name, "training", as_of, outcome, reason, details))


def _known(ctx: JobContext, as_of: datetime) -> Known:
    job, ledger = ctx.job, ctx.ledger
    version = champion.at(ctx, as_of).version
    trainings = _trainings(ctx, as_of)
    performance = ledger.performance(job.name, as_of=as_of, last=_REPORTS)
    running = rollout.running(ctx, as_of)
    return Known(
        champion_version=version,
        drift=ledger.drift(job.name, ended_by=as_of, last=_REPORTS, loud_on=version),
        performance=ledger.performance(job.name, as_of=as_of, last=_REPORTS, loud_on=version),
        trainings=trainings,
        labelled={report.start: report.n for report in performance},
        in_rollout=running.challenger if running else None,
        unproven=looks.unproven(ctx, as_of, version, trainings),
    )


def _trainings(ctx: JobContext, as_of: datetime) -> list[Training]:
    """What is recorded of trainings before ``as_of``, by time: of each the last outcome, later moves of its version included."""
    learnt = {m.as_of: m for m in ctx.ledger.models(ctx.job.name) if m.as_of < as_of}
    ruled, withdrawn = champion.moved_versions(ctx, as_of)
    withdrawn |= _turned_away(ctx, as_of)
    found = {
        moment: Training(moment, "person", "open", learnt_until=model.holdout_end) for moment, model in learnt.items()
    }
    for record in ctx.ledger.decisions(ctx.job.name, kind="training", last=_TRAININGS):
        if record.at >= as_of:
            continue
        model = learnt.get(record.at)
        version = model.model.version if model else None
        outcome = _OUTCOMES.get(record.outcome, "open")
        found[record.at] = Training(
            record.at,
            started_by=_STARTERS.get(record.details["cause"], "change"),
            outcome="rejected" if version in withdrawn else "promoted" if version in ruled else outcome,
            learnt_until=model.holdout_end if model else None,
        )
    return [found[moment] for moment in sorted(found)]


def _turned_away(ctx: JobContext, as_of: datetime) -> set[int]:
    """The versions that won their gate, and that a rollout or a person then kept from ruling."""
    decided = ctx.ledger.decisions(ctx.job.name, kind=("rollout", "approval"), until=as_of)
    names = {"rollout": "challenger_version", "approval": "version"}
    return {d.details[names[d.kind]] for d in decided if d.at < as_of and d.outcome in ("rolled_back", "rejected")}
