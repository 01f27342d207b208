"""Incidents in the ledger: every state is a row of its own, and the row recorded last is the state, as a summary knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.ledger.database import incidents, standing, told

if TYPE_CHECKING:
    from pipeline.verdicts import Incident


def facts(incident: Incident, opened: int) -> dict[str, Any]:
    """What a row tells of its payload; ``opened`` in microseconds."""
    return {"incident": incident.id, "opened": opened, "is_open": int(incident.status == "open")}


def state(job: str, incident: str) -> sa.Select[Any]:
    """The payload of the incident as it is now."""
    return _now().where(standing.c.job == job, standing.c.incident == incident)


def latest(job: str, *, open_only: bool, last: int | None) -> sa.Select[Any]:
    """The payloads of the job's incidents as they are now, newest opening first; only the first ``last`` of them."""
    query, opened = _now().where(standing.c.job == job), standing.c.opened.desc()
    if open_only:
        # The few of them are sorted: in the order of openings they would be looked for among all.
        query, opened = query.where(standing.c.is_open == 1), (standing.c.opened + 0).desc()
    return query.order_by(opened, standing.c.incident.desc()).limit(last)


def relevant(job: str, closed_after: int | None, cause: str) -> sa.Select[Any]:
    """The payloads of the job's open incidents, by opening; also those closed later, and those of one cause."""
    own, which = standing.c.job == job, [standing.c.is_open == 1]
    if closed_after is not None:
        which.append(sa.and_(standing.c.is_open == 0, standing.c.closed > closed_after))
    if cause:
        which.append(standing.c.cause == cause)
    # One condition each, so that each has its index.
    found = sa.union(*(sa.select(standing.c.state).where(own, condition) for condition in which))
    query = sa.select(incidents.c.payload).where(incidents.c.id.in_(found))
    return query.order_by(incidents.c.opened, incidents.c.incident)


def untold(job: str) -> sa.Select[Any]:
    """Of each of the job's incidents that changed since people were told: row and payload now, and the payload told.

    In the order of the changes.
    """
    last = sa.select(sa.func.max(told.c.state)).where(told.c.job == job, told.c.incident == standing.c.incident)
    before = incidents.alias()
    return (
        sa.select(incidents.c.id, incidents.c.payload, before.c.payload.label("told"))
        .join_from(standing, incidents, incidents.c.id == standing.c.state)
        .outerjoin(before, before.c.id == last.scalar_subquery())
        .where(standing.c.job == job, standing.c.is_told == 0)
        .order_by(incidents.c.id)
    )


def _now() -> sa.Select[Any]:
    return sa.select(incidents.c.payload).join_from(standing, incidents, incidents.c.id == standing.c.state)
