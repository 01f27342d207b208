"""The batch contract of a partition, judged by Great Expectations on all of its rows, and its Data Docs page.

The only package that imports Great Expectations, and not before the first call. Must not judge single rows
(`pipeline.schema` does), must not hold a partition, and must not keep a Data Context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.expectations import library, page, questions
from pipeline.expectations.evidence import Evidence
from pipeline.expectations.questions import QUARANTINED_SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from pipeline.intervals import Interval
    from pipeline.job import JobSpec
    from pipeline.reports import ExpectationResult

__all__ = ["QUARANTINED_SHARE", "Evidence", "known_type", "validate"]


def known_type(name: str) -> bool:
    """Whether a job may use this expectation type: Great Expectations has it, and it can judge a Parquet partition."""
    return name in library.types()


def validate(
    job: JobSpec,
    interval: Interval,
    evidence: Evidence,
    *,
    rows_in: int,
    rows_quarantined: int,
    reasons: Mapping[str, int],
    sample: pa.Table | None = None,
) -> tuple[tuple[ExpectationResult, ...], str]:
    """The outcome of every expectation on one partition, in order, and the Data Docs page (HTML) that shows them.

    ``evidence`` has seen all accepted rows. The contract that every job has: at least ``checks.min_rows`` rows, at most
    ``checks.max_quarantined`` of them quarantined, all declared columns present, no null in key or time (blocking), and no
    feature that is null throughout (a warning). The job's own expectations follow. Row counts are judged on ``rows_in``.

    Great Expectations gives every verdict, from metrics of all rows. ``sample``, some of the rows, answers what has no other
    way in a large partition (`Evidence.needs_sample`), and ``observed`` says so. An expectation on values that had none to
    look at (no row, or nulls only), one that nothing could answer, and one that raised an exception have not succeeded, and
    ``observed`` says why.

    Equal arguments give equal results and an equal page; the page needs no network. Raises `InvalidJob` for an unknown
    expectation type or arguments that do not fit it.
    """
    share = rows_quarantined / rows_in if rows_in else 0.0
    with library.quiet():
        general = questions.contract(job)
        columns: dict[str, Any] = {"table.columns": evidence.names}
        known: list[dict[str, Any]] = [{"table.row_count": rows_in}, {"column.max": share}, columns]
        asked = [(q, library.judged(q.expectation, values), "") for q, values in zip(general, known, strict=True)]
        asked += evidence.answers(rows_in, sample)
        results = tuple(page.result(*one) for one in asked)
        answers = [answer for _, answer, _ in asked]
        return results, page.page(job, interval, results, answers, rows_in, reasons)
