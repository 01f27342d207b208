"""Join rows with the ground truth that had arrived by a given time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ContractViolation
from pipeline.intervals import partitions
from pipeline.steps.context import LABEL

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.intervals import Interval
    from pipeline.steps.context import JobContext

_ROW = "__row__"


def join(ctx: JobContext, rows: pa.Table, interval: Interval, as_of: datetime) -> pa.Table:
    """Those of ``rows`` whose label had arrived by ``as_of``, in their order, with the label in column ``__label__``.

    ``rows`` must hold the key and time columns of one interval. A label that was corrected counts with its latest
    value known at ``as_of``. Raises `ContractViolation` when the label files lack a column.
    """
    known = _known(ctx, rows.schema, interval, as_of)
    if known is None or rows.num_rows == 0:
        return rows.slice(0, 0).append_column(
            LABEL, pa.array([], known[LABEL].type if known is not None else pa.null())
        )
    numbered = rows.append_column(_ROW, pa.array(range(rows.num_rows), pa.int64()))
    joined = numbered.join(known, keys=list(ctx.job.features.key), join_type="inner").sort_by(_ROW).drop_columns([_ROW])
    delay = ctx.job.labels.delay
    if delay is not None:
        joined = joined.filter(pc.less_equal(_utc(joined[ctx.job.features.time]), _scalar(as_of - delay)))
    return joined


def _known(ctx: JobContext, schema: pa.Schema, interval: Interval, as_of: datetime) -> pa.Table | None:
    """Key and label of everything that had arrived, one row per key; ``None`` without any label file."""
    job, labels = ctx.job, ctx.job.labels
    files = ctx.storage.inputs(labels.uri, partitions(job.label_partition, interval))
    if not files:
        return None
    wanted = [*job.features.key, labels.column, *([labels.available_at] if labels.available_at else [])]
    present = ctx.storage.schema(files[0]).names
    if missing := [name for name in wanted if name not in present]:
        raise ContractViolation(
            f"job {job.name!r}: the labels of {interval} lack column(s) {', '.join(map(repr, missing))}",
            expected=f"columns {wanted}",
            got=f"{present} in {files[0].path}",
            next_step=f"fix the labels, or 'labels' in the job file and 'pipeline check {job.name}'",
        )
    table = pa.Table.from_batches(ctx.storage.batches(files, wanted))
    table = table.filter(pc.is_valid(table[labels.column]))
    if labels.available_at:
        table = table.filter(pc.less_equal(_utc(table[labels.available_at]), _scalar(as_of)))
        table = table.sort_by(labels.available_at)
    for name in job.features.key:
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, table[name].cast(schema.field(name).type))
    keys = list(job.features.key)
    # Threads would make "last" mean any; the sort above makes it mean the latest.
    latest = pa.TableGroupBy(table, keys, use_threads=False).aggregate([(labels.column, "last")])
    return latest.select([*keys, f"{labels.column}_last"]).rename_columns([*keys, LABEL])


def _utc(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type.tz is None:
        return pc.assume_timezone(column.cast(pa.timestamp("us")), "UTC")
    return column.cast(pa.timestamp("us", "UTC"))


def _scalar(instant: datetime) -> pa.Scalar:
    return pa.scalar(instant, pa.timestamp("us", "UTC"))
