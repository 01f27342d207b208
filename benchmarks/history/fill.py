"""A deployment as it is after many intervals of many jobs: one real job, and everybody's past in the ledger.

What any verdict may rest on is real: the first and the latest intervals of the real job, the latest of every other. Older
rows have a payload that cannot be read, so that whatever reads more than it needs fails instead of being slow.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from benchmarks.throughput import world
from pipeline.ledger import database
from pipeline.ledger.instants import microseconds
from pipeline.reports import Decision, Manifest, ScoringPlan
from pipeline.runtime import Runtime
from pipeline.verdicts import DriftReport, PerformanceReport

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from pipeline.job import JobSpec
    from pipeline.ledger import Ledger

DAY = timedelta(days=1)
ROWS = 1_000
# Really lived before the past is made up: they are what the readable part of it is copied from.
_LIVED = 2
# No verdict looks further back than 200 intervals.
_READABLE = 300
# `status` tells the last decisions of every job.
_SHOWN = 5
_NEWER = 10**9
_UNREADABLE = "not to be read"
_STATES, _PER_INCIDENT, _PER_PROMOTION = 3, 50, 200
_SPAN = DAY // timedelta(microseconds=1)


def deployment(folder: Path, intervals: int, jobs: int) -> tuple[Runtime, JobSpec]:
    """An opened deployment of ``jobs`` jobs with a past of ``intervals`` each, and the job whose partitions are real."""
    job = world.prepare(folder, ROWS)
    text = (folder / "throughput.yaml").read_text()
    others = [f"other_{number:04d}" for number in range(jobs - 1)]
    for name in others:
        (folder / f"{name}.yaml").write_text(text.replace("name: throughput", f"name: {name}"))
    with Runtime(world.settings(folder)) as runtime:
        for number in range(_LIVED):
            live(runtime, job, day(folder, number))
    path = folder / "home" / "ledger.db"
    _age(path, [job.name, *others], intervals)
    runtime = Runtime(world.settings(folder))
    _copy(runtime.ledger, job, others, intervals)
    return runtime, job


def day(folder: Path, number: int) -> datetime:
    """The start of the real interval of that number, whose features and labels are written if need be."""
    start = world.SCORED + number * DAY
    world.write(folder, start, ROWS, labels=True)
    return start


def live(runtime: Runtime, job: JobSpec, start: datetime) -> None:
    """All that the DAGs do for one interval, a training aside."""
    as_of = start + DAY + timedelta(hours=2)
    list(runtime.score(job, start))
    runtime.changed(job, start)
    list(runtime.monitor(job, start))
    runtime.evaluate(job, as_of, strict=False)
    runtime.advance(job, as_of)
    runtime.watch(job, as_of)
    runtime.decide(job, as_of)
    runtime.notify(job)


def _age(path: Path, jobs: list[str], intervals: int) -> None:
    """Put the past of all jobs before the rows that are there; indexes are made anew afterwards, which is faster."""
    engine = sa.create_engine(f"sqlite:///{path}")
    indexes = [index for table in database.metadata.tables.values() for index in table.indexes]
    with engine.begin() as connection:
        for index in indexes:
            index.drop(connection)
    engine.dispose()  # no journal for what can be made again: that needs the file for itself
    with closing(sqlite3.connect(path)) as ledger:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -400000", "temp_store = MEMORY"):
            ledger.execute(f"PRAGMA {pragma}")
        ledger.execute("CREATE TEMP TABLE own (name TEXT, place INTEGER)")
        ledger.executemany("INSERT INTO own VALUES (?, ?)", [(name, place) for place, name in enumerate(jobs)])
        end = microseconds(world.SCORED)
        tables = ("plans", "manifests", "drift", "performance", "decisions", "promotions", "incidents")
        lived = {table: ledger.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0] for table in tables}
        for statement in _past(intervals, end, end - min(_READABLE, intervals) * _SPAN):
            ledger.execute(statement)
        # What was lived came last; new rows get their numbers after these.
        moved = {"unmeasured": "manifest", "standing": "state"}
        for table, last in lived.items():
            more = f", measured = measured + {_NEWER}" if table == "performance" else ""
            ledger.execute(f"UPDATE {table} SET id = id + {_NEWER}{more} WHERE id <= {last}")
        for table, column in moved.items():
            last = lived["manifests" if table == "unmeasured" else "incidents"]
            ledger.execute(f"UPDATE {table} SET {column} = {column} + {_NEWER} WHERE {column} <= {last}")
        for index in indexes:
            ledger.execute(str(sa.schema.CreateIndex(index).compile(engine)))
        ledger.commit()


def _past(intervals: int, end: int, readable: int) -> list[str]:
    """Statements that insert the past; rows lie as they came, of all jobs interval by interval."""
    first = end - intervals * _SPAN
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {intervals - 1})"
    start = f"{first} + i * {_SPAN}"
    # The copies of real rows come later: the real job has no made-up rows where those lie, the others none for the latest.
    free = f"WHERE (place = 0 AND i > 0 AND {start} < {readable}) OR (place > 0 AND i < {intervals - _SHOWN})"
    made: list[str] = []

    def insert(table: str, columns: str, values: str, where: str = free, joined: str = "n CROSS JOIN own") -> None:
        made.append(
            f"INSERT INTO {table} (job, recorded_at, payload, {columns}) {numbers} "
            f"SELECT name, 0, '{_UNREADABLE}', {values} FROM {joined} {where}"
        )

    span = f"{start}, {start} + {_SPAN}"
    interval = "interval_start, interval_end"
    insert("plans", interval, span)
    insert("manifests", interval, span)
    insert("drift", f"{interval}, loud_version", f"{span}, 1")
    insert("performance", f"{interval}, loud_version, as_of, measured", f"{span}, 1, {start} + {_SPAN} + 7200000000, 1")
    chained = "position, chain"
    link = "i, 'link'"
    insert(
        "decisions", f"decision, kind, at, {chained}", f"'trigger-' || place || '-' || i, 'trigger', {start}, {link}"
    )
    some = f"WHERE i % {_PER_PROMOTION} = 0 AND place > 0"
    insert("promotions", f"effective_at, {chained}", f"{start}, {link}", some)
    every = f"WHERE i % {_PER_INCIDENT} = 0"
    states = "n CROSS JOIN own CROSS JOIN ({})".format(
        " UNION ALL ".join(f"SELECT {number} AS state" for number in range(1, _STATES + 1))
    )
    incident = "'incident-' || place || '-' || i"
    insert("incidents", "incident, opened, is_open", f"{incident}, {start}, state < {_STATES}", every, states)
    made.append(
        "INSERT INTO standing (job, incident, cause, opened, closed, is_open, is_told, state) "
        f"SELECT job, incident, 'covariate_drift', opened, opened + {3 * _SPAN}, 0, 1, max(id) FROM incidents "
        f"WHERE payload = '{_UNREADABLE}' GROUP BY job, incident"
    )
    made.append(
        "INSERT INTO tallies (job, intervals) "
        f"SELECT name, {intervals} FROM own WHERE true ON CONFLICT (job) DO UPDATE SET intervals = intervals + {intervals}"
    )
    return made


def _copy(ledger: Ledger, job: JobSpec, others: list[str], intervals: int) -> None:
    """The readable part of the past: copies of the real job's first interval, for it and for the latest of every other job."""
    real = job.interval(world.SCORED)
    reports: list[Any] = [
        ledger.plan(job.name, real),
        ledger.manifest(job.name, real),
        *ledger.drift(job.name, since=real.start, ended_by=real.end),
        *ledger.performance(job.name, interval=real),
    ]
    copies = [
        copy
        for number in {*range(1, min(_READABLE, intervals) + 1), intervals}
        for copy in _moved(reports, job.name, number)
    ]
    copies += [copy for name in others for number in range(1, _SHOWN + 1) for copy in _moved(reports, name, number)]
    promotion = ledger.champion(job.name)
    assert promotion is not None  # the deployment was made with a champion
    for name in others:
        copies.append(promotion.model_copy(update={"job": name}))
    _insert(ledger, copies)


def _moved(reports: list[Any], job: str, back: int) -> list[Any]:
    found = []
    for report in reports:
        update: dict[str, Any] = {"job": job, "start": report.start - back * DAY, "end": report.end - back * DAY}
        if isinstance(report, PerformanceReport):
            update["as_of"] = report.as_of - back * DAY
        if isinstance(report, DriftReport):
            update["window_start"] = report.window_start - back * DAY
        found.append(report.model_copy(update=update))
    held = Decision.of(job, "trigger", world.SCORED - (back - 1) * DAY, "hold", "Nothing.", {"cause": "none"})
    return [*found, held]


def _insert(ledger: Ledger, copies: list[Any]) -> None:
    """Record the copies by the ledger's own encoders, in one transaction, before the rows that are real."""
    tables = {ScoringPlan: "plans", Manifest: "manifests", DriftReport: "drift", PerformanceReport: "performance"}
    with ledger._writing() as connection:
        place = _NEWER // 2
        for report in copies:
            place += 1
            values: dict[str, Any] = {"id": place}
            if isinstance(report, Decision):
                name, chained = "decisions", {"position": place, "chain": "link"}
                values |= {"decision": report.id, "kind": report.kind, "at": microseconds(report.at), **chained}
            elif type(report) in tables:
                name = tables[type(report)]
                values |= {"interval_start": microseconds(report.start), "interval_end": microseconds(report.end)}
            else:
                name = "promotions"
                values |= {"effective_at": microseconds(report.effective_at), "position": place, "chain": "link"}
            if isinstance(report, DriftReport | PerformanceReport):
                values["loud_version"] = report.model_version
            if isinstance(report, PerformanceReport):
                values |= {"as_of": microseconds(report.as_of), "measured": 1}
            ledger._insert(connection, database.metadata.tables[name], report.job, report, values)
