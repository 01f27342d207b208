"""The questions that a partition is asked: the contract that every job has, and the job's own expectations."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.expectations import library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.job import JobSpec

QUARANTINED_SHARE = "quarantined_share"
ABOUT_NULLS = {
    "expect_column_values_to_be_null",
    "expect_column_values_to_not_be_null",
    "expect_column_proportion_of_non_null_values_to_be_between",
}
_OF_A_ROW = (
    *(ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, ast.Eq, ast.NotEq),
    *(ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Load),
    *(ast.BinOp, ast.BitAnd, ast.BitOr),
)


@dataclass(frozen=True)
class Question:
    """One expectation, and whether the partition is stopped where it is not met."""

    expectation: Any
    blocking: bool

    @property
    def type(self) -> str:
        """As Great Expectations names it."""
        return str(self.expectation.expectation_type)

    @cached_property
    def columns(self) -> list[str]:
        """The columns that it is about."""
        kwargs = self.expectation.configuration.kwargs
        named = [kwargs.get(name) for name in ("column", "column_A", "column_B")]
        return [str(name) for name in (*named, *(kwargs.get("column_list") or ())) if name is not None]

    @property
    def reads_values(self) -> bool:
        """Whether it is about values: of no value at all it would hold, and tell nothing."""
        from great_expectations.expectations.expectation import ColumnAggregateExpectation

        return isinstance(self.expectation, ColumnAggregateExpectation) or self.map_metric is not None

    @property
    def map_metric(self) -> str | None:
        """The metric of an expectation that is about each row; ``None`` of any other."""
        from great_expectations.expectations.expectation import (
            ColumnMapExpectation,
            ColumnPairMapExpectation,
            MulticolumnMapExpectation,
        )

        kinds = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
        return self.expectation.map_metric if isinstance(self.expectation, kinds) else None

    @cached_property
    def condition(self) -> str | None:
        """Its condition on rows as a query of pandas; ``None`` for all rows."""
        condition = getattr(self.expectation, "row_condition", None)
        if condition is None or isinstance(condition, str):
            return condition
        passed = getattr(condition, "pass_through_filter", None)
        return str(passed) if passed is not None else library.filter_clause(condition)

    def condition_columns(self, schema: pa.Schema) -> set[str] | None:
        """The columns that decide about a row, when the row alone decides; ``None`` when it may depend on other rows.

        That is proven for comparisons of numbers, texts and times with constants and with each other.
        """
        if self.condition is None:
            return set()
        try:
            nodes = list(ast.walk(ast.parse(self.condition.strip(), mode="eval")))
        except SyntaxError:
            return None
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        if not all(isinstance(node, _OF_A_ROW) for node in nodes) or not names <= set(schema.names):
            return None
        return None if any(pa.types.is_boolean(schema.field(name).type) for name in names) else names


def contract(job: JobSpec) -> list[Question]:
    """What every partition must be like, whatever the job file adds: rows, quarantined share, columns."""
    gxe, features = library.library().expectations, job.features
    columns = sorted({*features.key, features.time, *features.columns})
    least, most = job.checks.min_rows, job.checks.max_quarantined
    return [
        Question(gxe.ExpectTableRowCountToBeBetween(min_value=least), True),
        Question(gxe.ExpectColumnMaxToBeBetween(column=QUARANTINED_SHARE, max_value=most), True),
        Question(gxe.ExpectTableColumnsToMatchSet(column_set=columns, exact_match=False), True),
    ]


def contract_of_columns(job: JobSpec, names: Sequence[str]) -> list[Question]:
    """What every column that is there must be like: no null in key and time, some value in every feature."""
    gxe, features = library.library().expectations, job.features
    whole = dict.fromkeys((*features.key, features.time))
    questions = [Question(gxe.ExpectColumnValuesToNotBeNull(column=name), True) for name in whole if name in names]
    some = gxe.ExpectColumnProportionOfNonNullValuesToBeBetween
    return questions + [
        Question(some(column=name, min_value=0, strict_min=True, severity="warning"), False)
        for name in features.columns
        if name in names
    ]


def declared(job: JobSpec) -> list[Question]:
    """The job's own expectations; raises `InvalidJob` for one that cannot be asked."""
    return [Question(library.built(job, one), one.blocking) for one in job.checks.expectations]
