"""The hash chain in the tables: every decision and every promotion of a job is a link of one chain.

A row carries its position among the job's rows of both kinds and a link over the row and the link before it (see
`pipeline.chain`). Rows are given their ids here, not by the database, because the link covers the id as well; the
writers' lock makes that safe.
"""

from __future__ import annotations

from heapq import merge
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.chain import Kind, Record, link
from pipeline.ledger.database import decisions, promotions

if TYPE_CHECKING:
    from collections.abc import Iterator

_TABLES: dict[Kind, sa.Table] = {"decision": decisions, "promotion": promotions}


def jobs() -> sa.CompoundSelect[Any]:
    """The names of all jobs that have a record."""
    return sa.union(*(sa.select(table.c.job) for table in _TABLES.values()))


def append(connection: sa.Connection, kind: Kind, row: dict[str, Any]) -> None:
    """Add a row at the end of its job's chain; the transaction must hold the writers' lock."""
    table = _TABLES[kind]
    position, previous = head(connection, row["job"])
    last = connection.scalar(sa.select(sa.func.max(table.c.id))) or 0
    row = {**row, "id": last + 1, "position": position + 1}
    connection.execute(table.insert().values({**row, "chain": link(previous, kind, row)}))


def head(connection: sa.Connection, job: str) -> tuple[int, str]:
    """Position and link of the job's latest record; 0 and an empty text before the first one."""
    ends = [(0, "")]
    for table in _TABLES.values():
        latest = sa.select(table.c.position, table.c.chain).where(table.c.job == job).order_by(table.c.id.desc())
        ends += [(row.position, row.chain) for row in connection.execute(latest.limit(1))]
    return max(ends)


def records(connection: sa.Connection, job: str) -> list[Record]:
    """The job's rows of both kinds as they are stored, by position; text that is no UTF-8 comes with surrogates."""
    found = [record for kind in _TABLES for record in _rows(connection, kind, job)]
    return sorted(found, key=lambda record: (str(type(record.position)), record.position))


def bring_up_to_date(connection: sa.Connection) -> None:
    """Give the rows of a ledger that was made before there was a chain their positions and links.

    Rows of one table follow each other as they were recorded; of both kinds the one recorded earlier comes first, and of
    equal times the decision. A table without the columns gets them once.
    """
    inspector = sa.inspect(connection)
    missing = [
        (table, column)
        for table in _TABLES.values()
        for column in (table.c.position, table.c.chain)
        if column.name not in {known["name"] for known in inspector.get_columns(table.name)}
    ]
    for table, column in missing:
        kind, empty = column.type.compile(connection.dialect), "''" if isinstance(column.type, sa.Text) else "0"
        connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind} NOT NULL DEFAULT {empty}")
    for job in connection.scalars(jobs()).all() if missing else []:
        _fill(connection, job)


def _fill(connection: sa.Connection, job: str) -> None:
    previous = ""
    # Merging two lists that a clock may have gone back in keeps the order of each.
    together = merge(*(list(_rows(connection, kind, job)) for kind in _TABLES), key=_recorded_at)
    for position, record in enumerate(together, 1):
        columns = {**record.columns, "position": position}
        previous = link(previous, record.kind, columns)
        table = _TABLES[record.kind]
        update = table.update().where(table.c.id == columns["id"])
        connection.execute(update.values(position=position, chain=previous))


def _recorded_at(record: Record) -> Any:
    return record.columns["recorded_at"]


def _rows(connection: sa.Connection, kind: Kind, job: str) -> Iterator[Record]:
    table = _TABLES[kind]
    # SQLite's driver refuses text that was damaged; as bytes it can be shown to be.
    as_bytes = connection.dialect.name == "sqlite"
    asked = [
        sa.cast(column, sa.LargeBinary).label(column.name) if as_bytes and isinstance(column.type, sa.Text) else column
        for column in table.c
    ]
    for row in connection.execute(sa.select(*asked).where(table.c.job == job).order_by(table.c.id)).mappings():
        columns = {name: _text(value) for name, value in row.items()}
        yield Record(kind, {name: columns[name] for name in columns if name != "chain"}, str(columns["chain"]))


def _text(value: object) -> object:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
