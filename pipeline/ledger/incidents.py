"""Incidents in the ledger: every state is a row of its own, and the row recorded last is the state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.ledger.database import incidents, told

if TYPE_CHECKING:
    from pipeline.verdicts import Incident


def facts(incident: Incident, opened: int) -> dict[str, Any]:
    """What a row tells of its payload; ``opened`` in microseconds."""
    return {"incident": incident.id, "opened": opened, "is_open": int(incident.status == "open")}


def latest(job: str, *, open_only: bool, last: int | None) -> sa.Select[Any]:
    """The payloads of the job's incidents as they are now, newest opening first; only the first ``last`` of them."""
    states = _ranked(job)
    query = sa.select(states.c.payload).where(states.c.rank == 1)
    if open_only:
        query = query.where(states.c.is_open == 1)
    return query.order_by(states.c.opened.desc(), states.c.incident.desc()).limit(last)


def untold(job: str) -> sa.Select[Any]:
    """Of each of the job's incidents that changed since people were told: row and payload now, and the payload told.

    In the order of the changes.
    """
    states = _ranked(job)
    known = sa.select(told.c.incident, sa.func.max(told.c.state).label("state")).where(told.c.job == job)
    cursor = known.group_by(told.c.incident).subquery()
    before = incidents.alias()
    return (
        sa.select(states.c.id, states.c.payload, before.c.payload.label("told"))
        .outerjoin_from(states, cursor, cursor.c.incident == states.c.incident)
        .outerjoin(before, before.c.id == cursor.c.state)
        .where(states.c.rank == 1, states.c.id > sa.func.coalesce(cursor.c.state, 0))
        .order_by(states.c.id)
    )


def _ranked(job: str) -> sa.Subquery:
    rank = sa.func.row_number().over(partition_by=incidents.c.incident, order_by=incidents.c.id.desc())
    return sa.select(incidents, rank.label("rank")).where(incidents.c.job == job).subquery()
