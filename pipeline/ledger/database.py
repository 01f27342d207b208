"""The ledger's tables, and connections to its database: SQLite embedded, PostgreSQL deployed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Sequence

_BUSY_SECONDS = 30
# One writer at a time: any constant that no other program on the database uses as an advisory lock.
_WRITER_LOCK = 7_146_282_907

metadata = sa.MetaData()


def _instant(name: str) -> sa.Column[int]:
    # Microseconds since 1970 UTC: they sort and compare alike in every database, texts with time zones do not.
    return sa.Column(name, sa.BigInteger, nullable=False)


def _table(name: str, *columns: sa.schema.SchemaItem, index: Sequence[str]) -> sa.Table:
    return sa.Table(
        name,
        metadata,
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


def _loud_version() -> sa.Column[int]:
    # Quiet reports (of backfills) have version 0 here: no decision may rest on them.
    return sa.Column("loud_version", sa.Integer, nullable=False)


def _chained() -> tuple[sa.Column[Any], sa.Column[Any]]:
    # Where the row stands among the job's decisions and promotions, and its link: see `pipeline.ledger.chain`.
    return sa.Column("position", sa.BigInteger, nullable=False), sa.Column("chain", sa.Text, nullable=False)


plans = _interval_table("plans")
manifests = _interval_table("manifests")
drift = _interval_table("drift", _loud_version())
performance = _interval_table(
    "performance",
    _instant("as_of"),
    _loud_version(),
    # The manifest whose rows were measured; 0 when none was, so that the interval is still to be measured.
    sa.Column("measured", sa.BigInteger, nullable=False),
)
decisions = _table(
    "decisions",
    sa.Column("decision", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    _instant("at"),
    *_chained(),
    # Each interval asks for the few of some kinds among one trigger decision per interval.
    index=("job", "kind"),
)
incidents = _table(
    "incidents",
    sa.Column("incident", sa.Text, nullable=False),
    _instant("opened"),
    sa.Column("is_open", sa.Integer, nullable=False),
    index=("job", "incident"),
)
told = _table(
    "told",
    sa.Column("incident", sa.Text, nullable=False),
    # The row of the incident's state that people were told of.
    sa.Column("state", sa.BigInteger, nullable=False),
    index=("job", "incident"),
)
promotions = _table("promotions", _instant("effective_at"), *_chained(), index=("job", "effective_at"))
models = _table(
    "models",
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.UniqueConstraint("name", "version"),
    index=("job",),
)


def add_indexes(connection: sa.Connection) -> None:
    """Make the indexes that a ledger of an older release lacks."""
    for index in decisions.indexes:
        connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))


def connect(url: sa.URL) -> sa.Engine:
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
