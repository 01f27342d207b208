"""Task processes that are killed during a backfill: every run still ends in success, and every row is there once."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from tests.faults.airflow_world import AirflowWorld, Killer, airflow_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploy.airflow_api import Run

pytestmark = [pytest.mark.slow, pytest.mark.airflow]

DATASETS = ("predictions", "quarantine", "monitoring/drift")
KEPT = ("predictions.manifest", "reports")
KILLS = 50
SECONDS = 2400.0
TASKS = ("score", "monitor", "find_changed")
# Staging is left alone for at least a day, and earlier versions of a file for a fortnight.
_SWEPT_AFTER = timedelta(days=30)


@pytest.fixture
def world(tmp_path: Path, _mlflow_template: Path, scale: Callable[[bool, bool], bool]) -> Iterator[AirflowWorld]:
    """The Airflow, and the days that wait to be scored."""
    if not scale(False, True):
        pytest.skip(
            "full scale only; one killed task of a small backfill is in tests/e2e/test_airflow_equals_replay.py"
        )
    with airflow_world(tmp_path, _mlflow_template, days=30, rows=20_000) as world:
        yield world


def test_killed_task_processes_cost_retries_and_nothing_else(world: AirflowWorld, figures: Callable[..., None]) -> None:
    days = len(world.rows)
    killer = Killer(world.airflow, world.scoring, tasks=days * len(TASKS), seed=50, of_supervisors=0.12)
    began = time.monotonic()
    world.backfill(active=8)
    killer.strike(KILLS, SECONDS)
    runs = ended(world, SECONDS)
    seconds = time.monotonic() - began
    tasks = world.airflow.task_instances(world.scoring)
    assert Counter((run.kind, run.state) for run in runs) == {("backfill", "success"): days}
    assert len(killer.struck) == KILLS
    retries = Counter(dict.fromkeys(TASKS, 0))
    for task in tasks:
        retries[task.task_id] += max(task.try_number - 1, 0)
    assert retries.total() >= KILLS
    assert killer.survivors(seconds=30) == []
    published_once(world)
    figures(
        "airflow_kills",
        kills=KILLS,
        supervisors=killer.supervisors,
        too_late=killer.late,
        runs=len(runs),
        runs_struck=len({task.run_id for task in killer.struck}),
        seconds=round(seconds),
        retries=dict(retries),
        most_retries_of_one_task=max(task.try_number for task in tasks) - 1,
        leftovers=swept(world),
    )


def ended(world: AirflowWorld, seconds: float) -> list[Run]:
    """The backfill's runs once all of them are over; one that failed ends the wait with its log."""
    deadline = time.monotonic() + seconds
    while True:
        runs = world.airflow.runs(world.scoring)
        for run in runs:
            assert run.state != "failed", world.airflow.failure(world.scoring, run.run_id)
        if len(runs) == len(world.rows) and all(run.is_over for run in runs):
            return runs
        assert time.monotonic() < deadline, [(run.run_id, run.state) for run in runs]
        world.airflow.check_alive()
        time.sleep(0.5)


def published_once(world: AirflowWorld) -> None:
    """Every day has one file, which is the one that its manifest records, and no row is missing or there twice."""
    with world.runtime() as runtime:
        manifests = runtime.ledger.manifests(world.job.name)
    assert {m.start.date(): m.rows_in for m in manifests} == world.rows
    root = world.outputs / "predictions"
    assert sorted(map(str, root.rglob("*.*"))) == sorted(m.path for m in manifests)
    keys: Counter[str] = Counter()
    for manifest in manifests:
        path = Path(manifest.path)
        table = pq.read_table(path, partitioning=None)
        footer = pq.read_metadata(path).metadata
        assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest.sha256
        assert footer[b"fingerprint"].decode() == manifest.fingerprint
        assert set(table["model_version"].to_pylist()) == {manifest.model_version} == {1}
        assert table.num_rows == manifest.rows_scored == manifest.rows_in - manifest.rows_quarantined
        assert manifest.quarantine_path is not None
        assert pq.read_metadata(manifest.quarantine_path).num_rows == manifest.rows_quarantined > 0
        keys.update(table["row_id"].to_pylist())
    assert keys.total() == len(keys) == sum(m.rows_scored for m in manifests)


def swept(world: AirflowWorld) -> int:
    """How many files the killed processes have left; a sweep removes them all, and nothing else."""
    kept = {path for name in DATASETS for path in world.outputs.glob(f"{name}/ds=*/part-0.parquet")}
    kept |= {path for name in KEPT for path in (world.outputs / name).rglob("*") if path.is_file()}
    left = files(world) - kept
    with world.runtime(later=_SWEPT_AFTER) as runtime:
        removed = runtime.sweep(world.job)
    assert files(world) == kept
    assert len(removed) == len(left)
    return len(left)


def files(world: AirflowWorld) -> set[Path]:
    """Everything below the job's data sets, and what is left of local work on them."""
    return {
        path for root in (world.outputs, world.airflow.home / "scratch") for path in root.rglob("*") if path.is_file()
    }
