"""False alarms without drift, and detection of planted shifts: whole courses of days, judged as the product judges them.

``python -m benchmarks.decisions.drift`` prints a table; `measure` returns it.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.decisions.worlds import SHIFTS, World, planted, start_of
from pipeline import breakage, detectors, drift, seasons, variation
from pipeline.intervals import Cadence
from pipeline.policies import Drift
from pipeline.signals import Intervals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from benchmarks.decisions.history import Resampled
    from pipeline.verdicts import ColumnDrift, Fault, Multivariate, Tier, Verdict

    Rows = dict[str, NDArray[Any]]

TRAINED_DAYS = 56
_DAILY = Cadence.parse("1d")


@dataclass
class Course:
    """One job in its days: what its champion was trained on, and what the days before have shown."""

    policy: Drift
    world: World | Resampled
    reference: Rows
    starts: NDArray[np.int64]
    natural: Mapping[str, Mapping[str, float]]
    separation: float | None
    earlier: list[tuple[tuple[ColumnDrift, ...], Multivariate | None]] = field(default_factory=list)

    @classmethod
    def trained(cls, policy: Drift, world: World | Resampled, rows: int) -> Course:
        """A course whose champion was trained on the first eight weeks, of ``rows`` rows a day."""
        reference, starts = world.days(0, TRAINED_DAYS, rows, most_rows=policy.sample_rows)
        ladder = seasons.ladder(policy.reference, _DAILY, policy.window)
        natural = {season: variation.natural(policy, reference, world.kinds, starts, season) for season in ladder}
        aucs = detectors.natural_separations(policy, reference, world.kinds, starts, ladder, 0)
        apart = variation.separation_limit(policy, aucs) if aucs is not None else None
        return cls(policy, world, reference, starts, natural, apart)

    def judge(self, number: int, current: Rows, rows: int, stretch: NDArray[np.int64] | None = None) -> Verdicts:
        """The verdicts on the day ``number``; ``rows`` is how many rows it has, ``current`` those that are looked at.

        ``stretch`` is the day of each, when the window holds several.
        """
        policy, kinds = self.policy, self.world.kinds
        ladder = seasons.ladder(policy.reference, _DAILY, policy.window)
        season, alike = seasons.alike(
            ladder,
            self.starts,
            np.array([start_of(number)]),
            min_intervals=policy.reference.min_intervals,
            min_rows=policy.min_rows,
        )
        reference = {name: values[alike] for name, values in self.reference.items()}
        faults = breakage.find(
            reference, current, kinds, rows=rows, usual_rows=[rows] * 8, history=self.reference, stretch=self.starts
        )
        detector = detectors.detector(policy.detector)
        enough = len(next(iter(current.values()))) >= policy.min_rows
        before = self.earlier[-(policy.of_last - 1) :] if policy.of_last > 1 else []
        columns = drift.columns(
            policy,
            reference=reference,
            current=current,
            kinds=kinds,
            roles=dict.fromkeys(kinds, "feature"),
            p_values=detector.p_values(reference, current, kinds) if enough else dict.fromkeys(kinds),
            natural=self.natural[season],
            faults=faults,
            earlier=[judged for judged, _ in before],
            intervals=None if stretch is None else Intervals(stretch, self.reference, self.starts),
        )
        whole = None
        if policy.multivariate and enough:
            found = detector.separation(reference, current, kinds, rows=4000, seed=0)
            if found is not None:
                whole = drift.multivariate(
                    policy,
                    auc=found.auc,
                    p_value=found.p_value,
                    ranked=found.ranked,
                    rows=found.rows,
                    natural=self.separation,
                    earlier=[separation for _, separation in before],
                )
        verdict, reason, tier = drift.window(policy, len(next(iter(current.values()))), columns, whole, faults)
        self.earlier.append((columns, whole))
        return Verdicts(verdict, reason, tier, columns, whole, faults)


@dataclass(frozen=True)
class Verdicts:
    """What was said of one day."""

    verdict: Verdict
    reason: str
    tier: Tier | None
    columns: tuple[ColumnDrift, ...]
    separation: Multivariate | None
    faults: tuple[Fault, ...]

    @property
    def is_alarm(self) -> bool:
        """Whether anybody would be told anything."""
        return self.verdict == "drift" or bool(self.faults)


def sampled(world: World, number: int, rows: int, policy: Drift) -> Rows:
    """What is looked at of a day of ``rows`` rows: a sample, drawn like the day itself."""
    return world.day(number, min(rows, policy.sample_rows))


def false_alarms(sizes: Mapping[int, int], *, days: int = 25, policy: Drift | None = None) -> dict[str, Any]:
    """Alarms without drift. ``sizes`` says how many worlds of each number of rows a day; each lives ``days`` days."""
    policy = policy or Drift(detector="scipy")
    batches, alarms, told = Counter[int](), Counter[int](), Counter[str]()
    seed = 0
    for rows, worlds in sizes.items():
        for _ in range(worlds):
            seed += 1
            world = World(seed)
            course = Course.trained(policy, world, rows)
            for number in range(TRAINED_DAYS, TRAINED_DAYS + days):
                found = course.judge(number, sampled(world, number, rows, policy), rows)
                batches[rows] += 1
                alarms[rows] += found.is_alarm
                told.update(column.column for column in found.columns if column.verdict == "drift")
                told.update(f"fault {fault.kind}" for fault in found.faults)
                told.update(["multivariate"] if found.separation and found.separation.verdict == "drift" else [])
    return {
        "batches": sum(batches.values()),
        "alarms": sum(alarms.values()),
        "rate": sum(alarms.values()) / sum(batches.values()),
        "by_rows": {rows: alarms[rows] / batches[rows] for rows in batches},
        "by": dict(told.most_common(8)),
    }


def detection(sizes: Mapping[int, int], *, policy: Drift | None = None) -> dict[str, Any]:
    """Planted shifts that are drift by their second day. ``sizes`` says how many cases of each number of rows a day."""
    policy = policy or Drift(detector="scipy")
    found: dict[str, list[bool]] = {kind: [] for kind in SHIFTS}
    seed = 10_000
    for rows, cases in sizes.items():
        for _ in range(cases):
            seed += 1
            world = World(seed)
            course = Course.trained(policy, world, rows)
            for kind in SHIFTS:
                course.earlier.clear()
                seen = [
                    course.judge(n, planted(sampled(world, n, rows, policy), kind, world, n), rows)
                    for n in (TRAINED_DAYS, TRAINED_DAYS + 1)
                ]
                found[kind].append(any(shift_was_named(verdicts, kind) for verdicts in seen))
    return {kind: {"cases": len(hits), "detected": float(np.mean(hits))} for kind, hits in found.items()}


def shift_was_named(verdicts: Verdicts, kind: str) -> bool:
    """Whether the column of the planted shift is said to have drifted; the flipped correlation by the multivariate test."""
    column = SHIFTS[kind][0]
    if kind == "correlation flipped":
        return bool(verdicts.separation and verdicts.separation.verdict == "drift")
    return any(c.column == column and c.verdict == "drift" for c in verdicts.columns)


def tiny_shift(rows: int = 1_000_000) -> dict[str, Any]:
    """What is said of a shift of 0.02 sd in a million rows a day, on two days."""
    policy, world = Drift(detector="scipy"), World(77)
    course = Course.trained(policy, world, rows)
    for number in (TRAINED_DAYS, TRAINED_DAYS + 1):
        current = sampled(world, number, rows, policy)
        current["far"] = current["far"] + 0.02 * world.spread("far")
        seen = course.judge(number, current, rows)
    (column,) = (c for c in seen.columns if c.column == "far")
    return {
        "rows": rows,
        "verdict": seen.verdict,
        "column": column.verdict,
        "effect": column.effect,
        "p": column.p_value,
    }


def measure(scale: Callable[[int], int] = lambda cases: cases) -> dict[str, Any]:
    """Everything of this module, with the number of cases that ``scale`` makes of the full one."""
    started = time.perf_counter()
    sizes = {50: 4, 200: 8, 1000: 12, 10_000: 10, 100_000: 4, 1_000_000: 2}
    return {
        "false alarms": false_alarms({rows: scale(worlds) for rows, worlds in sizes.items()}),
        "detection": detection({1000: scale(60), 5000: scale(20), 100_000: scale(4)}),
        "0.02 sd in 1,000,000 rows": tiny_shift(),
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(measure(lambda cases: max(cases // 10, 1)) if "--short" in sys.argv else measure(), indent=2))
