"""Performance reports in the ledger: which intervals no report has measured yet, and the reports in order of time."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pipeline.ledger.database import manifests, performance


def unmeasured(job: str, ended_by: int) -> sa.Select[Any]:
    """The payloads of the latest manifests whose rows no report has measured, by start; ``ended_by`` in microseconds."""
    own, newer, done = manifests.c, manifests.alias().c, performance.c
    same = [newer[name] == own[name] for name in ("job", "interval_start", "interval_end")]
    at = [done[name] == own[name] for name in ("job", "interval_start", "interval_end")]
    query = sa.select(own.payload).where(
        own.job == job,
        own.interval_end <= ended_by,
        own.id == sa.select(sa.func.max(newer.id)).where(*same).scalar_subquery(),
        ~sa.exists().where(*at, done.measured == own.id),
    )
    return query.order_by(own.interval_start, own.interval_end)


def latest(job: str, as_of: int, last: int) -> sa.Select[Any]:
    """The payloads of the ``last`` reports for ``as_of`` (microseconds) or earlier, superseded ones too, latest first."""
    found = sa.select(performance.c.payload).where(performance.c.job == job, performance.c.as_of <= as_of)
    return found.order_by(performance.c.as_of.desc(), performance.c.id.desc()).limit(last)
