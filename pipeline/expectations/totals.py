"""What was collected of all rows, as the metrics that Great Expectations asks for, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.aggregates import INTERPOLATIONS
from pipeline.expectations import library
from pipeline.expectations.collectors import EXAMPLES, Unanswerable, examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.expectations.collectors import Asked, Coded, Compared, Extremes, Figures, Groups, Tally

_SETS = "column.distinct_values."
# Values that one frame holds, or a list names.
_MANY = 100_000


@dataclass(frozen=True)
class Facts:
    """What is known of all rows: those under the expectation's condition, and which columns lack a value anywhere."""

    tally: Tally
    missing: set[str]


@dataclass(frozen=True)
class _OfRows:
    """The metrics of an expectation of the rows of one column: the number of the unexpected ones, and the first."""

    metric: str
    name: str

    def _metrics(self, facts: Facts, count: int, values: list[Any]) -> dict[str, Any]:
        return {
            "table.row_count": facts.tally.rows,
            "column_values.nonnull.unexpected_count": facts.tally.nulls.get(self.name, 0),
            f"{self.metric}.unexpected_count": count,
            f"{self.metric}.unexpected_values": values[:EXAMPLES],
        }


@dataclass(frozen=True)
class PresentTotals:
    """The share of values that are there."""

    name: str

    def __call__(self, _: None, facts: Facts) -> dict[str, Any]:
        """The metric."""
        rows = facts.tally.rows
        return {"column.non_null_proportion": (rows - facts.tally.nulls.get(self.name, 0)) / rows if rows else 0}


@dataclass(frozen=True)
class NullTotals(_OfRows):
    """Missing values are unexpected, or all others are."""

    kind: pa.DataType

    def __call__(self, found: Any, facts: Facts) -> dict[str, Any]:
        """The metrics."""
        absent = facts.tally.nulls.get(self.name, 0)
        if self.metric == "column_values.nonnull":
            return self._metrics(facts, absent, nothing(self.kind, min(absent, EXAMPLES)))
        return self._metrics(facts, facts.tally.rows - absent, examples(found.values, facts.missing, self.name))


def nothing(kind: pa.DataType, count: int) -> list[Any]:
    """Missing values of a column, as Great Expectations lists them."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return list(library.frame(pa.table({"a": pa.nulls(count, kind)}))["a"])


@dataclass(frozen=True)
class CodedTotals(_OfRows):
    """Texts that break a condition."""

    def __call__(self, found: Coded, facts: Facts) -> dict[str, Any]:
        """The metrics."""
        return self._metrics(facts, found.count, found.values)


@dataclass(frozen=True)
class ComparedTotals(_OfRows):
    """Numbers that break a comparison."""

    def __call__(self, found: Compared, facts: Facts) -> dict[str, Any]:
        """The metrics."""
        asked = found.otherwise.metrics(facts.missing)
        count = found.count + asked.get(f"{self.metric}.unexpected_count", 0)
        values = examples(found.values, facts.missing, self.name)
        return self._metrics(facts, count, [*values, *asked.get(f"{self.metric}.unexpected_values", [])])


@dataclass(frozen=True)
class AskedTotals:
    """What Great Expectations said of each piece, added up."""

    expectation: Any
    schema: pa.Schema

    def __call__(self, found: Asked, facts: Facts) -> dict[str, Any]:
        """The metrics."""
        empty = library.frame(self.schema.empty_table())
        return found.metrics(facts.missing) or library.metrics(library.unconditional(self.expectation), empty)


@dataclass(frozen=True)
class ExtremeTotals:
    """The least and the greatest value, of a frame that has the same ones and the same type as the column."""

    expectation: Any
    name: str
    kind: pa.DataType

    def __call__(self, found: Extremes, facts: Facts) -> dict[str, Any]:
        """The metrics."""
        kind = _plain(self.kind)
        values = pa.array([end.as_py() for end in found.ends], kind)
        return library.metrics(library.unconditional(self.expectation), _with_missing(self.name, values, facts))


@dataclass(frozen=True)
class FigureTotals:
    """Sums, moments and order statistics of a column of numbers."""

    expectation: Any
    name: str
    kind: pa.DataType

    def __call__(self, found: Figures, facts: Facts) -> dict[str, Any]:
        """The metrics; raises `Unanswerable` for quantiles of whole numbers that floats do not hold."""
        whole = pa.types.is_integer(self.kind) and self.name not in facts.missing
        values: dict[str, Any] = {}
        for name, needed in library.needs(self.expectation).items():
            if name == "column.quantile_values":
                values[name] = self._quantiles(found, needed.metric_value_kwargs, whole=whole)
            elif name == "column.sum" and whole:
                values[name] = _wrapped(found.exact, self.kind)
            else:
                values[name] = {
                    "column.sum": found.numbers.sum,
                    "column.mean": found.numbers.mean,
                    "column.standard_deviation": found.numbers.deviation,
                    "column.median": found.numbers.median,
                }[name]()
        return values

    def _quantiles(self, found: Figures, arguments: dict[str, Any], *, whole: bool) -> list[float]:
        method = arguments.get("allow_relative_error") or "nearest"
        if method not in INTERPOLATIONS:
            raise ValueError(f"allow_relative_error must be one of {', '.join(INTERPOLATIONS)}")
        if found.large and whole:
            raise Unanswerable("not judged: quantiles of whole numbers beyond 2**53")
        values = found.numbers.quantiles(arguments["quantiles"], method)
        chosen = whole and method in ("nearest", "lower", "higher") and found.numbers.present
        return [int(value) for value in values] if chosen else values


def _wrapped(exact: int, kind: pa.DataType) -> Any:
    """The sum as numpy's 64 bits hold it."""
    if pa.types.is_unsigned_integer(kind):
        return np.uint64(exact % 2**64)
    return np.int64((exact + 2**63) % 2**64 - 2**63)


@dataclass(frozen=True)
class SpreadTotals(_OfRows):
    """Values far from the others, measured by moments or quartiles of all of them."""

    expectation: Any

    def __call__(self, found: Figures, facts: Facts) -> dict[str, Any]:
        """The metrics."""
        arguments = library.needs(self.expectation)[f"{self.metric}.unexpected_count"].metric_value_kwargs
        how = self._outliers if self.metric == "column_values.not_outliers" else self._far
        count, values = 0, list[Any]()
        with np.errstate(all="ignore"):
            far = how(found, arguments)
            for piece in found.numbers.pieces():
                broken = piece[far(piece) & ~np.isnan(piece)]
                count += len(broken)
                values += broken[: EXAMPLES - len(values)].tolist()
        whole = pa.types.is_integer(facts.tally.kinds[self.name]) and self.name not in facts.missing
        return self._metrics(facts, count, [int(value) for value in values] if whole else values)

    def _far(self, found: Figures, arguments: dict[str, Any]) -> Any:
        mean, deviation = found.numbers.mean(), found.numbers.deviation()
        threshold = arguments["threshold"]

        def far(values: NDArray[Any]) -> NDArray[np.bool_]:
            if deviation == 0:
                return np.zeros(len(values), bool)
            score = (values - mean) / deviation
            # A score that is not defined meets the expectation.
            under = np.abs(score) < abs(threshold) if arguments.get("double_sided", True) else score < threshold
            found: NDArray[np.bool_] = ~(under | np.isnan(score))
            return found

        return far

    def _outliers(self, found: Figures, arguments: dict[str, Any]) -> Any:
        if arguments.get("method", "iqr") == "iqr":
            low, high = found.numbers.quantiles([0.25, 0.75], "linear")
            spread = high - low
        else:
            low = high = float(found.numbers.mean())
            spread = float(found.numbers.deviation())
        reach = arguments.get("multiplier", 1.5) * spread

        def out(values: NDArray[Any]) -> NDArray[np.bool_]:
            if not all(math.isfinite(number) for number in (low, high, spread)):
                return np.zeros(len(values), bool)
            if arguments.get("method", "iqr") == "iqr":
                found: NDArray[np.bool_] = ~((values >= low - reach) & (values <= high + reach))
            else:
                found = values != low if reach <= 0 else ~(np.abs(values - low) < reach)
            return found

        return out


@dataclass(frozen=True)
class DistinctTotals:
    """Distinct values: how many, which of a set, and the most common."""

    expectation: Any
    name: str
    kind: pa.DataType

    def __call__(self, found: Groups, facts: Facts) -> dict[str, Any]:
        """The metrics; raises `Unanswerable`."""
        _require_kept_apart(found, facts)
        wanted, values = library.needs(self.expectation), dict[str, Any]()
        count, most, modes = 0, 0, list[pa.Array]()
        for column, rows in self._parts(found):
            count += len(column)
            if len(rows) and (highest := int(rows.max())) >= most:
                modes = [*(modes if highest == most else []), column.filter(pa.array(rows == highest))]
                most = highest
            if any(name.startswith(_SETS) and name != f"{_SETS}count" for name in wanted):
                self._add_sets(values, column, facts)
        present = facts.tally.rows - facts.tally.nulls.get(self.name, 0)
        values["column.distinct_values.count"] = count
        values["column.unique_proportion"] = count / present if present else 0
        if "column.most_common_value" in wanted:
            if sum(map(len, modes)) > _MANY:
                raise Unanswerable(f"not judged: more than {_MANY:,} values are the most common")
            mode = _with_missing(
                self.name, pa.concat_arrays(modes) if modes else pa.array([], _plain(self.kind)), facts
            )
            values["column.most_common_value"] = list(mode[self.name].mode().values)
        return values

    def _parts(self, found: Groups) -> Iterator[tuple[pa.Array, NDArray[np.int64]]]:
        parts = 0
        for table, rows in found.counts.groups():
            parts += 1
            yield table.column(0).combine_chunks(), rows
        if not parts:
            yield pa.array([], _plain(self.kind)), np.empty(0, np.int64)

    def _add_sets(self, values: dict[str, Any], column: pa.Array, facts: Facts) -> None:
        rows = _with_missing(self.name, column, facts)
        said = library.metrics(library.unconditional(self.expectation), rows)
        for name, value in said.items():
            if name not in values:
                values[name] = value
            elif name == f"{_SETS}not_in_set":
                values[name] = sorted([*values[name], *value])[:EXAMPLES]
            elif name == f"{_SETS}missing_from_column":
                # Missing is what no part has; all of it is listed, or not all of it is known.
                values[name] = [one for one in values[name] if one in set(value)]
                values[f"{name}.count"] = len(values[name])
            elif name == f"{_SETS}not_in_set.count":
                values[name] += value


@dataclass(frozen=True)
class RepeatedTotals:
    """Rows that repeat the values of others; the examples are the smallest of those values, once each."""

    metric: str
    names: list[str]

    def __call__(self, found: Groups, facts: Facts) -> dict[str, Any]:
        """The metrics; raises `Unanswerable`."""
        _require_kept_apart(found, facts)
        count, repeated = 0, list[pa.Table]()
        for table, rows in found.counts.groups():
            again = rows > 1
            count += int(rows[again].sum())
            if again.any():
                repeated.append(_first(table.filter(pa.array(again)), self.names))
        values: Any = []
        if repeated:
            rows = library.frame(_first(pa.concat_tables(repeated), self.names), facts.missing & set(self.names))
            values = list(rows[self.names[0]]) if self.metric == "column_values.unique" else rows.to_dict("records")
        return {
            "table.row_count": facts.tally.rows,
            "column_values.nonnull.unexpected_count": facts.tally.nulls.get(self.names[0], 0),
            f"{self.metric}.unexpected_count": count,
            f"{self.metric}.unexpected_values": values,
            f"{self.metric}.filtered_row_count": found.rows,
        }


def _first(table: pa.Table, names: list[str]) -> pa.Table:
    order = pc.select_k_unstable(table, min(EXAMPLES, table.num_rows), [(name, "ascending") for name in names])
    return table.take(order)


def _require_kept_apart(found: Groups, facts: Facts) -> None:
    if found.large & facts.missing:
        raise Unanswerable("not judged: whole numbers beyond 2**53 beside missing ones")


def _plain(kind: pa.DataType) -> pa.DataType:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.float64() if pa.types.is_decimal(kind) else kind


def _with_missing(name: str, values: pa.Array, facts: Facts) -> Any:
    """A frame of the values, in the type that the whole column has; a missing value is added where the column has one."""
    if facts.tally.nulls.get(name, 0):
        values = pa.concat_arrays([values, pa.nulls(1, values.type)])
    return library.frame(pa.table({name: values}), [name] if name in facts.missing else [])
