"""Keep a job's incidents in step with its reports."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from pipeline import incidents

if TYPE_CHECKING:
    from pipeline.reports import Decision
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import DriftReport, Incident, PerformanceReport

_LOG = logging.getLogger(__name__)


def follow(ctx: JobContext, report: DriftReport | PerformanceReport) -> list[Incident]:
    """The incidents that ``report`` opened, updated or closed, as recorded; none for a quiet or a repeated report.

    Runs that follow reports at the same time see each other's incidents, so that no cause is opened twice.
    """

    def revise(known: list[Incident]) -> list[Incident]:
        lasting = [incident for incident in known if incident.status == "open"]
        former = [incident for incident in known if incident.status == "closed"]
        return incidents.update(lasting, report, closed=former)

    if report.quiet:
        return []
    # One that was over by the start of the interval neither covers it nor was it counted to it.
    changed = ctx.ledger.revise_incidents(report.job, revise, closed_after=report.start)
    for incident in changed:
        facts = (incident.id, incident.cause, incident.tier, incident.status, incident.intervals, incident.reason)
        _LOG.info("%s %s: tier %s, %s, %d intervals: %s", *facts)
    return changed


def withdrawn(ctx: JobContext, decision: Decision, version: int) -> None:
    """Open the incident of a version that a watch or a rollout has withdrawn by itself, unless that is done already."""
    kind: Literal["promotion_withdrawn", "challenger_withdrawn"]
    kind = "promotion_withdrawn" if decision.kind == "watch" else "challenger_withdrawn"
    ctx.ledger.revise_incidents(
        decision.job,
        lambda known: incidents.of_withdrawal(known, decision.job, kind, version, decision.at, decision.reason),
        cause=incidents.withdrawal(kind, version),
    )
