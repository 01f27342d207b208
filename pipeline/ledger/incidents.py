"""Incidents in the ledger: every state is a row of its own, and the row recorded last is the state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.ledger.database import incidents

if TYPE_CHECKING:
    from pipeline.verdicts import Incident


def facts(incident: Incident, opened: int) -> dict[str, Any]:
    """What a row tells of its payload; ``opened`` in microseconds."""
    return {"incident": incident.id, "opened": opened, "is_open": int(incident.status == "open")}


def latest(job: str, *, open_only: bool, last: int | None) -> sa.Select[Any]:
    """The payloads of the job's incidents as they are now, newest opening first; only the first ``last`` of them."""
    rank = sa.func.row_number().over(partition_by=incidents.c.incident, order_by=incidents.c.id.desc())
    columns = (incidents.c.payload, incidents.c.incident, incidents.c.opened, incidents.c.is_open, rank.label("rank"))
    states = sa.select(*columns).where(incidents.c.job == job).subquery()
    query = sa.select(states.c.payload).where(states.c.rank == 1)
    if open_only:
        query = query.where(states.c.is_open == 1)
    return query.order_by(states.c.opened.desc(), states.c.incident.desc()).limit(last)
