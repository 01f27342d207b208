"""Make Airflow's own transactions wait for each other on SQLite; copied into the home of a local Airflow.

Airflow starts some transactions with a savepoint, reads, and then writes. SQLite cannot turn such a reader into a writer
once another process has written, and answers "database is locked" at once, whatever the timeout: `airflow backfill create`
beside a running scheduler fails that way. A transaction that takes the write lock before its savepoint waits instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from sqlalchemy import Connection


@event.listens_for(Engine, "savepoint")
def take_the_write_lock(connection: Connection, name: str) -> None:
    """Begin the transaction as a writer, unless one has begun."""
    driver = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite" and not driver.in_transaction:
        driver.execute("BEGIN IMMEDIATE")
