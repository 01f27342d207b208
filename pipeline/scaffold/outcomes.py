"""What the labels tell: the outcomes of the sampled rows, how late they arrive, and whether they fit the task.

Must not use an outcome for anything but its kind, its number and its arrival.
"""

from __future__ import annotations

from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InvalidRequest
from pipeline.rules import NUMERIC, kind_of
from pipeline.scaffold.sample import joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.intervals import Cadence, Interval
    from pipeline.scaffold.request import Request
    from pipeline.scaffold.sample import Dataset, Rows

_READERS = 4
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
# How long after an interval's end it may be evaluated; whole hours and days that people recognise.
_LADDER = (
    *(count * _HOUR for count in (0, 1, 2, 3, 6, 12)),
    *(count * _DAY for count in (1, 2, 3, 7, 14, 30, 60, 90, 180, 365)),
)
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Outcomes:
    """Labels of sampled rows: ``rows`` has the columns ``time``, ``label`` and, if arrivals are recorded, ``available_at``."""

    rows: pa.Table
    share: float

    @classmethod
    def of(cls, features: Dataset, sampled: Sequence[Rows], labels: Dataset, request: Request) -> Outcomes:
        """The labels of the sampled rows, joined by the key within each folder; raises `InvalidRequest` without any."""
        if labels.uri == features.uri:
            rows = _renamed(joined(sampled), {request.time: "time", **_answers(request)})
        else:
            rows = _matched(features, sampled, labels, request)
        rows = rows.filter(_known(rows["label"]))
        if not len(rows):
            raise InvalidRequest(
                f"no sampled row of {features.uri} has a label in column {request.label!r} of {labels.uri}",
                expected="labels with the same key values as the features",
                got=f"{sum(len(sample.table) for sample in sampled)} rows without a label",
                next_step="check the key columns, the label column and the labels' folders",
            )
        return cls(rows, len(rows) / sum(len(sample.table) for sample in sampled))

    def check_task(self, request: Request) -> None:
        """Raise `InvalidRequest` when the labels are not of the kind that the task predicts."""
        label = self.rows["label"]
        kind, classes = kind_of(label.type), pc.count_distinct(label).as_py()
        fraction = kind in ("float", "decimal") and not _whole(label)
        other = "regression" if fraction or (kind in NUMERIC and classes > _MOST_CLASSES) else "multiclass"
        problem = ""
        if request.task == "regression":
            other = "binary" if classes == 2 else "multiclass"
            problem = "" if kind in NUMERIC else f"{kind} values"
        elif classes < 2:
            problem, other = "a single class", ""
        elif request.task == "binary" and classes > 2:
            problem = f"{classes} different values"
        elif fraction or classes > _MOST_CLASSES:
            problem = f"{classes} different values" + (", some of them fractions" if fraction else "")
        if problem:
            raise InvalidRequest(
                f"label column {request.label!r} does not fit task {request.task!r}",
                expected={"regression": "numbers", "binary": "two classes", "multiclass": "two classes or more"}[
                    request.task
                ],
                got=problem,
                next_step=f"pass --task {other}, or another --label" if other else "pass another --label, or more data",
            )

    def mature_after(self, request: Request) -> timedelta:
        """The shortest usual delay after an interval's end by which 99 % of its labels have arrived."""
        if request.delay is not None:
            late = request.delay
        else:
            arrived = microseconds(self.rows["available_at"], str(request.available_at))
            ends = _interval_ends(microseconds(self.rows["time"], request.time), request.cadence)
            known = ~np.isnan(arrived) & ~np.isnan(ends)
            late = (
                timedelta(microseconds=float(np.quantile((arrived - ends)[known], 0.99)))
                if known.any()
                else timedelta(0)
            )
        return next((step for step in _LADDER if step >= late), timedelta(days=late.days + 1))


def microseconds(column: pa.ChunkedArray, name: str) -> NDArray[np.float64]:
    """Times as microseconds since 1970 (UTC), NaN where missing; raises `InvalidRequest` for anything but times."""
    if kind_of(column.type) != "time":
        raise InvalidRequest(
            f"column {name!r} holds {column.type} values",
            expected="a timestamp (without a zone it is read as UTC) or a date",
            next_step="name another column, or write it as a timestamp",
        )
    whole = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False).cast(pa.int64())
    return np.asarray(whole.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def _answers(request: Request) -> dict[str, str]:
    return dict(zip(request.answer_columns, ("label", "available_at"), strict=False))


def _renamed(table: pa.Table, names: dict[str, str]) -> pa.Table:
    return pa.table({new: table[old] for old, new in names.items()})


def _known(label: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.invert(pc.is_null(label, nan_is_null=True))


def _whole(label: pa.ChunkedArray) -> bool:
    numbers = label.cast(pa.float64(), safe=False)
    return bool(pc.all(pc.equal(numbers, pc.round(numbers))).as_py())


def _matched(features: Dataset, sampled: Sequence[Rows], labels: Dataset, request: Request) -> pa.Table:
    # Keys are unique within a folder only, so folder by folder where both sides have folders of time.
    groups: dict[Interval | None, list[Rows]] = {}
    for sample in sampled:
        groups.setdefault(features.span(sample.file) if labels.template else None, []).append(sample)

    def match(group: tuple[Interval | None, list[Rows]]) -> pa.Table | None:
        span, samples = group
        files = _overlapping(labels, span)
        if not files:
            return None
        left = _renamed(joined(samples), {**_numbered(request.key), request.time: "time"})
        found = labels.read(files, columns=[*request.key, *request.answer_columns])
        right = _renamed(joined(found), {**_numbered(request.key), **_answers(request)})
        keys = list(_numbered(request.key).values())
        return left.join(_cast_keys(right, left, request.key), keys=keys, join_type="inner").drop_columns(keys)

    with ThreadPoolExecutor(_READERS) as readers:
        tables = [table for table in readers.map(match, groups.items()) if table is not None]
    if tables:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    return pa.table({name: pa.array([], pa.null()) for name in ("time", "label", "available_at")})


def _numbered(key: Sequence[str]) -> dict[str, str]:
    return {name: f"key{index}" for index, name in enumerate(key)}


def _cast_keys(right: pa.Table, left: pa.Table, key: Sequence[str]) -> pa.Table:
    for name, column in _numbered(key).items():
        try:
            right = right.set_column(right.column_names.index(column), column, right[column].cast(left[column].type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
            raise InvalidRequest(
                f"key column {name!r} is {left[column].type} in the features and {right[column].type} in the labels",
                expected="the same type in both",
                next_step="write the key with one type",
            ) from err
    return right


def _overlapping(labels: Dataset, span: Interval | None) -> list[str]:
    if span is None:
        return list(labels.files)
    # Files are in order of time and their folders cover equally long, disjoint stretches.
    starts = [covered.start for file in labels.files if (covered := labels.span(file))]
    last = bisect_left(starts, span.end)
    first = last
    while first > 0 and (covered := labels.span(labels.files[first - 1])) and covered.end > span.start:
        first -= 1
    return list(labels.files[first:last])


def _interval_ends(times: NDArray[np.float64], cadence: Cadence) -> NDArray[np.float64]:
    # The grid's lines fall on whole minutes; there are far fewer minutes than rows.
    minutes, place = np.unique(np.floor(times / 60e6), return_inverse=True)
    ends = [
        np.nan
        if np.isnan(minute)
        else cadence.next(cadence.floor(datetime.fromtimestamp(minute * 60, UTC))).timestamp()
        for minute in minutes
    ]
    return np.asarray(ends, dtype=np.float64)[place] * 1e6
