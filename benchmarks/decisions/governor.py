"""Lives of ninety days under the policies that every job has by default: what is trained, promoted and taken back.

`python -m benchmarks.decisions.governor` prints the figures.
"""

from __future__ import annotations

import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.decisions.lives import FAULTS, FIRST, Life
from benchmarks.replays import command
from pipeline.ledger import Ledger
from pipeline.replay import replay
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.job import JobSpec

_CHANGE = 30
_FAULT_DAYS = range(20, 23)


def measure(*, days: int = 90, faults: Sequence[str] = tuple(FAULTS)) -> dict[str, Any]:
    """Retrains, promotions, rollbacks and alerts of each life, and the days on which they happened."""
    step = lived(Life(days, lambda day: "usual" if day < _CHANGE else "other"), then=taken_back)
    return {
        "one step change": step,
        "an oscillating world": lived(
            Life(days, lambda day: "usual" if day < 0 or day // 7 % 2 == 0 else "other", seed=1)
        ),
        "an unlearnable change": lived(Life(days, lambda day: "usual" if day < _CHANGE else "noise", seed=2)),
        "good at the gate, bad afterwards": turned_back(days, step),
        "broken data": {
            name: lived(Life(35, faults=dict.fromkeys(_FAULT_DAYS, FAULTS[name]), seed=3)) for name in faults
        },
    }


def turned_back(days: int, step: dict[str, Any]) -> dict[str, Any]:
    """The life of the step change, but the world turns back on the day after the promotion."""
    promoted = step["promoted on"][0]

    def concept(day: int) -> str:
        return "other" if _CHANGE <= day <= promoted else "usual"

    found = lived(Life(days, concept))
    back = found["rolled back on"]
    # The first bad day is the one after the promotion, and a day's labels are there two days after its end.
    found["bad matured intervals before the rollback"] = back[0] - (promoted + 1) - 2 if back else None
    return found


def taken_back(job: JobSpec, home: Path) -> dict[str, Any]:
    """How long `pipeline rollback --restate` takes on what a life has left, from the command to the last partition."""
    file = home / "orders.yaml"
    file.write_text(job.model_dump_json(exclude_none=True), encoding="utf-8")
    began = time.perf_counter()
    done = command(str(home), "rollback", str(file), "--reason", "To see how long it takes.", "--restate")
    return {"restated by command": len(done["restated"]), "seconds from command": round(time.perf_counter() - began, 1)}


def lived(life: Life, then: Callable[[JobSpec, Path], dict[str, Any]] | None = None) -> dict[str, Any]:
    """One life, replayed: exactly the steps that the DAGs run; ``then`` is what is measured on what it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        job = life.write(Path(folder) / "data")
        workspace = Path(folder) / "workspace"
        began = time.perf_counter()
        report = replay(
            job,
            FIRST,
            FIRST + timedelta(days=life.days),
            policy="closed_loop",
            workspace=workspace,
            jobs=Path(folder),
            progress=lambda line: None,
        )
        ledger = Ledger(Settings.in_home(workspace, jobs=Path(folder)).ledger_url, lambda: FIRST)
        incidents = [incident.cause for incident in ledger.incidents(job.name)]
        restated = sum(manifest.quiet for manifest in ledger.manifests(job.name))
        ledger.close()
        measured = then(job, workspace) if then else {}
    trained = [d for d in report["decisions"] if d["kind"] == "trigger" and d["outcome"] == "fire"]
    return {
        "days": life.days,
        "retrains": report["retrains"],
        "promotions": report["promotions"],
        "rollbacks": report["rollbacks"],
        "trained on": [_day(d["at"]) for d in trained][1:],
        "promoted on": [_day(d["at"]) for d in report["decisions"] if d["kind"] == "promotion"][1:],
        "rolled back on": [_day(d["at"]) for d in report["decisions"] if d["kind"] == "watch"],
        "restated": restated,
        "most in a week": _most(trained[1:], 7),
        "most in a month": _most(trained[1:], 30),
        "times trainings were halted": incidents.count("retraining_halted"),
        "skipped": len(report["skipped"]),
        "roc_auc": report["metric"]["mean"],
        "seconds": round(time.perf_counter() - began, 1),
        **measured,
    }


def _day(text: str) -> int:
    return (datetime.fromisoformat(text) - FIRST).days


def _most(decisions: list[dict[str, Any]], span: int) -> int:
    days = [_day(d["at"]) for d in decisions]
    return max((sum(first <= day < first + span for day in days) for first in days), default=0)


if __name__ == "__main__":
    import json

    print(json.dumps(measure(), indent=2))
