"""False alarms on real history, before and after calibration: days resampled from the first half of each data set.

A day is drawn among those of its weekday, and its rows among the day's own, both with replacement. So weather, holidays and
everything else that sets one day apart from the next stays, and nothing changes: every alarm is false.
`python -m benchmarks.decisions.history` prints the figures. Needs the real data (``PIPELINE_REAL_DATA``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.decisions.drift import TRAINED_DAYS, Course
from benchmarks.decisions.worlds import World, start_of
from benchmarks.loop import DATA, JOBS
from pipeline import calibration, engine, jobfile, seasons, variation
from pipeline.intervals import Cadence
from pipeline.policies import Drift

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from benchmarks.decisions.drift import Verdicts
    from pipeline.effects import Kind

    Rows = dict[str, NDArray[Any]]

SETS = {"bikes": "bike_sharing", "flights": "nycflights13", "taxi": "tlc_green_2022_01"}
BUDGET = 1 / 90
# What a user calibrates on.
_HISTORY_DAYS = 90
_DAILY = Cadence.parse("1d")


@dataclass(frozen=True)
class Resampled:
    """Days that are drawn from a pool of real ones, by weekday: a `World` without change."""

    kinds: dict[str, Kind]
    pool: tuple[tuple[Rows, ...], ...]
    seed: int

    @classmethod
    def read(cls, name: str, seed: int) -> tuple[Resampled, Drift]:
        """The first half of the days of a data set, and the drift policy of its example job with the scipy detector."""
        job = jobfile.load(JOBS / f"{name}.yaml")
        folders = sorted((DATA / SETS[name] / "features").glob("ds=*"))
        half = folders[: len(folders) // 2]
        pool: list[list[Rows]] = [[] for _ in range(7)]
        kinds: dict[str, Kind] = {column: spec.type for column, spec in job.features.columns.items()}
        for folder in half:
            table = pq.read_table(folder, columns=list(kinds), partitioning=None)
            frame = engine.to_frame(table, job.features.columns)
            rows = {column: frame[column].to_numpy() for column in kinds}
            pool[date.fromisoformat(folder.name[3:]).weekday()].append(rows)
        days = tuple(tuple(of_weekday) for of_weekday in pool)
        return cls(kinds, days, seed), job.drift.model_copy(update={"detector": "scipy"})

    def day(self, number: int, share: float = 1.0) -> Rows:
        """The rows, or a share of them, of the day ``number`` days after a Monday."""
        rng = np.random.default_rng((self.seed, number))
        pool = self.pool[number % 7]
        drawn = pool[int(rng.integers(len(pool)))]
        there = len(next(iter(drawn.values())))
        chosen = rng.integers(there, size=max(round(there * share), 1))
        return {name: values[chosen] for name, values in drawn.items()}

    def days(
        self, first: int, count: int, rows: int = 0, most_rows: int | None = None
    ) -> tuple[Rows, NDArray[np.int64]]:
        """The rows of several days, about ``most_rows`` in all, and the start of each row's day in minutes since 1970.

        A day has as many rows as the one that was drawn; ``rows`` is unused.
        """
        parts = [self.day(number) for number in range(first, first + count)]
        total = sum(len(next(iter(part.values()))) for part in parts)
        if most_rows is not None and total > most_rows:
            parts = [self.day(number, most_rows / total) for number in range(first, first + count)]
        lengths = [len(next(iter(part.values()))) for part in parts]
        starts = np.repeat([start_of(number) for number in range(first, first + count)], lengths)
        return {name: np.concatenate([part[name] for part in parts]) for name in self.kinds}, starts


def thresholds(
    world: World | Resampled, policy: Drift, first: int, rows: int, budget: float, champion: Course
) -> Mapping[str, float]:
    """What `pipeline calibrate` would set after the days from ``first`` on."""
    sample, starts = world.days(first, _HISTORY_DAYS, rows, most_rows=200_000)
    season = next(
        season
        for season in seasons.ladder(policy.reference, _DAILY, policy.window)
        if season == "all" or policy.window == 1
    )
    seen = variation.course(policy, sample, world.kinds, starts, season)
    natural = variation.natural(policy, sample, world.kinds, starts, season)
    floors = calibration.floors(policy, world.kinds, seen, natural, champion.natural[season])
    rule = {"violations": policy.violations, "of_last": policy.of_last, "window": policy.window}
    found = calibration.calibrate(seen, floors, **rule, budget=budget)
    if found is None:
        raise ValueError(f"no thresholds keep within {budget:.3f} alarms per interval")
    return found.thresholds


def judged(world: World | Resampled, policy: Drift, rows: int, days: int, *, calibrated: bool) -> list[Verdicts]:
    """The verdicts on ``days`` days after the training, before or after calibration for `BUDGET`."""
    first = TRAINED_DAYS
    course = Course.trained(policy, world, rows)
    if calibrated:
        limits = thresholds(world, policy, first, rows, BUDGET, course)
        course.policy = policy.model_copy(update={"thresholds": dict(limits)})
        first += _HISTORY_DAYS
    found = []
    for number in range(first, first + days):
        current, stretch = world.days(number - policy.window + 1, policy.window, rows)
        found.append(course.judge(number, current, len(stretch), stretch))
    return found


def measure(scale: Callable[[int], int] = lambda cases: cases) -> dict[str, Any]:
    """Alarms per day of each data set, and of simulated worlds after calibration, where the budget has to hold."""
    told: dict[str, Any] = {"budget": BUDGET}
    for name in SETS:
        resampled, policy = Resampled.read(name, 1)
        for calibrated in (False, True):
            found = [
                verdicts
                for seed in range(scale(10))
                for verdicts in judged(replace(resampled, seed=seed), policy, 50_000, 100, calibrated=calibrated)
            ]
            told[f"{name}, {'calibrated' if calibrated else 'as it comes'}"] = _rate(found)
    policy = Drift(detector="scipy")
    found = [
        verdicts
        for seed in range(scale(10))
        for verdicts in judged(World(3000 + seed), policy, 1000, 100, calibrated=True)
    ]
    told["simulated, calibrated"] = _rate(found)
    return told


def _rate(found: list[Verdicts]) -> dict[str, float]:
    """How many were alarms, and how many of those because values are missing, as in the flights of two days of storm."""
    raised = [verdicts for verdicts in found if verdicts.is_alarm]
    missing = [v for v in raised if v.faults and all(fault.kind == "missing" for fault in v.faults)]
    return {
        "batches": len(found),
        "alarms": len(raised),
        "for missing values": len(missing),
        "rate": len(raised) / len(found),
    }


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(measure(lambda cases: max(cases // 5, 1)) if "--short" in sys.argv else measure(), indent=2))
