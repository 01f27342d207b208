"""What is collected of the rows as they pass, a piece at a time, so that metrics of all rows can be told in the end.

Everything here is bounded: counts, at most 20 examples, columns of numbers on a `pipeline.aggregates.Roll`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.aggregates import Numbers, ValueCounts
from pipeline.expectations import library

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from pipeline.aggregates import MakeRoll

EXAMPLES = 20
# Every whole number up to this is a float of 64 bits.
LARGEST = 2**53
# Different values of a column that are remembered with what Great Expectations said of them.
_REMEMBERED = 1 << 16


class Unanswerable(Exception):
    """Why the rows cannot answer although they were all seen."""


class Collector(Protocol):
    """Something that looks at every row of its domain once."""

    def add(self, table: pa.Table, missing: Collection[str]) -> None:
        """Look at the next rows; ``missing`` names the columns of which some value has been missing by now."""


def numeric(kind: pa.DataType) -> bool:
    """Whether pandas has the column as numbers, missing values included."""
    is_float = pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return bool(is_float or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def textual(kind: pa.DataType) -> bool:
    """Whether the column is text, coded or not."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def floats(column: pa.ChunkedArray) -> NDArray[Any]:
    """Numbers as pandas has them where one is missing: floats, NaN for what is missing."""
    if not pa.types.is_floating(column.type):
        column = column.cast(pa.float64(), safe=False)
    values: NDArray[Any] = column.to_numpy()
    return values


def nulls(column: pa.Array | pa.ChunkedArray) -> int:
    """How many values are null or NaN."""
    if not pa.types.is_floating(column.type):
        return int(column.null_count)
    return int(pc.sum(pc.is_null(column, nan_is_null=True)).as_py() or 0)


def large(column: pa.ChunkedArray) -> bool:
    """Whether a whole number among them is not a float of 64 bits."""
    if not pa.types.is_integer(column.type) or column.type.bit_width < 64:
        return False
    ends = pc.min_max(column).as_py()
    return any(end is not None and abs(end) > LARGEST for end in ends.values())


def examples(values: Sequence[pa.ChunkedArray], missing: Collection[str], name: str) -> list[Any]:
    """The first of the collected values, as Great Expectations lists them."""
    if not values:
        return []
    table = pa.table({name: pa.chunked_array([chunk for value in values for chunk in value.chunks], values[0].type)})
    return list(library.frame(table.slice(0, EXAMPLES), [name] if name in missing else [])[name])


@dataclass
class Tally:
    """Rows, and missing values by column."""

    kinds: dict[str, pa.DataType] = field(default_factory=dict)
    rows: int = 0
    nulls: dict[str, int] = field(default_factory=dict)

    def add(self, table: pa.Table | pa.RecordBatch, missing: Collection[str] = ()) -> None:
        """Count the next rows."""
        self.rows += table.num_rows
        for name in self.kinds:
            self.nulls[name] = self.nulls.get(name, 0) + nulls(table.column(name))


class Figures:
    """A column of numbers, whole; the sum of whole numbers exactly."""

    def __init__(self, name: str, roll: MakeRoll) -> None:
        self._name = name
        self.numbers = Numbers(roll)
        self.exact, self.large = 0, False

    def add(self, table: pa.Table, missing: Collection[str]) -> None:
        """Keep the next rows."""
        column = table[self._name]
        if pa.types.is_integer(column.type):
            self.large = self.large or large(column)
            self.exact += int(pc.sum(column.cast(pa.decimal128(20))).as_py() or 0) if self.large else _sum(column)
        self.numbers.add(floats(column))


def _sum(column: pa.ChunkedArray) -> int:
    # Numbers below 2**53, fewer than 2**10 times as many rows in a piece: no overflow.
    return sum(int(pc.sum(chunk.cast(pa.int64())).as_py() or 0) for chunk in column.chunks)


class Groups:
    """How often the values of some columns occur. Rows without any, or without all of them, may be left out."""

    def __init__(self, names: Sequence[str], roll: MakeRoll, leave_out: str = "any") -> None:
        self._names, self._leave_out = list(names), leave_out
        self.counts = ValueCounts(roll)
        self.rows = 0
        self.large: set[str] = set()

    def add(self, table: pa.Table, missing: Collection[str]) -> None:
        """Count the next rows."""
        columns = {name: plain(table[name]) for name in self._names}
        self.large |= {name for name, column in columns.items() if large(column)}
        absent = [pc.is_null(column, nan_is_null=True) for column in columns.values()]
        table = pa.table(columns)
        if self._leave_out != "never":
            out = absent[0]
            for other in absent[1:]:
                out = (pc.or_ if self._leave_out == "any" else pc.and_)(out, other)
            table = table.filter(pc.invert(out))
        self.rows += table.num_rows
        self.counts.add(table)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values as `library.frame` has them, in Arrow; raises `Unanswerable` for text that is not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if textual(column.type):
        _require_utf8(column)
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column


def _require_utf8(column: pa.Array | pa.ChunkedArray) -> None:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raise Unanswerable("not judged: text that is not UTF-8") from None


class Extremes:
    """Values with the same least and greatest value as the column."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.ends: list[Any] = []

    def add(self, table: pa.Table, missing: Collection[str]) -> None:
        """Look at the next rows."""
        column = plain(table[self._name])
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        ends = pc.min_max(column)
        self.ends = [end for end in (*self.ends, ends["min"], ends["max"]) if end.is_valid]
        if len(self.ends) > EXAMPLES:
            ends = pc.min_max(pa.array([end.as_py() for end in self.ends], self.ends[0].type))
            self.ends = [ends["min"], ends["max"]]


class Present:
    """The first values that are there."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.values: list[pa.ChunkedArray] = []

    def add(self, table: pa.Table, missing: Collection[str]) -> None:
        """Look at the next rows."""
        if sum(map(len, self.values)) < EXAMPLES:
            column = table[self._name]
            there = column.filter(pc.invert(pc.is_null(column, nan_is_null=True))).slice(0, EXAMPLES)
            self.values.append(plain(there) if pa.types.is_dictionary(there.type) else there)


class Compared:
    """Numbers that break a comparison, counted by numpy where that is what pandas does; else by Great Expectations."""

    def __init__(self, name: str, breaks: Callable[[NDArray[Any]], NDArray[np.bool_]], otherwise: Asked) -> None:
        self._name, self._breaks = name, breaks
        self.otherwise = otherwise
        self.count = 0
        self.values: list[pa.ChunkedArray] = []

    def add(self, table: pa.Table, missing: Collection[str]) -> None:
        """Look at the next rows."""
        column = table[self._name]
        if large(column):
            self.otherwise.add(table, missing)
            return
        values = floats(column).astype(np.float64, copy=False)
        broken = self._breaks(values) & ~np.isnan(values)
        if count := int(np.count_nonzero(broken)):
            if self.count < EXAMPLES:
                self.values.append(column.filter(pa.array(broken)).slice(0, EXAMPLES))
            self.count += count


class Coded:
    """Texts that break a condition; Great Expectations is asked about every different text once."""

    def __init__(self, name: str, map_metric: str, arguments: dict[str, Any]) -> None:
        self._name, self._metric, self._arguments = name, map_metric, arguments
        self._known: pa.Array | None = None
        self._breaks: NDArray[np.bool_] = np.empty(0, bool)
        self.count = 0
        self.values: list[str] = []

    def add(self, table: pa.Table, missing: Collection[str]) -> None:
        """Look at the next rows."""
        for chunk in table[self._name].chunks:
            coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            codes = coded.indices.drop_null().to_numpy()
            if not len(codes):
                continue
            broken = self._broken(coded.dictionary)[codes]
            if count := int(np.count_nonzero(broken)):
                first = codes[np.flatnonzero(broken)[: EXAMPLES - len(self.values)]]
                self.values += coded.dictionary.take(pa.array(first)).to_pylist()
                self.count += count

    def _broken(self, texts: pa.Array) -> NDArray[np.bool_]:
        texts = texts.cast(pa.large_string())
        if self._known is None or len(self._known) > _REMEMBERED:
            self._known, self._breaks = texts.slice(0, 0), np.empty(0, bool)
        at = pc.index_in(texts, self._known)
        if at.null_count:
            fresh = texts.filter(at.is_null()).unique()
            _require_utf8(fresh)
            rows = library.frame(pa.table({self._name: fresh}))
            said = library.unexpected(self._metric, self._name, self._arguments, rows)
            self._known = pa.concat_arrays([self._known, fresh])
            self._breaks = np.concatenate([self._breaks, said])
            at = pc.index_in(texts, self._known)
        found: NDArray[np.bool_] = self._breaks[at.to_numpy()]
        return found


class Asked:
    """Metrics that add up over rows, as Great Expectations computes them of each piece.

    pandas has whole numbers and booleans in another type where a value is missing, and whether one is missing is only
    known in the end. Where the type may matter, a piece is looked at in every type that the column may still have.
    """

    def __init__(self, expectation: Any, names: Sequence[str], schema: pa.Schema, *, by_value: bool) -> None:
        self._plain = library.unconditional(expectation)
        self._names = list(names)
        kinds = {name: schema.field(name).type for name in names}
        whole = {name for name, kind in kinds.items() if pa.types.is_integer(kind)}
        logical = {name for name, kind in kinds.items() if pa.types.is_boolean(kind)}
        # Comparisons do not see the type of numbers that both types hold.
        self._open = logical if by_value else logical | whole
        self._large: set[str] = set()
        self.possible = len(self._open) <= 2
        self._totals: dict[frozenset[str], dict[str, Any]] = {
            frozenset(some): {}
            for some in chain.from_iterable(combinations(sorted(self._open), n) for n in range(len(self._open) + 1))
        }

    def add(self, table: pa.Table, missing: Collection[str]) -> None:
        """Look at the next rows."""
        table = table.select(self._names)
        self._large |= {name for name in self._names if large(table[name])}
        self._totals = {
            absent: total for absent, total in self._totals.items() if absent >= self._open.intersection(missing)
        }
        for absent, total in self._totals.items():
            rows = library.frame(table, [name for name in self._names if name in absent])
            for name, value in self._metrics(rows).items():
                total[name] = _joined(name, total.get(name), value)

    def metrics(self, missing: Collection[str]) -> dict[str, Any]:
        """The metrics of all rows, by name; nothing of no rows. Raises `Unanswerable`."""
        if self._large.intersection(missing) - self._open:
            raise Unanswerable("not judged: whole numbers beyond 2**53 beside missing ones")
        total = dict(self._totals[frozenset(self._open.intersection(missing))])
        for name, value in total.items():
            if name.endswith("unexpected_values"):
                total[name] = [self._typed(one, missing) for one in value]
        return total

    def _typed(self, found: Any, missing: Collection[str]) -> Any:
        """An example, of one column or several, with the numbers that pandas has as floats beside missing ones."""
        if isinstance(found, dict):
            return {name: _as_float(one) if name in missing else one for name, one in found.items()}
        if isinstance(found, tuple):
            pairs = zip(self._names, found, strict=True)
            return tuple(_as_float(one) if name in missing else one for name, one in pairs)
        return _as_float(found) if self._names[0] in missing else found

    def _metrics(self, rows: Any) -> dict[str, Any]:
        return library.metrics(self._plain, rows)


class Ordered(Asked):
    """Rows that are compared with the one before: the last value of a piece goes before the next piece."""

    _last: pa.Table | None = None

    def add(self, table: pa.Table, missing: Collection[str]) -> None:
        """Look at the next rows."""
        table = table.select(self._names)
        column = plain(table.column(0))
        there = table.filter(pc.invert(pc.is_null(column, nan_is_null=True)))
        before = self._last
        super().add(table if before is None else pa.concat_tables([before, table]), missing)
        if before is not None:
            for total in self._totals.values():
                total["table.row_count"] -= 1
        if there.num_rows:
            self._last = there.slice(there.num_rows - 1)


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else value


def _joined(name: str, before: Any, value: Any) -> Any:
    if before is None:
        return value
    if name.endswith("count"):
        return before + value
    return [*before, *value][:EXAMPLES] if name.endswith("unexpected_values") else value
