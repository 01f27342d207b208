"""What the ledger's history says at this moment, kept beside it, so that nothing that asks for it grows with history.

How many intervals a job has published, which manifests no report has measured, and each incident as it is now. These rows
follow from the history and are changed in the transaction that adds to it; nothing else in the ledger is ever changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.ledger.database import incidents, manifests, performance, standing, tallies, told, unmeasured
from pipeline.ledger.instants import microseconds
from pipeline.verdicts import Incident

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEYS = ("job", "interval_start", "interval_end")


def published(connection: sa.Connection, keys: Mapping[str, Any], manifest: int, *, is_first: bool) -> None:
    """A manifest was recorded: its row, and whether it is the first one of its interval (``keys``)."""
    connection.execute(sa.delete(unmeasured).where(*(unmeasured.c[name] == keys[name] for name in _KEYS)))
    connection.execute(sa.insert(unmeasured).values(**{name: keys[name] for name in _KEYS}, manifest=manifest))
    if is_first:
        own = tallies.c.job == keys["job"]
        more = sa.update(tallies).where(own).values(intervals=tallies.c.intervals + 1)
        if connection.execute(more).rowcount == 0:
            connection.execute(sa.insert(tallies).values(job=keys["job"], intervals=1))


def measured(connection: sa.Connection, keys: Mapping[str, Any], manifest: int) -> None:
    """A report about the manifest in that row was recorded; a later manifest of the interval is still to be measured."""
    own = (unmeasured.c[name] == keys[name] for name in _KEYS)
    connection.execute(sa.delete(unmeasured).where(*own, unmeasured.c.manifest == manifest))


def changed(connection: sa.Connection, incident: Incident, state: int) -> None:
    """A state of an incident was recorded in that row."""
    own = (standing.c.job == incident.job, standing.c.incident == incident.id)
    connection.execute(sa.delete(standing).where(*own))
    connection.execute(sa.insert(standing).values(**_facts(incident, state), is_told=0))


def heard(connection: sa.Connection, job: str, incident: str, state: int) -> None:
    """People were told of an incident as it was in that row; what changed since is still untold."""
    own = (standing.c.job == job, standing.c.incident == incident)
    connection.execute(sa.update(standing).where(*own, standing.c.state <= state).values(is_told=1))


def fill(connection: sa.Connection) -> None:
    """Write the summaries of a history that was recorded without them."""
    latest = sa.select(*(manifests.c[name] for name in _KEYS), sa.func.max(manifests.c.id).label("manifest"))
    latest = latest.group_by(*(manifests.c[name] for name in _KEYS))
    each = latest.subquery()
    count = sa.select(each.c.job, sa.func.count()).group_by(each.c.job)
    connection.execute(sa.insert(tallies).from_select(["job", "intervals"], count))
    same = (performance.c[name] == each.c[name] for name in _KEYS)
    rest = sa.select(each).where(~sa.exists().where(*same, performance.c.measured == each.c.manifest))
    connection.execute(sa.insert(unmeasured).from_select([*_KEYS, "manifest"], rest))
    now = sa.select(sa.func.max(incidents.c.id)).group_by(incidents.c.job, incidents.c.incident)
    known = sa.select(sa.func.max(told.c.state)).where(
        told.c.job == incidents.c.job, told.c.incident == incidents.c.incident
    )
    states = sa.select(incidents.c.id, incidents.c.payload, known.scalar_subquery()).where(incidents.c.id.in_(now))
    for row, payload, last in connection.execute(states).all():
        facts = _facts(Incident.model_validate_json(payload), row)
        connection.execute(sa.insert(standing).values(**facts, is_told=int((last or 0) >= row)))


def _facts(incident: Incident, state: int) -> dict[str, Any]:
    return {
        "job": incident.job,
        "incident": incident.id,
        "cause": incident.cause,
        "opened": microseconds(incident.opened),
        "closed": microseconds(incident.closed) if incident.closed else 0,
        "is_open": int(incident.status == "open"),
        "state": state,
    }
