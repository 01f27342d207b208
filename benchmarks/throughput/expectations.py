"""``python -m benchmarks.throughput.expectations``: processor time and memory of a suite of expectations on a partition.

A suite of 20 typical expectations on 20 columns is judged by this product, piece by piece, and by Great Expectations on pandas
with all rows in memory, each in a process of its own; the verdicts must be equal. Reading the data is not counted. Figures go to
``benchmarks/out/expectations.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.expectations import Evidence, library, validate
from pipeline.intervals import Interval
from pipeline.job import JobSpec
from pipeline.storage.spill import Roll

if TYPE_CHECKING:
    from collections.abc import Iterator

_OUT = Path(__file__).parents[2] / "benchmarks" / "out" / "expectations.json"
_START = datetime(2026, 1, 1, tzinfo=UTC)
_BATCH = 131_072
_NUMBERS = [f"n{number}" for number in range(12)]
_TEXTS = [f"c{number}" for number in range(6)]


def main() -> None:
    """Measure both, compare their verdicts, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput.expectations", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 1_000_000, 4_000_000])
    parser.add_argument("--most-in-memory", type=int, default=1_000_000, help="rows that are also judged on one frame")
    options = parser.parse_args()
    found = [_size(rows, in_memory=rows <= options.most_in_memory) for rows in options.rows]
    _OUT.parent.mkdir(parents=True, exist_ok=True)
    _OUT.write_text(json.dumps(found, indent=2) + "\n")


def suite() -> list[dict[str, Any]]:
    """Twenty expectations such as jobs declare."""
    declared: list[tuple[str, dict[str, Any]]] = [
        *(
            ("expect_column_values_to_be_between", {"column": f"n{n}", "min_value": -9, "max_value": 9})
            for n in range(4)
        ),
        *(("expect_column_values_to_be_in_set", {"column": f"c{n}", "value_set": list("abcdefgh")}) for n in range(3)),
        ("expect_column_values_to_match_regex", {"column": "c3", "regex": "^[a-h]$"}),
        ("expect_column_value_lengths_to_equal", {"column": "c4", "value": 1}),
        ("expect_column_distinct_values_to_be_in_set", {"column": "c5", "value_set": list("abcdefgh")}),
        *(("expect_column_mean_to_be_between", {"column": f"n{n}", "min_value": -1, "max_value": 1}) for n in (4, 5)),
        ("expect_column_stdev_to_be_between", {"column": "n5", "min_value": 0.5, "max_value": 2}),
        ("expect_column_median_to_be_between", {"column": "n6", "min_value": -1, "max_value": 1}),
        ("expect_column_min_to_be_between", {"column": "n7", "min_value": -9}),
        ("expect_column_max_to_be_between", {"column": "n8", "max_value": 9}),
        ("expect_column_sum_to_be_between", {"column": "n9", "min_value": -1e9, "max_value": 1e9}),
        ("expect_column_values_to_not_be_null", {"column": "n10", "mostly": 0.5}),
        ("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "n10", "column_B": "n11", "mostly": 0.1}),
        ("expect_column_unique_value_count_to_be_between", {"column": "c0", "max_value": 20}),
    ]
    return [{"type": kind, "kwargs": kwargs} for kind, kwargs in declared]


def batches(rows: int) -> Iterator[pa.RecordBatch]:
    """The partition: keys, times, 12 numbers, 6 coded texts; the same for a number of rows."""
    rng = np.random.default_rng(rows)
    for start in range(0, rows, _BATCH):
        count = min(_BATCH, rows - start)
        codes = {name: pa.array(rng.integers(0, 8, count), pa.int32()) for name in _TEXTS}
        yield pa.record_batch(
            {
                "row_id": np.arange(start, start + count),
                "event_ts": pa.array(rng.integers(0, 86_400, count), pa.timestamp("s", "UTC")),
                **{name: rng.normal(size=count) for name in _NUMBERS},
                **{
                    name: pa.DictionaryArray.from_arrays(code, pa.array(list("abcdefgh")))
                    for name, code in codes.items()
                },
            }
        )


def _job() -> JobSpec:
    columns = {name: {"type": "number"} for name in _NUMBERS} | {name: {"type": "category"} for name in _TEXTS}
    document = {
        "name": "suite",
        "task": "binary",
        "schedule": {"interval": "1d", "start": "2026-01-01T00:00:00Z"},
        "features": {"uri": "features", "key": ["row_id"], "time": "event_ts", "columns": columns},
        "labels": {"uri": "labels", "column": "label", "available_at": "label_available_at"},
        "checks": {"expectations": suite()},
    }
    return JobSpec.model_validate_json(json.dumps(document))


def _in_pieces(rows: int) -> dict[str, Any]:
    job, interval = _job(), Interval(_START, _START + timedelta(days=1))
    with TemporaryDirectory() as folder:
        library.types()

        def judged() -> tuple[float, float, list[bool]]:
            collected = 0.0
            evidence: Evidence | None = None
            for batch in batches(rows):
                began = time.process_time()
                evidence = evidence or Evidence(job, batch.schema, lambda: Roll(Path(folder)))
                evidence.add(batch)
                collected += time.process_time() - began
            assert evidence is not None
            began = time.process_time()
            results, _ = validate(job, interval, evidence, rows_in=rows, rows_quarantined=0, reasons={})
            told = time.process_time() - began
            return collected, told, [result.success for result in results[-len(suite()) :]]

        judged()
        collected, told, verdicts = min(judged() for _ in range(3))
    return _figures(rows, collected + told, verdicts) | {"collecting": collected, "answering": told}


def _on_a_frame(rows: int) -> dict[str, Any]:
    job, table = _job(), pa.Table.from_batches(batches(rows))
    expectations = [library.built(job, declared) for declared in job.checks.expectations]
    library.asked(expectations, library.frame(table.slice(0, 1000)))
    began = time.process_time()
    answers = library.asked(expectations, library.frame(table))
    return _figures(rows, time.process_time() - began, [bool(answer.success) for answer in answers])


def _figures(rows: int, seconds: float, verdicts: list[bool]) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": seconds, "cpu_per_million_rows": seconds / rows * 1e6, "peak_mb": peak, "verdicts": verdicts}


def _size(rows: int, *, in_memory: bool) -> dict[str, Any]:
    ways = {"product": _in_pieces} | ({"great_expectations": _on_a_frame} if in_memory else {})
    measured = {}
    for name, way in ways.items():
        # A new process each: memory is what this way takes, not what another left.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured[name] = pool.apply(way, (rows,))
        figures = measured[name]
        per_million = f"{figures['cpu_per_million_rows']:8.2f} s per million rows"
        print(f"{name:20} {rows:>12,} rows  {figures['cpu']:8.3f} s  {per_million}  {figures['peak_mb']:6,.0f} MB")
    if len({tuple(one["verdicts"]) for one in measured.values()}) != 1:
        raise SystemExit(f"the verdicts on {rows:,} rows differ: {measured}")
    return {"rows": rows, **measured}


if __name__ == "__main__":
    main()
