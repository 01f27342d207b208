"""A complete, commented job file, inferred from the data that the job is to score.

Reads a bounded sample, deterministically. Must not use anything that lies only in the labels as a feature.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from pydantic import ValidationError

from pipeline.errors import InvalidRequest
from pipeline.intervals import granule
from pipeline.job import JobSpec
from pipeline.rules import kind_of
from pipeline.scaffold.columns import Clock, Feature, LeftOut, judge
from pipeline.scaffold.layout import instant
from pipeline.scaffold.outcomes import Outcomes, microseconds
from pipeline.scaffold.pace import Pace, length
from pipeline.scaffold.request import Request, cadence_of, require_columns
from pipeline.scaffold.sample import Dataset, joined, spread
from pipeline.scaffold.text import Findings, job_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.intervals import Cadence
    from pipeline.policies import Task
    from pipeline.scaffold.sample import Rows

__all__ = ["scaffold"]

_FILES = 240
_ROWS = 240_000


def scaffold(
    name: str,
    *,
    features: str,
    key: Sequence[str],
    time: str,
    label: str,
    task: Task,
    interval: str,
    labels: str | None = None,
    available_at: str | None = None,
    delay: timedelta | None = None,
    exclude: Sequence[str] = (),
    relative_to: Path | None = None,
) -> str:
    """The YAML text of a job file for Parquet data at two paths or fsspec URIs; the labels default to the features' place.

    At most 240 files are read, spread over all of time with the first and the last, and of those some 240,000 rows; the
    same data gives the same text. Local paths are written relative to ``relative_to``, the folder of the job file, or
    absolute without it. Raises `InvalidRequest` for missing columns, no data, and labels that do not fit the task.
    """
    request = Request(name, tuple(key), time, label, task, cadence_of(interval), available_at, delay, tuple(exclude))
    source = Dataset.open(features)
    answers = source if labels is None or _same(labels, features) else Dataset.open(labels)
    samples = _sample(source, request)
    rows = joined(samples)
    label_columns = _check_columns(rows, source, answers, request)

    outcomes = Outcomes.of(source, samples, answers, request)
    outcomes.check_task(request)
    pace = Pace.of(request.cadence)
    times = microseconds(rows[time], time)
    columns = _judge(rows, times, label_columns, request, pace)
    per_interval = _rows_per_interval(source, samples, times, request.cadence)
    text = job_file(
        request,
        Findings(
            features_uri=_written(features, relative_to),
            features_partition=source.template,
            labels_uri=_written(features if labels is None else labels, relative_to),
            labels_partition=answers.template,
            start=_start(source, samples, request),
            columns=columns,
            mature_after=outcomes.mature_after(request),
            rows=per_interval,
            labelled=per_interval * outcomes.share,
            pace=pace,
            intervals_per_training=pace.training / length(request.cadence),
            intervals_per_holdout=pace.holdout / length(request.cadence),
        ),
    )
    _require_valid(text)
    return text


def _same(labels: str, features: str) -> bool:
    return os.path.normpath(_written(labels, None)) == os.path.normpath(_written(features, None))


def _written(uri: str, relative_to: Path | None) -> str:
    if "://" in uri:
        return uri
    return str(Path(uri).absolute()) if relative_to is None else os.path.relpath(uri, relative_to)


def _sample(source: Dataset, request: Request) -> list[Rows]:
    files = [source.files[index] for index in spread(len(source.files), _FILES)]
    samples = [sample for sample in source.read(files, rows=max(1, _ROWS // len(files))) if len(sample.table)]
    if not samples:
        raise InvalidRequest(
            f"the Parquet files below {source.uri} have no rows",
            expected="data to infer a job from",
            got=f"{len(files)} empty files",
            next_step="run again when there is data",
        )
    return samples


def _check_columns(rows: pa.Table, source: Dataset, answers: Dataset, request: Request) -> list[str]:
    """The columns of the labels, or only the answers where labels and features are one; everything needed is there."""
    there = f"the data at {source.uri}"
    require_columns(there, (*request.key, request.time), rows.column_names)
    for name in request.key:
        if kind_of(rows[name].type) not in ("integer", "text"):
            raise InvalidRequest(
                f"key column {name!r} holds {rows[name].type} values",
                expected="integers or text",
                next_step="name other key columns",
            )
    if answers is source:
        require_columns(there, (*request.answer_columns, *request.exclude), rows.column_names)
        return list(request.answer_columns)
    found = answers.schema(answers.files[-1]).names
    require_columns(f"the labels at {answers.uri}", (*request.key, *request.answer_columns), found)
    require_columns(there, request.exclude, [*rows.column_names, *found])
    return list(found)


def _judge(
    rows: pa.Table, times: NDArray[np.float64], label_columns: Sequence[str], request: Request, pace: Pace
) -> tuple[Feature | LeftOut, ...]:
    reasons = dict.fromkeys(label_columns, "lies in the labels: it may tell the outcome")
    reasons |= dict(zip(request.answer_columns, ("the label", "when the label became known"), strict=False))
    reasons |= dict.fromkeys(request.exclude, "excluded on request")
    reasons |= dict.fromkeys(request.key, "the key") | {request.time: "the event time"}
    instants = np.full(len(times), np.datetime64("NaT"), dtype="datetime64[us]")
    known = ~np.isnan(times)
    instants[known] = times[known].astype(np.int64).astype("datetime64[us]")
    clock = Clock(instants, pace.training)
    names = [*rows.column_names, *(name for name in label_columns if name not in rows.column_names)]
    columns = tuple(
        LeftOut(name, reasons[name]) if name in reasons else judge(name, rows[name], clock) for name in names
    )
    left_out = [column for column in columns if isinstance(column, LeftOut)]
    if len(left_out) == len(columns):
        raise InvalidRequest(
            "no column is left to learn from",
            got="; ".join(f"{column.name}: {column.reason}" for column in left_out),
            expected="at least one number, text or boolean column besides key, time and labels",
            next_step="exclude less, or add columns to the data",
        )
    return columns


def _rows_per_interval(source: Dataset, samples: Sequence[Rows], times: NDArray[np.float64], cadence: Cadence) -> float:
    folder = granule(source.template)
    if folder is None:
        total = np.mean([sample.total for sample in samples]) * len(source.files)
        return float(
            total / max(1.0, float(np.nanmax(times) - np.nanmin(times)) / 1e6 / length(cadence).total_seconds())
        )
    files = Counter(instant(file, source.template) for file in source.files)
    rows = [sample.total * files[instant(sample.file, source.template)] for sample in samples]
    return float(np.median(rows)) * (length(cadence) / length(folder))


def _start(source: Dataset, samples: Sequence[Rows], request: Request) -> datetime:
    """The first interval that has data; a folder's name counts more than what its rows say."""
    span = source.span(samples[0].file)
    first = [sample.table[request.time] for sample in (samples if span is None else samples[:1])]
    known = [value for column in first for value in microseconds(column, request.time) if not np.isnan(value)]
    earliest = datetime.fromtimestamp(min(known) / 1e6, UTC) if known else None
    if span is not None:
        earliest = span.start if earliest is None or not span.start <= earliest < span.end else earliest
    if earliest is None:
        raise InvalidRequest(
            f"time column {request.time!r} has no value in {source.uri}",
            expected="event times",
            next_step="name another column with --time",
        )
    return request.cadence.floor(earliest)


def _require_valid(text: str) -> None:
    document = json.dumps(yaml.safe_load(text), default=datetime.isoformat)
    try:
        JobSpec.model_validate_json(document)
    except ValidationError as err:
        found = [f"{'.'.join(map(str, problem['loc']))} {problem['msg']}" for problem in err.errors()]
        raise InvalidRequest(
            "these columns and choices do not make a valid job",
            expected="a job that 'pipeline check' accepts",
            got="; ".join(found),
            next_step="rename the columns in question, or choose others",
        ) from err
