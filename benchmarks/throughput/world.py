"""The job that is measured: generated partitions of any size with a key, a time, 14 numbers and 6 categories.

Everything is drawn from a seed, chunk by chunk, so that a hundred million rows need no more memory than a million.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.runtime import Runtime
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.job import JobSpec

NUMBERS = tuple(f"n{index:02d}" for index in range(14))
# How many different values each category has.
CATEGORIES = {"c00": 3, "c01": 8, "c02": 25, "c03": 60, "c04": 150, "c05": 400}
FEATURES = (*NUMBERS, *CATEGORIES)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
TRAINED_DAYS, TRAINED_ROWS = 4, 50_000
# The day that is scored.
SCORED = FIRST + timedelta(days=TRAINED_DAYS)
_CHUNK = 500_000
_DAY_SECONDS = 86_400

_JOB = """\
name: throughput
task: binary
schedule: {{interval: 1d, start: 2026-01-01T00:00:00Z}}
features:
  uri: features
  key: [row_id]
  time: event_ts
  columns:
{columns}
labels: {{uri: labels, column: outcome, delay: PT1H}}
model: {{trainer: "{trainer}", trusted_types: [sklearn.tree._tree.Tree]}}
promote: {{mode: enabled}}
"""


def prepare(folder: Path, rows: int, trainer: str = "gradient_boosting") -> JobSpec:
    """A deployment in ``folder`` with a champion, and the partition `SCORED` of ``rows`` rows; what is there stays.

    Another trainer needs another folder.
    """
    kinds = dict.fromkeys(NUMBERS, "number") | dict.fromkeys(CATEGORIES, "category")
    columns = "\n".join(f"    {name}: {{type: {kind}}}" for name, kind in kinds.items())
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "throughput.yaml"
    file.write_text(_JOB.format(columns=columns, trainer=trainer))
    for number in range(TRAINED_DAYS):
        write(folder, FIRST + timedelta(days=number), TRAINED_ROWS, labels=True)
    write(folder, SCORED, rows)
    with Runtime(settings(folder)) as runtime:
        job = runtime.job(str(file))
        if not runtime.registry.versions(job.model_name):
            runtime.retrain(job, SCORED, bootstrap=True)
        return job


def settings(folder: Path) -> Settings:
    """The deployment in ``folder``."""
    return Settings.in_home(folder / "home", jobs=folder)


def partition(folder: Path, day: datetime) -> Path:
    """The file with the features of one day."""
    return folder / "features" / f"ds={day:%Y-%m-%d}" / "part-0.parquet"


def write(folder: Path, day: datetime, rows: int, *, labels: bool = False) -> None:
    """One day's features, and its labels where they are wanted; a file with as many rows is left alone."""
    path = partition(folder, day)
    if path.exists() and pq.read_metadata(path).num_rows == rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with pq.ParquetWriter(path, _chunk(day, 0, 1)[0].schema, compression="zstd") as writer:
        for start in range(0, rows, _CHUNK):
            table, outcome = _chunk(day, start, min(_CHUNK, rows - start))
            writer.write_table(table)
            outcomes.append(outcome if labels else outcome[:0])
    if labels:
        answers = folder / "labels" / path.parent.name / "part-0.parquet"
        answers.parent.mkdir(parents=True, exist_ok=True)
        outcome = np.concatenate(outcomes)
        ids = pa.array(np.arange(rows) + _first_id(day))
        stamps = pa.array(_times(day, np.arange(rows)), pa.timestamp("us", "UTC"))
        table = pa.table({"row_id": ids, "event_ts": stamps, "outcome": outcome})
        with pq.ParquetWriter(answers, table.schema) as writer:
            writer.write_table(table)


def _chunk(day: datetime, start: int, rows: int) -> tuple[pa.Table, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    rng = np.random.default_rng([day.toordinal(), start])
    index = np.arange(start, start + rows)
    columns = {
        "row_id": pa.array(index + _first_id(day)),
        "event_ts": pa.array(_times(day, index), pa.timestamp("us", "UTC")),
    }
    logit = np.full(rows, -0.5)
    for position, name in enumerate(NUMBERS):
        # Measurements with a few decimals, skewed amounts, and counts.
        if position % 3 == 0:
            values = np.round(rng.normal(size=rows), 3)
        elif position % 3 == 1:
            values = np.round(rng.lognormal(sigma=1.0, size=rows), 2)
        else:
            values = rng.poisson(5, rows).astype(np.float64)
        logit += 0.4 * np.sin(values + position)
        columns[name] = pa.array(values, mask=rng.random(rows) < 0.01 * (position % 4))
    for name, levels in CATEGORIES.items():
        codes = (levels * rng.random(rows) ** 2).astype(np.int32)
        logit += 0.3 * np.cos(codes * 1.7)
        texts = pa.array([f"{name}-{code:03d}" for code in range(levels)])
        columns[name] = pa.DictionaryArray.from_arrays(pa.array(codes), texts).dictionary_decode()
    outcome = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    return pa.table(columns), outcome


def _first_id(day: datetime) -> int:
    return day.toordinal() * 10**9


def _times(
    day: datetime, index: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Microseconds since 1970, thousand rows per second of the day, over and over."""
    second = index // 1000 % _DAY_SECONDS
    return (int(day.timestamp()) + second) * 10**6 + index % 1000
