"""Check the rows of one interval on their way in, and the partition as a whole once they have passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import expectations, rules
from pipeline.errors import ContractViolation, TooManyQuarantined
from pipeline.reports import ValidationReport
from pipeline.schema import CheckedBatch, RowChecker, contract_problems, mixed_schema_problems
from pipeline.steps.sampling import plain_type

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.intervals import Interval
    from pipeline.job import JobSpec
    from pipeline.reports import InputFile
    from pipeline.steps.context import JobContext


@dataclass(frozen=True, slots=True)
class OpenedInput:
    """The files of one interval, found to fit the contract, and the checker of their rows.

    ``schema`` is what `checked` reads: the columns that all files have alike, dictionaries decoded.
    """

    files: Sequence[InputFile]
    schema: pa.Schema
    checker: RowChecker


def opened(ctx: JobContext, interval: Interval, files: Sequence[InputFile], *, used_only: bool = False) -> OpenedInput:
    """The input of one interval; raises `ContractViolation` naming every schema problem.

    ``used_only`` leaves out the columns that the job does not name.
    """
    schemas = {file.path: _plain(ctx.inputs.schema(file)) for file in files}
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
    # Columns that the job does not use may differ from file to file; one table can only hold those that do not.
    alike = [field for field in first if all(field in list(other) for other in schemas.values())]
    wanted = used_columns(ctx.job) if used_only else first.names
    schema = pa.schema([field for field in alike if field.name in wanted])
    return OpenedInput(files, schema, RowChecker(ctx.job, interval, schema))


def checked(ctx: JobContext, source: OpenedInput) -> Iterator[CheckedBatch]:
    """The rows of the files, batch by batch, split into good and bad ones; the checker keeps the counts.

    Raises `InputChanged` when a file is not, or does not stay, the one that was listed.
    """
    for batch in ctx.inputs.batches(source.files, source.schema.names):
        columns = [rules.plain(column) for column in batch.columns]
        yield source.checker.check(pa.RecordBatch.from_arrays(columns, schema=source.schema))


def accepted(ctx: JobContext, interval: Interval, files: Sequence[InputFile]) -> Iterator[pa.RecordBatch]:
    """Only the good rows of ``files``, in the columns that the job uses; for steps that look at rows again."""
    for batch in checked(ctx, opened(ctx, interval, files, used_only=True)):
        yield batch.good


def used_columns(job: JobSpec) -> list[str]:
    """The input columns that the job names: key, time and features; rules name none besides."""
    return list(dict.fromkeys((*job.features.key, job.features.time, *job.features.columns)))


def _plain(schema: pa.Schema) -> pa.Schema:
    """The schema with dictionaries decoded and every column nullable: what writers declare differently for equal data."""
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


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
