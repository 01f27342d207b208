"""What promotions could reach on nycflights13: at any dates, known in hindsight, and under many policies that ask for a proof.

A challenger is trained at the start of every week, as the example job trains on all that is known by then without its holdout,
and scores the holdout and every later day. A policy with n promotions is n of these weeks; what it is worth is the mean daily
metric of the version that rules each day. Compared with monthly promotions of models with the same holdout, whose gain over a
frozen champion is 1. Governor and window policy play no part. `python -m benchmarks.decisions --only placements` takes three
minutes.

The policies: a challenger every so many weeks, promoted when it is proven better by so much on its held-out days (one to four
weeks of them), or at one of two further looks; from several starting dates, because on one of them a policy may be lucky. And
the same if every model that rules, monthly and frozen ones too, had learnt its holdout at last.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from itertools import combinations, product
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from scipy.special import stdtrit

from benchmarks.replays import DATA, JOBS, SETS
from pipeline import engine, jobfile, metrics, trainers
from pipeline.steps import contest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.job import JobSpec

    Floats = NDArray[np.float64]

_NAME = "flights"
_MOST = 3
_WEEK = timedelta(days=7)
_BAR, _MOST_PROMOTIONS = 0.9, 1 / 3
# The lengths of the holdout, in whole weeks, so that one week's challenger is another's with a longer one; the one by
# which placements in hindsight are told; and the days until labels are complete.
_HOLDOUTS, _HELD, _LAG = (7, 14, 21, 28), 14, 1
_EVERY, _CONFIDENCE, _MIN_GAIN = (1, 2, 4, 6, 8, 12), (0.9, 0.95, 0.99), (0.0, 0.005, 0.01, 0.015)
# What rules: the version that was judged, or the same fitted again on its holdout too - which nothing has judged.
_RULING = ("policies", "policies with the holdout learnt at last")
_STARTS, _LOOKS, _FEWEST_DAYS = 4, 3, 7


def measure() -> dict[str, Any]:
    """Per number of promotions: how many ways there are, the share of the gain of the best and of the median one.

    And how many of them reach 90 %; then the same of the policies.
    """
    job = jobfile.load(JOBS / f"{_NAME}.yaml")
    _, data, begin, end = next(one for one in SETS if one[0] == _NAME)
    first, last = date.fromisoformat(begin), date.fromisoformat(end)
    weeks = [first + number * _WEEK for number in range((last - first) // _WEEK)]
    versions = _versions(job, _rows(job, data), weeks, last)
    told: dict[str, Any] = {}
    policies: dict[str, dict[_Policy, list[tuple[float, float]]]] = {
        name: {_Policy(*chosen): [] for chosen in product(_HOLDOUTS, _EVERY, _CONFIDENCE, _MIN_GAIN)}
        for name in _RULING
    }
    for start, held in product(range(_STARTS), _HOLDOUTS):
        scale, again = (_Scale.of(versions, weeks[start:], start, held, learnt) for learnt in (0, held))
        if not start and held == _HELD:
            told |= {"frozen": round(scale.frozen, 4), "monthly": round(scale.monthly, 4), "promotions": scale.count}
            told |= {f"{count} promotions": _placed(scale, count) for count in range(1, _MOST + 1)}
        for name, own in zip(_RULING, (scale, again), strict=True):
            for policy, found in policies[name].items():
                if policy.held == held:
                    ruled = policy.promoted(scale.days, own.days)
                    found.append((own.share(ruled), len(ruled) / own.count))
    return {**told, **{name: _by_holdout(found) for name, found in policies.items()}}


@dataclass(frozen=True)
class _Scale:
    """The daily metric of the version of each week, from the first one's holdout on, and what it is measured by."""

    days: Floats
    held: int
    frozen: float
    monthly: float
    count: int

    @classmethod
    def of(cls, versions: Floats, weeks: list[date], start: int, held: int, learnt: int) -> _Scale:
        """With a champion of the first week that stays, and a promotion in every later month.

        Of its ``held`` days each version has ``learnt`` so many at last.
        """
        first = weeks[0]
        ends = [date(first.year, month, 1) for month in range(first.month + 1, 13)]
        months = sorted({_nearest(weeks, day) for day in ends} - {0})
        oldest = start + (max(_HOLDOUTS) - held + learnt) // 7
        days = versions[oldest : oldest + len(weeks), max(_HOLDOUTS) - held + 7 * start :]
        frozen, monthly = (_mean(days, held, ruled) for ruled in ([], [(week, week) for week in months]))
        return cls(days, held, frozen, monthly, len(months))

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
    assert len(shares) == comb(len(scale.days) - 1, count)
    return {
        "ways": len(shares),
        "best": round(float(shares.max()), 3),
        "median": round(float(np.median(shares)), 3),
        "reach 90 %": int(np.sum(shares >= _BAR)),
    }


@dataclass(frozen=True)
class _Policy:
    """A challenger every so many weeks, which must be proven at this confidence to be better by so much."""

    held: int
    every: int
    confidence: float
    min_gain: float

    def promoted(self, days: Floats, ruling: Floats) -> list[tuple[int, int]]:
        """The weeks of promotions, each with the version that rules from then on.

        ``days`` is what versions are worth as challengers, ``ruling`` what they are worth as champions.
        """
        ruled = [(0, 0)]
        # A version that is better but not proven so: where its rows begin, how many days it was judged on, how often.
        waiting: tuple[int, int, int, int] | None = None
        for week in range(1, len(days)):
            known = self.held + 7 * week - _LAG
            asked = [(week, known - self.held, known, 1)] if week % self.every == 0 else []
            if waiting is not None and known - waiting[1] >= 2 * waiting[2]:
                asked.insert(0, (waiting[0], waiting[1], known, waiting[3] + 1))
            for version, begin, end, look in asked:
                gain, is_proven = self._judged(ruling[ruled[-1][1], begin:end], days[version, begin:end], look)
                waiting = (version, begin, end - begin, look) if gain > self.min_gain and look < _LOOKS else None
                if is_proven:
                    ruled.append((week, version))
                    waiting = None
                    break
        return ruled[1:]

    def _judged(self, old: Floats, new: Floats, look: int) -> tuple[float, bool]:
        """The mean gain of the days, and whether it is proven: half of the error is for the first look."""
        # Where nothing was measured, or one of them has learnt the day, there is nothing to compare.
        gains = (new - old)[(new != 0) & (old != 0)]
        if len(gains) < _FEWEST_DAYS:
            return 0.0, False
        error = (1 - self.confidence) / (2 if look == 1 else 2 * (_LOOKS - 1))
        reach = float(stdtrit(len(gains) - 1, 1 - error) * np.std(gains, ddof=1) / len(gains) ** 0.5)
        mean = float(gains.mean())
        return mean, mean - reach > self.min_gain


def _by_holdout(found: Mapping[_Policy, list[tuple[float, float]]]) -> dict[str, Any]:
    return {
        f"holdout of {held} days": _summary({policy: runs for policy, runs in found.items() if policy.held == held})
        for held in _HOLDOUTS
    }


def _summary(found: Mapping[_Policy, list[tuple[float, float]]]) -> dict[str, Any]:
    """How many policies keep 90 % of the gain with a third of the promotions, and the best of those that keep to the third."""
    frugal = {policy: runs for policy, runs in found.items() if np.mean([cost for _, cost in runs]) <= _MOST_PROMOTIONS}
    reaching = {
        policy: [share >= _BAR and cost <= _MOST_PROMOTIONS for share, cost in runs] for policy, runs in found.items()
    }
    shares = {policy: [share for share, _ in runs] for policy, runs in found.items()}
    best = max(frugal, key=lambda policy: float(np.mean(shares[policy])))
    return {
        "policies": len(found),
        "starting dates": _STARTS,
        "reach 90 % with a third of the promotions from the first date": sum(runs[0] for runs in reaching.values()),
        "from every date": sum(map(all, reaching.values())),
        "on average over the dates": sum(float(np.mean(shares[policy])) >= _BAR for policy in frugal),
        "best on average with a third of the promotions": {
            **vars(best),
            "shares": [round(share, 3) for share in shares[best]],
            "promotions": [round(cost, 3) for _, cost in found[best]],
        },
    }


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


def _versions(job: JobSpec, rows: pa.Table, weeks: list[date], last: date) -> Floats:
    """The metric of a version of each week on each day that it has not learnt, from the longest holdout before the first on.

    The first version is that of the first week with the longest holdout, the last that of the last week without any.
    """
    frame, truth = engine.to_frame(rows, job.features.columns), rows[job.labels.column].to_numpy()
    day = rows["__day__"].to_numpy()
    longest = timedelta(days=max(_HOLDOUTS))
    first = weeks[0] - longest
    cuts = [first + number * _WEEK for number in range(len(weeks) + longest // _WEEK)]
    found = np.zeros((len(cuts), longest.days + 7 * len(weeks)))
    for number, until in enumerate(cuts):
        # The labels of the last day are not complete yet.
        cut = np.datetime64(until - timedelta(days=_LAG))
        estimator = trainers.fit(job, frame[day < cut], truth[day < cut])
        later = np.flatnonzero((day >= max(cut, np.datetime64(first))) & (day < np.datetime64(last)))
        made = contest.outcomes(estimator, engine.predict(estimator, frame.iloc[later], job.task), truth[later])
        for place in range(found.shape[1]):
            own = day[later] == np.datetime64(first) + place
            if own.any():
                found[number, place] = metrics.evaluator(job.metric, made.take(own))(np.ones(np.count_nonzero(own)))
    # A day on which nothing can be measured counts for no version.
    return np.nan_to_num(found)
