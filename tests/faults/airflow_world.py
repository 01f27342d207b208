"""A real Airflow with a champion in place, and somebody who kills the processes of its tasks."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]

from deploy.local_airflow import LocalAirflow
from examples.simulate import simulate
from pipeline.intervals import format_instant
from pipeline.runtime import Runtime
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploy.airflow_api import TaskInstance
    from pipeline.job import JobSpec

FIRST = datetime(2026, 1, 12, tzinfo=UTC)
_TRAINED_ON = 11
_PATIENCE = 120.0
_ENVIRON = {
    # A killed supervisor is noticed when nothing was heard of its task for so long; by default that is five minutes.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "PIPELINE_RETRY_DELAY_SECONDS": "1",
}
_COLUMNS = {
    **{name: {"type": "number"} for name in ("distance_km", "weight_kg", "items", "depot_load")},
    **{name: {"type": "category"} for name in ("carrier", "region")},
}
_POLL_SECONDS = 0.1
_GUESSED_SECONDS = 1.0
_RESERVE = 0.15  # the share of the tasks that no kill is planned for


@dataclass(frozen=True)
class AirflowWorld:
    """A running Airflow that knows one job and its champion, and the number of rows of each day there is to score."""

    airflow: LocalAirflow
    job: JobSpec
    rows: dict[date, int]

    @property
    def scoring(self) -> str:
        """The id of the scoring DAG."""
        return f"{self.job.name}__score"

    @property
    def outputs(self) -> Path:
        """The folder of the job's data sets."""
        return self.airflow.home / "outputs" / self.job.name

    def backfill(self, active: int) -> None:
        """Start the scoring of every day, ``active`` of them at once, with the command that an operator uses."""
        self.airflow.unpause(self.scoring)
        days = ("--from-date", min(self.rows).isoformat(), "--to-date", max(self.rows).isoformat())
        self.airflow.cli("backfill", "create", "--dag-id", self.scoring, *days, "--max-active-runs", str(active))

    @contextmanager
    def runtime(self, later: timedelta = timedelta()) -> Iterator[Runtime]:
        """The deployment that Airflow works on, ``later`` than now."""
        settings = Settings.in_home(self.airflow.home, jobs=self.airflow.jobs)
        with Runtime(settings, clock=lambda: datetime.now(UTC) + later) as runtime:
            yield runtime


@contextmanager
def airflow_world(folder: Path, mlflow_template: Path, *, days: int, rows: int) -> Iterator[AirflowWorld]:
    """An Airflow with ``days`` days of about ``rows`` rows to score. Its champion is trained while it starts."""
    home, jobs = folder / "home", folder / "jobs"
    begin = FIRST - timedelta(days=_TRAINED_ON)
    written = simulate(folder / "data", begin.date(), _TRAINED_ON + days, None, rows=rows)
    for made in (home, jobs):
        made.mkdir()
    shutil.copy(mlflow_template, home / "mlflow.db")
    document = _document(folder / "data", begin, FIRST + timedelta(days=days))
    (jobs / f"{document['name']}.yaml").write_text(json.dumps(document), encoding="utf-8")
    airflow = LocalAirflow(home, jobs, environ=_ENVIRON)
    airflow.launch()
    try:
        with Runtime(Settings.in_home(home, jobs=jobs)) as runtime:
            job = runtime.job(document["name"])
            runtime.retrain(job, FIRST, bootstrap=True)
        airflow.wait_until_healthy()
        world = AirflowWorld(airflow, job, {day: n for day, n in written.items() if day >= FIRST.date()})
        airflow.wait_for_dags([world.scoring], _PATIENCE)
        yield world
    finally:
        airflow.stop()


def _document(data: Path, start: datetime, end: datetime) -> dict[str, Any]:
    """A daily job on simulated parcels that ends before today, so that nothing of it is due by itself."""
    return {
        "name": "parcels",
        "task": "binary",
        "schedule": {"interval": "1d", "start": format_instant(start), "end": format_instant(end)},
        "features": {"uri": str(data / "features"), "key": ["row_id"], "time": "event_ts", "columns": _COLUMNS},
        "labels": {
            "uri": str(data / "labels"),
            "column": "label",
            "available_at": "label_available_at",
            "mature_after": "P1D",
        },
        "checks": {"rules": [{"column": "weight_kg", "rule": "between", "min": 0, "max": 200}]},
        "model": {"parameters": {"max_iter": 20}},
        "retrain": {"window": "P10D", "holdout": "P3D"},
    }


@dataclass
class Killer:
    """Kills the processes of a DAG's tasks at random moments, and finds out which of the kills ended a try.

    Every try draws by lot whether it is to be killed and at which part of the time that its task usually takes. A kill
    counts once Airflow has given up that try; one that came too late, after the task had told its success, does not.
    """

    airflow: LocalAirflow
    dag_id: str
    tasks: int  # that will succeed in the end
    seed: int
    least: float = 0.0  # probability with which a try is chosen
    of_supervisors: float = 0.0  # the share of kills that hit the process above the task's
    struck: list[TaskInstance] = field(default_factory=list)
    supervisors: int = 0
    late: int = 0
    drawn: int = 0
    offspring: list[psutil.Process] = field(default_factory=list)

    def strike(self, kills: int, seconds: float) -> None:
        """Return when ``kills`` tries were ended. Raises ``AssertionError`` when that cannot be or takes too long."""
        lot, deadline = random.Random(self.seed), time.monotonic() + seconds
        due: dict[str, float] = {}
        pending: dict[Task, TaskInstance] = {}
        while len(self.struck) < kills:
            assert time.monotonic() < deadline, f"{len(self.struck)} of {kills} kills struck within {seconds:.0f} s"
            self.airflow.check_alive()
            found = self.airflow.task_instances(self.dag_id)
            self._count(found, pending)
            left = self.tasks - sum(task.state == "success" for task in found)
            wanted = kills - len(self.struck)
            assert left or not wanted, f"everything is done, and only {len(self.struck)} of {kills} kills struck"
            for task in found:
                if task.state != "running" or task.pid is None or _key(task) in pending:
                    continue
                if task.id not in due:
                    chance = max(self.least, self._chance(wanted, left))
                    due[task.id] = time.monotonic() + self._lot(lot, chance, _usual(task, found))
                if due[task.id] <= time.monotonic() and len(pending) < wanted and self._kill(task, lot):
                    pending[_key(task)] = task
            time.sleep(_POLL_SECONDS)

    def _chance(self, wanted: int, left: int) -> float:
        """With which probability the next try has to be chosen; one or more when none may be missed any more.

        A task is killed p / (1 - p) times on average if p of its tries are: that spreads the kills over all tasks that are
        left, but the last few, which make up for bad luck. Some lots hit nothing, because the try is over when it is
        their time; so many more are drawn.
        """
        hits = (len(self.struck) + 1) / (self.drawn + 2)
        return wanted / (wanted + max(0.0, left - _RESERVE * self.tasks)) / hits

    def _lot(self, lot: random.Random, chance: float, usual: float) -> float:
        """In how many seconds a try that has just been seen is to be killed; at once when not one may be missed."""
        if lot.random() >= chance:
            return math.inf
        self.drawn += 1
        return lot.uniform(0, usual) if chance < 1 else 0.0

    def survivors(self, seconds: float) -> list[psutil.Process]:
        """The processes that belonged to killed ones and are still there after so long."""
        _, alive = psutil.wait_procs(self.offspring, timeout=seconds)
        return list(alive)

    def _count(self, found: list[TaskInstance], pending: dict[Task, TaskInstance]) -> None:
        """Take the kills whose outcome shows out of ``pending``."""
        for task in found:
            killed = pending.get(_key(task))
            if killed is None or (task.state == "running" and task.try_number == killed.try_number):
                continue
            del pending[_key(task)]
            if task.state == "success" and task.try_number == killed.try_number:
                self.late += 1
            else:
                self.struck.append(killed)

    def _kill(self, task: TaskInstance, lot: random.Random) -> bool:
        """Kill the task's process, or sometimes the supervisor above it; whether there was anything to kill."""
        assert task.pid is not None
        try:
            process = psutil.Process(task.pid)
            supervisor = process.parent()
            # A task's process leads a group of its own; anything else has taken over the number of one that has ended.
            if supervisor is None or psutil.Process() not in supervisor.parents() or os.getpgid(task.pid) != task.pid:
                return False
            # While its task stands still, a supervisor cannot be where it holds a lock that its siblings need.
            process.suspend()
            try:
                self.offspring += process.children(recursive=True)
                if lot.random() < self.of_supervisors:
                    self.offspring.append(process)
                    supervisor.kill()
                    self.supervisors += 1
                else:
                    process.kill()
            finally:
                process.resume()
        except (psutil.NoSuchProcess, ProcessLookupError):
            return False
        return True


Task = tuple[str, str, int]  # run, task, map index


def _key(task: TaskInstance) -> Task:
    return task.run_id, task.task_id, task.map_index


def _usual(task: TaskInstance, found: list[TaskInstance]) -> float:
    """The mean seconds of the task's successful tries, without what Airflow needs at their end; a guess at first."""
    known = [t.seconds for t in found if t.task_id == task.task_id and t.state == "success" and t.seconds]
    return 0.8 * sum(known) / len(known) if known else _GUESSED_SECONDS
