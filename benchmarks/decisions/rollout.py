"""What is promised of a rollout: assignment that sticks, splits that are watched, and comparisons that may be looked at daily.

`python -m benchmarks.decisions.rollout [trials [seed]]` prints the figures.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from scipy import stats

from pipeline import assignment, engine
from pipeline.breakage import sketch
from pipeline.release import Rollout
from pipeline.rollout import compare, judge
from pipeline.verdicts import Arms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

KEYS, LOOKS = 1_000_000, 90
SHARES = (0.05, 0.25, 0.5, 1.0)
_ALPHA = 0.05
_START = datetime(2026, 1, 1, tzinfo=UTC)
# Entities of a day, and hashes of its sketch.
_ENTITIES, _SKETCH = 400, 64
# Deviation of the mean loss from day to day, of both models alike, in standard deviations of a row's loss.
_USUAL = 0.1


def measure(trials: int = 300, seed: int = 0) -> dict[str, Any]:
    """Figures on a ramp of a million keys, on splits of as many salts as trials, and on that many rollouts of 90 looks."""
    return {
        "ramp": _ramp(),
        "assignment": _assignment(trials),
        "corrupted_splits": _corrupted(trials, seed),
        "false_positives_of_90_looks": {name: _proofs(world, trials, seed) for name, world in _EQUAL.items()},
        "beyond_the_promise": {
            "days like the one before": _proofs(lambda rng: _world(rng, by_day=0.5, alike=0.3), trials, seed)
        },
        "true_differences": {name: _proofs(world, trials, seed) for name, world in _UNEQUAL.items()},
        "canaries": {name: _canaries(facts, trials, seed) for name, facts in _CHALLENGERS.items()},
    }


def _ramp() -> dict[str, Any]:
    """Entities that are given back while the share grows, in partitions of other chunks, types and column orders."""
    numbers = np.arange(KEYS)
    tables = {
        "sequential": [
            pa.table({"id": numbers}),
            pa.table({"x": numbers[::-1], "id": numbers.astype("int32")}),
            pa.concat_tables([pa.table({"id": numbers[:7]}), pa.table({"id": numbers[7:]})]),
        ],
        "text": [pa.table({"id": pa.array(numbers).cast(pa.string())})],
    }
    found: dict[str, Any] = {}
    for name, kinds in tables.items():
        started = time.perf_counter()
        hashes = [engine.row_hashes(table, ["id"], assignment.seed_of("rollout-0")) for table in kinds]
        seconds = time.perf_counter() - started
        masks = [
            [assignment.is_challengers(hashed, share) for share in SHARES]
            for hashed in [hashes[number % len(hashes)] for number in range(len(SHARES))]
        ]
        steps = [masks[number][number] for number in range(len(SHARES))]
        back = sum(int((before & ~after).sum()) for before, after in pairwise(steps))
        even = np.bincount((assignment.places(hashes[0]) * 1000).astype(int), minlength=1000)
        found[name] = {
            "switched_back": back,
            "shares": [round(float(step.mean()), 5) for step in steps],
            "even_p_value": round(float(stats.chisquare(even).pvalue), 4),
            "rows_per_second": round(KEYS * len(kinds) / seconds),
        }
    return found


def _assignment(salts: int) -> dict[str, Any]:
    """Whether the p-values of clean splits are uniform over salts (Kolmogorov and Smirnov), and two salts independent."""
    keys = pa.table({"id": np.arange(50_000)})
    places = [
        assignment.places(engine.row_hashes(keys, ["id"], assignment.seed_of(f"rollout-{number}")))
        for number in range(salts)
    ]
    uniform = {
        str(share): round(
            float(
                stats.kstest(
                    [assignment.p_value(int((p < share).sum()), len(p), share) for p in places], "uniform"
                ).pvalue
            ),
            4,
        )
        for share in SHARES[:-1]
    }
    pairs = [
        stats.chisquare(np.histogram2d(one, other, bins=20)[0].ravel()).pvalue
        for one, other in zip(places[::2], places[1::2], strict=False)
    ]
    return {
        "p_values_uniform": uniform,
        "salts_independent": round(float(stats.kstest(pairs, "uniform").pvalue), 4),
        "salts": salts,
    }


def _corrupted(trials: int, seed: int) -> dict[str, Any]:
    """How many splits are reported within ten looks (clean ones: ninety) at 20,000 entities a look, a quarter assigned."""
    rng = np.random.default_rng([seed, 1])
    kinds: dict[str, tuple[float, int]] = {"clean": (0.0, LOOKS), "lost_2%": (0.02, 10), "lost_5%": (0.05, 10)}
    kinds |= {"lost_10%": (0.1, 10), "lost_20%": (0.2, 10)}
    found = {}
    for name, (lost, looks) in kinds.items():
        caught = 0
        for _ in range(trials):
            taken = rng.binomial(20_000, 0.25, looks)
            kept = rng.binomial(taken, 1 - lost)
            caught += any(
                assignment.is_mismatched(assignment.p_value(int(k), 20_000 - int(t) + int(k), 0.25), look)
                for look, (k, t) in enumerate(zip(kept, taken, strict=True), start=1)
            )
        found[name] = round(caught / trials, 4)
    return found


def _world(
    rng: np.random.Generator,
    *,
    gain: float = 0.0,
    by_day: float = 0.0,
    returning: bool = False,
    shares: Sequence[float] = (0.5,) * LOOKS,
    tails: float = 0.0,
    alike: float = 0.0,
    days: range = range(LOOKS),
) -> list[Arms]:
    """Days of losses: entities of their own difficulty, days of their own, and days on which one model is off.

    ``gain`` is in standard deviations of a row's loss, ``by_day`` the deviation of the difference from day to day in the
    same unit, ``alike`` its autocorrelation; with ``returning`` the same entities come every day; ``tails`` makes losses
    lognormal.
    """
    places, difficulty = rng.random(_ENTITIES), rng.normal(0, 0.7, _ENTITIES)
    ids = rng.integers(0, 2**63, _ENTITIES, dtype=np.uint64)
    course, off = [], 0.0
    for number in days:
        if not returning:
            places, difficulty = rng.random(_ENTITIES), rng.normal(0, 0.7, _ENTITIES)
            ids = rng.integers(0, 2**63, _ENTITIES, dtype=np.uint64)
        losses = difficulty + rng.normal(0, 0.7, _ENTITIES) + rng.normal(0, _USUAL)
        if tails:
            losses = np.exp(tails * losses)
        off = alike * off + np.sqrt(1 - alike**2) * rng.normal()
        share = shares[number]
        mine = places < share
        losses = losses - mine * (gain + by_day * off)
        n, both = int(mine.sum()), [losses[~mine], losses[mine]]
        error = None
        if min(map(len, both)) > 1:
            error = float(np.sqrt(sum(side.var(ddof=1) / len(side) for side in both)))
        start = _START + timedelta(days=number)
        course.append(
            Arms(
                start=start,
                end=start + timedelta(days=1),
                salt="rollout-0",
                share=share,
                champion=float(both[0].mean()),
                challenger=float(both[1].mean()) if n else None,
                gain=float(both[0].mean() - both[1].mean()) if error is not None else None,
                error=error,
                by_day=2 * _USUAL + by_day,
                n_champion=_ENTITIES - n,
                n_challenger=n,
                entities=_ENTITIES,
                assigned=n,
                sketch=sketch(ids, size=_SKETCH),
            )
        )
    return course


_GROWING = (0.05,) * 3 + (0.25,) * 3 + (0.5,) * (LOOKS - 6)
_EQUAL: dict[str, Any] = {
    "rows alone": lambda rng: _world(rng),
    "noise of days": lambda rng: _world(rng, by_day=0.5),
    "same entities daily": lambda rng: _world(rng, returning=True),
    "same entities, noise of days": lambda rng: _world(rng, returning=True, by_day=0.2),
    "ramp": lambda rng: _world(rng, shares=_GROWING),
    "ramp, noise of days": lambda rng: _world(rng, shares=_GROWING, by_day=0.5),
    "ramp, heavy tails": lambda rng: _world(rng, shares=_GROWING, tails=1.0),
}
_UNEQUAL: dict[str, Any] = {
    "better by 0.1": lambda rng: _world(rng, gain=0.1),
    "better by 0.1, noise of days": lambda rng: _world(rng, gain=0.1, by_day=0.2),
    "worse by 0.3 at 5 %": lambda rng: _world(rng, gain=-0.3, shares=(0.05,) * LOOKS),
    "worse by 1 at 5 %": lambda rng: _world(rng, gain=-1.0, shares=(0.05,) * LOOKS),
}


_CHALLENGERS: dict[str, dict[str, float]] = {
    "equal": {"gain": 0.0, "by_day": 0.2},
    "better by 0.1": {"gain": 0.1, "by_day": 0.2},
    "worse by 0.3": {"gain": -0.3, "by_day": 0.2},
    "worse by 1": {"gain": -1.0, "by_day": 0.2},
}


def _canaries(facts: dict[str, float], trials: int, seed: int) -> dict[str, Any]:
    """How canaries with the default policy end, after how many intervals, and the largest share that the challenger had."""
    policy = Rollout(kind="canary")
    ends: dict[str, int] = {"complete": 0, "rollback": 0, "hold": 0}
    intervals, largest = [], []
    for trial in range(trials):
        shares = [policy.first_share]
        rng = np.random.default_rng([seed, 3, trial])
        seen: list[Arms] = []
        for elapsed in range(1, LOOKS + 1):
            (arms,) = _world(rng, shares=[shares[-1]] * elapsed, days=range(elapsed - 1, elapsed), **facts)
            seen.append(arms)
            found = judge(policy, seen, share=shares[-1], elapsed=elapsed)
            if found.action in ("complete", "rollback"):
                break
            shares.append(found.share)
        ends[found.action] += 1
        intervals.append(len(seen))
        largest.append(max(shares))
    return {
        **{name: round(count / trials, 4) for name, count in ends.items()},
        "median_intervals": float(np.median(intervals)),
        "mean_largest_share": round(float(np.mean(largest)), 3),
    }


def _proofs(world: Any, trials: int, seed: int) -> dict[str, Any]:
    """In how many rollouts one side was proven better at some look, which, and the median look."""
    better, worse, looks = 0, 0, []
    for trial in range(trials):
        seen = world(np.random.default_rng([seed, 2, trial]))
        for look in range(1, LOOKS + 1):
            found = compare(seen[:look], _ALPHA)
            if found.low > 0 or found.high < 0:
                better, worse = better + (found.low > 0), worse + (found.high < 0)
                looks.append(look)
                break
    return {
        "any": round((better + worse) / trials, 4),
        "better": round(better / trials, 4),
        "worse": round(worse / trials, 4),
        "median_look": float(np.median(looks)) if looks else None,
    }


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    print(json.dumps(measure(*arguments), indent=2))
