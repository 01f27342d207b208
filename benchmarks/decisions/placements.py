"""What promotions could reach on real data: at any dates, known in hindsight, and under many policies that ask for a proof.

A challenger is trained at the start of every week, as the example jobs train on all that is known by then without its holdout,
and scores the holdout and every later day. A policy with n promotions is n of these weeks; what it is worth is the mean daily
metric of the version that rules each day. Compared with monthly promotions of models with the same holdout, whose gain over a
frozen champion is 1. Governor and window policy play no part. `python -m benchmarks.decisions --only placements` takes ten
minutes.

The policies: a challenger every so many weeks, promoted when it is proven better by so much on its held-out days, at once or at
one of two further looks; from several starting dates, because on one of them a policy may be lucky.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from benchmarks.replays import DATA, JOBS, SETS
from pipeline import engine, guards, jobfile, metrics, paired, trainers
from pipeline.policies import HIGHER_IS_BETTER
from pipeline.release import Promote
from pipeline.steps import contest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.job import JobSpec
    from pipeline.policies import MetricName

    Floats = NDArray[np.float64]
    # Of each starting date, the share of the gain and that of the promotions.
    Runs = list[tuple[float, float]]

_MOST = 3
_DAY, _WEEK = timedelta(days=1), timedelta(days=7)
_BAR, _MOST_PROMOTIONS = 0.9, 1 / 3
# The days of the holdout; how many those of new job files are; and the days until labels are complete.
_HOLDOUTS, _HELD, _LAG = (7, 10, 14, 21, 28), 10, 1
_EVERY, _CONFIDENCE, _LOOKS = (1, 2, 4, 6, 8, 12), (0.9, 0.95, 0.99), (1, 3)
# In the unit of promote.min_gain.
_MIN_GAIN = {"flights": (0.0, 0.005, 0.01, 0.015), "bikes": (0.0, 0.1, 0.15, 0.2)}
_STARTS, _FEWEST_DAYS = 4, 7


def measure() -> dict[str, Any]:
    """Of each data set, per number of promotions: how many ways there are, and what the best and the median one keep.

    And how many of them reach 90 %; then the same of the policies.
    """
    return {name: _measured(name, data, begin, end) for name, data, begin, end in SETS}


def _measured(name: str, data: str, begin: str, end: str) -> dict[str, Any]:
    job = jobfile.load(JOBS / f"{name}.yaml")
    first, last = date.fromisoformat(begin), date.fromisoformat(end)
    weeks = [first + number * _WEEK for number in range((last - first) // _WEEK)]
    versions = _Versions.trained(job, _rows(job, data), weeks)
    scales = {held: [_Scale.of(versions, weeks[start:], held) for start in range(_STARTS)] for held in _HOLDOUTS}
    policies = [
        _Policy(every, Promote(confidence=confidence, min_gain=min_gain, looks=looks))
        for every, confidence, min_gain, looks in product(_EVERY, _CONFIDENCE, _MIN_GAIN[name], _LOOKS)
    ]
    scale = scales[_HELD][0]
    return {
        "frozen": round(abs(scale.frozen), 4),
        "monthly": round(abs(scale.monthly), 4),
        "monthly promotions": scale.count,
        **{f"{count} promotions": _placed(scale, count) for count in range(1, _MOST + 1)},
        **{
            f"holdout of {held} days": _summary({policy: [policy.run(one) for one in starts] for policy in policies})
            for held, starts in scales.items()
        },
    }


@dataclass(frozen=True)
class _Versions:
    """What versions are worth: for each day that one may learn up to, its metric on each day from ``origin`` on.

    Higher is better: a metric of which the opposite is true is negative. 0 where a version has learnt the day, or where
    nothing can be measured on it.
    """

    origin: date
    metric: MetricName
    by_cut: dict[date, Floats]

    @classmethod
    def trained(cls, job: JobSpec, rows: pa.Table, weeks: list[date]) -> _Versions:
        """Those that the policies of these weeks need: of each week, with each holdout."""
        frame, truth = engine.to_frame(rows, job.features.columns), rows[job.labels.column].to_numpy()
        day = rows["__day__"].to_numpy()
        sign = 1 if HIGHER_IS_BETTER[job.metric] else -1
        origin = weeks[0] - max(_HOLDOUTS) * _DAY
        days = np.arange(origin, weeks[-1] + _WEEK, dtype="datetime64[D]")
        by_cut: dict[date, Floats] = {}
        for cut in sorted({week - held * _DAY for week in weeks for held in _HOLDOUTS}):
            # The labels of the last day are not complete yet.
            known = np.datetime64(cut - _LAG * _DAY)
            estimator = trainers.fit(job, frame[day < known], truth[day < known])
            later = np.flatnonzero((day >= max(known, days[0])) & (day <= days[-1]))
            made = contest.outcomes(estimator, engine.predict(estimator, frame.iloc[later], job.task), truth[later])
            found = np.zeros(len(days))
            for place, one in enumerate(days):
                own = day[later] == one
                if own.any():
                    found[place] = sign * metrics.evaluator(job.metric, made.take(own))(np.ones(np.count_nonzero(own)))
            by_cut[cut] = np.nan_to_num(found)
        return cls(origin, job.metric, by_cut)


@dataclass(frozen=True)
class _Scale:
    """The daily metric of the version of each week, from the first one's holdout on, and what it is measured by."""

    days: Floats
    held: int
    metric: MetricName
    frozen: float
    monthly: float
    count: int

    @classmethod
    def of(cls, versions: _Versions, weeks: list[date], held: int) -> _Scale:
        """With a champion of the first week that stays, and a promotion in every later month."""
        pairs = enumerate(zip(weeks[1:], weeks, strict=False), start=1)
        months = [(place, place) for place, (week, before) in pairs if week.month != before.month]
        days = np.stack([versions.by_cut[week - held * _DAY] for week in weeks])
        days = days[:, (weeks[0] - held * _DAY - versions.origin).days :]
        frozen, monthly = (_mean(days, held, ruled) for ruled in ([], months))
        return cls(days, held, versions.metric, frozen, monthly, len(months))

    def share(self, ruled: Sequence[tuple[int, int]]) -> float:
        """The share of the gain of monthly promotions that these keep (see `_mean`)."""
        return (_mean(self.days, self.held, ruled) - self.frozen) / (self.monthly - self.frozen)


def _mean(days: Floats, held: int, ruled: Sequence[tuple[int, int]]) -> float:
    """The mean daily metric where from each of these weeks on the version with it rules; before, that of the first week."""
    weeks = len(days)
    begun, ended = [(0, 0), *ruled], [*(week for week, _ in ruled), weeks]
    spans = ((version, week, until) for (week, version), until in zip(begun, ended, strict=True))
    return sum(float(days[v, held + 7 * w : held + 7 * until].sum()) for v, w, until in spans) / (7 * weeks)


def _placed(scale: _Scale, count: int) -> dict[str, Any]:
    ways = combinations(range(1, len(scale.days)), count)
    shares = np.array([scale.share([(week, week) for week in chosen]) for chosen in ways])
    return {
        "ways": len(shares),
        "best": round(float(shares.max()), 3),
        "median": round(float(np.median(shares)), 3),
        "reach 90 %": int(np.sum(shares >= _BAR)),
    }


@dataclass(frozen=True)
class _Policy:
    """A challenger every so many weeks, and what it must prove."""

    every: int
    promote: Promote

    def run(self, scale: _Scale) -> tuple[float, float]:
        """The share of the gain of monthly promotions that it keeps, and that of their number."""
        ruled = self.promoted(scale)
        return scale.share(ruled), len(ruled) / scale.count

    def promoted(self, scale: _Scale) -> list[tuple[int, int]]:
        """The weeks of promotions, each with the version that rules from then on."""
        days, policy = scale.days, self.promote
        ruled = [(0, 0)]
        # A version that is better but not proven so: where its rows begin, how many days it was judged on, how often.
        waiting: tuple[int, int, int, int] | None = None
        for week in range(1, len(days)):
            known = scale.held + 7 * week - _LAG
            asked = [(week, known - scale.held, known, 1)] if week % self.every == 0 else []
            if waiting is not None and known - waiting[1] >= 2 * waiting[2]:
                asked.insert(0, (waiting[0], waiting[1], known, waiting[3] + 1))
            for version, begin, end, look in asked:
                gain, is_proven = _judged(policy.at_look(look), scale.metric, *days[[ruled[-1][1], version], begin:end])
                waiting = (
                    (version, begin, end - begin, look) if gain > policy.min_gain and look < policy.looks else None
                )
                if is_proven:
                    ruled.append((week, version))
                    waiting = None
                    break
        return ruled[1:]


def _judged(policy: Promote, metric: MetricName, old: Floats, new: Floats) -> tuple[float, bool]:
    """The mean gain of the days in the unit of ``min_gain``, and whether it is proven."""
    # Where nothing was measured, or one of them has learnt the day, there is nothing to compare.
    both = (old != 0) & (new != 0)
    if np.count_nonzero(both) < _FEWEST_DAYS:
        return 0.0, False
    gains = (new - old)[both] / guards.unit(metric, float(old[both].mean()))
    mean, days = float(gains.mean()), len(gains)
    test = paired.Student(mean, float(np.std(gains, ddof=1)) / days**0.5, days - 1, "Student's t", days)
    return mean, test.low(policy.confidence) > policy.min_gain


def _summary(found: Mapping[_Policy, Runs]) -> dict[str, Any]:
    """How many policies keep 90 % of the gain with a third of the promotions, and the best of those that keep to the third."""
    frugal = {policy: runs for policy, runs in found.items() if np.mean([cost for _, cost in runs]) <= _MOST_PROMOTIONS}
    reaching = {
        policy: [share >= _BAR and cost <= _MOST_PROMOTIONS for share, cost in runs] for policy, runs in found.items()
    }
    shares = {policy: [share for share, _ in runs] for policy, runs in found.items()}
    mean = {policy: float(np.mean(shares[policy])) for policy in frugal}
    best = max(mean, key=lambda policy: mean[policy])
    return {
        "policies": len(found),
        "starting dates": _STARTS,
        "reach 90 % with a third of the promotions from the first date": sum(runs[0] for runs in reaching.values()),
        "from every date": sum(map(all, reaching.values())),
        "on average over the dates": sum(share >= _BAR for share in mean.values()),
        "best on average with a third of the promotions": {
            "every": best.every,
            **best.promote.model_dump(include={"confidence", "min_gain", "looks"}),
            "shares": [round(share, 3) for share in shares[best]],
            "promotions": [round(cost, 3) for _, cost in found[best]],
        },
        "the best by weeks between challengers": {
            every: round(max(share for policy, share in mean.items() if policy.every == every), 3) for every in _EVERY
        },
    }


def _rows(job: JobSpec, data: str) -> pa.Table:
    """All labelled rows, with the day of each."""
    features, labels = (ds.dataset(DATA / data / kind, partitioning="hive") for kind in ("features", "labels"))
    table = features.to_table().join(
        labels.to_table(columns=[*job.features.key, job.labels.column]), job.features.key[0]
    )
    table = table.filter(pc.is_valid(table[job.labels.column]))
    return table.append_column("__day__", pc.cast(pc.floor_temporal(table[job.features.time], unit="day"), pa.date32()))
