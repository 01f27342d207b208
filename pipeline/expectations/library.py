"""Great Expectations itself: its types, its frames, its metrics and its verdicts. Imported with the first call: it takes seconds.

Must not keep a Data Context: none is needed, and one grows with every validation.
"""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from pipeline.job import JobSpec
    from pipeline.policies import Expectation

_SHOWN = 300
_BASIC = "BASIC"
# Verdicts on numbers that were asked for before; an hourly job asks the same of every interval.
_REMEMBERED = 4096
# They ask a database; a partition is Parquet.
_SQL_ONLY = {
    "expect_query_results_to_match_comparison",
    "expect_table_row_count_to_equal_other_table",
    "expect_column_values_to_match_like_pattern",
    "expect_column_values_to_match_like_pattern_list",
    "expect_column_values_to_not_match_like_pattern",
    "expect_column_values_to_not_match_like_pattern_list",
}
# Arguments that every expectation has and that this product sets itself, or does not support.
_CONDITION = {"row_condition", "condition_parser"}
_INTERNAL = {"id", "rendered_content", "severity", "windows", "batch_id", "result_format", "catch_exceptions", "meta"}


@cache
def library() -> Any:
    """Great Expectations, without analytics and without log lines below a warning."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    # A cell that its page renderer cannot draw is left empty and logged with a traceback; the result itself stands.
    for name, level in (("great_expectations", logging.WARNING), ("great_expectations.render", logging.CRITICAL)):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(level)
    with warnings.catch_warnings():
        # Its import uses deprecated modules of the standard library, which is no concern of this product's user.
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations.expectations

    return great_expectations


@cache
def types() -> dict[str, Any]:
    """The usable expectation classes by type."""
    library()
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )

    names = set(list_registered_expectation_implementations()) - _SQL_ONLY
    return {name: get_expectation_impl(name) for name in names if name.startswith("expect_")}


@contextmanager
def quiet() -> Iterator[None]:
    """What Great Expectations and pandas will change in a future version is no concern of the reader of a run's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def built(job: JobSpec, declared: Expectation) -> Any:
    """The declared expectation; raises `InvalidJob` for an unknown type or arguments that do not fit it."""
    what = f"job {job.name!r}: expectation {declared.type!r}"
    check = f"run 'pipeline check {job.name}' after correcting checks.expectations"
    if declared.type not in types():
        reason = "it needs a SQL database" if declared.type in _SQL_ONLY else "Great Expectations has no such type"
        raise InvalidJob(f"{what} cannot be used: {reason}", got=declared.type, next_step=check)
    kind = types()[declared.type]
    # A row count is judged on the partition's own count, which knows no condition.
    allowed = sorted(set(kind.__fields__) - _INTERNAL - (_CONDITION if counts_rows(declared.type) else set()))
    expected = f"arguments among {', '.join(allowed)}"
    if unknown := sorted(set(declared.kwargs) - set(allowed)):
        raise InvalidJob(f"{what} has unknown arguments", expected=expected, got=", ".join(unknown), next_step=check)
    try:
        expectation = kind(**declared.kwargs, severity="critical" if declared.blocking else "warning")
    except (TypeError, ValueError) as err:
        raise InvalidJob(f"{what} has wrong arguments", expected=expected, got=flat(str(err)), next_step=check) from err
    if parameters := expectation.suite_parameter_options:
        raise InvalidJob(f"{what} has unbound parameters", expected="values", got=str(parameters), next_step=check)
    return expectation


def unconditional(expectation: Any) -> Any:
    """The same expectation of all rows."""
    if getattr(expectation, "row_condition", None) is None:
        return expectation
    return expectation.copy(update={"row_condition": None, "condition_parser": None})


def counts_rows(kind: str) -> bool:
    """Whether that type of expectation is about the number of rows."""
    return kind.startswith("expect_table_row_count_")


def frame(table: pa.Table, nullable: Collection[str] = ()) -> Any:
    """The rows as pandas: no categoricals, decimals as floats, text that is not UTF-8 as bytes.

    Whole numbers and booleans get the type that pandas gives them where a value is missing if the column is ``nullable``.
    """
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_decimal(column.type) or (name in nullable and pa.types.is_integer(column.type)):
            column = column.cast(pa.float64(), safe=False)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                column = column.cast(pa.large_binary())
        columns.append(column)
    made = pa.table(columns, names=table.column_names).to_pandas(ignore_metadata=True)
    for name in nullable:
        if made[name].dtype == bool:
            made[name] = made[name].astype(object)
    return made


def asked(expectations: Sequence[Any], rows: Any) -> list[Any]:
    """Great Expectations' own results on the frame ``rows``, in the order of the expectations."""
    library()
    from great_expectations.validator.metrics_calculator import MetricsCalculator
    from great_expectations.validator.validator import Validator

    # Exceptions come first in the answer: the position tells which question they belong to.
    for position, expectation in enumerate(expectations):
        expectation.meta = {"position": position}
    configurations = [expectation.configuration for expectation in expectations]
    with _engine(rows) as engine:
        validator = Validator(execution_engine=engine)
        # Its bars would be drawn on the log.
        validator._metrics_calculator = MetricsCalculator(engine, show_progress_bars=False)
        validator._determine_progress_bars = lambda: False
        found = validator.graph_validate(configurations, runtime_configuration={"result_format": _BASIC})
    return sorted(found, key=lambda result: result.expectation_config.meta["position"])


def metrics(expectation: Any, rows: Any) -> dict[str, Any]:
    """The metrics that the expectation needs, by name, as Great Expectations computes them on ``rows``; raises `ValueError`."""
    return _resolved(needs(expectation), rows)


def needs(expectation: Any) -> dict[str, Any]:
    """The configurations of the metrics that the expectation needs, by name."""
    found = expectation.get_validation_dependencies(runtime_configuration={"result_format": _BASIC})
    return dict(found.metric_configurations)


def unexpected(map_metric: str, column: str, arguments: Mapping[str, Any], rows: Any) -> Any:
    """Which values of a column without nulls break a condition, one boolean per row; raises `ValueError`."""
    from great_expectations.validator.metric_configuration import MetricConfiguration

    name = f"{map_metric}.condition"
    wanted = MetricConfiguration(name, {"column": column}, dict(arguments))
    return _resolved({name: wanted}, rows)[name][0].to_numpy(bool)


def filtered(expectation: Any, rows: Any) -> Any:
    """The positions of the rows that the expectation's condition lets through."""
    domain = {key: getattr(expectation, key) for key in ("row_condition", "condition_parser")}
    with _engine(rows.reset_index(drop=True)) as engine:
        return engine.get_domain_records({"column": "", **domain}).index.to_numpy()


def filter_clause(condition: Any) -> str:
    """A condition that is an object, as a query of pandas."""
    with _engine(frame(pa.table({"a": [0]}))) as engine:
        return str(engine.condition_to_filter_clause(condition))


def judged(expectation: Any, values: Mapping[str, Any]) -> Any:
    """Great Expectations' verdict where its metrics are known: ``values`` by name; whatever it raises is raised."""
    configuration = expectation.configuration
    key = repr((configuration.type, configuration.severity, configuration.kwargs, sorted(values.items())))
    if (known := _VERDICTS.get(key)) is not None:
        return known
    asked = repr((configuration.type, configuration.kwargs))
    if (needed := _NEEDED.get(asked)) is None:
        needed = _NEEDED[asked] = {name: metric.id for name, metric in needs(expectation).items()}
    known = expectation.metrics_validate(
        {identity: values[name] for name, identity in needed.items()},
        runtime_configuration={"result_format": _BASIC},
    )
    for remembered in (_VERDICTS, _NEEDED):
        if len(remembered) >= _REMEMBERED:
            remembered.clear()
    _VERDICTS[key] = known
    return known


_VERDICTS: dict[str, Any] = {}
# The ids of the metrics that an expectation needs, by name.
_NEEDED: dict[str, dict[str, Any]] = {}


def exception(info: Mapping[str, Any] | None) -> str:
    """The exception's text, or nothing; the two shapes are one record, and one record per metric."""
    if not info:
        return ""
    records = [info] if "raised_exception" in info else list(info.values())
    texts = [str(r["exception_message"]) for r in records if isinstance(r, dict) and r.get("raised_exception")]
    return flat("; ".join(dict.fromkeys(texts)))


def flat(text: str) -> str:
    """The text in one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


@contextmanager
def _engine(rows: Any) -> Iterator[Any]:
    library()
    from great_expectations.execution_engine import PandasExecutionEngine

    engine = PandasExecutionEngine(batch_data_dict={"rows": rows})
    try:
        yield engine
    finally:
        # It and its batch manager hold each other, and the frame, until the garbage collector comes by.
        vars(engine).clear()


def _resolved(wanted: Mapping[str, Any], rows: Any) -> dict[str, Any]:
    from great_expectations.validator.metrics_calculator import MetricsCalculator

    with _engine(rows) as engine:
        calculator = MetricsCalculator(engine, show_progress_bars=False)
        try:
            graph = calculator.build_metric_dependency_graph(list(wanted.values()), runtime_configuration=None)
            found, failed = calculator.resolve_validation_graph(graph)
        except Exception as err:
            raise ValueError(flat(str(err))) from err
    if failed:
        texts = [exception(one["exception_info"].to_json_dict()) for one in failed.values()]
        raise ValueError("; ".join(dict.fromkeys(texts)))
    return {name: found[needed.id] for name, needed in wanted.items()}
