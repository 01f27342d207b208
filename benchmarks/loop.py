"""Measure the loop on real data: replays, a real Airflow backfill, `init`, and the cost of parsing DAG files.

`python -m benchmarks.loop [replays|airflow|init|parsing ...]` runs the named parts, by default all. Needs the real data sets
(``PIPELINE_REAL_DATA``, default ``../shared/data``, which is also where the example jobs look).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import replays
from benchmarks.replays import DATA, JOBS, REPOSITORY
from deploy.local_airflow import LocalAirflow
from pipeline import jobfile
from pipeline.ledger import Ledger
from pipeline.settings import Settings

OUT = REPOSITORY / "benchmarks" / "out"
_INITS = (
    ("flights", "nycflights13", "binary", "2013-02-01", "2013-02-11"),
    ("bikes", "bike_sharing", "regression", "2011-03-01", "2011-03-11"),
    ("taxi", "tlc_green_2022_01", "regression", "2022-01-22", "2022-01-31"),
)
_FIRST, _LAST = datetime.fromisoformat("2013-02-01T00:00:00+00:00"), datetime.fromisoformat("2013-03-31T00:00:00+00:00")
_RUN_SECONDS = 900.0


def airflow() -> dict[str, Any]:
    """Flights of February and March 2013 as backfill runs of a running scheduler, twice; the second rewrites nothing."""
    job = jobfile.load(JOBS / "flights.yaml")
    with tempfile.TemporaryDirectory() as folder:
        home, jobs = Path(folder) / "home", Path(folder) / "jobs"
        jobs.mkdir()
        (jobs / "flights.yaml").write_text(job.model_dump_json(exclude_none=True), encoding="utf-8")
        with LocalAirflow(home, jobs) as server:
            retrain = f"{job.name}__retrain"
            server.unpause(retrain)
            run = server.trigger(retrain, {"as_of": "2013-02-01T00:00:00Z", "bootstrap": True, "reason": "January"})
            if server.wait(retrain, run, _RUN_SECONDS) != "success":
                raise SystemExit(server.failure(retrain, run))
            first = _backfill(server, job.name)
            files = _files(home / "outputs" / job.name / "predictions")
            second = _backfill(server, job.name)
            rewritten = [
                path
                for path, state in _files(home / "outputs" / job.name / "predictions").items()
                if state != files[path]
            ]
        ledger = Ledger(Settings.in_home(home, jobs=jobs).ledger_url, lambda: _FIRST)
        manifests = ledger.manifests(job.name)
        ledger.close()
    rows_in = sum(m.rows_in for m in manifests)
    return {
        "first": first,
        "second": second,
        "intervals": len(manifests),
        "rows_in": rows_in,
        "accounted": rows_in == sum(m.rows_scored + m.rows_quarantined for m in manifests),
        "rows_of_the_data": _rows(DATA / "nycflights13" / "features"),
        "files_rewritten_by_second": len(rewritten),
    }


def init() -> dict[str, Any]:
    """`init`, `check` and `replay` of ten days on each data set, unchanged."""
    rows: dict[str, Any] = {}
    for name, data, task, start, end in _INITS:
        with tempfile.TemporaryDirectory() as home:
            out = Path(home) / f"{name}.yaml"
            columns = (
                "--key",
                "row_id",
                "--time",
                "event_ts",
                "--label",
                "label",
                "--available-at",
                "label_available_at",
            )
            source = ("--features", str(DATA / data / "features"), "--labels", str(DATA / data / "labels"))
            made = replays.command(
                home, "init", name, *source, *columns, "--task", task, "--interval", "1d", "--out", str(out)
            )
            replays.command(home, "check", str(out))
            report = replays.command(home, "replay", str(out), "--from", start, "--to", end)
            rows[name] = {
                "features": made["features"],
                "intervals": report["intervals"],
                "accounted": report["rows_in"] == report["rows_scored"] + report["rows_quarantined"],
                "metric": {report["metric"]["name"]: report["metric"]["mean"]},
            }
    return rows


def parsing() -> dict[str, Any]:
    """CPU seconds that importing each DAG file adds over `airflow.sdk`, with one job and with a hundred."""
    rows: dict[str, Any] = {}
    text = (JOBS / "flights.yaml").read_text(encoding="utf-8")
    for count in (1, 100):
        with tempfile.TemporaryDirectory() as jobs:
            for number in range(count):
                document = text.replace("name: flights", f"name: flights_{number}", 1)
                (Path(jobs) / f"flights_{number}.yaml").write_text(document, encoding="utf-8")
            for file in sorted((REPOSITORY / "dags").glob("*.py")):
                if file.stem != "declared":
                    rows[f"{file.name}, {count} job(s)"] = _import_seconds(file.stem, jobs)
    return rows


def _backfill(server: LocalAirflow, name: str) -> dict[str, Any]:
    """Run one backfill of all days to its end; how many runs succeeded, and in how many seconds."""
    dag, began = f"{name}__score", time.monotonic()
    known = {run.run_id: run.ended for run in server.runs(dag)}
    server.unpause(dag)
    span = ("--from-date", _FIRST.isoformat(), "--to-date", _LAST.isoformat())
    server.cli(
        "backfill", "create", "--dag-id", dag, *span, "--max-active-runs", "3", "--reprocess-behavior", "completed"
    )
    days = (_LAST - _FIRST) // timedelta(days=1) + 1
    while True:
        runs = server.runs(dag)
        over = [run for run in runs if run.kind == "backfill" and run.is_over and run.ended != known.get(run.run_id)]
        if len(over) >= days:
            break
        if time.monotonic() - began > _RUN_SECONDS * 2:
            raise SystemExit(f"{len(over)} of {days} runs are over after {time.monotonic() - began:.0f} s")
        time.sleep(1)
    seconds = time.monotonic() - began
    while server.has_running_backfill(dag):
        time.sleep(1)
    failed = [run for run in over if run.state != "success"]
    for run in failed:
        print(f"{run.run_id}: {server.failure(dag, run.run_id)}", file=sys.stderr)
    return {"runs": len(over), "succeeded": len(over) - len(failed), "seconds": round(seconds, 1)}


def _files(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*.parquet")}


def _rows(root: Path) -> int:
    import pyarrow.parquet as pq

    days = ((_FIRST + timedelta(days=n)) for n in range((_LAST - _FIRST).days + 1))
    return sum(
        pq.read_metadata(path).num_rows for day in days for path in (root / f"ds={day:%Y-%m-%d}").glob("*.parquet")
    )


def _import_seconds(module: str, jobs: str) -> float:
    code = (
        "import time, airflow.sdk\n"
        "import sys\n"
        "began = time.process_time()\n"
        f"import {module}\n"
        "print(time.process_time() - began)\n"
    )
    path = os.pathsep.join([str(REPOSITORY / "dags"), str(REPOSITORY / "plugins")])
    environ = {**os.environ, "PYTHONPATH": path, "PIPELINE_JOBS": jobs}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    return round(float(done.stdout.split()[-1]), 3)


def main() -> int:
    """Run the parts that were asked for, print and write what they found."""
    parts = {"replays": replays.measure, "airflow": airflow, "init": init, "parsing": parsing}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="default: all")
    OUT.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().parts or parts:
        found = parts[name]()
        (OUT / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"{name}:")
        for row, facts in found.items():
            print(f"  {row}: {json.dumps(facts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
