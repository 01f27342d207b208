"""Check the rows of one interval on their way in, and the partition as a whole once they have passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import casts, expectations
from pipeline.errors import ContractViolation, FileRejected, TooManyQuarantined
from pipeline.reports import RejectedFile, ValidationReport
from pipeline.schema import CheckedBatch, RowChecker, common_schema, contract_problems, mixed_schema_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.intervals import Interval
    from pipeline.job import JobSpec
    from pipeline.reports import InputFile
    from pipeline.steps.context import JobContext
    from pipeline.storage import Footer

_NAMED = 5  # rejected files that a message names


@dataclass(frozen=True, slots=True)
class OpenedInput:
    """The usable files of one interval, found to fit the contract, the checker of their rows, and the other files.

    ``schema`` is what `checked` reads: types to which every file's values convert without loss, dictionaries decoded;
    ``columns`` names, file by file, those of its columns that the file has; ``rows`` is what the files declare to hold.
    """

    files: Sequence[InputFile]
    columns: Sequence[Sequence[str]]
    schema: pa.Schema
    checker: RowChecker
    rejected: tuple[RejectedFile, ...]
    rows: int


def opened(
    ctx: JobContext,
    interval: Interval,
    files: Sequence[InputFile],
    *,
    used_only: bool = False,
    rejected: tuple[RejectedFile, ...] = (),
) -> OpenedInput:
    """The input of one interval; files that cannot be used are left out, up to ``checks.max_quarantined`` of the bytes.

    ``rejected`` files were refused before and are not looked at again; ``used_only`` leaves out the columns that the job
    does not name. Raises `FileRejected` or `ContractViolation` when no file is usable, `TooManyQuarantined` when
    too much would be left out, and `ContractViolation` when the usable files do not go together.
    """
    job, schemas, rows, refusals = ctx.job, dict[str, pa.Schema](), 0, list[FileRejected]()
    for file in files:
        if file.path not in {known.path for known in rejected}:
            try:
                footer = _fitting(ctx, interval, file)
                schemas[file.path] = footer.schema
                rows += footer.rows
            except FileRejected as refusal:
                refusals.append(refusal)
    rejected = (*rejected, *(as_rejected(files, refusal) for refusal in refusals))
    if not schemas and refusals:
        raise refusals[0]
    _require_most(ctx, interval, files, rejected)
    if problems := mixed_schema_problems(schemas, job):
        raise _breach(ctx, interval, problems, f"{len(problems)} problem(s) in {len(schemas)} files")
    whole = common_schema(schemas, job)
    schema = pa.schema([field for field in whole if not used_only or field.name in used_columns(job)])
    usable = [file for file in files if file.path in schemas]
    columns = [[name for name in schema.names if name in schemas[file.path].names] for file in usable]
    checker = RowChecker(job, interval, schema, ctx.inputs.shelf())
    return OpenedInput(usable, columns, schema, checker, rejected, rows)


def _fitting(ctx: JobContext, interval: Interval, file: InputFile) -> Footer:
    """The footer of a file that fits the contract; raises `FileRejected`."""
    footer = ctx.inputs.footer(file)
    if problems := contract_problems(footer.schema, ctx.job):
        refusal = _breach(ctx, interval, problems, f"{len(problems)} problem(s) in {file.path}")
        raise FileRejected(
            refusal.what,
            path=file.path,
            code="schema",
            rows=footer.rows,
            expected=refusal.expected,
            got=refusal.got,
            left_behind=refusal.left_behind,
            next_step=refusal.next_step,
        )
    return footer


def as_rejected(files: Sequence[InputFile], refusal: FileRejected) -> RejectedFile:
    """The record of one of ``files`` that was refused."""
    (file,) = (file for file in files if file.path == refusal.path)
    return RejectedFile(
        path=file.path,
        sha256=file.sha256,
        size=file.size,
        reason=refusal.code,
        rows=refusal.rows,
        detail=refusal.what if refusal.code == "schema" else refusal.got,
    )


def _require_most(
    ctx: JobContext, interval: Interval, files: Sequence[InputFile], rejected: Sequence[RejectedFile]
) -> None:
    # The rows of a file that cannot be read are not known; its share of the bytes is.
    lost, whole = sum(file.size for file in rejected), sum(file.size for file in files)
    if lost > ctx.job.checks.max_quarantined * whole:
        raise _too_many(
            ctx, interval, rejected, f"{lost} of {whole} bytes are in files that cannot be used", lost / whole
        )


def _breach(ctx: JobContext, interval: Interval, problems: Sequence[str], got: str) -> ContractViolation:
    return ContractViolation(
        f"job {ctx.job.name!r}: the input of {interval} breaks the contract: " + "; ".join(problems),
        expected="the columns and types that features declares",
        got=got,
        left_behind="nothing was written; a partition published earlier is untouched",
        next_step=f"fix the producer, or the job file and 'pipeline check {ctx.job.name}'",
    )


def checked(ctx: JobContext, source: OpenedInput, *, coded: bool = False) -> Iterator[CheckedBatch]:
    """The rows of the files, batch by batch, split into good and bad ones; the checker keeps the counts.

    With ``coded``, a category of text may be a dictionary among the good rows, another one in every batch.
    Raises `InputChanged` when a file is not, or does not stay, the one that was listed, and `FileRejected` for one whose
    pages turn out to be unusable.
    """
    codes = {name for name, column in ctx.job.features.columns.items() if column.type == "category"} if coded else set()
    texts = {field.name for field in source.schema if field.name in codes and pa.types.is_string(field.type)}
    for file, columns in zip(source.files, source.columns, strict=True):
        wanted = [name for name in columns if name in texts]
        for batch in ctx.inputs.batches([file], columns, codes=wanted):
            yield source.checker.check(casts.cast(batch, source.schema, texts))


def accepted(ctx: JobContext, interval: Interval, files: Sequence[InputFile]) -> Iterator[pa.RecordBatch]:
    """Only the good rows of ``files``, in the columns that the job uses; for steps that look at rows again."""
    for batch in checked(ctx, opened(ctx, interval, files, used_only=True)):
        yield batch.good


def used_columns(job: JobSpec) -> list[str]:
    """The input columns that the job names: key, time and features; rules name none besides."""
    return list(dict.fromkeys((*job.features.key, job.features.time, *job.features.columns)))


def conclude(
    ctx: JobContext, interval: Interval, source: OpenedInput, evidence: expectations.Evidence, sample: pa.Table | None
) -> ValidationReport:
    """The report on a partition whose rows have all been checked; its HTML page is written.

    ``evidence`` has seen all accepted rows; ``sample`` holds some, for what it cannot answer. Raises
    `TooManyQuarantined` or `ContractViolation` when the partition must not be published.
    """
    job, checker = ctx.job, source.checker
    reasons = dict(checker.reasons)
    quarantined = sum(reasons.values())
    shown = reasons | {f"file {file.path}: {file.reason}": file.rows or 0 for file in source.rejected}
    results, html = expectations.validate(
        job,
        interval,
        evidence,
        rows_in=checker.rows_in,
        rows_quarantined=quarantined,
        reasons=shown,
        sample=sample,
    )
    uri = ctx.report_uri("validation", interval)
    ctx.storage.write_text(uri, html, durable=False)
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
    lost = sum(file.size for file in source.rejected)
    share_of_files = lost / (lost + sum(file.size for file in source.files))
    share = share_of_files + (1 - share_of_files) * (quarantined / checker.rows_in if checker.rows_in else 0)
    if share > job.checks.max_quarantined:
        what = f"{quarantined} of {checker.rows_in} rows of {interval} broke row rules {reasons}"
        raise _too_many(ctx, interval, source.rejected, what, share, left)
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


def _too_many(
    ctx: JobContext,
    interval: Interval,
    rejected: Sequence[RejectedFile],
    what: str,
    share: float,
    left: str = "nothing was written; a partition published earlier is untouched",
) -> TooManyQuarantined:
    files = "".join(f"; file {file.path} was rejected ({file.detail})" for file in rejected[:_NAMED])
    return TooManyQuarantined(
        f"job {ctx.job.name!r}, {interval}: {what}{files}",
        expected=f"at most {ctx.job.checks.max_quarantined:.1%} (checks.max_quarantined)",
        got=f"{share:.1%}",
        left_behind=left,
        next_step="fix the producer and score the interval again, or relax the rule in the job file",
    )
