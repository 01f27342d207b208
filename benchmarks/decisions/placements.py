"""What promotions could reach on nycflights13: at any dates, known in hindsight, and under many policies that ask for a proof.

A challenger is trained at the start of every week, as the example job trains on all that is known by then without its holdout,
and scores the holdout and every later day. A policy with n promotions is n of these weeks; what it is worth is the mean daily
metric of the version that rules each day. Compared with monthly promotions of models with the same holdout, whose gain over a
frozen champion is 1. Governor and window policy play no part. `python -m benchmarks.decisions --only placements` takes six
minutes.

The policies: a challenger every so many weeks, promoted when it is proven better by so much on its held-out days, at once or at
one of two further looks; from several starting dates, because on one of them a policy may be lucky. And the same if every model
that rules, monthly and frozen ones too, had learnt its holdout at last.
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
_DAY, _WEEK = timedelta(days=1), timedelta(days=7)
_BAR, _MOST_PROMOTIONS = 0.9, 1 / 3
# The days of the holdout; how many those of new job files are; and the days until labels are complete.
_HOLDOUTS, _HELD, _LAG = (7, 10, 14, 21, 28), 10, 1
_EVERY, _CONFIDENCE, _MIN_GAIN, _LOOKS = (1, 2, 4, 6, 8, 12), (0.9, 0.95, 0.99), (0.0, 0.005, 0.01, 0.015), (1, 3)
# What rules: the version that was judged, or the same fitted again on its holdout too - which nothing has judged.
_RULING = ("policies", "policies with the holdout learnt at last")
_STARTS, _FEWEST_DAYS = 4, 7


def measure() -> dict[str, Any]:
    """Per number of promotions: how many ways there are, the share of the gain of the best and of the median one.

    And how many of them reach 90 %; then the same of the policies.
    """
    job = jobfile.load(JOBS / f"{_NAME}.yaml")
    _, data, begin, end = next(one for one in SETS if one[0] == _NAME)
    first, last = date.fromisoformat(begin), date.fromisoformat(end)
    weeks = [first + number * _WEEK for number in range((last - first) // _WEEK)]
    versions = _Versions.trained(job, _rows(job, data), weeks)
    told: dict[str, Any] = {}
    policies: dict[str, dict[_Policy, list[tuple[float, float]]]] = {
        name: {_Policy(*chosen): [] for chosen in product(_HOLDOUTS, _EVERY, _CONFIDENCE, _MIN_GAIN, _LOOKS)}
        for name in _RULING
    }
    for start, held in product(range(_STARTS), _HOLDOUTS):
        scale, again = (_Scale.of(versions, weeks[start:], held, learnt) for learnt in (0, held))
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
class _Versions:
    """What versions are worth: for each day that one may learn up to, its metric on each day from ``origin`` on.

    0 where it has learnt the day, or where nothing can be measured on it.
    """

    origin: date
    by_cut: dict[date, Floats]

    @classmethod
    def trained(cls, job: JobSpec, rows: pa.Table, weeks: list[date]) -> _Versions:
        """Those that the policies of these weeks need: of each week, with each holdout and with none."""
        frame, truth = engine.to_frame(rows, job.features.columns), rows[job.labels.column].to_numpy()
        day = rows["__day__"].to_numpy()
        origin = weeks[0] - max(_HOLDOUTS) * _DAY
        days = np.arange(origin, weeks[-1] + _WEEK, dtype="datetime64[D]")
        by_cut: dict[date, Floats] = {}
        for cut in sorted({week - held * _DAY for week in weeks for held in (0, *_HOLDOUTS)}):
            # The labels of the last day are not complete yet.
            known = np.datetime64(cut - _LAG * _DAY)
            estimator = trainers.fit(job, frame[day < known], truth[day < known])
            later = np.flatnonzero((day >= max(known, days[0])) & (day <= days[-1]))
            made = contest.outcomes(estimator, engine.predict(estimator, frame.iloc[later], job.task), truth[later])
            found = np.zeros(len(days))
            for place, one in enumerate(days):
                own = day[later] == one
                if own.any():
                    found[place] = metrics.evaluator(job.metric, made.take(own))(np.ones(np.count_nonzero(own)))
            by_cut[cut] = np.nan_to_num(found)
        return cls(origin, by_cut)


@dataclass(frozen=True)
class _Scale:
    """The daily metric of the version of each week, from the first one's holdout on, and what it is measured by."""

    days: Floats
    held: int
    frozen: float
    monthly: float
    count: int

    @classmethod
    def of(cls, versions: _Versions, weeks: list[date], held: int, learnt: int) -> _Scale:
        """With a champion of the first week that stays, and a promotion in every later month.

        Of its ``held`` days each version has ``learnt`` so many at last.
        """
        first = weeks[0]
        ends = [date(first.year, month, 1) for month in range(first.month + 1, 13)]
        months = sorted({_nearest(weeks, day) for day in ends} - {0})
        ruling = np.stack([versions.by_cut[week - (held - learnt) * _DAY] for week in weeks])
        days = ruling[:, (first - held * _DAY - versions.origin).days :]
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
    looks: int

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
                waiting = (version, begin, end - begin, look) if gain > self.min_gain and look < self.looks else None
                if is_proven:
                    ruled.append((week, version))
                    waiting = None
                    break
        return ruled[1:]

    def _judged(self, old: Floats, new: Floats, look: int) -> tuple[float, bool]:
        """The mean gain of the days, and whether it is proven: of several looks, half of the error is for the first."""
        # Where nothing was measured, or one of them has learnt the day, there is nothing to compare.
        gains = (new - old)[(new != 0) & (old != 0)]
        if len(gains) < _FEWEST_DAYS:
            return 0.0, False
        part = 1.0 if self.looks == 1 else 0.5 if look == 1 else 0.5 / (self.looks - 1)
        error = (1 - self.confidence) * part
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
    mean = {policy: float(np.mean(shares[policy])) for policy in frugal}
    best = max(mean, key=lambda policy: mean[policy])
    return {
        "policies": len(found),
        "starting dates": _STARTS,
        "reach 90 % with a third of the promotions from the first date": sum(runs[0] for runs in reaching.values()),
        "from every date": sum(map(all, reaching.values())),
        "on average over the dates": sum(share >= _BAR for share in mean.values()),
        "best on average with a third of the promotions": {
            **vars(best),
            "shares": [round(share, 3) for share in shares[best]],
            "promotions": [round(cost, 3) for _, cost in found[best]],
        },
        "the best by weeks between challengers": {
            every: round(max(share for policy, share in mean.items() if policy.every == every), 3) for every in _EVERY
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
