"""Measure on a job's own history which thresholds keep its false alarms within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline import calibration, seasons, variation
from pipeline.errors import ContractViolation, NoData
from pipeline.intervals import format_instant
from pipeline.policies import MISSING
from pipeline.steps import champion, plan, reference, validate
from pipeline.steps.context import INTERVAL, PREDICTION
from pipeline.steps.sampling import KeySample, comparable
from pipeline.verdicts import Calibration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.intervals import Interval
    from pipeline.steps.context import JobContext
    from pipeline.steps.reference import Columns

# Rows of history that are held at once, over all intervals.
_MOST_ROWS = 200_000
_LONGEST = 2_000  # intervals


def calibrate(ctx: JobContext, span: Interval, *, budget: float) -> Calibration:
    """The thresholds under which at most ``budget`` alarms per interval would have been raised in ``span``.

    Each interval of the history is compared with the others of its season, as a partition is with its reference; the
    champion's predictions are one of the columns when there is a champion. No threshold is below what this history, and the
    champion's training period, show to be natural. A history that holds real drift gives lax thresholds: choose a span in
    which all was well. Raises `NoData` when the history is too short.
    """
    job = ctx.job
    model = ctx.load(champion.current(ctx).version) if ctx.ledger.champion(job.name) else None
    rows = _history(ctx, span)
    if rows is None:
        raise _too_short(ctx, span, 0)
    starts = rows[INTERVAL].to_numpy()
    columns: Columns = reference.columns(ctx, model, rows) if model else reference.features(ctx, rows)
    kinds = {name: kind for name, kind in reference.comparison_kinds(ctx).items() if name in columns}
    season = _season(ctx, starts)
    seen = variation.course(job.drift, columns, kinds, starts, season)
    natural = variation.natural(job.drift, columns, kinds, starts, season)
    # A partition is compared with the model's reference, which may vary by itself where this history does not.
    trained = reference.natural(model, season) if model else {}
    floors = calibration.floors(job.drift, kinds, seen, natural, trained)
    rule = {"violations": job.drift.violations, "of_last": job.drift.of_last}
    found = calibration.calibrate(seen, floors, **rule, window=job.drift.window, budget=budget, seed=job.model.seed)
    if found is None:
        raise _too_short(ctx, span, len(np.unique(starts)))
    current = floors | {
        _internal(name): limit for name, limit in job.drift.thresholds.items() if _internal(name) in floors
    }
    return Calibration(
        job=job.name,
        start=span.start,
        end=span.end,
        budget=budget,
        rate=found.rate,
        at_most=found.at_most,
        before=calibration.alarm_rate(seen, current, **rule),
        intervals=found.intervals,
        model_version=model.ref.version if model else None,
        season=seasons.described(season),
        thresholds={_shown(name): limit for name, limit in found.thresholds.items()},
    )


def _history(ctx: JobContext, span: Interval) -> pa.Table | None:
    """A sample of the accepted rows of every interval of ``span`` that can be read."""
    job = ctx.job
    intervals = list(job.cadence.split(span))[-_LONGEST:]
    each = max(_MOST_ROWS // max(len(intervals), 1), 100)
    parts = []
    for interval in intervals:
        sample = KeySample(job.features.key, each, job.model.seed)
        try:
            files = plan.scored_files(ctx, interval)
            for rows in comparable(job, validate.accepted(ctx, interval, files) if files else ()):
                sample.add(rows)
        except ContractViolation:
            continue
        table = sample.table()
        if table is not None and table.num_rows:
            starts = np.repeat(seasons.starts_of([interval.start]), table.num_rows)
            parts.append(table.append_column(INTERVAL, pa.array(starts)))
    return pa.concat_tables(parts) if parts else None


def _season(ctx: JobContext, starts: NDArray[np.int64]) -> seasons.Season:
    """The most alike season of which the history holds enough intervals for every cell."""
    policy = ctx.job.drift
    distinct = np.unique(starts)
    for season in seasons.ladder(policy.reference, ctx.job.cadence, policy.window):
        _, counts = np.unique(seasons.cells(season, distinct), return_counts=True)
        if season == "all" or (policy.window == 1 and counts.min() > policy.reference.min_intervals):
            return season
    return "all"


def _internal(name: str) -> str:
    signal, column = _parts(name)
    return signal + (PREDICTION if column == "prediction" else column)


def _shown(name: str) -> str:
    signal, column = _parts(name)
    return signal + ("prediction" if column == PREDICTION else column)


def _parts(name: str) -> tuple[str, str]:
    column = name.removeprefix(MISSING)
    return name[: len(name) - len(column)], column


def _too_short(ctx: JobContext, span: Interval, found: int) -> NoData:
    return NoData(
        f"job {ctx.job.name!r}: the history from {format_instant(span.start)} to {format_instant(span.end)} is too short to "
        "measure thresholds on",
        expected=f"at least {calibration.FEWEST} readable intervals with {ctx.job.drift.min_rows} rows each",
        got=f"{found} readable intervals",
        left_behind="the thresholds are as they were",
        next_step=f"pipeline calibrate {ctx.job.name} with an earlier --from",
    )
