"""The latest of everything about many jobs: as many statements for five hundred of them as for one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.ledger.database import decisions, drift, manifests, performance, promotions, tallies
from pipeline.reports import Decision, Manifest, Promotion
from pipeline.verdicts import DriftReport, PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement


@dataclass(frozen=True, slots=True)
class Glance:
    """The present state of one job: how many intervals it has published, and what was recorded last of each kind.

    ``decisions`` and ``rollouts``, the decisions on rollouts, come in order of recording. What there is none of is ``None``.
    """

    intervals: int
    champion: Promotion | None
    manifest: Manifest | None
    drift: DriftReport | None
    performance: PerformanceReport | None
    decisions: tuple[Decision, ...]
    rollouts: tuple[Decision, ...]


def glances(connection: sa.Connection, jobs: Sequence[str], *, decided: int, rollouts: int) -> dict[str, Glance]:
    """The glance at each job, with its last ``decided`` decisions and the last ``rollouts`` of those on rollouts."""
    names = _rows(connection, jobs)

    def latest(kind: type[Any], table: sa.Table, *by: sa.Column[Any]) -> dict[str, Any]:
        order = [column.desc() for column in (*by, table.c.id)]
        found = connection.execute(_last(names, table, order, 1))
        return {job: kind.model_validate_json(payload) for job, payload in found}

    def last(count: int, *where: ColumnElement[bool]) -> dict[str, list[Decision]]:
        found: dict[str, list[Decision]] = {job: [] for job in jobs}
        for job, payload in connection.execute(_last(names, decisions, [decisions.c.id.desc()], count, *where)):
            found[job].append(Decision.model_validate_json(payload))
        return found

    def ends(table: sa.Table) -> tuple[sa.Column[Any], sa.Column[Any]]:
        return table.c.interval_start, table.c.interval_end

    counted = sa.select(tallies.c.job, tallies.c.intervals).where(tallies.c.job.in_(sa.select(names.c.value)))
    counts = {row.job: int(row.intervals) for row in connection.execute(counted)}
    ruling, published = latest(Promotion, promotions), latest(Manifest, manifests, *ends(manifests))
    drifts = latest(DriftReport, drift, *ends(drift))
    values = latest(PerformanceReport, performance, *ends(performance), performance.c.as_of)
    made, moved = last(decided), last(rollouts, decisions.c.kind == "rollout")
    return {
        job: Glance(
            counts.get(job, 0),
            ruling.get(job),
            published.get(job),
            drifts.get(job),
            values.get(job),
            tuple(made[job]),
            tuple(moved[job]),
        )
        for job in jobs
    }


def _last(
    names: sa.TableValuedAlias, table: sa.Table, order: Sequence[Any], count: int, *where: ColumnElement[bool]
) -> sa.Select[Any]:
    """Job and payload of each job's first ``count`` rows in that order, by id; each is looked up in an index by itself."""
    own = sa.select(table.c.id).where(table.c.job == names.c.value, *where).order_by(*order).limit(1).correlate(names)
    ids = sa.union_all(*(sa.select(own.offset(place).scalar_subquery()).select_from(names) for place in range(count)))
    return sa.select(table.c.job, table.c.payload).where(table.c.id.in_(ids)).order_by(table.c.id)


def _rows(connection: sa.Connection, jobs: Sequence[str]) -> sa.TableValuedAlias:
    """The names as rows with a column ``value``: in one parameter, because databases limit how many there may be."""
    given = sa.literal(json.dumps(list(jobs)), sa.Text)
    if connection.dialect.name == "sqlite":
        return sa.func.json_each(given).table_valued(sa.column("value", sa.Text))
    return sa.func.json_array_elements_text(sa.cast(given, sa.JSON)).table_valued(sa.column("value", sa.Text))
