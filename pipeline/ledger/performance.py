"""Performance reports in the ledger: which intervals no report has measured yet, and the reports in order of time."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pipeline.ledger import database
from pipeline.ledger.database import manifests, performance


def unmeasured(job: str, ended_by: int) -> sa.Select[Any]:
    """The payloads of the latest manifests whose rows no report has measured, by start; ``ended_by`` in microseconds."""
    due = database.unmeasured.c
    query = sa.select(manifests.c.payload).join(database.unmeasured, due.manifest == manifests.c.id)
    return query.where(due.job == job, due.interval_end <= ended_by).order_by(due.interval_start, due.interval_end)


def latest(job: str, as_of: int, last: int) -> sa.Select[Any]:
    """The payloads of the ``last`` reports for ``as_of`` (microseconds) or earlier, superseded ones too, latest first."""
    found = sa.select(performance.c.payload).where(performance.c.job == job, performance.c.as_of <= as_of)
    return found.order_by(performance.c.as_of.desc(), performance.c.id.desc()).limit(last)
