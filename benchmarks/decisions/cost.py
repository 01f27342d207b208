"""What a drift check of a million rows by fifty columns costs: seconds, and memory beyond the data.

``python -m benchmarks.decisions.cost`` prints it.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa

from pipeline import breakage, detectors, drift, engine
from pipeline.policies import Drift
from pipeline.steps.sampling import KeySample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.pooling import Kind

_BATCH = 65_536


def measure(rows: int = 1_000_000, columns: int = 50, *, repeats: int = 3, detector: str = "alibi") -> dict[str, Any]:
    """The fastest of ``repeats`` checks of a table in memory against a reference of the usual size."""
    policy = Drift(detector=detector)  # type: ignore[arg-type]
    table, reference = _table(rows, columns, 1), _table(policy.sample_rows, columns, 2)
    names = [name for name in table.column_names if name != "id"]
    kinds: dict[str, Kind] = {name: "category" if name.startswith("category") else "number" for name in names}
    usual = {name: _array(reference, name) for name in names}
    seconds, extra = [], []
    for _ in range(repeats):
        with _peak() as peak:
            started = time.perf_counter()
            _check(policy, table, usual, kinds)
            seconds.append(time.perf_counter() - started)
        extra.append(peak[0])
    return {"rows": rows, "columns": columns, "seconds": min(seconds), "beyond_the_data_mib": max(extra)}


def _check(policy: Drift, table: pa.Table, usual: dict[str, Any], kinds: dict[str, Kind]) -> None:
    sample = KeySample(["id"], policy.sample_rows)
    sketch: tuple[int, ...] = ()
    for batch in table.to_batches(_BATCH):
        sample.add(batch)
        sketch = breakage.sketch(engine.row_hashes(batch, list(kinds)), sketch)
    found = sample.table()
    assert found is not None
    current = {name: _array(found, name) for name in kinds}
    faults = breakage.find(usual, current, kinds, rows=table.num_rows, usual_rows=[table.num_rows] * 8, sketch=sketch)
    backend = detectors.detector(policy.detector)
    judged = drift.columns(
        policy,
        reference=usual,
        current=current,
        kinds=kinds,
        roles=dict.fromkeys(kinds, "feature"),
        p_values=backend.p_values(usual, current, kinds),
        natural={},
        faults=faults,
    )
    backend.separation(usual, current, kinds, rows=4_000, seed=0)
    drift.window(policy, len(current[next(iter(kinds))]), judged, None, faults)


def _table(rows: int, columns: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {"id": np.arange(rows)}
    for position in range(columns):
        if position % 5 == 4:
            codes = pa.array(rng.integers(0, 20, rows, dtype=np.int32))
            made[f"category_{position}"] = pa.DictionaryArray.from_arrays(
                codes, pa.array([f"level {level}" for level in range(20)])
            ).cast(pa.string())
        else:
            made[f"number_{position}"] = rng.normal(size=rows)
    return pa.table(made)


def _array(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    column = table[name]
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    numbers: np.ndarray[Any, Any] = column.to_numpy()
    return numbers


@contextmanager
def _peak() -> Iterator[list[float]]:
    """The largest growth of this process's memory meanwhile, in MiB."""
    process, found, done = psutil.Process(), [0.0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], (process.memory_info().rss - before) / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    import json

    print(json.dumps(measure(), indent=2))
