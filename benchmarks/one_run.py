"""``python -m benchmarks.one_run``: what a small interval takes, in a replay and as an Airflow run, which is taken apart.

A running Airflow (the one of the demo) scores one day of a thousand simulated rows after the other, each in a run of its own. Its
parts are read from its database and from the task's log; medians go to ``benchmarks/out/one_run.json``. A replay of such days
does all that the DAGs do for each: score, monitor, evaluate, decide. How fast the machine is at the time, scikit-learn tells: the
seconds that it takes for 2 million rows in memory (`benchmarks.throughput`).
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import replays
from examples.demo import DEMO_JOB, FIRST_DAY, Demo, fresh_home, resolved
from examples.simulate import simulate
from pipeline import jobfile
from pipeline.intervals import Interval, format_instant

if TYPE_CHECKING:
    from collections.abc import Mapping

_OUT = Path(__file__).parent / "out" / "one_run.json"
_HISTORY, _REPLAYED = 6, 30
_RUN_SECONDS = 300.0
# The last line that a task writes before its function is called, and the first one after.
_READY, _DONE = "::endgroup::", "Done. Returned value was"


def measure(runs: int, rows: int) -> dict[str, object]:
    """Median seconds of each part, over that many runs after a first one."""
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        home = fresh_home(Path(folder) / "home")
        first = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC) + timedelta(days=_HISTORY)
        end = first + timedelta(days=runs + 1)
        simulate(home / "data", FIRST_DAY, _HISTORY + runs + 1, None, rows=rows)
        job = resolved(jobfile.load(DEMO_JOB), end, home / "data")
        demo = Demo(home, job, [Interval(first, end)])
        demo.airflow.launch()
        try:
            demo.get_ready()
            demo.bootstrap()
            for interval in job.cadence.split(Interval(first, end)):
                began = datetime.now(UTC)
                run = demo.airflow.trigger(f"{job.name}__score", {"start": format_instant(interval.start)})
                demo.airflow.wait(f"{job.name}__score", run, _RUN_SECONDS)
                found.append(_parts(demo.airflow.airflow_home, f"{job.name}__score", run, began))
                demo.settle()
        finally:
            demo.airflow.stop()
            demo.ledger.close()
    return {
        "rows": rows,
        "runs": runs,
        "first run": found[0],
        "median": {part: round(statistics.median(one[part] for one in found[1:]), 3) for part in found[0]},
    }


def replayed(days: int, rows: int) -> dict[str, float]:
    """Seconds per interval of a replay of so many days, the first ones left out: median and longest."""
    first = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC) + timedelta(days=_HISTORY)
    end = first + timedelta(days=days)
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder) / "data", FIRST_DAY, _HISTORY + days, None, rows=rows)
        file = Path(folder) / "demo.yaml"
        job = resolved(jobfile.load(DEMO_JOB), end, Path(folder) / "data")
        file.write_text(job.model_dump_json(exclude_none=True))
        span = ("--from", format_instant(first), "--to", format_instant(end))
        report = replays.command(folder, "replay", str(file), *span)
    found: dict[str, float] = report["seconds_per_interval"]
    return found


def reference() -> float:
    """Seconds that `predict_proba` of the reference pipeline takes for 2 million rows in memory, the better of two times."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        asked = ("--rows", "2000000", "--models", "gradient_boosting", "--only", "in_memory", "--repeats", "2")
        program = [sys.executable, "-m", "benchmarks.throughput", *asked, "--folder", folder, "--out", str(out)]
        subprocess.run(program, cwd=replays.REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        (measured,) = json.loads(out.read_text())["models"]["gradient_boosting"]
    best: float = measured["contenders"]["in_memory"]["best"]
    return best


def _parts(airflow_home: Path, dag_id: str, run_id: str, began: datetime) -> dict[str, float]:
    """Seconds of each part of one run; the function publishes as the last thing it does but its records."""
    with sqlite3.connect(airflow_home / "airflow.db") as database:
        run, scheduled, queued, started = map(
            _instant,
            database.execute(
                "select r.start_date, t.scheduled_dttm, t.queued_dttm, t.start_date from dag_run r join task_instance t "
                "on t.dag_id = r.dag_id and t.run_id = r.run_id where r.dag_id = ? and r.run_id = ? and task_id = 'score'",
                (dag_id, run_id),
            ).fetchone(),
        )
    said = _said(airflow_home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / "task_id=score" / "attempt=1.log")
    marks = {
        "trigger to run (the scheduler looks)": run,
        "run to queued (scheduling)": queued,
        "queued to started (a process is forked)": started,
        "started to called (imports, DAG file, context)": said[_READY],
        "work (plan, validate, score, publish)": said[_DONE],
    }
    assert scheduled <= queued
    ends = [began, *marks.values()]
    parts = {name: (end - start).total_seconds() for name, start, end in zip(marks, ends[:-1], ends[1:], strict=True)}
    return {**parts, "trigger to published": (ends[-1] - began).total_seconds()}


def _said(log: Path) -> Mapping[str, datetime]:
    """When each mark first appears in a task's log."""
    marks: dict[str, datetime] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        for mark in (_READY, _DONE):
            if entry["event"].startswith(mark):
                marks.setdefault(mark, datetime.fromisoformat(entry["timestamp"]))
    return marks


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def main() -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_run", description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--rows", type=int, default=1_000)
    options = parser.parse_args()
    replay = {"columns": len(jobfile.load(DEMO_JOB).features.columns), **replayed(_REPLAYED, options.rows)}
    measured = {
        "replay": replay,
        "scikit-learn, 2 million rows": reference(),
        "Airflow run": measure(options.runs, options.rows),
    }
    found = json.dumps(measured, indent=2)
    _OUT.parent.mkdir(parents=True, exist_ok=True)
    _OUT.write_text(found + "\n")
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
