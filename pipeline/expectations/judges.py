"""Which expectations can be judged on all rows a piece at a time, by what is collected, and what that gives as metrics.

A type of expectation that is in none of the tables is asked of the whole frame while the partition is small, and of a sample
when it is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.expectations import library
from pipeline.expectations.collectors import (
    LARGEST,
    Asked,
    Coded,
    Collector,
    Compared,
    Extremes,
    Figures,
    Groups,
    Ordered,
    Present,
    numeric,
    textual,
)
from pipeline.expectations.totals import (
    AskedTotals,
    CodedTotals,
    ComparedTotals,
    DistinctTotals,
    ExtremeTotals,
    FigureTotals,
    NullTotals,
    PresentTotals,
    RepeatedTotals,
    SpreadTotals,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.aggregates import MakeRoll
    from pipeline.expectations.questions import Question
    from pipeline.expectations.totals import Facts

# A row alone decides whether it is unexpected; the type of a number does not matter, only its value.
_BY_VALUE = {
    *("column_values.between", "column_values.in_set", "column_values.not_in_set"),
    *("column_pair_values.equal", "column_pair_values.a_greater_than_b"),
    *("multicolumn_sum.equal", "multicolumn_values.equal"),
}
# A row alone decides; the type may matter.
_BY_ROW = {
    *("column_values.value_length.between", "column_values.value_length.equals"),
    *("column_values.match_regex", "column_values.not_match_regex"),
    *("column_values.match_regex_list", "column_values.not_match_regex_list"),
    *("column_values.match_strftime_format", "column_values.dateutil_parseable"),
    *("column_values.json_parseable", "column_values.match_json_schema"),
    *("column_pair_values.in_set", "select_column_values.unique.within_record"),
}
_NULLS = {"column_values.null", "column_values.nonnull"}
_NEIGHBOURS = {"column_values.increasing", "column_values.decreasing"}
_SPREAD = {"column_values.z_score.under_threshold", "column_values.not_outliers"}
_FIGURES = {"column.mean", "column.sum", "column.standard_deviation", "column.median", "column.quantile_values"}
_EXTREMES = {"column.min", "column.max"}
_GROUPS = {
    *("column.distinct_values.count", "column.unique_proportion", "column.most_common_value"),
    *("column.distinct_values.not_in_set", "column.distinct_values.missing_from_column"),
    *("column.distinct_values.not_in_set.count", "column.distinct_values.missing_from_column.count"),
}


@dataclass(frozen=True)
class Judge:
    """What is collected for a question (a name that equal collections share), and how that becomes metrics by name."""

    name: tuple[Any, ...]
    collector: Collector | None
    metrics: Callable[[Any, Facts], dict[str, Any]]


def judge(question: Question, schema: pa.Schema, roll: MakeRoll) -> Judge | None:
    """How the question is judged on rows that pass; ``None`` when it cannot be."""
    if not set(question.columns) <= set(schema.names) or question.condition_columns(schema) is None:
        return None
    if (metric := question.map_metric) is not None:
        return _of_rows(question, metric, schema, roll)
    wanted = set(library.needs(question.expectation))
    if len(question.columns) != 1 or not wanted:
        return None
    (name,) = question.columns
    kind = schema.field(name).type
    if wanted == {"column.non_null_proportion"}:
        return Judge((), None, PresentTotals(name))
    if wanted <= _EXTREMES and _comparable(kind):
        return Judge(("extremes", name), Extremes(name), ExtremeTotals(question.expectation, name, kind))
    if wanted <= _FIGURES and numeric(kind):
        return Judge(("figures", name), Figures(name, roll), FigureTotals(question.expectation, name, kind))
    if wanted <= _GROUPS and _comparable(kind):
        return Judge(("groups", name), Groups([name], roll), DistinctTotals(question.expectation, name, kind))
    return None


def _of_rows(question: Question, metric: str, schema: pa.Schema, roll: MakeRoll) -> Judge | None:
    names, kinds = question.columns, [schema.field(name).type for name in question.columns]
    if metric in _NULLS:
        present = Present(names[0]) if metric == "column_values.null" else None
        return Judge(("present", names[0]), present, NullTotals(metric, names[0], kinds[0]))
    if metric == "column_values.unique" and _comparable(kinds[0]):
        return Judge(("groups", names[0]), Groups(names, roll), RepeatedTotals(metric, names))
    if metric == "compound_columns.unique" and all(map(_comparable, kinds)):
        left_out = {"all_values_are_missing": "all", "any_value_is_missing": "any", "never": "never"}
        how = left_out[question.expectation.ignore_row_if]
        return Judge(("groups", *names, how), Groups(names, roll, how), RepeatedTotals(metric, names))
    if metric in _SPREAD and numeric(kinds[0]):
        return Judge(
            ("figures", names[0]), Figures(names[0], roll), SpreadTotals(metric, names[0], question.expectation)
        )
    if metric not in _BY_VALUE | _BY_ROW | _NEIGHBOURS:
        return None
    text = all(map(textual, kinds))
    if len(names) == 1 and text and metric not in _NEIGHBOURS:
        coded = Coded(names[0], metric, dict(_arguments(question, metric)))
        return Judge((id(question),), coded, CodedTotals(metric, names[0]))
    make = Ordered if metric in _NEIGHBOURS else Asked
    by_value = metric in _NEIGHBOURS | _BY_VALUE
    asked = make(question.expectation, names, schema, by_value=by_value)
    if not asked.possible or (metric in _NEIGHBOURS and any(map(pa.types.is_boolean, kinds))):
        return None
    if len(names) == 1 and numeric(kinds[0]) and (breaks := _comparison(metric, _arguments(question, metric))):
        return Judge((id(question),), Compared(names[0], breaks, asked), ComparedTotals(metric, names[0]))
    return Judge((id(question),), asked, AskedTotals(question.expectation, schema))


def _arguments(question: Question, metric: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = library.needs(question.expectation)[f"{metric}.unexpected_count"].metric_value_kwargs
    return found


def _comparable(kind: pa.DataType) -> bool:
    """Whether Arrow finds equal and greater what pandas does."""
    return numeric(kind) or textual(kind) or pa.types.is_boolean(kind) or pa.types.is_timestamp(kind)


def _comparison(metric: str, arguments: Mapping[str, Any]) -> Callable[[NDArray[Any]], NDArray[np.bool_]] | None:
    """Which numbers break it, where numpy compares as Great Expectations does; else ``None``."""
    if metric == "column_values.between":
        low, high = arguments.get("min_value"), arguments.get("max_value")
        if not all(bound is None or _exact(bound) for bound in (low, high)) or (low is None and high is None):
            return None
        if low is not None and high is not None and low > high:
            return None
        above = np.less_equal if arguments.get("strict_min") else np.less
        below = np.greater_equal if arguments.get("strict_max") else np.greater

        def outside(values: NDArray[Any]) -> NDArray[np.bool_]:
            found = np.zeros(len(values), bool) if low is None else above(values, low)
            return found if high is None else found | below(values, high)

        return outside
    wanted = arguments.get("value_set")
    if metric not in ("column_values.in_set", "column_values.not_in_set") or not wanted or not all(map(_exact, wanted)):
        return None
    values_set, is_wanted = np.array(list(wanted), np.float64), metric == "column_values.in_set"
    return lambda values: np.isin(values, values_set, invert=is_wanted)


def _exact(number: Any) -> bool:
    """Whether it is a number that a float of 64 bits holds."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return abs(number) <= LARGEST if isinstance(number, int) else not math.isnan(number)
