"""Replays of real data under each policy: what closing the loop is worth, and how many promotions it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parent.parent
JOBS = REPOSITORY / "examples" / "jobs"
DATA = Path(os.environ.get("PIPELINE_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
# The job, its data set, and the days that are lived; what comes before is history to learn from.
SETS = (
    ("bikes", "bike_sharing", "2011-03-01", "2013-01-01"),
    ("flights", "nycflights13", "2013-03-01", "2014-01-01"),
)
# Other days on which life begins, because on one of them a policy may be lucky.
_LATER = {"bikes": ("2011-04-01", "2011-05-01"), "flights": ("2013-03-15", "2013-04-01")}
# With the days in random order life begins after half of them: then there is nothing new to learn from the rest.
_HALF = {"bikes": "2012-01-01", "flights": "2013-07-01"}
_POLICIES = ("closed_loop", "always", "frozen")
_FACTS = ("mean", "retrains", "promotions", "rollbacks")
_SEED = 0


def measure() -> dict[str, Any]:
    """Closed loop, a training every month, and a frozen champion, over all of bike_sharing and nycflights13."""
    return {
        f"{name} {policy}": _lived(JOBS / f"{name}.yaml", start, end, policy)
        for name, _, start, end in SETS
        for policy in _POLICIES
    }


def policies(starts: int = 3) -> dict[str, Any]:
    """What `measure` finds, side by side: the share of the gain of monthly trainings that the closed loop keeps.

    From so many days on which life begins, and on the same data with its days in random order, where retraining does not
    help. Two replays run at a time, so that their times mean nothing.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        lives = {
            name: {
                start: [pool.submit(_lived, JOBS / f"{name}.yaml", start, end, policy) for policy in _POLICIES]
                for start in (first, *_LATER[name])[:starts]
            }
            for name, _, first, end in SETS
        }
        shuffled = {
            name: pool.submit(_lived, shuffle(name, data, Path(folder) / name), _HALF[name], end, "closed_loop")
            for name, data, _, end in SETS
        }
        return {
            name: {
                **{f"from {start}": _compared(*(one.result() for one in lived)) for start, lived in begun.items()},
                "days in random order": {fact: shuffled[name].result()[fact] for fact in _FACTS},
            }
            for name, begun in lives.items()
        }


def _compared(loop: dict[str, Any], always: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
    gain, possible = loop["mean"] - frozen["mean"], always["mean"] - frozen["mean"]
    found = zip(_POLICIES, (loop, always, frozen), strict=True)
    return {
        "metric": loop["metric"],
        **{policy: {fact: lived[fact] for fact in _FACTS} for policy, lived in found},
        "share of the gain": round(gain / possible, 3),
        "share of the promotions": round(loop["promotions"] / always["promotions"], 3),
    }


def shuffle(name: str, data: str, root: Path, seed: int = _SEED) -> Path:
    """Write a data set with its days in random order under ``root``; the job file that reads it."""
    days = sorted(path.name.removeprefix("ds=") for path in (DATA / data / "features").iterdir())
    order = np.random.default_rng(seed).permutation(len(days))
    for place, day in zip(order, days, strict=True):
        moved = timedelta(days=int((np.datetime64(days[place]) - np.datetime64(day)).astype(int)))
        for kind, column in (("features", "event_ts"), ("labels", "label_available_at")):
            folder = root / kind / f"ds={days[place]}"
            folder.mkdir(parents=True)
            for number, path in enumerate(sorted((DATA / data / kind / f"ds={day}").glob("*.parquet"))):
                table = pq.ParquetFile(path).read()
                at = pc.add(table[column], pa.scalar(moved, pa.duration("us")))
                pq.write_table(
                    table.set_column(table.column_names.index(column), column, at), folder / f"part-{number}.parquet"
                )
    job = root / f"{name}.yaml"
    text = (JOBS / f"{name}.yaml").read_text(encoding="utf-8")
    job.write_text(text.replace(f"../../../shared/data/{data}", str(root)), encoding="utf-8")
    return job


def _lived(job: Path, start: str, end: str, policy: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:
        report = command(home, "replay", str(job), "--from", start, "--to", end, "--policy", policy)
    metric = report["metric"]
    return {
        "metric": metric["name"],
        "mean": round(metric["mean"], 4),
        "intervals": report["intervals"],
        "rows_in": report["rows_in"],
        "accounted": report["rows_in"] == report["rows_scored"] + report["rows_quarantined"],
        "retrains": report["retrains"],
        "promotions": report["promotions"],
        "rollbacks": report["rollbacks"],
        "seconds": report["seconds"],
        "median_seconds": report["seconds_per_interval"]["median"],
    }


def command(home: str, *arguments: str) -> dict[str, Any]:
    """The answer of one command of the command line, whose state is under ``home``."""
    environ = {**os.environ, "PIPELINE_HOME": home, "PIPELINE_JOBS": str(JOBS), "MLFLOW_DISABLE_TELEMETRY": "true"}
    program = [sys.executable, "-m", "pipeline", *arguments, "--json"]
    done = subprocess.run(program, env=environ, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
