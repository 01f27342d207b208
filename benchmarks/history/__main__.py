"""``python -m benchmarks.history``: what grows with the past and with the number of jobs, and what does not.

Two deployments are made, by default of 5 jobs with 100 intervals each and of 500 with 10,000, and measured alternately in one
run; of repetitions the fastest counts. JSON goes to ``benchmarks/out/history.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from benchmarks.history import fill
from benchmarks.throughput import world
from pipeline import jobfile
from pipeline.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.job import JobSpec
    from pipeline.runtime import Runtime

_ROOT = Path(__file__).parents[2]
_OUT = _ROOT / "benchmarks" / "out" / "history.json"
# A DAG file for each of 500 jobs is parsed so many times at most.
_PARSED = 2
Calls = dict[str, "Callable[[], Any]"]


def main() -> None:
    """Make both deployments, measure, print a table, and write the figures."""
    options = _options()
    shutil.rmtree(options.folder, ignore_errors=True)
    sizes = {"small": tuple(options.small), "large": tuple(options.large)}
    deployed: dict[str, tuple[Runtime, JobSpec, Path]] = {}
    found: dict[str, Any] = {"sizes": sizes, "filled": {}}
    for name, (intervals, jobs) in sizes.items():
        began, folder = time.perf_counter(), options.folder / name
        deployed[name] = (*fill.deployment(folder, intervals, jobs), folder)
        _partitions(deployed[name][0], deployed[name][1], intervals)
        size = (folder / "home" / "ledger.db").stat().st_size
        found["filled"][name] = {"seconds": time.perf_counter() - began, "ledger_mb": size / 2**20}
    calls = {name: _calls(*made) for name, made in deployed.items()}
    found["seconds"] = {what: _compared(calls, what, options.repeats) for what in calls["small"]}
    found["interval"] = _intervals(deployed, options.repeats)
    for runtime, _, _ in deployed.values():
        runtime.close()
    folders = {name: folder for name, (_, _, folder) in deployed.items()}
    found["commands"] = _commands(folders, options.repeats)
    found["parsing"] = _parsing(folders, min(options.repeats, _PARSED))
    _OUT.parent.mkdir(parents=True, exist_ok=True)
    _OUT.write_text(json.dumps(found, indent=2) + "\n")
    _tell(found)
    if not options.keep:
        shutil.rmtree(options.folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--small", type=int, nargs=2, default=[100, 5], metavar=("INTERVALS", "JOBS"))
    parser.add_argument("--large", type=int, nargs=2, default=[10_000, 500], metavar=("INTERVALS", "JOBS"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=_ROOT / ".bench" / "history", help="for about 4 GB, emptied first"
    )
    parser.add_argument("--keep", action="store_true", help="leave the deployments there")
    return parser.parse_args()


def _partitions(runtime: Runtime, job: JobSpec, intervals: int) -> None:
    """Published partitions, empty ones, for the sweeper to pass by."""
    output = Path(runtime.context(job).output)
    for number in range(1, intervals + 1):
        partition = job.output_partition(job.interval(world.SCORED - number * fill.DAY))
        for file in (f"predictions/{partition}/part-0.parquet", f"predictions.manifest/{partition}.json"):
            path = output / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def _calls(runtime: Runtime, job: JobSpec, folder: Path) -> Calls:
    """What one scored interval asks the ledger, `status`, and the sweeper."""
    ledger, name = runtime.ledger, job.name
    now = world.SCORED + 2 * fill.DAY
    interval = Interval(now - fill.DAY, now)
    week = now - timedelta(days=7)
    jobs = list(jobfile.load_all(folder)[0].values())
    return {
        "status of all jobs, files loaded": lambda: runtime.statuses(jobs),
        "status of one job": lambda: runtime.status(job),
        "loading all job files": lambda: jobfile.load_all(folder),
        "finding one job": lambda: jobfile.find(name, folder),
        "opening the ledger": lambda: type(ledger)(runtime.settings.ledger_url, runtime.clock).close(),
        "plan": lambda: ledger.plan(name, interval),
        "manifest": lambda: ledger.manifest(name, interval),
        "manifests of a week": lambda: ledger.manifests(name, since=week, ended_by=now),
        "published": lambda: ledger.published(name),
        "unmeasured": lambda: ledger.unmeasured(name, ended_by=now),
        "drift of a fortnight": lambda: ledger.drift(name, since=now - timedelta(days=14), ended_by=now),
        "the last 60 drift reports": lambda: ledger.drift(name, ended_by=now, last=60, loud_on=1),
        "drift of a version without reports": lambda: ledger.drift(name, ended_by=now, last=60, loud_on=9),
        "the last 60 performance reports": lambda: ledger.performance(name, as_of=now, last=60, loud_on=1),
        "the course of performance": lambda: ledger.performance_course(name, as_of=now, last=60),
        "performance at an instant": lambda: ledger.performance_at(name, now),
        "champion at an instant": lambda: ledger.champion(name, now),
        "decisions on rollouts": lambda: ledger.decisions(name, kind="rollout", until=now),
        "the last training decisions": lambda: ledger.decisions(name, kind="training", last=60),
        "revising incidents": lambda: ledger.revise_incidents(name, lambda known: [], closed_after=now),
        "untold incidents": lambda: ledger.untold(name),
        "end of the chain": lambda: ledger.head(name),
        "looking for gaps": lambda: runtime.find_gaps(job, now),
        "the sweeper": lambda: runtime.sweep(job),
    }


def _compared(calls: dict[str, Calls], what: str, repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {size: [] for size in calls}
    for _ in range(repeats):
        for size, own in calls.items():
            seconds[size].append(_timed(own[what]))
    return _ratio({size: min(times) for size, times in seconds.items()})


def _intervals(deployed: dict[str, tuple[Runtime, JobSpec, Path]], repeats: int) -> dict[str, Any]:
    """One interval from its input to the decision whether to train, with the statements that it takes."""
    seconds: dict[str, list[float]] = {size: [] for size in deployed}
    asked: dict[str, int] = {}
    for number in range(2, 2 + repeats):
        for size, (runtime, job, folder) in deployed.items():
            start = fill.day(folder, number)
            asked[size] = 0

            def count(*_: Any, size: str = size) -> None:
                asked[size] += 1

            engine = runtime.ledger._engine
            sa.event.listen(engine, "before_cursor_execute", count)
            seconds[size].append(_timed(lambda run=runtime, own=job, at=start: fill.live(run, own, at)))  # type: ignore[misc]
            sa.event.remove(engine, "before_cursor_execute", count)
    return {**_ratio({size: min(times) for size, times in seconds.items()}), "statements": asked}


def _commands(folders: dict[str, Path], repeats: int) -> dict[str, Any]:
    """Whole processes of the command line, start-up included."""
    found = {}
    for words in (["status", "--json"], ["status", "throughput", "--json"], ["schema"]):
        seconds: dict[str, list[float]] = {size: [] for size in folders}
        for _ in range(repeats):
            for size, folder in folders.items():
                environ = {**os.environ, "PIPELINE_HOME": str(folder / "home"), "PIPELINE_JOBS": str(folder)}
                command = [sys.executable, "-m", "pipeline", *words]
                run = {"env": environ, "cwd": _ROOT, "check": True, "stdout": subprocess.DEVNULL}
                seconds[size].append(_timed(lambda c=command, r=run: subprocess.run(c, **r)))  # type: ignore[misc]
        found[" ".join(["pipeline", *words])] = _ratio({size: min(times) for size, times in seconds.items()})
    return found


def _parsing(folders: dict[str, Path], repeats: int) -> dict[str, Any]:
    """CPU seconds of parsing: in a task's process, a job's own DAG file, and all of them as the DAG processor parses them.

    Beside it the files that declare the DAGs of all jobs at once, which Airflow parses without the bundle.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(repeats):
        for size, folder in folders.items():
            seconds = {
                "a task's process": [f["seconds"] for f in _parse(folder, "bundle", "throughput__score").values()],
                "the DAG processor, a job's file": [f["seconds"] for f in _parse(folder, "bundle").values()],
                "without the bundle, a file": [f["seconds"] for f in _parse(folder, "folder").values()],
            }
            for what, times in seconds.items():
                # The slowest file counts, but for those that a busy machine delayed.
                found.setdefault(what, {}).setdefault(size, []).append(float(np.quantile(times, 0.9)))
                found.setdefault(f"{what}, together", {}).setdefault(size, []).append(sum(times))
    return {what: _ratio({size: min(times) for size, times in own.items()}) for what, own in found.items()}


def _parse(folder: Path, mode: str, *own: str) -> dict[str, dict[str, float]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
    environ |= {"AIRFLOW_HOME": str(folder / "airflow"), "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-m", "benchmarks.history.parsing", str(folder), mode, *own]
    done = subprocess.run(command, env=environ, cwd=_ROOT, check=True, capture_output=True, text=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _ratio(seconds: dict[str, float]) -> dict[str, float]:
    return {**seconds, "ratio": seconds["large"] / seconds["small"]}


def _tell(found: dict[str, Any]) -> None:
    rows = {**found["seconds"], "one interval, all steps": found["interval"], **found["commands"]}
    rows |= found["parsing"]
    for what, row in rows.items():
        print(f"{what:40} {row['small'] * 1e3:>10.2f} ms {row['large'] * 1e3:>10.2f} ms {row['ratio']:>7.2f}")
    print(f"figures in {_OUT.relative_to(_ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
