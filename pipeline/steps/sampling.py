"""Bounded, deterministic samples of streams of record batches, in one set of types whatever types the files have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline import engine
from pipeline.errors import ContractViolation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.job import JobSpec

_INSTANT = pa.timestamp("us", "UTC")


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values that a dictionary type encodes; any other type itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def canonical_type(kind: pa.DataType) -> pa.DataType:
    """The one type in which values of related types are compared as keys or labels.

    int64 for integers of any width (a uint64 stays one), string for text, timestamp[us, UTC] for times (without a zone:
    UTC); any other type itself.
    """
    kind = plain_type(kind)
    if pa.types.is_integer(kind):
        return pa.uint64() if kind == pa.uint64() else pa.int64()
    if pa.types.is_large_string(kind) or pa.types.is_string(kind) or kind == pa.string_view():
        return pa.string()
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _INSTANT
    return kind


def canonical(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in its `canonical_type`; a time finer than a microsecond is rounded down."""
    kind = canonical_type(column.type)
    if kind == _INSTANT and getattr(column.type, "tz", None) is None:
        # From a time without a zone, a cast to UTC is no conversion.
        column = column.cast(pa.timestamp("us"), safe=False)
    return column if column.type == kind else column.cast(kind, safe=kind != _INSTANT)


def comparable(job: JobSpec, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Key, time and feature columns of the job, each in one type whatever the types of the files.

    Keys and time have their `canonical_type`; features what `pipeline.engine.to_frame` makes of them: float64 for numbers
    and booleans, string for categories, both with null for missing.
    """
    identity = dict.fromkeys((*job.features.key, job.features.time))
    for batch in batches:
        table = pa.Table.from_batches([batch])
        columns = {name: canonical(table[name]) for name in identity}
        frame = engine.to_frame(table, job.features.columns)
        for name, column in job.features.columns.items():
            kind = pa.string() if column.type == "category" else pa.float64()
            columns[name] = pa.array(frame[name].to_numpy(), kind, from_pandas=True)
        yield pa.table(columns)


class KeySample:
    """The rows whose keys hash lowest: at most ``size`` rows, the same ones whatever the order or batching.

    Bottom-k sampling by key hash: uniform over keys, and memory stays at a small multiple of ``size`` rows. With
    ``size`` rows or fewer everything is kept. Rows stay in the order of arrival. ``seen`` counts the rows offered.

    With keys that differ, no share of rows, of any column up to any value, is off by more than sqrt(ln(2 / 0.05) / (2 size))
    with 95 % confidence: the inequality of Dvoretzky, Kiefer and Wolfowitz with the constant of Massart (1990, Annals of
    Probability 18), for independent draws; for any one share drawing without replacement does no worse (Hoeffding 1963).
    """

    def __init__(self, key: Sequence[str], size: int, seed: int = 0) -> None:
        self._key, self._size, self._seed = key, size, seed
        self._batches: list[pa.Table] = []
        self._hashes: list[NDArray[np.uint64]] = []
        self._held = 0
        # The highest hash of a full sample: with as many rows below or at it, no row above it can be one of the lowest.
        self._limit: np.uint64 | None = None
        self.seen = 0

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Offer rows; raises `ContractViolation` when their schema, dictionaries aside, is not that of the rows before."""
        hashes = engine.row_hashes(rows, self._key, self._seed)
        self.seen += len(hashes)
        if self._limit is not None and self._batches:
            # What hashes higher than enough rows do is never kept; most rows of a large partition end here.
            below = np.flatnonzero(hashes < self._limit)
            rows, hashes = rows.take(pa.array(below)), hashes[below]
        table = _plain(rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows]))
        if self._batches and not table.schema.equals(self._batches[0].schema):
            raise _mixed(self._batches[0].schema, table.schema)
        if table.num_rows == 0 and self._batches:
            return
        self._batches.append(table)
        self._hashes.append(hashes)
        self._held += table.num_rows
        if self._held > 2 * self._size:
            self._prune()

    def table(self) -> pa.Table | None:
        """The sample; ``None`` when nothing was ever offered."""
        if self._held > self._size:
            self._prune()
        return pa.concat_tables(self._batches) if self._batches else None

    def _prune(self) -> None:
        hashes = np.concatenate(self._hashes)
        limit = np.partition(hashes, self._size - 1)[self._size - 1]
        below, at_limit = np.flatnonzero(hashes < limit), np.flatnonzero(hashes == limit)
        # Equal keys have equal hashes; of those at the limit the first to arrive stay.
        kept = np.sort(np.concatenate([below, at_limit[: self._size - len(below)]]))
        self._batches = [pa.concat_tables(self._batches).take(pa.array(kept)).combine_chunks()]
        self._hashes = [hashes[kept]]
        self._held = len(kept)
        self._limit = limit


def _plain(rows: pa.Table) -> pa.Table:
    """The same rows without dictionaries, which are another one in every batch."""
    if not any(pa.types.is_dictionary(kind) for kind in rows.schema.types):
        return rows
    return rows.cast(
        pa.schema([field.with_type(plain_type(field.type)) for field in rows.schema], rows.schema.metadata)
    )


def _mixed(first: pa.Schema, other: pa.Schema) -> ContractViolation:
    changed = [name for name in first.names if name not in other.names or first.field(name) != other.field(name)]
    return ContractViolation(
        "partitions disagree about the types of their columns",
        expected=", ".join(f"{name}: {first.field(name).type}" for name in changed) or str(first),
        got=", ".join(f"{name}: {other.field(name).type}" for name in changed if name in other.names) or str(other),
        next_step="have the producer write one type, and the differing partitions again",
    )
