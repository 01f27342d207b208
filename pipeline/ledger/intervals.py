"""Reports on intervals in the ledger: of each interval the newest, of those in a stretch of time or of the last n.

What is asked for about the latest intervals is read from the end of an index, however long the history is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement


def newest(table: sa.Table, where: Sequence[ColumnElement[bool]], *newest_by: sa.Column[Any]) -> sa.Select[Any]:
    """Of each interval the newest payload, the greatest of ``newest_by``, then the one recorded last; the last first."""
    # Sums are in no index: the rows are found by the conditions, and not in the order of all intervals.
    rank = sa.func.row_number().over(
        partition_by=(table.c.interval_start + 0, table.c.interval_end + 0),
        order_by=[column.desc() for column in (*newest_by, table.c.id)],
    )
    columns = (table.c.payload, table.c.interval_start, table.c.interval_end, rank.label("rank"))
    ranked = sa.select(*columns).where(*where).subquery()
    query = sa.select(ranked.c.payload).where(ranked.c.rank == 1)
    return query.order_by(ranked.c.interval_start.desc(), ranked.c.interval_end.desc())


def between(
    table: sa.Table,
    own: Sequence[ColumnElement[bool]],
    after: int | None,
    until: int | None,
    *newest_by: sa.Column[Any],
    last: int | None = None,
) -> sa.Select[Any]:
    """`newest` of the ``own`` rows of intervals with ``after < end <= until`` (microseconds), the ``last`` n of them."""
    start, end = table.c.interval_start, table.c.interval_end
    if last is None:
        bounds = [*([] if after is None else [end > after]), *([] if until is None else [end <= until])]
        return newest(table, [*own, *bounds], *newest_by)
    # These bounds are looked at on the way back from the end of the index by intervals.
    where = [*own, *([] if after is None else [end + 0 > after])]
    if until is not None:
        where += [start < until, end + 0 <= until]
    keys = sa.select(start, end).where(*where).distinct().order_by(start.desc(), end.desc()).limit(last).subquery()
    same = (start == keys.c.interval_start, end == keys.c.interval_end)
    order = [column.desc() for column in (*newest_by, table.c.id)]
    row = sa.select(table.c.id).where(*where, *same).order_by(*order).limit(1).correlate(keys).scalar_subquery()
    found = table.alias()
    query = sa.select(found.c.payload).join_from(keys, found, found.c.id == row)
    return query.order_by(keys.c.interval_start.desc(), keys.c.interval_end.desc())


def edge(table: sa.Table, own: Sequence[ColumnElement[bool]], *, is_first: bool) -> sa.Select[Any]:
    """The newest payload of the first or of the last interval of the ``own`` rows; of those with one start the longest."""
    start = table.c.interval_start.asc() if is_first else table.c.interval_start.desc()
    query = sa.select(table.c.payload).where(*own)
    return query.order_by(start, table.c.interval_end.desc(), table.c.id.desc()).limit(1)
