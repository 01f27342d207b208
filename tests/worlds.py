"""A small real world in ``tmp_path``: 40 days of orders on disk, a job on them, and an opened deployment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.runtime import Runtime
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.job import JobSpec

DAY_ONE = datetime(2026, 1, 1, tzinfo=UTC)


def day(number: int) -> datetime:
    """The start of day ``number``; day 1 is 2026-01-01."""
    return DAY_ONE + timedelta(days=number - 1)


@dataclass
class World:
    """Where the input lies, and how to change it."""

    root: Path
    days: int
    rows: int

    def features(self, number: int) -> Path:
        return self.root / "features" / f"ds={day(number):%Y-%m-%d}" / "part-0.parquet"

    def labels(self, number: int) -> Path:
        return self.root / "labels" / f"ds={day(number):%Y-%m-%d}" / "part-0.parquet"

    def rewrite(self, number: int, change: Callable[[pa.Table], pa.Table], *, labels: bool = False) -> None:
        path = self.labels(number) if labels else self.features(number)
        pq.write_table(change(pq.read_table(path, partitioning=None)), path)


def write_world(
    root: Path, *, days: int, rows: int, first: int = 1, change_on: int | None = None, task: str = "binary"
) -> World:
    """Days ``first`` to ``days`` of orders: the chance of a return grows with the amount; on ``change_on`` it turns."""
    world = World(root, days, rows)
    for number in range(first, days + 1):
        rng = np.random.default_rng(1000 + number)
        changed = change_on is not None and number >= change_on
        amount = rng.gamma(2.0, 50.0 if not changed else 90.0, rows)
        country = rng.choice(["de", "fr", "nl"], rows, p=[0.6, 0.3, 0.1] if not changed else [0.1, 0.3, 0.6])
        slope = -0.03 if changed else 0.03
        logit = slope * (amount - 100) + np.select([country == "fr", country == "nl"], [0.5, -0.5])
        noise = rng.uniform(size=rows)
        label: Any = (noise < 1 / (1 + np.exp(-logit))).astype("int64")
        if task == "multiclass":
            label = np.where(label == 1, np.where(country == "de", "return", "swap"), "keep")
        elif task == "regression":
            label = logit + rng.normal(0, 0.3, rows)
        start = day(number)
        seconds = np.sort(rng.integers(0, 86_400, rows))
        event = pa.array([start + timedelta(seconds=int(s)) for s in seconds], pa.timestamp("us", "UTC"))
        ids = pa.array(np.arange(rows) + (1000 + number) * 1_000_000, pa.int64())
        world.features(number).parent.mkdir(parents=True)
        world.labels(number).parent.mkdir(parents=True)
        pq.write_table(
            pa.table({"row_id": ids, "event_ts": event, "amount": amount, "country": country}), world.features(number)
        )
        arrival = pa.array([start + timedelta(days=1, hours=6)] * rows, pa.timestamp("us", "UTC"))
        pq.write_table(pa.table({"row_id": ids, "label": label, "label_available_at": arrival}), world.labels(number))
    return world


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    """Worlds that tests only read, written once per session and kind."""
    made: dict[tuple[Any, ...], World] = {}

    def get(**kind: Any) -> World:
        key = tuple(sorted(kind.items()))
        if key not in made:
            made[key] = write_world(tmp_path_factory.mktemp("world"), **kind)
        return made[key]

    return get


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Twenty days of 300 orders that the test may change; nothing happens in them."""
    return write_world(tmp_path / "data", days=20, rows=300)


@pytest.fixture(name="day")
def _day() -> Callable[[int], datetime]:
    """The start of day N; day 1 is 2026-01-01."""
    return day


@pytest.fixture
def orders_on(make_job: Callable[..., JobSpec]) -> Callable[..., JobSpec]:
    """A factory of jobs on a world; keyword arguments change top-level fields (dicts are merged)."""
    return lambda world, **changes: job_on(make_job, world, **changes)


@pytest.fixture
def orders(make_job: Callable[..., JobSpec], world: World) -> JobSpec:
    """The job on ``world``: labels mature after two days, a fortnight of history, everything allowed."""
    return job_on(make_job, world)


def job_on(make_job: Callable[..., JobSpec], world: World, **changes: Any) -> JobSpec:
    """A job on ``world`` whose policies react within days."""
    settings: dict[str, Any] = {
        "features": {"uri": str(world.root / "features")},
        "labels": {"uri": str(world.root / "labels"), "mature_after": "P2D", "overdue_after": "P5D"},
        "retrain": {
            "window": "P14D",
            "holdout": "P3D",
            "cooldown": "P4D",
            "violations": 2,
            "of_last": 3,
            "min_rows": 100,
        },
        "model": {"parameters": {"max_iter": 20}},
        "promote": {"mode": "enabled"},
        "drift": {"detector": "scipy", "min_rows": 100},
    }
    for name, value in changes.items():
        settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
    return make_job(**settings)


@pytest.fixture
def runtime(tmp_path: Path, tracking_uri: str) -> Iterator[Runtime]:
    """An opened deployment in ``tmp_path`` whose clock stands still on 2026-03-01."""
    settings = Settings.in_home(tmp_path / "home", jobs=tmp_path / "jobs", tracking_uri=tracking_uri)
    with Runtime(settings, clock=lambda: datetime(2026, 3, 1, tzinfo=UTC)) as opened:
        yield opened


@pytest.fixture
def in_environment(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Callable[[JobSpec], Path]:
    """A function that declares a job in the deployment of ``runtime`` and points the environment there: its job files."""

    def declare(job: JobSpec) -> Path:
        jobs = runtime.settings.jobs
        jobs.mkdir(parents=True)
        (jobs / f"{job.name}.yaml").write_text(job.model_dump_json(), encoding="utf-8")
        monkeypatch.setenv("PIPELINE_HOME", str(runtime.settings.home))
        monkeypatch.setenv("PIPELINE_JOBS", str(jobs))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", runtime.settings.tracking_uri)
        monkeypatch.delenv("PIPELINE_LEDGER_URL", raising=False)
        return jobs

    return declare
