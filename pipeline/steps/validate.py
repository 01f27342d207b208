"""Check the rows of one interval on their way in, and the partition as a whole once they have passed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import expectations
from pipeline.errors import ContractViolation, TooManyQuarantined
from pipeline.reports import ValidationReport
from pipeline.schema import CheckedBatch, RowChecker, contract_problems, mixed_schema_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from pipeline.intervals import Interval
    from pipeline.reports import InputFile
    from pipeline.steps.context import JobContext


def open_checker(ctx: JobContext, interval: Interval, files: Sequence[InputFile]) -> RowChecker:
    """A row checker for the files of one interval; raises `ContractViolation` naming every schema problem."""
    schemas = {file.path: ctx.storage.schema(file) for file in files}
    first = next(iter(schemas.values()))
    problems = contract_problems(first, ctx.job) or mixed_schema_problems(schemas, ctx.job)
    if problems:
        raise ContractViolation(
            f"job {ctx.job.name!r}: the input of {interval} breaks the contract: " + "; ".join(problems),
            expected="the columns and types that features declares",
            got=f"{len(problems)} problem(s) in {files[0].path}" + (" and others" if len(files) > 1 else ""),
            left_behind="nothing was written; a partition published earlier is untouched",
            next_step=f"fix the producer, or the job file and 'pipeline check {ctx.job.name}'",
        )
    return RowChecker(ctx.job, interval, first)


def checked(ctx: JobContext, checker: RowChecker, files: Sequence[InputFile]) -> Iterator[CheckedBatch]:
    """The rows of ``files``, batch by batch, split into good and bad ones."""
    for batch in ctx.storage.batches(files):
        yield checker.check(batch)


def accepted(ctx: JobContext, interval: Interval, files: Sequence[InputFile]) -> Iterator[pa.RecordBatch]:
    """Only the good rows of ``files``; for steps that look at rows again after they were scored."""
    checker = open_checker(ctx, interval, files)
    for batch in checked(ctx, checker, files):
        yield batch.good


def conclude(ctx: JobContext, interval: Interval, checker: RowChecker, sample: pa.Table) -> ValidationReport:
    """The report on a partition whose rows have all been checked; its HTML page is written.

    ``sample`` holds accepted rows, all of them when there are few. Raises `TooManyQuarantined` or `ContractViolation`
    when the partition must not be published.
    """
    job, reasons = ctx.job, dict(checker.reasons)
    quarantined = sum(reasons.values())
    results, html = expectations.validate(
        job, interval, sample, rows_in=checker.rows_in, rows_quarantined=quarantined, reasons=reasons
    )
    uri = ctx.report_uri("validation", interval)
    ctx.storage.write_text(uri, html)
    report = ValidationReport(
        job=job.name,
        start=interval.start,
        end=interval.end,
        rows_in=checker.rows_in,
        rows_quarantined=quarantined,
        reasons=reasons,
        warnings=dict(checker.warnings),
        expectations=results,
        report_uri=uri,
    )
    left = f"the report {uri}; no prediction was published or changed"
    if quarantined > job.checks.max_quarantined * checker.rows_in:
        raise TooManyQuarantined(
            f"job {job.name!r}: {quarantined} of {checker.rows_in} rows of {interval} broke row rules {reasons}",
            expected=f"at most {job.checks.max_quarantined:.1%} (checks.max_quarantined)",
            got=f"{quarantined / checker.rows_in:.1%}",
            left_behind=left,
            next_step="fix the producer and score the interval again, or relax the rule in the job file",
        )
    if report.failures:
        failed = "; ".join(f"{f.type}({f.column or 'table'}): {f.observed}" for f in report.failures)
        raise ContractViolation(
            f"job {job.name!r}: the input of {interval} failed blocking expectations: {failed}",
            expected="every blocking expectation to hold",
            got=f"{len(report.failures)} failure(s)",
            left_behind=left,
            next_step="fix the producer and score the interval again, or change checks in the job file",
        )
    return report
