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
# The latest n intervals of a job are read from the end of this index, those that ended since an instant from the other.
_BY_INTERVAL, _BY_END = ("job", "interval_start", "interval_end"), ("job", "interval_end")
_LOUD = ("job", "loud_version", "interval_start", "interval_end")


def _instant(name: str) -> sa.Column[int]:
    # Microseconds since 1970 UTC: they sort and compare alike in every database, texts with time zones do not.
    return sa.Column(name, sa.BigInteger, nullable=False)


def _table(name: str, *columns: sa.schema.SchemaItem, indexes: Sequence[Sequence[str]]) -> sa.Table:
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("job", sa.Text, nullable=False),
        *columns,
        _instant("recorded_at"),
        sa.Column("payload", sa.Text, nullable=False),
        *(sa.Index(f"{name}_by_{'_'.join(index)}", *index) for index in indexes),
        sqlite_autoincrement=True,
    )


def _interval_table(name: str, *columns: sa.Column[Any], indexes: Sequence[Sequence[str]] = ()) -> sa.Table:
    return _table(
        name,
        _instant("interval_start"),
        _instant("interval_end"),
        *columns,
        indexes=(_BY_INTERVAL, *indexes),
    )


def _loud_version() -> sa.Column[int]:
    # Quiet reports (of backfills) have version 0 here: no decision may rest on them.
    return sa.Column("loud_version", sa.Integer, nullable=False)


def _chained() -> tuple[sa.Column[Any], sa.Column[Any]]:
    # Where the row stands among the job's decisions and promotions, and its link: see `pipeline.ledger.chain`.
    return sa.Column("position", sa.BigInteger, nullable=False), sa.Column("chain", sa.Text, nullable=False)


plans = _interval_table("plans")
manifests = _interval_table("manifests", indexes=(_BY_END,))
drift = _interval_table("drift", _loud_version(), indexes=(_BY_END, _LOUD))
performance = _interval_table(
    "performance",
    _instant("as_of"),
    _loud_version(),
    # The manifest whose rows were measured; 0 when none was, so that the interval is still to be measured.
    sa.Column("measured", sa.BigInteger, nullable=False),
    indexes=(_BY_END, _LOUD, ("job", "as_of")),
)
decisions = _table(
    "decisions",
    sa.Column("decision", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    _instant("at"),
    *_chained(),
    # Each interval asks for the few of some kinds among one trigger decision per interval, and for the last of all.
    indexes=(("job", "kind"), ("job", "id")),
)
incidents = _table(
    "incidents",
    sa.Column("incident", sa.Text, nullable=False),
    _instant("opened"),
    sa.Column("is_open", sa.Integer, nullable=False),
    indexes=(("job", "incident"),),
)
told = _table(
    "told",
    sa.Column("incident", sa.Text, nullable=False),
    # The row of the incident's state that people were told of.
    sa.Column("state", sa.BigInteger, nullable=False),
    indexes=(("job", "incident"),),
)
promotions = _table(
    "promotions", _instant("effective_at"), *_chained(), indexes=(("job", "effective_at"), ("job", "id"))
)
models = _table(
    "models",
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.UniqueConstraint("name", "version"),
    indexes=(("job",),),
)
_HISTORY = tuple(metadata.tables.values())

# What the history says at this moment, so that nobody has to read all of it: see `pipeline.ledger.summaries`.
tallies = sa.Table(
    "tallies",
    metadata,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("intervals", sa.BigInteger, nullable=False),
)
unmeasured = sa.Table(
    "unmeasured",
    metadata,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("interval_start", sa.BigInteger, primary_key=True),
    sa.Column("interval_end", sa.BigInteger, primary_key=True),
    sa.Column("manifest", sa.BigInteger, nullable=False),
)
standing = sa.Table(
    "standing",
    metadata,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("incident", sa.Text, primary_key=True),
    sa.Column("cause", sa.Text, nullable=False),
    _instant("opened"),
    # 0 while it is open.
    _instant("closed"),
    sa.Column("is_open", sa.Integer, nullable=False),
    sa.Column("is_told", sa.Integer, nullable=False),
    # The row of the incident's latest state.
    sa.Column("state", sa.BigInteger, nullable=False),
    *(
        sa.Index(f"standing_by_{'_'.join(index)}", *index)
        for index in (("job", "is_open", "closed"), ("job", "is_told"), ("job", "cause"), ("job", "opened"))
    ),
)
SUMMARIES = (tallies, unmeasured, standing)


def bring_up_to_date(connection: sa.Connection) -> bool:
    """Make the tables and indexes that a ledger lacks; whether its summaries are new, and so still to be filled."""
    known = set(sa.inspect(connection).get_table_names())
    metadata.create_all(connection)
    if known.issuperset(table.name for table in SUMMARIES):
        return False
    for table in _HISTORY if known else ():
        for index in table.indexes:
            connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
    return True


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
