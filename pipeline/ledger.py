"""The ledger: append-only history of plans, manifests, verdicts, decisions, promotions and registered models.

SQL through SQLAlchemy Core: SQLite embedded, PostgreSQL deployed. Rows are only ever added. Must not decide anything, and
must not read a clock of its own.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pipeline.errors import InvalidRequest, LedgerUnavailable, ModelTampered
from pipeline.intervals import Interval
from pipeline.reports import (
    Decision,
    DecisionKind,
    DriftReport,
    Manifest,
    PerformanceReport,
    Promotion,
    RegisteredModel,
    Report,
    ScoringPlan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

AnyReport = TypeVar("AnyReport", bound=Report)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY_SECONDS = 30
# One writer at a time: any constant that no other program on the database uses as an advisory lock.
_WRITER_LOCK = 7_146_282_907
# What a repeated call says about itself and not about the partition.
_MARKS_OF_A_REPEAT = {"quiet": True, "status": "unchanged"}

_metadata = sa.MetaData()


def _instant(name: str) -> sa.Column[int]:
    # Microseconds since 1970 UTC: they sort and compare alike in every database, texts with time zones do not.
    return sa.Column(name, sa.BigInteger, nullable=False)


def _table(name: str, *columns: sa.schema.SchemaItem, index: Sequence[str]) -> sa.Table:
    return sa.Table(
        name,
        _metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("job", sa.Text, nullable=False),
        *columns,
        _instant("recorded_at"),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Index(f"{name}_by_{'_'.join(index)}", *index),
        sqlite_autoincrement=True,
    )


def _interval_table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return _table(
        name,
        _instant("interval_start"),
        _instant("interval_end"),
        *columns,
        index=("job", "interval_start", "interval_end"),
    )


_plans = _interval_table("plans")
_manifests = _interval_table("manifests")
# Quiet reports (of backfills) have version 0 here: no decision may rest on them.
_drift = _interval_table("drift", sa.Column("loud_version", sa.Integer, nullable=False))
_performance = _interval_table("performance", _instant("as_of"), sa.Column("loud_version", sa.Integer, nullable=False))
_decisions = _table(
    "decisions",
    sa.Column("decision", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    _instant("at"),
    index=("job",),
)
_promotions = _table("promotions", _instant("effective_at"), index=("job", "effective_at"))
_models = _table(
    "models",
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.UniqueConstraint("name", "version"),
    index=("job",),
)


class Ledger:
    """The history of one deployment. Every method raises `LedgerUnavailable` when the database does not answer.

    ``url`` is a SQLAlchemy URL; a SQLite file and its folder are made when absent. ``clock`` only stamps when a row was
    recorded. What is read comes back equal to what was recorded. Any number of processes may work on one database, each
    with a ledger of its own: connections do not survive a fork.
    """

    def __init__(self, url: str, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        try:
            parsed = sa.make_url(url)
            self._shown = parsed.render_as_string(hide_password=True)
            with self._answering("being opened"):
                self._engine = _engine(parsed)
        except (ArgumentError, ImportError) as err:
            # Neither the text of the error nor its cause is passed on: both may hold the URL with its password.
            raise InvalidRequest(
                "the ledger's URL cannot be used",
                expected="a SQLAlchemy URL whose driver is installed, such as sqlite:////path/ledger.db",
                got=type(err).__name__,
                next_step="correct PIPELINE_LEDGER_URL, or install the extra 'postgres'",
            ) from None
        with self._writing() as connection:
            _metadata.create_all(connection)

    def close(self) -> None:
        """Give back all connections; the ledger must not be used afterwards."""
        self._engine.dispose()

    def record_plan(self, plan: ScoringPlan) -> None:
        """Record a plan, unless it equals the latest one of its interval."""
        self._record_interval(_plans, plan, plan.interval)

    def record_manifest(self, manifest: Manifest) -> None:
        """Record a manifest, unless it repeats the latest one of its interval."""
        self._record_interval(_manifests, manifest, manifest.interval)

    def manifest(self, job: str, interval: Interval) -> Manifest | None:
        """The latest recorded manifest of the interval."""
        where = [_manifests.c.job == job, *_at(_manifests, _interval_keys(interval))]
        found = self._latest(Manifest, _manifests, where)
        return found[0] if found else None

    def manifests(self, job: str, *, ended_by: datetime | None = None, since: datetime | None = None) -> list[Manifest]:
        """The latest manifest of each interval with ``since < end <= ended_by``, by start."""
        where = [_manifests.c.job == job]
        if ended_by is not None:
            where.append(_manifests.c.interval_end <= _microseconds(ended_by))
        if since is not None:
            where.append(_manifests.c.interval_end > _microseconds(since))
        return self._latest(Manifest, _manifests, where)

    def record_drift(self, report: DriftReport) -> None:
        """Record a drift report, unless it repeats the latest one of its interval; a quiet one counts as a repeat."""
        self._record_interval(_drift, report, Interval(report.start, report.end), facts=_loudness(report))

    def drift(
        self, job: str, *, ended_by: datetime | None = None, last: int | None = None, loud_on: int | None = None
    ) -> list[DriftReport]:
        """The latest drift report of each interval with ``end <= ended_by``, by start; only the ``last`` n of them.

        ``loud_on`` leaves out quiet reports and those on other model versions before anything is counted.
        """
        where = [_drift.c.job == job]
        if loud_on is not None:
            where.append(_drift.c.loud_version == loud_on)
        if ended_by is not None:
            where.append(_drift.c.interval_end <= _microseconds(ended_by))
        return self._latest(DriftReport, _drift, where, last=last)

    def record_performance(self, report: PerformanceReport) -> None:
        """Record a performance report, unless it repeats the latest one of its interval and ``as_of``."""
        values = {"as_of": _microseconds(report.as_of)}
        self._record_interval(_performance, report, Interval(report.start, report.end), values, facts=_loudness(report))

    def performance(
        self, job: str, *, as_of: datetime | None = None, last: int | None = None, loud_on: int | None = None
    ) -> list[PerformanceReport]:
        """What was known at ``as_of``: per interval the report with the latest ``as_of`` not after it, by start.

        Only the ``last`` n intervals; ``loud_on`` as in `drift`.
        """
        where = [_performance.c.job == job]
        if loud_on is not None:
            where.append(_performance.c.loud_version == loud_on)
        if as_of is not None:
            where.append(_performance.c.as_of <= _microseconds(as_of))
        return self._latest(PerformanceReport, _performance, where, _performance.c.as_of, last=last)

    def record_decision(self, decision: Decision) -> None:
        """Record a decision; one with a known id is the same decision and is not recorded again."""
        values = {"decision": decision.id, "kind": decision.kind, "at": _microseconds(decision.at)}
        with self._writing() as connection:
            known = sa.select(_decisions.c.id).where(_decisions.c.decision == decision.id)
            if connection.execute(known).first() is None:
                self._insert(connection, _decisions, decision.job, decision, values)

    def decision(self, id: str) -> Decision | None:
        """The decision with that id."""
        found = self._read(Decision, sa.select(_decisions.c.payload).where(_decisions.c.decision == id))
        return found[0] if found else None

    def decisions(
        self, job: str | None = None, *, kind: DecisionKind | None = None, until: datetime | None = None
    ) -> list[Decision]:
        """All decisions, or those of one job and kind made at or before ``until``, in order of recording."""
        query = sa.select(_decisions.c.payload).order_by(_decisions.c.id)
        if job is not None:
            query = query.where(_decisions.c.job == job)
        if kind is not None:
            query = query.where(_decisions.c.kind == kind)
        if until is not None:
            query = query.where(_decisions.c.at <= _microseconds(until))
        return self._read(Decision, query)

    def record_promotion(self, promotion: Promotion) -> None:
        """Record a move of the champion alias, unless it equals the one recorded last for the job."""
        with self._writing() as connection:
            last = sa.select(_promotions.c.payload).where(_promotions.c.job == promotion.job)
            payload = connection.scalar(last.order_by(_promotions.c.id.desc()).limit(1))
            if payload is None or Promotion.model_validate_json(payload) != promotion:
                values = {"effective_at": _microseconds(promotion.effective_at)}
                self._insert(connection, _promotions, promotion.job, promotion, values)

    def promotions(self, job: str) -> list[Promotion]:
        """The job's promotions by ``effective_at``, those of one instant in order of recording."""
        query = sa.select(_promotions.c.payload).where(_promotions.c.job == job)
        return self._read(Promotion, query.order_by(_promotions.c.effective_at, _promotions.c.id))

    def champion(self, job: str, at: datetime) -> Promotion | None:
        """The promotion in effect at ``at``: the last one effective by then, of one instant the last recorded."""
        query = sa.select(_promotions.c.payload).where(
            _promotions.c.job == job, _promotions.c.effective_at <= _microseconds(at)
        )
        newest = query.order_by(_promotions.c.effective_at.desc(), _promotions.c.id.desc()).limit(1)
        found = self._read(Promotion, newest)
        return found[0] if found else None

    def record_model(self, job: str, registered: RegisteredModel) -> None:
        """Record a registered version; the same again is a no-op, the same version with other facts `ModelTampered`."""
        model = registered.model
        with self._writing() as connection:
            payload = connection.scalar(_model_payload(model.name, model.version))
            if payload is None:
                self._insert(connection, _models, job, registered, {"name": model.name, "version": model.version})
            elif (known := RegisteredModel.model_validate_json(payload)) != registered:
                raise ModelTampered(
                    f"version {model.version} of model {model.name!r} is recorded with other facts",
                    expected=f"digest {known.model.digest}",
                    got=f"digest {model.digest}",
                    next_step="find out who replaced the version in the registry; a version is never registered twice",
                )

    def model(self, name: str, version: int) -> RegisteredModel | None:
        """The recorded facts of one version."""
        found = self._read(RegisteredModel, _model_payload(name, version))
        return found[0] if found else None

    def models(self, job: str) -> list[RegisteredModel]:
        """The versions that the job registered, in order of recording."""
        return self._read(
            RegisteredModel, sa.select(_models.c.payload).where(_models.c.job == job).order_by(_models.c.id)
        )

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
            same = sa.select(table.c.payload).where(table.c.job == report.job, *_at(table, keys))
            payload = connection.scalar(same.order_by(table.c.id.desc()).limit(1))
            if payload is None or not _repeats(report, type(report).model_validate_json(payload)):
                self._insert(connection, table, report.job, report, {**keys, **(facts or {})})

    def _insert(
        self, connection: sa.Connection, table: sa.Table, job: str, report: Report, values: dict[str, Any]
    ) -> None:
        row = {"job": job, "recorded_at": _microseconds(self._clock()), "payload": report.model_dump_json(), **values}
        connection.execute(table.insert().values(row))

    def _latest(
        self,
        kind: type[AnyReport],
        table: sa.Table,
        where: Sequence[sa.ColumnElement[bool]],
        *newest_by: sa.Column[Any],
        last: int | None = None,
    ) -> list[AnyReport]:
        """Of each interval the newest row: the greatest of ``newest_by``, then the one recorded last."""
        rank = sa.func.row_number().over(
            partition_by=(table.c.interval_start, table.c.interval_end),
            order_by=[column.desc() for column in (*newest_by, table.c.id)],
        )
        columns = (table.c.payload, table.c.interval_start, table.c.interval_end, rank.label("rank"))
        ranked = sa.select(*columns).where(*where).subquery()
        query = sa.select(ranked.c.payload).where(ranked.c.rank == 1).limit(last)
        return self._read(kind, query.order_by(ranked.c.interval_start.desc(), ranked.c.interval_end.desc()))[::-1]

    def _read(self, kind: type[AnyReport], query: sa.Select[Any]) -> list[AnyReport]:
        with self._answering("reading"), self._engine.connect() as connection:
            return [kind.model_validate_json(payload) for payload in connection.scalars(query)]

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that no other writer shares: what it reads still holds when it commits."""
        with self._answering("recording"), self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    @contextmanager
    def _answering(self, doing: str) -> Iterator[None]:
        try:
            yield
        except ArgumentError:
            raise
        except (SQLAlchemyError, OSError) as err:
            raise LedgerUnavailable(
                f"the ledger {self._shown} did not answer while {doing}",
                got=str(getattr(err, "orig", None) or err),
                next_step="check that the database is up, permitted and not full, and run the same command again",
            ) from err


def _engine(url: sa.URL) -> sa.Engine:
    """An engine whose transactions hold the writers' lock from their beginning when they carry the option ``writes``."""
    if url.get_backend_name() != "sqlite":
        engine = sa.create_engine(url, pool_pre_ping=True, hide_parameters=True)
        sa.event.listen(engine, "begin", _begin_postgresql)
        return engine
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS}, hide_parameters=True)
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _begin_postgresql(connection: sa.Connection) -> None:
    if _writes(connection):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails at once when another has written meanwhile, busy timeout or
    # not; one that takes the write lock at its beginning waits for it.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")


def _writes(connection: sa.Connection) -> bool:
    return bool(connection.get_execution_options().get("writes"))


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    # Transactions are begun by the listener above, not by the driver.
    connection.isolation_level = None
    for _ in range(10):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            # The switch does not wait for other processes that open the same new file; this does.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")


def _loudness(report: DriftReport | PerformanceReport) -> dict[str, int]:
    return {"loud_version": 0 if report.quiet else report.model_version}


def _repeats(report: Report, latest: Report) -> bool:
    """Whether ``report`` says nothing that ``latest`` does not, apart from being a repeated or a quiet call."""
    marks = {name: mark for name, mark in _MARKS_OF_A_REPEAT.items() if getattr(report, name, None) == mark}
    return latest.model_copy(update=marks) == report


def _at(table: sa.Table, keys: dict[str, int]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in keys.items()]


def _interval_keys(interval: Interval) -> dict[str, int]:
    return {"interval_start": _microseconds(interval.start), "interval_end": _microseconds(interval.end)}


def _model_payload(name: str, version: int) -> sa.Select[Any]:
    return sa.select(_models.c.payload).where(_models.c.name == name, _models.c.version == version)


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1)
