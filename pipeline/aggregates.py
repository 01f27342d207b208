"""Aggregates of columns that are never held whole: what numpy and pandas say of the column in one piece, to the last bit.

Numbers go to a `Roll` once there are many; sums are taken in numpy's own order, order statistics are found digit by digit.
Distinct values are counted, and partitioned by their hash when there are many. Must not open files: a roll is given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.keys import hashed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    MakeRoll = Callable[[], "Roll"]

# Numbers that are read at once, and held before they go to a roll: 2 MiB.
_PIECE = 1 << 18
# Distinct values that are held, and parts that they are spread over afterwards.
_HELD_BYTES = 8 << 20
_PARTS = 256
# Grouped batches are merged when they have as many rows as what is merged already, and at least so many.
_LEAST_MERGED = 1 << 17
# numpy's buffer: so many numbers take part in one pairwise sum.
_TAKEN = 8192
_COUNT = "rows counted"
INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")


class Roll(Protocol):
    """Room for bytes outside of this process's memory, written once at the end and read anywhere."""

    def append(self, data: memoryview) -> int:
        """Where the bytes begin that were added."""

    def read(self, start: int, size: int) -> bytes:
        """Bytes that were added."""


class Numbers:
    """A column of floats of 32 or 64 bits; NaN for a missing value.

    ``len`` counts the rows, ``present`` those that are not NaN.
    """

    def __init__(self, roll: MakeRoll) -> None:
        self._make = roll
        self._roll: Roll | None = None
        self._held: list[NDArray[Any]] = []
        self._waiting = self._rolled = self.present = 0
        self._kind = np.dtype(np.float64)

    def __len__(self) -> int:
        return self._rolled + self._waiting

    def add(self, values: NDArray[Any]) -> None:
        """Add values, all of one type in every call."""
        self._kind = values.dtype
        self._held.append(values)
        self._waiting += len(values)
        self.present += len(values) - int(np.count_nonzero(np.isnan(values)))
        if self._waiting >= _PIECE:
            self._roll = self._roll or self._make()
            self._roll.append(memoryview(np.concatenate(self._held)).cast("B"))
            self._rolled, self._held, self._waiting = len(self), [], 0

    def pieces(self) -> Iterator[NDArray[Any]]:
        """The values in their order, a quarter of a million at a time."""
        for start in range(0, len(self), _PIECE):
            yield self._piece(start, min(_PIECE, len(self) - start))

    def sum(self) -> Any:
        """The sum of what is there, as pandas adds it up."""
        return self._added(_filled, self._kind)

    def mean(self) -> Any:
        """The arithmetic mean of what is there, as pandas computes it; NaN of nothing."""
        if not self.present:
            return math.nan
        return self.sum() / self._kind.type(self.present)

    def deviation(self) -> Any:
        """The sample standard deviation (n - 1) of what is there, as pandas computes it; NaN of fewer than two values."""
        if self.present < 2:
            return math.nan
        kind = self._kind
        wide = np.dtype(np.float64)
        average = self._added(_filled, wide) / kind.type(self.present)

        def squares(values: NDArray[Any]) -> NDArray[Any]:
            squared: NDArray[Any] = (average - _filled(values)) ** 2
            squared[np.isnan(values)] = 0
            return squared

        with np.errstate(all="ignore"):
            return np.sqrt(kind.type(self._added(squares, wide) / (kind.type(self.present) - 1)))

    def median(self) -> Any:
        """The median of what is there; NaN of nothing."""
        if not self.present:
            return math.nan
        middle = (self.present - 1) // 2
        low, high = self.ordered([middle, self.present // 2])
        kind = self._kind.type
        # Zero without a sign: which of two zeros is in the middle has no answer.
        return (kind(low) + kind(high)) / kind(2) + kind(0) if high != low else kind(low) + kind(0)

    def quantiles(self, shares: Sequence[float], method: str) -> list[float]:
        """The quantiles of what is there, ``method`` being one of `INTERPOLATIONS`, as ``numpy.percentile`` defines them."""
        if not self.present:
            return [math.nan] * len(shares)
        last = self.present - 1
        # pandas asks for percentiles, which numpy divides by 100 again: not always the same number.
        places = [last * ((share * 100.0) / 100) for share in shares]
        ranks = [rank for place in places for rank in (math.floor(place), min(math.floor(place) + 1, last))]
        found = self.ordered(ranks)
        return [
            _between(low, high, place, method, self._kind)
            for low, high, place in zip(found[::2], found[1::2], places, strict=True)
        ]

    def ordered(self, ranks: Sequence[int]) -> list[float]:
        """The values of those ranks, counted from 0 in ascending order of what is there."""
        # Per rank: the leading digits of its key so far, and its rank among the keys that share them.
        found = [(0, rank) for rank in ranks]
        for shift in (48, 32, 16, 0):
            counts = {prefix: np.zeros(1 << 16, np.int64) for prefix, _ in found}
            for piece in self.pieces():
                keys = _sortable(piece)
                for prefix, count in counts.items():
                    same = keys if shift == 48 else keys[keys >> np.uint64(shift + 16) == np.uint64(prefix)]
                    digits = (same >> np.uint64(shift)) & np.uint64(0xFFFF)
                    count += np.bincount(digits.astype(np.int64), minlength=1 << 16)
            sums = {prefix: np.cumsum(count) for prefix, count in counts.items()}
            narrowed = []
            for prefix, rank in found:
                digit = int(np.searchsorted(sums[prefix], rank, side="right"))
                narrowed.append(((prefix << 16) | digit, rank - int(sums[prefix][digit] - counts[prefix][digit])))
            found = narrowed
        return [_unsortable(key) for key, _ in found]

    def _piece(self, start: int, count: int) -> NDArray[Any]:
        parts, size = [], self._kind.itemsize
        if self._roll is not None and start < self._rolled:
            some = min(count, self._rolled - start)
            parts.append(np.frombuffer(self._roll.read(start * size, some * size), self._kind))
        if start + count > self._rolled:
            if len(self._held) > 1:
                self._held = [np.concatenate(self._held)]
            parts.append(self._held[0][max(0, start - self._rolled) : start + count - self._rolled])
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self._kind)

    def _added(self, of: Callable[[NDArray[Any]], NDArray[Any]], kind: np.dtype[Any]) -> Any:
        """The sum over all rows of what ``of`` makes of the values, in floats of that width, in numpy's order.

        numpy takes so many numbers at a time, adds those up by pairwise summation, and their sums one after the other.
        """
        total = kind.type(0)
        with np.errstate(all="ignore"):
            for piece in self.pieces():
                made = of(piece)
                for start in range(0, len(made), _TAKEN):
                    total = total + np.add.reduce(made[start : start + _TAKEN], dtype=kind)
        return total


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    missing = np.isnan(values)
    return np.where(missing, values.dtype.type(0), values) if missing.any() else values


def _sortable(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Numbers of 64 bits in the order of the values; NaN is left out."""
    wide = np.ascontiguousarray(values[~np.isnan(values)], np.float64)
    bits = wide.view(np.uint64)
    top = np.uint64(1 << 63)
    return np.where(bits & top, ~bits, bits | top)


def _unsortable(key: int) -> float:
    bits = key ^ (1 << 63) if key >> 63 else key ^ (2**64 - 1)
    return float(np.array([bits], np.uint64).view(np.float64)[0])


def _between(low: float, high: float, place: float, method: str, kind: np.dtype[Any]) -> float:
    """The quantile at ``place`` (a rank and a fraction of the way to the next), between the values of the two ranks."""
    share = place - math.floor(place)
    if method == "lower" or not share:
        return low
    if method == "higher":
        return high
    if method == "nearest":
        return low if share < 0.5 or (share == 0.5 and math.floor(place) % 2 == 0) else high
    share = 0.5 if method == "midpoint" else share
    # numpy's interpolation: from the nearer end.
    gap = float(kind.type(high) - kind.type(low))
    return high - gap * (1 - share) if share >= 0.5 else low + gap * share


class ValueCounts:
    """How often every value, or combination of the values of several columns, occurs.

    Floats are compared as pandas compares them: NaN is null, and zero has no sign.
    """

    def __init__(self, roll: MakeRoll) -> None:
        self._make = roll
        self._roll: Roll | None = None
        self._merged: pa.Table | None = None
        self._waiting: list[pa.Table] = []
        self._segments: list[list[tuple[int, int]]] = [[] for _ in range(_PARTS)]

    def add(self, table: pa.Table) -> None:
        """Count rows; all tables have the same columns, without dictionaries."""
        columns = [_comparable(column) for column in table.columns]
        names = table.column_names
        grouped = pa.TableGroupBy(pa.table(columns, names=names), names, use_threads=False)
        self._waiting.append(grouped.aggregate([([], "count_all")]).rename_columns([*names, _COUNT]))
        merged = self._merged.num_rows if self._merged is not None else 0
        if sum(one.num_rows for one in self._waiting) >= max(merged, _LEAST_MERGED):
            self._merge()
            if self._merged is not None and self._merged.nbytes > _HELD_BYTES:
                self._spread()

    def groups(self) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
        """The values and their numbers of rows, a part at a time; no value is in two parts."""
        self._merge()
        if self._roll is None:
            tables = iter([self._merged] if self._merged is not None else [])
        else:
            self._spread()
            tables = (self._part(part) for part in self._segments if part)
        for table in tables:
            yield table.drop_columns([_COUNT]), table[_COUNT].to_numpy()

    def _merge(self) -> None:
        tables = [self._merged, *self._waiting] if self._merged is not None else self._waiting
        if len(tables) > 1:
            tables = [_added_up(pa.concat_tables(tables))]
        self._merged, self._waiting = tables[0] if tables else None, []

    def _spread(self) -> None:
        table, self._merged = self._merged, None
        if table is None or not table.num_rows:
            return
        self._roll = roll = self._roll or self._make()
        mixed = np.zeros(table.num_rows, np.uint64)
        for name in table.column_names[:-1]:
            mixed = mixed * np.uint64(31) + hashed(table[name].combine_chunks())
        parts = (mixed >> np.uint64(56)).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        table = table.take(pa.array(order)).combine_chunks()
        ends = np.searchsorted(parts[order], np.arange(_PARTS), side="right")
        start = 0
        for part, end in enumerate(ends.tolist()):
            if end > start:
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table.slice(start, end - start))
                written = sink.getvalue()
                self._segments[part].append((roll.append(memoryview(written)), written.size))
            start = end

    def _part(self, segments: Sequence[tuple[int, int]]) -> pa.Table:
        assert self._roll is not None
        tables = [pa.ipc.open_stream(self._roll.read(*segment)).read_all() for segment in segments]
        return _added_up(pa.concat_tables(tables))


def _added_up(table: pa.Table) -> pa.Table:
    names = table.column_names
    grouped = pa.TableGroupBy(table, names[:-1], use_threads=False).aggregate([(_COUNT, "sum")])
    return grouped.select([*names[:-1], f"{_COUNT}_sum"]).rename_columns(names)


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        return column
    plain = pc.if_else(pc.is_nan(column), None, column)
    return pc.add(plain, pa.scalar(0.0, column.type))
