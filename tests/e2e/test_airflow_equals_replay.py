"""A real Airflow with its scheduler publishes what a replay of the same days publishes, byte for byte.

Even though the process of one of its tasks is killed meanwhile: the small form of ``tests/faults/test_airflow_kills.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from deploy.airflow_api import AirflowRefused, AirflowUnavailable
from deploy.local_airflow import LocalAirflow
from examples.simulate import simulate
from pipeline.intervals import format_instant
from tests.faults.airflow_world import Killer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploy.airflow_api import Run

pytestmark = [pytest.mark.slow, pytest.mark.airflow]

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = (REPOSITORY / os.environ.get("PIPELINE_REAL_DATA", "../shared/data") / "nycflights13").resolve()
START = datetime(2013, 2, 15, tzinfo=UTC)
BACKFILLED = [START + timedelta(days=n) for n in range(5)]
CHAINED = START + timedelta(days=5)
DATASETS = ("predictions", "quarantine", "monitoring/drift")
PATIENCE = 150


def column_types(names: str, kind: str) -> dict[str, dict[str, str]]:
    return {name: {"type": kind} for name in names.split()}


def flights() -> dict[str, Any]:
    """Real flights; those that were cancelled have no hour and go to quarantine."""
    return {
        "name": "flights",
        "features": {
            "uri": str(REAL / "features"),
            "columns": column_types("hour distance temp dewp humid wind_speed precip visib", "number")
            | column_types("carrier origin", "category"),
        },
        "labels": {"uri": str(REAL / "labels"), "mature_after": "PT12H"},
        "checks": {"max_quarantined": 0.9, "rules": [{"column": "hour", "rule": "not_null"}]},
    }


def parcels(data: Path) -> dict[str, Any]:
    """The simulated parcels, where there are no real flights; some rows of every day go to quarantine."""
    simulate(data, date(2013, 2, 1), 22, date(2013, 2, 18), rows=400)
    return {
        "name": "parcels",
        "features": {
            "uri": str(data / "features"),
            "columns": column_types("distance_km weight_kg items depot_load", "number")
            | column_types("carrier region", "category"),
        },
        "labels": {"uri": str(data / "labels"), "mature_after": "P1D"},
        "checks": {"rules": [{"column": "weight_kg", "rule": "between", "min": 0, "max": 200}]},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("equal")


@pytest.fixture(scope="module")
def job(folder: Path) -> str:
    """The name of the one job in ``folder/jobs``; nothing of it is due by itself, because it ended long ago."""
    own = flights() if REAL.exists() else parcels(folder / "data")
    document = {
        "task": "binary",
        "schedule": {
            "interval": "1d",
            "start": "2013-01-01T00:00:00Z",
            "end": "2013-03-01T00:00:00Z",
            "max_active_runs": 2,
        },
        "model": {"parameters": {"max_iter": 30}},
        "drift": {"min_rows": 100},
        "retrain": {"window": "P10D", "holdout": "P3D"},
        "promote": {"mode": "enabled", "first": "any"},
        **own,
        "features": {"key": ["row_id"], "time": "event_ts", **own["features"]},
        "labels": {"column": "label", "available_at": "label_available_at", **own["labels"]},
    }
    (folder / "jobs").mkdir()
    (folder / "jobs" / f"{own['name']}.yaml").write_text(json.dumps(document))
    return str(own["name"])


@pytest.fixture(scope="module")
def replay(folder: Path, job: str) -> Iterator[subprocess.Popen[str]]:
    """A replay of all days, which goes on while Airflow starts."""
    end = format_instant(CHAINED + timedelta(days=1))
    command = [sys.executable, "-m", "pipeline", "replay", job, "--from", format_instant(START), "--to", end]
    with subprocess.Popen(
        [*command, "--policy", "frozen", "--workspace", str(folder / "replay"), "--json"],
        env={**os.environ, "PIPELINE_JOBS": str(folder / "jobs"), "PIPELINE_HOME": str(folder / "unused")},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def airflow(folder: Path, job: str, replay: subprocess.Popen[str]) -> Iterator[LocalAirflow]:
    """A running Airflow in which the champion of ``START`` is in place."""
    dags = [f"{job}__{kind}" for kind in ("score", "evaluate", "retrain")]
    with LocalAirflow(folder / "home", folder / "jobs", environ={"PIPELINE_RETRY_DELAY_SECONDS": "1"}) as running:
        running.wait_for_dags(dags, PATIENCE)
        for dag in dags:
            running.unpause(dag)
        run_id = running.trigger(f"{job}__retrain", {"as_of": format_instant(START), "bootstrap": True})
        assert running.wait(f"{job}__retrain", run_id, PATIENCE) == "success", running.failure(
            f"{job}__retrain", run_id
        )
        yield running


def eventually(airflow: LocalAirflow, dag_id: str, are_done: Callable[[list[Run]], bool]) -> list[Run]:
    """The runs of the DAG once they are done and none goes on; a failed one ends the wait with its log."""
    deadline = time.monotonic() + PATIENCE
    while True:
        runs = airflow.runs(dag_id)
        for run in runs:
            assert run.state != "failed", airflow.failure(dag_id, run.run_id)
        if all(run.is_over for run in runs) and are_done(runs):
            return runs
        assert time.monotonic() < deadline, runs
        airflow.check_alive()
        time.sleep(0.5)


def backfill(airflow: LocalAirflow, job: str, reprocess: str, killer: Killer | None = None) -> None:
    """Backfill the days, with one killed task if there is a killer, and return when that has come to an end."""
    began, deadline = datetime.now(UTC), time.monotonic() + PATIENCE
    done: set[str] = set()
    while len(done) < len(BACKFILLED):
        assert time.monotonic() < deadline, done
        try:
            airflow.backfill(f"{job}__score", BACKFILLED[0], BACKFILLED[-1], max_active_runs=2, reprocess=reprocess)
        except (AirflowRefused, AirflowUnavailable) as err:
            # Airflow takes half a minute to see that a backfill is over. And on SQLite it may be locked out while it makes
            # the runs; those that it has made go on, and a repetition makes the others.
            if "already a running backfill" not in str(err) and "500" not in str(err):
                raise
            time.sleep(2)
        if killer and not killer.struck:
            killer.strike(1, PATIENCE)
        runs = eventually(airflow, f"{job}__score", lambda _: True)
        done = {run.run_id for run in runs if run.kind == "backfill" and run.started and run.started > began}


def published(root: Path) -> dict[str, Path]:
    """The Parquet files of the backfilled days, by their path below ``root``."""
    days = {f"ds={day:%Y-%m-%d}" for day in BACKFILLED}
    found = [path for name in DATASETS for path in sorted((root / name).glob("*/*.parquet"))]
    return {str(path.relative_to(root)): path for path in found if path.parent.name in days}


@pytest.fixture(scope="module")
def killer(airflow: LocalAirflow, job: str) -> Killer:
    """Who kills the process of one task of the first backfill."""
    return Killer(airflow, f"{job}__score", tasks=3 * len(BACKFILLED), seed=1, least=1.0)


@pytest.fixture(scope="module")
def root(airflow: LocalAirflow, killer: Killer, folder: Path, job: str) -> Path:
    """The root of Airflow's data sets, after a backfill."""
    backfill(airflow, job, "none", killer)
    return folder / "home" / "outputs" / job


@pytest.fixture(scope="module")
def replayed(root: Path, folder: Path, job: str, replay: subprocess.Popen[str]) -> Path:
    """The root of the replay's data sets."""
    out, err = replay.communicate(timeout=PATIENCE)
    assert replay.returncode == 0, err
    assert json.loads(out)["intervals"] == len(BACKFILLED) + 1
    return folder / "replay" / "outputs" / job


def test_a_backfill_publishes_the_bytes_that_a_replay_publishes(root: Path, replayed: Path) -> None:
    ours, theirs = published(root), published(replayed)
    assert {path.split("/")[0] for path in ours} == {"predictions", "quarantine", "monitoring"}
    assert len([path for path in ours if path.startswith("predictions")]) == len(BACKFILLED)
    assert list(ours) == list(theirs)
    assert [name for name in ours if ours[name].read_bytes() != theirs[name].read_bytes()] == []


def test_a_task_whose_process_was_killed_was_run_again(
    airflow: LocalAirflow, root: Path, killer: Killer, job: str
) -> None:
    (struck,) = killer.struck
    again = [
        t for t in airflow.task_instances(f"{job}__score") if (t.run_id, t.task_id) == (struck.run_id, struck.task_id)
    ]
    assert [(task.state, task.try_number) for task in again] == [("success", struck.try_number + 1)]
    assert killer.survivors(seconds=30) == []


def test_the_events_of_a_backfill_evaluate_nothing_and_train_nothing(
    airflow: LocalAirflow, root: Path, job: str
) -> None:
    eventually(airflow, f"{job}__evaluate", lambda runs: len(runs) > 0)
    assert not (root / "monitoring" / "performance").exists()
    assert [run.kind for run in airflow.runs(f"{job}__retrain")] == ["manual"]


def test_one_scored_day_is_evaluated_and_decided_upon_by_itself(
    airflow: LocalAirflow, root: Path, replayed: Path, job: str
) -> None:
    run_id = airflow.trigger(f"{job}__score", {"start": format_instant(CHAINED)})
    assert airflow.wait(f"{job}__score", run_id, PATIENCE) == "success", airflow.failure(f"{job}__score", run_id)
    eventually(airflow, f"{job}__retrain", lambda runs: any(run.kind == "asset_triggered" for run in runs))

    # The backfilled days are evaluated with it, now and not each in its time. Only the latest of them had its time now.
    performance = {day: f"monitoring/performance/ds={day:%Y-%m-%d}/part-0.parquet" for day in BACKFILLED}
    as_of = {pq.read_table(root / name, partitioning=None)["as_of"][0].as_py() for name in performance.values()}
    assert as_of == {CHAINED + timedelta(days=1)}
    assert (root / performance[BACKFILLED[-1]]).read_bytes() == (replayed / performance[BACKFILLED[-1]]).read_bytes()


def test_the_same_backfill_again_rewrites_no_file(airflow: LocalAirflow, root: Path, job: str) -> None:
    kept = [path for path in root.rglob("*") if path.is_file() and "reports" not in path.parts]
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}
    backfill(airflow, job, "completed")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept} == before
    assert [path for path in root.rglob("*.parquet") if path not in before] == []
