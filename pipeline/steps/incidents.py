"""Keep a job's incidents in step with its reports."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline import incidents

if TYPE_CHECKING:
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
    changed = ctx.ledger.revise_incidents(report.job, revise)
    for incident in changed:
        facts = (incident.id, incident.cause, incident.tier, incident.status, incident.intervals, incident.reason)
        _LOG.info("%s %s: tier %s, %s, %d intervals: %s", *facts)
    return changed
