"""What promotions at any dates could have reached on nycflights13, known in hindsight: the ceiling of every retraining policy.

A challenger is trained at the start of every week, as the example job trains on all that is known by then without its holdout,
and scores every later day. A policy with n promotions is n of these weeks; what it is worth is the mean daily metric of the
version that rules each day. Compared with monthly promotions, whose gain over a frozen champion is 1. Gate, governor and
window policy play no part. `python -m benchmarks.decisions --only placements` takes two minutes.
"""

from __future__ import annotations

from datetime import date, timedelta
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from benchmarks.replays import DATA, JOBS, SETS
from pipeline import engine, jobfile, metrics, trainers
from pipeline.steps import contest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.job import JobSpec

    Floats = NDArray[np.float64]

_NAME = "flights"
_MOST = 3
_WEEK, _DAY = timedelta(days=7), timedelta(days=1)
_BAR = 0.9


def measure() -> dict[str, Any]:
    """Per number of promotions: how many ways there are, the share of the gain of the best and of the median one.

    And how many of them reach 90 %; the calendar's own three, each quarter, among them.
    """
    job = jobfile.load(JOBS / f"{_NAME}.yaml")
    _, data, begin, end = next(one for one in SETS if one[0] == _NAME)
    first, last = date.fromisoformat(begin), date.fromisoformat(end)
    weeks = [first + number * _WEEK for number in range((last - first) // _WEEK)]
    days = _daily(job, _rows(job, data), weeks, last)
    # What version of week w adds to the sum if it rules from week w up to another one.
    reached = np.concatenate([np.zeros((len(weeks), 1)), np.cumsum(days, axis=1)], axis=1)

    def mean(promoted: Sequence[int]) -> float:
        ruled = [0, *promoted]
        spans = zip(ruled, [*promoted, len(weeks)], strict=True)
        return sum(float(reached[w, 7 * until] - reached[w, 7 * w]) for w, until in spans) / (7 * len(weeks))

    frozen = mean([])
    months = sorted({_nearest(weeks, date(first.year, month, 1)) for month in range(first.month + 1, 13)} - {0})
    possible = mean(months) - frozen
    told: dict[str, Any] = {"frozen": round(frozen, 4), "monthly": round(mean(months), 4), "promotions": len(months)}
    for count in range(1, _MOST + 1):
        shares = np.array([(mean(chosen) - frozen) / possible for chosen in combinations(range(1, len(weeks)), count)])
        assert len(shares) == comb(len(weeks) - 1, count)
        told[f"{count} promotions"] = {
            "ways": len(shares),
            "best": round(float(shares.max()), 3),
            "median": round(float(np.median(shares)), 3),
            "reach 90 %": int(np.sum(shares >= _BAR)),
        }
    return told


def _nearest(weeks: list[date], day: date) -> int:
    return min(range(len(weeks)), key=lambda week: abs(weeks[week] - day))


def _rows(job: JobSpec, data: str) -> pa.Table:
    """All labelled rows, with the day of each."""
    features, labels = (ds.dataset(DATA / data / kind, partitioning="hive") for kind in ("features", "labels"))
    table = features.to_table().join(
        labels.to_table(columns=[*job.features.key, job.labels.column]), job.features.key[0]
    )
    table = table.filter(pc.is_valid(table[job.labels.column]))
    return table.append_column("__day__", pc.cast(pc.floor_temporal(table[job.features.time], unit="day"), pa.date32()))


def _daily(job: JobSpec, rows: pa.Table, weeks: list[date], last: date) -> Floats:
    """The metric of the version of each week on each day from the first week on; earlier days count nothing."""
    frame, truth = engine.to_frame(rows, job.features.columns), rows[job.labels.column].to_numpy()
    day = rows["__day__"].to_numpy()
    held = job.retrain.holdout + job.labels.mature_after
    found = np.zeros((len(weeks), 7 * len(weeks)))
    for number, week in enumerate(weeks):
        estimator = trainers.fit(job, frame[day < np.datetime64(week - held)], truth[day < np.datetime64(week - held)])
        later = np.flatnonzero((day >= np.datetime64(week)) & (day < np.datetime64(last)))
        made = contest.outcomes(estimator, engine.predict(estimator, frame.iloc[later], job.task), truth[later])
        for place in range(7 * number, found.shape[1]):
            own = day[later] == np.datetime64(weeks[0] + place * _DAY)
            found[number, place] = metrics.evaluator(job.metric, made.take(own))(np.ones(np.count_nonzero(own)))
    # A day on which nothing can be measured counts for no version.
    return np.nan_to_num(found)
