"""A connection to the ledger's database: transactions, rows, and errors in this product's words."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pipeline.errors import InvalidRequest, LedgerUnavailable
from pipeline.ledger import chain, database, summaries
from pipeline.ledger.instants import microseconds
from pipeline.reports import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

AnyReport = TypeVar("AnyReport", bound=Report)

_REMEMBERED = 1024


class Session:
    """The opened database of one ledger; see `pipeline.ledger.Ledger`."""

    def __init__(self, url: str, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        try:
            parsed = sa.make_url(url)
            self._shown = parsed.render_as_string(hide_password=True)
            with self._answering("being opened"):
                self._engine = database.connect(parsed)
        except (ArgumentError, ImportError) as err:
            # Neither the text of the error nor its cause is passed on: both may hold the URL with its password.
            raise InvalidRequest(
                "the ledger's URL cannot be used",
                expected="a SQLAlchemy URL whose driver is installed, such as sqlite:////path/ledger.db",
                got=type(err).__name__,
                next_step="correct PIPELINE_LEDGER_URL, or install the extra 'postgres'",
            ) from None
        with self._writing() as connection:
            is_new = database.bring_up_to_date(connection)
            chain.bring_up_to_date(connection)
            if is_new:
                summaries.fill(connection)

    def close(self) -> None:
        """Give back all connections; the ledger must not be used afterwards."""
        self._engine.dispose()

    def _insert(
        self, connection: sa.Connection, table: sa.Table, job: str, report: Report, values: dict[str, Any]
    ) -> int:
        """The id of the new row."""
        done = connection.execute(table.insert().values(self._row(job, report, values)))
        assert done.inserted_primary_key is not None  # one row was inserted
        return int(done.inserted_primary_key[0])

    def _row(self, job: str, report: Report, values: dict[str, Any]) -> dict[str, Any]:
        return {"job": job, "recorded_at": microseconds(self._clock()), "payload": report.model_dump_json(), **values}

    def _read(
        self, kind: type[AnyReport], query: sa.Select[Any], parameters: Mapping[str, Any] | None = None
    ) -> list[AnyReport]:
        with self._answering("reading"), self._engine.connect() as connection:
            return [_parsed(kind, payload) for payload in connection.scalars(query, parameters)]

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


@lru_cache(maxsize=_REMEMBERED)
def _parsed(kind: type[AnyReport], payload: str) -> AnyReport:
    """The report; every interval looks at much the same ones as the interval before it, and a report never changes."""
    return kind.model_validate_json(payload)
