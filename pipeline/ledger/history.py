"""What the ledger records and how it is asked."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa

from pipeline.errors import ModelTampered
from pipeline.intervals import Interval
from pipeline.ledger import database, incidents, intervals, performance, summaries
from pipeline.ledger.decisions import Decisions
from pipeline.ledger.instants import microseconds
from pipeline.reports import Manifest, RegisteredModel, Report, ScoringPlan
from pipeline.verdicts import DriftReport, Incident, Notice, PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from pipeline.ledger.session import AnyReport

_INTERVAL = ("job", "interval_start", "interval_end")
# What a repeated call says about itself and not about the partition.
_MARKS_OF_A_REPEAT = {"quiet": True, "status": "unchanged"}


class Ledger(Decisions):
    """The history of one deployment. Every method raises `LedgerUnavailable` when the database does not answer.

    ``url`` is a SQLAlchemy URL; a SQLite file and its folder are made when absent. ``clock`` only stamps when a row was
    recorded. What is read comes back equal to what was recorded. Any number of processes may work on one database, each
    with a ledger of its own: connections do not survive a fork.
    """

    def record_plan(self, plan: ScoringPlan) -> None:
        """Record a plan, unless it equals the latest one of its interval."""
        self._record_interval(database.plans, plan, plan.interval)

    def plan(self, job: str, interval: Interval, fingerprint: str | None = None) -> ScoringPlan | None:
        """The latest plan of the interval, or the latest with that fingerprint; ``None`` when there is none."""
        plans = self._read(ScoringPlan, _equal(database.plans, *_INTERVAL), {"job": job, **_interval_keys(interval)})
        return next((plan for plan in plans if fingerprint in (None, plan.fingerprint)), None)

    def record_manifest(self, manifest: Manifest) -> None:
        """Record a manifest, unless it repeats the latest one of its interval."""
        self._record_interval(database.manifests, manifest, manifest.interval)

    def manifest(self, job: str, interval: Interval) -> Manifest | None:
        """The latest recorded manifest of the interval; ``None`` when it was never published."""
        start, end = microseconds(interval.start), microseconds(interval.end)
        found = self._reported(Manifest, database.manifests, job=job, start=start, end=end)
        return found[0] if found else None

    def manifests(self, job: str, *, ended_by: datetime | None = None, since: datetime | None = None) -> list[Manifest]:
        """The latest manifest of each interval with ``since < end <= ended_by``, by start."""
        bounds = {"since": _microseconds(since), "until": _microseconds(ended_by)}
        return self._reported(Manifest, database.manifests, job=job, **bounds)

    def unmeasured(self, job: str, *, ended_by: datetime) -> list[Manifest]:
        """Of `manifests`, those whose rows no recorded performance report has measured, by start."""
        return self._read(Manifest, performance.unmeasured(job, microseconds(ended_by)))

    def published(self, job: str) -> tuple[int, Manifest | None, Manifest | None]:
        """How many intervals have a manifest, and the manifests of the first and of the latest one."""
        tally = database.tallies.c
        with self._answering("reading"), self._engine.connect() as connection:
            count = connection.scalar(sa.select(tally.intervals).where(tally.job == job)) or 0
        questions = [intervals.edge(database.manifests, ("job",), is_first=is_first) for is_first in (True, False)]
        edges = [self._read(Manifest, question, {"job": job}) for question in questions]
        first, latest = (found[0] if found else None for found in edges)
        return count, first, latest

    def record_drift(self, report: DriftReport) -> None:
        """Record a drift report, unless it repeats the latest one of its interval; a quiet one counts as a repeat."""
        self._record_interval(database.drift, report, Interval(report.start, report.end), facts=_loudness(report))

    def drift(
        self,
        job: str,
        *,
        since: datetime | None = None,
        ended_by: datetime | None = None,
        last: int | None = None,
        loud_on: int | None = None,
    ) -> list[DriftReport]:
        """The latest drift report of each interval with ``since < end <= ended_by``, by start; only the ``last`` n of them.

        ``loud_on`` leaves out quiet reports and those on other model versions before anything is counted.
        """
        bounds = {"since": _microseconds(since), "until": _microseconds(ended_by)}
        return self._reported(DriftReport, database.drift, last=last, job=job, loud_on=loud_on, **bounds)

    def record_performance(self, report: PerformanceReport, measured: Manifest | None = None) -> None:
        """Record a performance report, unless it repeats the latest one of its interval and ``as_of``.

        ``measured`` is the manifest whose rows the report is about; without it the interval stays `unmeasured`.
        """
        interval = Interval(report.start, report.end)
        facts = {**_loudness(report), "measured": 0 if measured is None else self._manifest_id(measured)}
        self._record_interval(
            database.performance, report, interval, {"as_of": microseconds(report.as_of)}, facts=facts
        )

    def performance(
        self,
        job: str,
        *,
        interval: Interval | None = None,
        since: datetime | None = None,
        as_of: datetime | None = None,
        last: int | None = None,
        loud_on: int | None = None,
    ) -> list[PerformanceReport]:
        """What was known at ``as_of``: per interval the report with the latest ``as_of`` not after it, by start.

        Only the one ``interval``, those that ended after ``since``, or the ``last`` n of them; ``loud_on`` as in `drift`.
        """
        start, end = (None, None) if interval is None else (interval.start, interval.end)
        times = {"start": start, "end": end, "since": since, "as_of": as_of}
        bounds = {name: _microseconds(instant) for name, instant in times.items()}
        return self._reported(PerformanceReport, database.performance, last=last, job=job, loud_on=loud_on, **bounds)

    def performance_at(self, job: str, as_of: datetime) -> list[PerformanceReport]:
        """The reports of exactly this ``as_of``, of each interval the one recorded last, by start."""
        return self._reported(PerformanceReport, database.performance, job=job, at=microseconds(as_of))

    def performance_course(self, job: str, *, as_of: datetime, last: int) -> list[PerformanceReport]:
        """The ``last`` n reports by ``as_of``, those included that later ones on the same interval superseded."""
        return self._read(PerformanceReport, performance.latest(job, microseconds(as_of), last))[::-1]

    def record_incident(self, incident: Incident) -> None:
        """Record the state of an incident, unless it is the latest one already."""
        with self._writing() as connection:
            payload = connection.scalar(incidents.state(incident.job, incident.id))
            if payload is None or Incident.model_validate_json(payload) != incident:
                self._record_state(connection, incident)

    def revise_incidents(
        self,
        job: str,
        revise: Callable[[list[Incident]], list[Incident]],
        *,
        closed_after: datetime | None = None,
        cause: str = "",
    ) -> list[Incident]:
        """What ``revise`` makes of the job's open incidents, recorded; nobody else writes between reading and recording.

        It is also given those that were ``closed_after`` an instant, and all there ever were of one ``cause``.
        """
        after = None if closed_after is None else microseconds(closed_after)
        with self._writing() as connection:
            known = connection.scalars(incidents.relevant(job, after, cause))
            revised = revise([Incident.model_validate_json(payload) for payload in known])
            for incident in revised:
                self._record_state(connection, incident)
        return revised

    def _record_state(self, connection: sa.Connection, incident: Incident) -> None:
        row = incidents.facts(incident, microseconds(incident.opened))
        state = self._insert(connection, database.incidents, incident.job, incident, row)
        summaries.changed(connection, incident, state)

    def incidents(self, job: str, *, open_only: bool = False, last: int | None = None) -> list[Incident]:
        """The latest state of each incident of the job, by opening; only the ``last`` n opened of them."""
        return self._read(Incident, incidents.latest(job, open_only=open_only, last=last))[::-1]

    def untold(self, job: str) -> list[tuple[int, Incident | None, Incident]]:
        """Each incident that changed since people were told of it: its row, what was told, and what it is now."""
        with self._answering("reading"), self._engine.connect() as connection:
            rows = connection.execute(incidents.untold(job)).all()
        known = [told and Incident.model_validate_json(told) for _, _, told in rows]
        return [(row[0], old, Incident.model_validate_json(row[1])) for row, old in zip(rows, known, strict=True)]

    def record_told(self, state: int, notice: Notice) -> None:
        """Record that people were told of an incident as it is in the row ``state``."""
        with self._writing() as connection:
            values = {"incident": notice.incident.id, "state": state}
            self._insert(connection, database.told, notice.incident.job, notice, values)
            summaries.heard(connection, notice.incident.job, notice.incident.id, state)

    def record_model(self, job: str, registered: RegisteredModel) -> None:
        """Record a registered version; the same again is a no-op, the same version with other facts `ModelTampered`."""
        model = registered.model
        with self._writing() as connection:
            own = {"name": model.name, "version": model.version}
            payload = connection.scalar(_equal(database.models, *own), own)
            if payload is None:
                self._insert(connection, database.models, job, registered, own)
            elif (known := RegisteredModel.model_validate_json(payload)) != registered:
                raise ModelTampered(
                    f"version {model.version} of model {model.name!r} is recorded with other facts",
                    expected=f"digest {known.model.digest}",
                    got=f"digest {model.digest}",
                    next_step="find out who replaced the version in the registry; a version is never registered twice",
                )

    def model(self, name: str, version: int) -> RegisteredModel | None:
        """The recorded facts of one version; ``None`` when no job of this ledger registered it."""
        found = self._read(
            RegisteredModel, _equal(database.models, "name", "version"), {"name": name, "version": version}
        )
        return found[0] if found else None

    def models(self, job: str) -> list[RegisteredModel]:
        """The versions that the job registered, in order of recording."""
        return self._read(RegisteredModel, _equal(database.models, "job"), {"job": job})[::-1]

    def _manifest_id(self, manifest: Manifest) -> int:
        """The row of a recorded manifest; 0 when it is not recorded as it is."""
        asked = {"job": manifest.job, **_interval_keys(manifest.interval), "payload": manifest.model_dump_json()}
        query = _equal(database.manifests, *_INTERVAL, "payload", found="id")
        with self._answering("reading"), self._engine.connect() as connection:
            return connection.scalar(query, asked) or 0

    def _record_interval(
        self,
        table: sa.Table,
        report: Manifest | ScoringPlan | DriftReport | PerformanceReport,
        interval: Interval,
        values: dict[str, int] | None = None,
        *,
        facts: dict[str, int] | None = None,
    ) -> None:
        keys = {**_interval_keys(interval), **(values or {})}
        with self._writing() as connection:
            own = {"job": report.job, **keys}
            payload = connection.scalar(_equal(table, *own), own)
            if payload is None or not _repeats(report, type(report).model_validate_json(payload)):
                facts = facts or {}
                row = self._insert(connection, table, report.job, report, {**keys, **facts})
                if table is database.manifests:
                    summaries.published(connection, own, row, is_first=payload is None)
                elif facts.get("measured"):
                    summaries.measured(connection, own, facts["measured"])

    def _reported(
        self, kind: type[AnyReport], table: sa.Table, *, last: int | None = None, **asked: str | int | None
    ) -> list[AnyReport]:
        """Of each interval the newest row, by start; the ``last`` n of them. ``asked`` as in `intervals.Asked`, if given."""
        given = {name: value for name, value in asked.items() if value is not None}
        names = cast("tuple[intervals.Asked, ...]", tuple(given))
        if last is None:
            return self._read(kind, intervals.newest(table, names), given)[::-1]
        return self._read(kind, intervals.last(table, names), {**given, "last": last})[::-1]


def _microseconds(instant: datetime | None) -> int | None:
    return None if instant is None else microseconds(instant)


def _loudness(report: DriftReport | PerformanceReport) -> dict[str, int]:
    return {"loud_version": 0 if report.quiet else report.model_version}


def _repeats(report: Report, latest: Report) -> bool:
    """Whether ``report`` says nothing that ``latest`` does not, apart from being a repeated or a quiet call."""
    marks = {name: mark for name, mark in _MARKS_OF_A_REPEAT.items() if getattr(report, name, None) == mark}
    return latest.model_copy(update=marks) == report


@cache
def _equal(table: sa.Table, *columns: str, found: str = "payload") -> sa.Select[Any]:
    """One column of the rows that are equal to the parameters in these columns, the row recorded last first.

    Put together once, as that takes longer than the answer.
    """
    where = [table.c[name] == sa.bindparam(name) for name in columns]
    return sa.select(table.c[found]).where(*where).order_by(table.c.id.desc())


def _interval_keys(interval: Interval) -> dict[str, int]:
    return {"interval_start": microseconds(interval.start), "interval_end": microseconds(interval.end)}
