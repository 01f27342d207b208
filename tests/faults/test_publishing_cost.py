"""What trust costs: staging, proving and publishing a partition against writing the same table plainly and syncing it."""

from __future__ import annotations

import os
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import ROW_GROUP, Storage, Target
from pipeline.storage.staged import settings as own_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# What "plainly" may mean: as the library writes by itself, or with the product's own format.
PLAIN: dict[str, Callable[[pa.Schema], dict[str, Any]]] = {
    "ratio_to_defaults": lambda schema: {},
    "ratio_to_default_zstd": lambda schema: {"compression": "zstd"},
    "ratio_to_own_format": own_settings,
}


def predictions(rows: int, shuffled: bool) -> pa.Table:
    """A table such as scoring makes: only the key, the time and the score have much to say."""
    rng = np.random.default_rng(7)
    keys = rng.permutation(rows) if shuffled else np.arange(rows)
    times = np.sort(rng.integers(0, 86_400_000_000, rows)) + 1_767_225_600_000_000
    return pa.table(
        {
            "row_id": keys + 1_000_000_000,
            "event_ts": pa.array(times, pa.timestamp("us", "UTC")),
            "prediction": rng.integers(0, 2, rows),
            "score": rng.random(rows),
            "model_version": np.full(rows, 3, np.int32),
        }
    )


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def publish(storage: Storage, target: Target, table: pa.Table) -> None:
    with storage.stage(target, table.schema) as staged:
        for batch in table.to_batches(max_chunksize=ROW_GROUP):
            staged.write(batch)
        staged.publish(expected_rows=table.num_rows, unique=["row_id"])


def write_plainly(path: Path, table: pa.Table, settings: dict[str, Any]) -> None:
    pq.write_table(table, path, **settings)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("shuffled", [False, True], ids=["ascending_keys", "shuffled_keys"])
def test_publishing_costs_little_more_than_writing(
    scale: Callable[[Any, Any], Any], figures: Callable[..., None], tmp_path: Path, shuffled: bool
) -> None:
    rows, repetitions, limit = scale((200_000, 5, 1.6), (2_000_000, 15, 1.15))
    table, storage = predictions(rows, shuffled), Storage(tmp_path / "scratch")
    ratios: dict[str, list[float]] = {name: [] for name in PLAIN}
    published = []
    for repetition in range(repetitions + 1):
        target = Target(f"{tmp_path}/predictions", f"run={repetition}")
        took = seconds(lambda target=target: publish(storage, target, table))
        for name, settings in PLAIN.items():
            path = tmp_path / f"{repetition}-{name}.parquet"
            chosen = settings(table.schema)
            plainly = seconds(lambda path=path, chosen=chosen: write_plainly(path, table, chosen))
            if repetition:  # the first one warms up
                ratios[name].append(took / plainly)
                published.append(took)
    assert pq.read_metadata(target.uri).num_rows == pq.read_metadata(path).num_rows == rows
    figures(
        f"cost of publishing, {'shuffled' if shuffled else 'ascending'} keys",
        rows=rows,
        seconds=round(median(published), 3),
        **{name: round(median(values), 3) for name, values in ratios.items()},
    )
    assert median(ratios["ratio_to_defaults"]) <= limit, {name: sorted(values) for name, values in ratios.items()}
