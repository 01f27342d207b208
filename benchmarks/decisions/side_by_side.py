"""Our verdicts beside those of Evidently and NannyML with their defaults: the same cases, in the same run.

``python -m benchmarks.decisions.side_by_side`` prints a table; the peers run in environments of their own, made on first use.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.decisions import peers
from benchmarks.decisions.drift import TRAINED_DAYS, Course, sampled, shift_was_named
from benchmarks.decisions.worlds import SHIFTS, World, planted
from pipeline.policies import Drift

if TYPE_CHECKING:
    from benchmarks.decisions.drift import Rows

_NULL = "null"
_EPOCH = pd.Timestamp("1970-01-01")


def measure(*, null_worlds: int = 10, null_days: int = 5, shift_worlds: int = 5, rows: int = 1000) -> dict[str, Any]:
    """Alarms per batch without drift, and the share of planted shifts told by their second day, of each tool.

    A peer's shift counts as found when it flags the planted column in either batch, or, with a changed dependence, when it
    alarms at all; its errors count as silence and are told. A null batch alarms when any column is flagged, which is the
    only sense in which Evidently's defaults can see a single column; its own whole-batch alarm (half of the columns) is
    given beside.
    """
    policy = Drift(detector="scipy")
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    errors: dict[str, int] = defaultdict(int)
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[Path, str] = {}
        for seed in range(null_worlds + shift_worlds):
            world = World(500 + seed)
            course = Course.trained(policy, world, rows)
            for kind in [_NULL] if seed < null_worlds else SHIFTS:
                days = range(TRAINED_DAYS, TRAINED_DAYS + (null_days if kind == _NULL else 2))
                batches = [_batch(world, kind, day, rows, policy) for day in days]
                case = Path(folder) / f"{seed}-{kind.replace(' ', '_').replace('%', '')}"
                _write(case, course, batches, days)
                cases[case] = kind
                course.earlier.clear()
                seen = [course.judge(day, batch, rows) for day, batch in zip(days, batches, strict=True)]
                if kind == _NULL:
                    found["pipeline"][kind] += [verdicts.is_alarm for verdicts in seen]
                else:
                    found["pipeline"][kind].append(any(shift_was_named(verdicts, kind) for verdicts in seen))
        for name in ("evidently", "nannyml"):
            told = peers.judge(name, list(cases), timeout=3600)
            for case, kind in cases.items():
                own = [judgement for judgement in told if judgement.case == case]
                errors[name] += sum(judgement.error is not None for judgement in own)
                if kind == _NULL:
                    found[name][kind] += [judgement.any_column for judgement in own]
                    found[f"{name}, whole batch"][kind] += [judgement.alarm for judgement in own]
                else:
                    found[name][kind].append(any(_peer_found(judgement, kind) for judgement in own))
                    found[f"{name}, whole batch"][kind].append(any(judgement.alarm for judgement in own))
    return {
        tool: {
            "alarms per null batch": float(np.mean(kinds[_NULL])),
            "null batches": len(kinds[_NULL]),
            "detected": float(np.mean([hit for kind in SHIFTS for hit in kinds[kind]])),
            "by shift": {kind: float(np.mean(kinds[kind])) for kind in SHIFTS},
            "errors": errors.get(tool, 0),
        }
        for tool, kinds in found.items()
    }


def _batch(world: World, kind: str, day: int, rows: int, policy: Drift) -> Rows:
    drawn = sampled(world, day, rows, policy)
    return drawn if kind == _NULL else planted(drawn, kind, world, day)


def _peer_found(judgement: peers.Judgement, kind: str) -> bool:
    column = SHIFTS[kind][0]
    return judgement.alarm if kind == "correlation flipped" else column in judgement.columns


def _write(case: Path, course: Course, batches: list[Rows], days: range) -> None:
    case.mkdir(parents=True)
    reference = pd.DataFrame(course.reference)
    reference["event_ts"] = _EPOCH + pd.to_timedelta(course.starts, unit="min")
    reference.to_parquet(case / "reference.parquet", index=False)
    for position, (batch, day) in enumerate(zip(batches, days, strict=True)):
        frame = pd.DataFrame(batch)
        frame["event_ts"] = _EPOCH + pd.Timedelta(days=4 + day)
        frame.to_parquet(case / f"current-{position}.parquet", index=False)


if __name__ == "__main__":
    import json

    print(json.dumps(measure(), indent=2))
