"""The batch contract of a partition, judged by Great Expectations, and its Data Docs page.

The only module that imports Great Expectations, and not before the first call: its import takes seconds. Must not judge single
rows (`pipeline.schema` does) and must not keep a Data Context between calls.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import pages
from pipeline.errors import InvalidJob
from pipeline.markup import harmless
from pipeline.reports import ExpectationResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.intervals import Interval
    from pipeline.job import JobSpec
    from pipeline.policies import Expectation

QUARANTINED_SHARE = "quarantined_share"

_OBSERVED_LENGTH = 300
# They ask a database; a partition is Parquet.
_SQL_ONLY = {
    "expect_query_results_to_match_comparison",
    "expect_table_row_count_to_equal_other_table",
    "expect_column_values_to_match_like_pattern",
    "expect_column_values_to_match_like_pattern_list",
    "expect_column_values_to_not_match_like_pattern",
    "expect_column_values_to_not_match_like_pattern_list",
}
# A sample has another sum and fewer distinct values than the partition it stands for.
_NEED_EVERY_ROW = {"expect_column_sum_to_be_between", "expect_column_unique_value_count_to_be_between"}
_ABOUT_NULLS = {
    "expect_column_values_to_be_null",
    "expect_column_values_to_not_be_null",
    "expect_column_proportion_of_non_null_values_to_be_between",
}
# Arguments that every expectation has and that this product sets itself, or does not support.
_CONDITION = {"row_condition", "condition_parser"}
_INTERNAL = {"id", "rendered_content", "severity", "windows", "batch_id", "result_format", "catch_exceptions", "meta"}
# Great Expectations draws its marks with an icon font from the network.
_STYLE = """<style>
h5, h6 { font-size: 1.05rem; margin: 1.4rem 0 .2rem; } table { margin-bottom: .6rem; } thead[hidden] { display: none; }
i.fas { font-style: normal; font-weight: 700; } i.text-success { color: var(--ok); } i.text-danger { color: var(--bad); }
i.text-warning { color: var(--dim); } i.fa-check-circle::before { content: "\\2713 pass"; }
i.fa-times::before { content: "\\2717 fail"; } i.fa-exclamation-triangle::before { content: "\\26A0 fail"; }
.badge { font-family: ui-monospace, monospace; } .show-scrollbars { overflow-x: auto; }
</style>"""


@dataclass(frozen=True)
class _Question:
    """One expectation. ``known`` is its metric, where that is known already; otherwise the rows of the sample answer."""

    expectation: Any
    blocking: bool
    known: float | None = None
    about_sample: bool = True

    @property
    def type(self) -> str:
        return str(self.expectation.expectation_type)

    @property
    def columns(self) -> list[str]:
        kwargs = self.expectation.configuration.kwargs
        named = [kwargs.get(name) for name in ("column", "column_A", "column_B")]
        return [str(name) for name in (*named, *(kwargs.get("column_list") or ())) if name is not None]


def known_type(name: str) -> bool:
    """Whether a job may use this expectation type: Great Expectations has it, and it can judge a Parquet partition."""
    return name in _types()


def validate(
    job: JobSpec,
    interval: Interval,
    sample: pa.Table,
    *,
    rows_in: int,
    rows_quarantined: int,
    reasons: Mapping[str, int],
) -> tuple[tuple[ExpectationResult, ...], str]:
    """The outcome of every expectation on one partition, in order, and the Data Docs page (HTML) that shows them.

    ``sample`` holds accepted rows: all of them, or a deterministic sample. The contract that every job has: at least
    ``checks.min_rows`` rows, at most ``checks.max_quarantined`` of them quarantined, all declared columns present, no null in
    key or time (blocking), and no feature that is null throughout (a warning). The job's own expectations follow.

    Row counts are judged on ``rows_in``: Great Expectations gets the number itself as the metric ``table.row_count``, never a
    frame of that length. An expectation on values that had none to look at (no row, or nulls only), one that needs every row
    but got a sample, and one that raised an exception have not succeeded, and ``observed`` says why.

    Equal arguments give equal results and an equal page; the page needs no network. Raises `InvalidJob` for an unknown
    expectation type or arguments that do not fit it.
    """
    accepted = rows_in - rows_quarantined
    share = rows_quarantined / rows_in if rows_in else 0.0
    with warnings.catch_warnings():
        # What Great Expectations and pandas will change in a future version is no concern of the reader of a run's log.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        questions = [*_contract(job, sample, rows_in, share), *_declared(job, rows_in)]
        answers = _answers(questions, sample, accepted)
        note = f" (sample of {sample.num_rows:,} of {accepted:,} rows)" if sample.num_rows < accepted else ""
        results = tuple(_result(q, answer, note) for q, answer in zip(questions, answers, strict=True))
        return results, _page(job, interval, results, answers, rows_in, reasons)


@cache
def _library() -> Any:
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
def _types() -> dict[str, Any]:
    """The usable expectation classes by type."""
    _library()
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )

    names = set(list_registered_expectation_implementations()) - _SQL_ONLY
    return {name: get_expectation_impl(name) for name in names if name.startswith("expect_")}


def _contract(job: JobSpec, sample: pa.Table, rows_in: int, share: float) -> list[_Question]:
    """What every partition must be like, whatever the job file adds."""
    gxe, features = _library().expectations, job.features
    columns = sorted({*features.key, features.time, *features.columns})
    least, most = job.checks.min_rows, job.checks.max_quarantined
    questions = [
        _Question(gxe.ExpectTableRowCountToBeBetween(min_value=least), True, rows_in, False),
        _Question(gxe.ExpectColumnMaxToBeBetween(column=QUARANTINED_SHARE, max_value=most), True, share, False),
        _Question(gxe.ExpectTableColumnsToMatchSet(column_set=columns, exact_match=False), True, None, False),
    ]
    if sample.num_rows == 0:
        # Whether no rows at all are acceptable is what the row count decides.
        return questions
    questions += [
        _Question(gxe.ExpectColumnValuesToNotBeNull(column=name), True)
        for name in dict.fromkeys((*features.key, features.time))
        if name in sample.column_names
    ]
    questions += [
        _Question(
            gxe.ExpectColumnProportionOfNonNullValuesToBeBetween(
                column=name, min_value=0, strict_min=True, severity="warning"
            ),
            False,
            1 - _nulls(sample.column(name)) / sample.num_rows,
        )
        for name in features.columns
        if name in sample.column_names
    ]
    return questions


def _declared(job: JobSpec, rows_in: int) -> list[_Question]:
    """The job's own expectations."""
    questions = []
    for declared in job.checks.expectations:
        known = rows_in if _counts_rows(declared.type) else None
        about_sample = not declared.type.startswith("expect_table_")
        questions.append(_Question(_build(job, declared), declared.blocking, known, about_sample))
    return questions


def _build(job: JobSpec, declared: Expectation) -> Any:
    what = f"job {job.name!r}: expectation {declared.type!r}"
    check = f"run 'pipeline check {job.name}' after correcting checks.expectations"
    if declared.type not in _types():
        reason = "it needs a SQL database" if declared.type in _SQL_ONLY else "Great Expectations has no such type"
        raise InvalidJob(f"{what} cannot be used: {reason}", got=declared.type, next_step=check)
    kind = _types()[declared.type]
    # A row count is judged on the partition's own count, which knows no condition.
    allowed = sorted(set(kind.__fields__) - _INTERNAL - (_CONDITION if _counts_rows(declared.type) else set()))
    expected = f"arguments among {', '.join(allowed)}"
    if unknown := sorted(set(declared.kwargs) - set(allowed)):
        raise InvalidJob(f"{what} has unknown arguments", expected=expected, got=", ".join(unknown), next_step=check)
    try:
        expectation = kind(**declared.kwargs, severity="critical" if declared.blocking else "warning")
    except (TypeError, ValueError) as err:
        raise InvalidJob(
            f"{what} has wrong arguments", expected=expected, got=_flat(str(err)), next_step=check
        ) from err
    if parameters := expectation.suite_parameter_options:
        raise InvalidJob(f"{what} has unbound parameters", expected="values", got=str(parameters), next_step=check)
    return expectation


def _counts_rows(kind: str) -> bool:
    return kind.startswith("expect_table_row_count_")


def _answers(questions: Sequence[_Question], sample: pa.Table, accepted: int) -> list[Any]:
    """Great Expectations' result for every question, in order, or the reason (a text) why there is none."""
    answers: list[Any] = [_answer_without_rows(question, sample, accepted) for question in questions]
    open_questions = [position for position, answer in enumerate(answers) if answer is None]
    answered = _ask([questions[position].expectation for position in open_questions], sample)
    for position, answer in zip(open_questions, answered, strict=True):
        answers[position] = _vetted(questions[position], answer)
    return answers


def _answer_without_rows(question: _Question, sample: pa.Table, accepted: int) -> Any:
    """The result where the metric is known, the reason where the sample cannot answer, otherwise ``None``."""
    if question.known is not None:
        expectation = question.expectation
        needs = expectation.get_validation_dependencies(runtime_configuration={"result_format": "BASIC"})
        metrics = {metric.id: question.known for metric in needs.get_metric_configurations()}
        return expectation.metrics_validate(metrics, runtime_configuration={"result_format": "BASIC"})
    if question.type in _NEED_EVERY_ROW and sample.num_rows < accepted:
        return "not judged: needs every row"
    present = [sample.column(name) for name in question.columns if name in sample.column_names]
    if _reads_values(question) and len(present) == len(question.columns):
        if sample.num_rows == 0:
            return "nothing to check: no rows"
        if question.type not in _ABOUT_NULLS and any(_nulls(column) == len(column) for column in present):
            return "nothing to check: all values are null"
    return None


def _reads_values(question: _Question) -> bool:
    from great_expectations.expectations.expectation import (
        ColumnAggregateExpectation,
        ColumnMapExpectation,
        ColumnPairMapExpectation,
        MulticolumnMapExpectation,
    )

    kinds = (ColumnAggregateExpectation, ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
    return isinstance(question.expectation, kinds)


def _ask(expectations: Sequence[Any], sample: pa.Table) -> list[Any]:
    """The results of the expectations on the sample, in their order, from a Data Context of their own.

    A shared context grows with every validation (60 of them: 77 MB), a fresh one costs 15 ms.
    """
    gx = _library()
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars={"globally": False},
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("sample")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": _frame(sample)})
    # Exceptions come first in the answer: the position tells which question they belong to.
    for position, expectation in enumerate(expectations):
        expectation.meta = {"position": position}
    suite = gx.ExpectationSuite(name="batch contract", expectations=list(expectations))
    found = batch.validate(suite, result_format="BASIC").results
    return sorted(found, key=lambda result: result.expectation_config.meta["position"])


def _frame(sample: pa.Table) -> Any:
    """The sample as pandas: no categoricals, decimals as floats, text that is not UTF-8 as bytes."""
    columns = []
    for column in sample.columns:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                column = column.cast(pa.large_binary())
        columns.append(column)
    return pa.table(columns, names=sample.column_names).to_pandas(ignore_metadata=True)


def _vetted(question: _Question, answer: Any) -> Any:
    """The answer, or a reason where the expectation could not be evaluated, or held because no value was left to break it."""
    if problem := _exception(answer.exception_info):
        return f"could not be evaluated: {problem}"
    rows, missing = answer.result.get("element_count"), answer.result.get("missing_count") or 0
    if rows is not None and rows == missing and question.type not in _ABOUT_NULLS:
        return "nothing to check: no values under its condition"
    return answer


def _exception(info: Mapping[str, Any] | None) -> str:
    """The exception's text, or nothing; the two shapes are one record, and one record per metric."""
    if not info:
        return ""
    records = [info] if "raised_exception" in info else list(info.values())
    texts = [str(r["exception_message"]) for r in records if isinstance(r, dict) and r.get("raised_exception")]
    return _flat("; ".join(dict.fromkeys(texts)))


def _result(question: _Question, answer: Any, note: str) -> ExpectationResult:
    observed = answer if isinstance(answer, str) else _observed(answer.result)
    return ExpectationResult(
        type=question.type,
        column=", ".join(question.columns) or None,
        success=not isinstance(answer, str) and bool(answer.success),
        blocking=question.blocking,
        observed=observed + (note if question.about_sample else ""),
    )


def _observed(found: Mapping[str, Any]) -> str:
    if (value := found.get("observed_value")) is not None:
        return _flat(f"{value:.6g}" if isinstance(value, float) else str(value))
    if "unexpected_count" not in found:
        return "no value" if "observed_value" in found else ""
    rows, examples = found.get("element_count"), found.get("partial_unexpected_list") or []
    text = f"{found['unexpected_count']:,} " + ("unexpected" if rows is None else f"of {rows:,} rows unexpected")
    return _flat(": ".join(part for part in (text, ", ".join(str(value) for value in examples[:5])) if part))


def _flat(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _OBSERVED_LENGTH else f"{line[:_OBSERVED_LENGTH]}..."


def _nulls(column: pa.ChunkedArray) -> int:
    """How many values are null or NaN."""
    return int(pc.sum(pc.is_null(column, nan_is_null=True)).as_py() or 0)


def _page(
    job: JobSpec,
    interval: Interval,
    results: Sequence[ExpectationResult],
    answers: Sequence[Any],
    rows_in: int,
    reasons: Mapping[str, int],
) -> str:
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    failed = [result for result in results if not result.success]
    blocked = sum(result.blocking for result in failed)
    judged = [answer for answer in answers if not isinstance(answer, str)]
    silent = [(r.type, r.column, r.observed) for r, a in zip(results, answers, strict=True) if isinstance(a, str)]
    document = ValidationResultsPageRenderer().render(
        ExpectationSuiteValidationResult(
            success=not blocked, results=judged, suite_name=job.name, statistics={}, meta={}
        )
    )
    # The first section is an overview with links into a site that does not exist here. The others show values of the
    # data, and names, unescaped.
    sections = [
        harmless(_view().render({"section": section.to_json_dict(), "section_loop": {"index": number}}))
        for number, section in enumerate(document.sections[1:], start=1)
    ]
    lead = f"{len(results)} expectations, {len(failed)} not met, {blocked} of them blocking; {rows_in:,} rows in."
    tables = [
        pages.table(header, rows)
        for header, rows in (
            (("Quarantined for", "Rows"), sorted(reasons.items())),
            (("Not judged", "Column", "Why"), silent),
        )
        if rows
    ]
    return pages.page(f"Validation of {job.name} {interval}", lead, [_STYLE, *tables, *sections])


@cache
def _view() -> Any:
    """The renderer of one Data Docs section; holds compiled templates only."""
    from great_expectations.render.view import view
    from jinja2 import ChoiceLoader, DictLoader

    sections = view.DefaultJinjaSectionView()
    # A graph is drawn by a script from the network.
    sections.env.loader = ChoiceLoader([DictLoader({"graph.j2": ""}), sections.env.loader])
    return sections
