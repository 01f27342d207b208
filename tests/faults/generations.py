"""A small data set that is overwritten again and again, and the proof that what was read of it is right.

Every row says which partition and generation it belongs to; the number of rows and every value follow from these.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.storage import ROW_GROUP, Target
from tests.faults.writers import Product

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from tests.faults.writers import Writer

    Ints = NDArray[np.int64]

PARTITIONS = 3
COLUMNS = ("part", "generation", "id", "value")
# One, two and three row groups of the product, so that the next file of a partition is laid out otherwise. Coprime with
# the partitions: each of them goes through all sizes.
_SIZES = (30_000, ROW_GROUP + 9_000, 700, 2 * ROW_GROUP + 11, 5_000, 50_000, 12_000)
_IDS_PER_GENERATION, _FACTOR = 10_000_000, 0x9E3779B97F4A7C15
_KEPT = timedelta(seconds=30)


def rows_of(generation: int) -> int:
    """How many rows a generation has."""
    return _SIZES[generation % len(_SIZES)]


def name_of(part: int) -> str:
    """The Hive string of a partition."""
    return f"ds=2026-01-{part + 1:02d}"


def table_of(part: int, generation: int) -> pa.Table:
    """All rows of one generation of one partition."""
    ids = _ids(generation)
    columns = {"part": np.full(len(ids), part), "generation": np.full(len(ids), generation)}
    return pa.table({**columns, "id": ids, "value": _values(ids)})


def _ids(generation: int) -> Ints:
    return np.arange(rows_of(generation), dtype=np.int64) + generation * _IDS_PER_GENERATION


def _values(ids: Ints) -> Ints:
    return (ids.astype(np.uint64) * np.uint64(_FACTOR)).view(np.int64)


def faults(part: int, columns: dict[str, Ints]) -> tuple[str, int]:
    """What is wrong with the rows that were read of one partition (empty: nothing), and the generation they are of."""
    generations = np.unique(columns["generation"])
    if len(generations) != 1:
        return f"partition {part} shows generations {generations.tolist()}", -1
    generation = int(generations[0])
    ids = np.sort(columns["id"])
    if len(ids) != rows_of(generation):
        return f"partition {part} shows {len(ids)} of {rows_of(generation)} rows of generation {generation}", generation
    if not np.array_equal(ids, _ids(generation)) or not np.array_equal(columns["value"], _values(columns["id"])):
        return f"partition {part} shows rows that generation {generation} does not have", generation
    return "", generation


@dataclass
class Tally:
    """What one reader met: reads by outcome, generations that it saw, and the first words about each kind of trouble."""

    counts: Counter[str] = field(default_factory=Counter)
    generations: set[tuple[int, int]] = field(default_factory=set)
    said: dict[str, str] = field(default_factory=dict)

    def count(self, outcome: str, said: str = "") -> None:
        self.counts[outcome] += 1
        self.said.setdefault(outcome, said)

    def add(self, other: Tally) -> None:
        self.counts += other.counts
        self.generations |= other.generations
        self.said = {**other.said, **self.said}


Read = dict[str, Any]


def with_pyarrow(path: str) -> Read:
    import pyarrow.dataset as ds

    table = ds.dataset(path, format="parquet", partitioning="hive").to_table(columns=list(COLUMNS))
    return {name: table[name].to_numpy() for name in COLUMNS}


def with_pandas(path: str) -> Read:
    import pandas as pd

    frame = pd.read_parquet(path)
    return {name: frame[name].to_numpy() for name in COLUMNS}


def with_duckdb(path: str) -> Read:
    import duckdb

    source = f"read_parquet('{_files(path)}', hive_partitioning=true)"
    with duckdb.connect() as connection:
        read: Read = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM {source}").fetchnumpy()
    return read


def with_polars(path: str) -> Read:
    import polars as pl

    frame = pl.scan_parquet(_files(path), hive_partitioning=True).select(COLUMNS).collect()
    return {name: frame[name].to_numpy() for name in COLUMNS}


def _files(path: str) -> str:
    return path if path.endswith(".parquet") else f"{path}/**/*.parquet"


READERS: dict[str, Callable[[str], Read]] = {
    "pyarrow": with_pyarrow,
    "pandas": with_pandas,
    "duckdb": with_duckdb,
    "polars": with_polars,
}


def prepare(orders: Connection, module: str) -> None:
    """Import a library, so that a reader does not spend its time on that."""
    import_module(module)


def reading(orders: Connection, reader: str, root: str, scratch: str | None) -> Tally:
    """Read until told to stop; with ``scratch`` through snapshots, otherwise all partitions at once from the root."""
    tally, storage = Tally(), Product(scratch).storage if scratch else None
    while not orders.poll():
        for part in range(PARTITIONS) if storage else [None]:
            try:
                path = root if part is None or storage is None else storage.snapshot(Target(root, name_of(part)))
                rows = READERS[reader](path)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # the panics of Rust are no Exception
                tally.count("errors", f"{type(error).__name__}: {error}")
            else:
                _judge(tally, rows, range(PARTITIONS) if part is None else [part])
    orders.recv()
    return tally


def _judge(tally: Tally, rows: Read, expected: range | list[int]) -> None:
    troubles = [] if set(np.unique(rows["part"])) <= set(expected) else ["rows of a partition that was not asked for"]
    for part in expected:
        mask = rows["part"] == part
        trouble, generation = faults(part, {name: rows[name][mask] for name in COLUMNS})
        tally.generations.add((part, generation))
        troubles += [trouble] if trouble else []
    tally.count("wrong" if troubles else "right", "; ".join(troubles))


def overwriting(orders: Connection, writer: Writer | None, root: str, first: int) -> tuple[int, int]:
    """Overwrite one partition after the other until told to stop, and sweep at times.

    Returns how many files really changed, and the next generation. Without a writer nothing happens.
    """
    changed, generation = 0, first
    while not orders.poll(0 if writer else 0.01):
        if writer:
            part = generation % PARTITIONS
            before = _state(root, part)
            writer.publish(root, name_of(part), table_of(part, generation))
            changed += _state(root, part) != before
            generation += 1
            if isinstance(writer, Product) and generation % 50 == 0:
                writer.sweep(root, datetime.now(UTC) - _KEPT)
    orders.recv()
    return changed, generation


def _state(root: str, part: int) -> tuple[int, int, int]:
    status = Path(root, name_of(part), "part-0.parquet").stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
