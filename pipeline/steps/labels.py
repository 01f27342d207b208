"""Join rows with the ground truth that had arrived by a given time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import engine, rules
from pipeline.errors import ContractViolation
from pipeline.intervals import mixes_intervals, partitions
from pipeline.steps.context import LABEL
from pipeline.steps.sampling import canonical, canonical_type, plain_type

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from pipeline.intervals import Interval
    from pipeline.reports import InputFile
    from pipeline.steps.context import JobContext

_ROW, _ARRIVED = "__row__", "__arrived__"
_INSTANT = pa.timestamp("us", "UTC")
_NUMBERS = (*rules.NUMERIC, "null")
_CLASSES = (*_NUMBERS, "text", "boolean")


@dataclass(frozen=True, slots=True)
class Joined:
    """The rows whose label had arrived, and the earliest later arrival of which the label files already tell."""

    rows: pa.Table
    pending: datetime | None


def join(ctx: JobContext, rows: pa.Table, interval: Interval, as_of: datetime) -> pa.Table:
    """The rows of `joined`."""
    return joined(ctx, rows, interval, as_of).rows


def joined(ctx: JobContext, rows: pa.Table, interval: Interval, as_of: datetime) -> Joined:
    """Those of ``rows`` whose label had arrived by ``as_of``, in their order, with the label in column ``__label__``.

    ``rows`` must hold the key and time columns of one interval. Label files are streamed; only labels of these rows are
    held. A label that was corrected counts with its latest value known at ``as_of``. A missing value (null, NaN) is no
    label yet. Labels are float64 for a regression, else string, int64 or bool. Where a label folder may hold several
    intervals and its files have the time column of the features, only labels of this interval's time count.

    Raises `ContractViolation` when the label files lack a column, or when keys or labels are of a kind that cannot be
    compared with the features' keys or cannot be a label of the task.
    """
    known, pending = _known(ctx, rows, interval, as_of) if rows.num_rows else (None, None)
    if known is None:
        return Joined(rows.slice(0, 0).append_column(LABEL, pa.nulls(0)), pending)
    key = list(ctx.job.features.key)
    numbered = _keys(rows, key).append_column(_ROW, pa.array(np.arange(rows.num_rows)))
    found = numbered.join(known, keys=key, join_type="inner").sort_by(_ROW)
    labelled = rows.take(found[_ROW]).append_column(LABEL, found[LABEL])
    delay = ctx.job.labels.delay
    if delay is None:
        return Joined(labelled, pending)
    happened = canonical(labelled[ctx.job.features.time])
    has_come = pc.less_equal(happened, pa.scalar(as_of - delay, _INSTANT))
    earliest = _earliest(happened.filter(pc.invert(has_come)))
    return Joined(labelled.filter(has_come), earliest + delay if earliest else None)


def files(ctx: JobContext, interval: Interval) -> list[InputFile]:
    """The label files of one interval with size and SHA-256, sorted by path; empty when none has come."""
    return ctx.inputs.files(ctx.job.labels.uri, partitions(ctx.job.label_partition, interval))


def state(ctx: JobContext, interval: Interval) -> str:
    """What the file system tells of the interval's label files; while it is the same, none has come or changed."""
    return ctx.inputs.state(ctx.job.labels.uri, partitions(ctx.job.label_partition, interval))


def _known(
    ctx: JobContext, rows: pa.Table, interval: Interval, as_of: datetime
) -> tuple[pa.Table | None, datetime | None]:
    """Key and label of those rows whose label had arrived, one row per key, and when the next label of them arrives.

    Either is ``None`` when there is none.
    """
    job, labels = ctx.job, ctx.job.labels
    key = list(job.features.key)
    hashes = np.sort(engine.row_hashes(rows, key))
    parts, later = [], []
    for file in files(ctx, interval):
        schema = ctx.inputs.schema(file)
        columns = [*key, labels.column, *([labels.available_at] if labels.available_at else [])]
        _check(ctx, interval, file.path, schema, rows.schema, columns)
        within = interval if _tells_intervals(ctx, schema) else None
        wanted = dict.fromkeys([*columns, *([job.features.time] if within else [])])
        for batch in ctx.inputs.batches([file], list(wanted)):
            labelled = _labelled(ctx, pa.Table.from_batches([batch]), within)
            # Different keys may share a hash; the join sorts them out.
            mine = labelled.filter(pa.array(_contains(hashes, engine.row_hashes(labelled, key))))
            if labels.available_at:
                arrives = canonical(mine[labels.available_at])
                has_come = pc.less_equal(arrives, pa.scalar(as_of, _INSTANT))
                later.append(_earliest(arrives.filter(pc.invert(has_come))))
                mine = mine.filter(has_come)
            if mine.num_rows:
                parts.append(_canonical(ctx, interval, mine, rows.schema))
    pending = min((instant for instant in later if instant), default=None)
    if not parts:
        return None, pending
    if len({str(part.schema) for part in parts}) > 1:
        raise _unusable(ctx, interval, "their files disagree about the label's type", "one type", "several")
    table = pa.concat_tables(parts).sort_by(_ARRIVED)
    # Threads would make "last" mean any; the sort above makes it mean the latest.
    latest = pa.TableGroupBy(table, key, use_threads=False).aggregate([(LABEL, "last")])
    return latest.select([*key, f"{LABEL}_last"]).rename_columns([*key, LABEL]), pending


def _earliest(instants: pa.ChunkedArray) -> datetime | None:
    found: datetime | None = pc.min(instants).as_py()
    return found


def _tells_intervals(ctx: JobContext, schema: pa.Schema) -> bool:
    """Whether a folder may hold labels of several intervals, and its rows say of which."""
    time = ctx.job.features.time
    return (
        mixes_intervals(ctx.job.label_partition, ctx.job.cadence)
        and time in schema.names
        and canonical_type(schema.field(time).type) == _INSTANT
    )


def _check(
    ctx: JobContext, interval: Interval, path: str, schema: pa.Schema, rows: pa.Schema, columns: Sequence[str]
) -> None:
    """Raise `ContractViolation` naming everything in a label file's schema that the job cannot use."""
    job, problems = ctx.job, [f"column {name!r} is missing" for name in columns if name not in schema.names]
    kinds = {name: schema.field(name).type for name in columns if name in schema.names}
    for name in job.features.key:
        if name in kinds and rules.kind_of(canonical_type(kinds[name])) != rules.kind_of(rows.field(name).type):
            problems.append(f"key column {name!r} is {kinds[name]}, but {rows.field(name).type} in the features")
    if (at := job.labels.available_at) in kinds and canonical_type(kinds[at]) != _INSTANT:
        problems.append(f"column {at!r} is {kinds[at]}, not a time")
    allowed = _NUMBERS if job.task == "regression" else _CLASSES
    if (label := job.labels.column) in kinds and rules.kind_of(canonical_type(kinds[label])) not in allowed:
        problems.append(f"column {label!r} is {kinds[label]}, which cannot be the label of a {job.task} job")
    if problems:
        expected = f"columns {', '.join(columns)}, keys with the features' types"
        raise _unusable(ctx, interval, "; ".join(problems), expected, f"{', '.join(schema.names)} in {path}")


def _labelled(ctx: JobContext, table: pa.Table, within: Interval | None) -> pa.Table:
    """The rows with a label; with ``within`` only those of its time."""
    keep = pc.invert(pc.is_null(_plain(table[ctx.job.labels.column]), nan_is_null=True))
    if within is not None:
        happened = canonical(table[ctx.job.features.time])
        keep = pc.and_(keep, pc.greater_equal(happened, pa.scalar(within.start, _INSTANT)))
        keep = pc.and_(keep, pc.less(happened, pa.scalar(within.end, _INSTANT)))
    return table.filter(keep)


def _canonical(ctx: JobContext, interval: Interval, table: pa.Table, rows: pa.Schema) -> pa.Table:
    """Keys in the types that they have in ``rows``, the label in a type of its task, and the arrival."""
    job, labels = ctx.job, ctx.job.labels
    keys = _keys(table, job.features.key)
    columns = {name: keys[name].cast(canonical_type(rows.field(name).type), safe=False) for name in keys.column_names}
    values = _plain(table[labels.column])
    try:
        if job.task == "regression":
            values = values.cast(pa.float64(), safe=False)
        elif rules.kind_of(values.type) in rules.NUMERIC:
            # Classes with a missing one among them become floats on their way through pandas.
            values = values.cast(pa.int64())
        else:
            values = values.cast(canonical_type(values.type))
    except pa.ArrowInvalid as err:
        raise _unusable(
            ctx, interval, "a class is no whole number", "text, whole numbers or booleans", str(err)
        ) from err
    if pa.types.is_floating(values.type) and not pc.all(pc.is_finite(values)).as_py():
        raise _unusable(ctx, interval, "a label is infinite", "finite numbers", "infinity")
    arrived = canonical(table[labels.available_at]) if labels.available_at else pa.nulls(table.num_rows, _INSTANT)
    return pa.table({**columns, LABEL: values, _ARRIVED: arrived})


def _keys(table: pa.Table, key: Sequence[str]) -> pa.Table:
    return pa.table({name: canonical(table[name]) for name in key})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(plain_type(column.type))


def _contains(ordered: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the values are in the ordered, not empty array."""
    found: NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values
    return found


def _unusable(ctx: JobContext, interval: Interval, problem: str, expected: str, got: str) -> ContractViolation:
    name, labels = ctx.job.name, ctx.job.labels
    return ContractViolation(
        f"job {name!r}: the labels of {interval} in column {labels.column!r} under {labels.uri} cannot be used: {problem}",
        expected=expected,
        got=got,
        next_step=f"fix the labels, or 'labels' in the job file and 'pipeline check {name}'",
    )
