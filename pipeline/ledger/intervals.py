"""Reports on intervals in the ledger: of each interval the newest, of those in a stretch of time or of the last n.

What is asked for about the latest intervals is read from the end of an index, however long the history is. A question is
put together once: that takes longer than its answer. Its parameters are named after what is asked.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnElement

# All instants in microseconds: `start` and `end` of one interval, `since` < end <= `until`, reports `at` or known at `as_of`.
Asked = Literal["job", "start", "end", "since", "until", "loud_on", "at", "as_of"]

_CONDITIONS: dict[Asked, Callable[[Any], ColumnElement[bool]]] = {
    "job": lambda c: c.job == sa.bindparam("job"),
    "start": lambda c: c.interval_start == sa.bindparam("start"),
    "end": lambda c: c.interval_end == sa.bindparam("end"),
    "since": lambda c: c.interval_end > sa.bindparam("since"),
    "until": lambda c: c.interval_end <= sa.bindparam("until"),
    "loud_on": lambda c: c.loud_version == sa.bindparam("loud_on"),
    "at": lambda c: c.as_of == sa.bindparam("at"),
    # Sums are in no index. By the intervals, not by this: nearly every report was made by then.
    "as_of": lambda c: c.as_of + 0 <= sa.bindparam("as_of"),
}
# On the way back from the end of the index by intervals, these bounds are looked at, not looked up.
_LOOKED_AT: dict[Asked, Callable[[Any], ColumnElement[bool]]] = {
    **_CONDITIONS,
    "since": lambda c: c.interval_end + 0 > sa.bindparam("since"),
    "until": lambda c: sa.and_(c.interval_start < sa.bindparam("until"), c.interval_end + 0 <= sa.bindparam("until")),
}


@cache
def newest(table: sa.Table, asked: tuple[Asked, ...]) -> sa.Select[Any]:
    """Of each interval the newest payload, known latest, then recorded last; the last interval first."""
    # The rows are found by the conditions, and not in the order of all intervals.
    rank = sa.func.row_number().over(
        partition_by=(table.c.interval_start + 0, table.c.interval_end + 0), order_by=_newest_first(table)
    )
    columns = (table.c.payload, table.c.interval_start, table.c.interval_end, rank.label("rank"))
    ranked = sa.select(*columns).where(*(_CONDITIONS[name](table.c) for name in asked)).subquery()
    query = sa.select(ranked.c.payload).where(ranked.c.rank == 1)
    return query.order_by(ranked.c.interval_start.desc(), ranked.c.interval_end.desc())


@cache
def last(table: sa.Table, asked: tuple[Asked, ...]) -> sa.Select[Any]:
    """`newest`, of the last n intervals only; n is the parameter ``last``."""
    start, end = table.c.interval_start, table.c.interval_end
    where = [_LOOKED_AT[name](table.c) for name in asked]
    keys = sa.select(start, end).where(*where).distinct().order_by(start.desc(), end.desc())
    latest = keys.limit(sa.bindparam("last")).subquery()
    same = (start == latest.c.interval_start, end == latest.c.interval_end)
    ids = sa.select(table.c.id).where(*where, *same).order_by(*_newest_first(table))
    found = table.alias()
    query = sa.select(found.c.payload).join_from(
        latest, found, found.c.id == ids.limit(1).correlate(latest).scalar_subquery()
    )
    return query.order_by(latest.c.interval_start.desc(), latest.c.interval_end.desc())


@cache
def edge(table: sa.Table, asked: tuple[Asked, ...], *, is_first: bool) -> sa.Select[Any]:
    """The newest payload of the first or of the last interval; of those with one start the longest."""
    start = table.c.interval_start.asc() if is_first else table.c.interval_start.desc()
    query = sa.select(table.c.payload).where(*(_CONDITIONS[name](table.c) for name in asked))
    return query.order_by(start, table.c.interval_end.desc(), table.c.id.desc()).limit(1)


def _newest_first(table: sa.Table) -> list[ColumnElement[Any]]:
    return [table.c[name].desc() for name in ("as_of", "id") if name in table.c]
