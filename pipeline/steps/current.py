"""The current window: the rows that are compared with the reference, and what a look at all of them tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline import breakage, engine, seasons
from pipeline.errors import ContractViolation, NoData
from pipeline.intervals import format_instant
from pipeline.steps import plan, validate
from pipeline.steps.context import INTERVAL
from pipeline.steps.sampling import KeySample, comparable

if TYPE_CHECKING:
    from pipeline.intervals import Interval
    from pipeline.steps.context import JobContext


@dataclass(frozen=True, slots=True)
class Window:
    """At most ``drift.sample_rows`` rows of the window, and of its last interval how many rows it has and a sketch.

    Each row has the start of its interval, in minutes since 1970, in the column ``INTERVAL``. ``left_out`` is a sentence on
    the intervals that are not among them. ``duplicated`` is the share of sampled rows of the last interval that repeat
    another one in every feature.
    """

    rows: pa.Table
    left_out: str
    interval_rows: int
    sketch: tuple[int, ...]
    duplicated: float


def window(ctx: JobContext, span: Interval) -> Window:
    """The window ``span``. An earlier interval of it that breaks the contract is left out, the last one must not.

    Raises `ContractViolation` when the last interval no longer fits the job, and `NoData` when its input is gone.
    """
    job = ctx.job
    sample = KeySample(job.features.key, job.drift.sample_rows, job.model.seed)
    broken: list[str] = []
    sketch: tuple[int, ...] = ()
    last: pa.Table | None = None
    seen = 0
    # The monitored interval comes first: it was published, so it did fit; the earlier ones may never have.
    for part in reversed(list(job.cadence.split(span))):
        own = KeySample(job.features.key, job.drift.sample_rows, job.model.seed)
        is_last = part.end == span.end
        try:
            files = plan.scored_files(ctx, part)
            for rows in comparable(job, validate.accepted(ctx, part, files) if files else ()):
                own.add(rows)
                if is_last:
                    sketch = breakage.sketch(_feature_hashes(ctx, rows), sketch)
            if (found := own.table()) is not None:
                starts = np.repeat(seasons.starts_of([part.start]), found.num_rows)
                sample.add(found.append_column(INTERVAL, pa.array(starts)))
        except ContractViolation:
            if is_last:
                raise
            broken.insert(0, format_instant(part.start))
        if is_last:
            last, seen = own.table(), own.seen
        if is_last and last is None:
            raise NoData(
                f"job {job.name!r}: the input of {part} is gone, so its drift cannot be judged",
                expected=f"the files that were scored, under {job.features.uri}",
                got="no file",
                next_step="restore the input",
            )
    table = sample.table()
    assert table is not None  # the monitored interval's own rows were added
    assert last is not None
    said = f"; left out of the window, because their input breaks the contract: {', '.join(broken)}" if broken else ""
    return Window(table, said, seen, sketch, duplicated(ctx, last))


def duplicated(ctx: JobContext, rows: pa.Table) -> float:
    """The share of rows that repeat another one in every feature; 0 without rows."""
    if rows.num_rows == 0:
        return 0.0
    distinct = len(np.unique(_feature_hashes(ctx, rows)))
    return 1 - distinct / int(rows.num_rows)


def _feature_hashes(ctx: JobContext, rows: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return engine.row_hashes(rows, tuple(ctx.job.features.columns))
