"""A real Airflow inside the test process: a migrated database of its own, the product's DAG files, runs of every kind."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples.simulate import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
DAGS = REPOSITORY / "dags"
# What Airflow's own modules warn of when they are imported and whenever they look for DAG files.
_WARNINGS = (
    "ignore:GitWildMatchPattern:DeprecationWarning",
    "ignore:Using `httpx` with `starlette",
    "ignore:The `airflow",
)
_COLUMNS = {
    **{name: {"type": "number"} for name in ("distance_km", "weight_kg", "items", "depot_load")},
    **{name: {"type": "category"} for name in ("carrier", "region")},
    "express": {"type": "boolean"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for line in _WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(line))


@dataclass(frozen=True)
class Ran:
    """One run as far as it came; by task: state, result, largest XCom in bytes, error, links. And the events it caused.

    The instances of a mapped task and their events are named ``task[0]``, ``task[1]``, and ``asset[0]``, ``asset[1]``.
    """

    run_id: str
    state: str
    states: dict[str, str]
    results: dict[str, Any]
    sizes: dict[str, int]
    errors: dict[str, BaseException]
    links: dict[str, dict[str, str]]
    events: dict[str, dict[str, Any]]


class InProcessAirflow:
    """Airflow's database and DAGs without a scheduler: it runs what it is asked for, one task after the other."""

    def __init__(self) -> None:
        self.dags: dict[str, Any] = {}
        self._runs = 0

    def parse(self) -> dict[str, str]:
        """Parse the DAG files and write what they declare to the database; returns the import errors by file."""
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.dag_processing.dagbag import sync_bag_to_db

        DagBundlesManager().sync_bundles_to_db()
        bag = self._bag(DAGS)
        sync_bag_to_db(bag, "dags-folder", None)
        self.dags = dict(bag.dags)
        return dict(bag.import_errors)

    def as_in_a_task(self, dag_id: str) -> dict[str, Any]:
        """The DAGs that a task's own process finds when it parses its DAG file."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", dag_id)
            return dict(self._bag(Path(self.dags[dag_id].fileloc)).dags)

    def run(
        self,
        dag_id: str,
        *,
        kind: str = "manual",
        interval: tuple[datetime, datetime] | None = None,
        conf: Mapping[str, Any] | None = None,
        causes: Sequence[Ran] = (),
        planned: datetime | None = None,
    ) -> Ran:
        """Run a DAG of ``kind`` manual, scheduled, backfill or asset_triggered, as far as it comes without waiting.

        ``causes`` are the runs whose asset events start this one, ``planned`` is when it was planned (default: now).
        """
        from airflow.models.asset import AssetEvent
        from airflow.serialization.serialized_objects import DagSerialization
        from airflow.utils.session import create_session
        from airflow.utils.types import DagRunTriggeredByType, DagRunType
        from sqlalchemy import select

        dag = self.as_in_a_task(dag_id)[dag_id]
        self._runs += 1
        with create_session() as session:
            run = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)).create_dagrun(
                run_id=f"{kind}__{self._runs}",
                logical_date=interval and interval[0],
                data_interval=interval,
                run_after=interval[1] if interval else planned or datetime.now(UTC),
                conf=dict(conf or {}),
                run_type=DagRunType(kind),
                triggered_by=DagRunTriggeredByType.TEST,
                state="running",
                session=session,
            )
            known = select(AssetEvent).where(AssetEvent.source_run_id.in_([cause.run_id for cause in causes]))
            run.consumed_asset_events.extend(session.scalars(known))
            session.commit()
            return _lived(run, dag, session)

    def resume(self, dag_id: str, run_id: str) -> Ran:
        """Go on with a run in which a task that waited was answered, or was cleared, as far as it comes."""
        from airflow.models.dagrun import DagRun
        from airflow.serialization.serialized_objects import DagSerialization
        from airflow.utils.session import create_session
        from sqlalchemy import select

        dag = self.as_in_a_task(dag_id)[dag_id]
        with create_session() as session:
            run = session.scalars(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)).one()
            run.dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
            run.state = "running"
            session.commit()
            return _lived(run, dag, session)

    def _bag(self, folder: Path) -> Any:
        from airflow.dag_processing.dagbag import BundleDagBag

        return BundleDagBag(dag_folder=folder, bundle_path=DAGS, bundle_name="dags-folder")


def _lived(run: Any, dag: Any, session: Any) -> Ran:
    """The run after all that is ready was run, one task after the other."""
    from airflow.sdk.definitions.dag import _run_task

    errors: dict[str, BaseException] = {}
    for ready in _rounds(run, session):
        for instance in ready:
            # One that goes on after waiting is in the middle of its try.
            instance.try_number += instance.state != "scheduled"
            instance.state = "scheduled"
        session.commit()
        for instance in ready:
            done = _run_task(ti=instance, task=dag.task_dict[instance.task_id])
            if done is not None and done.error is not None:
                errors[_name(instance)] = done.error
        session.expire_all()
    return _ran(run, errors, session)


def _rounds(run: Any, session: Any) -> Iterator[list[Any]]:
    """The task instances that are ready, again and again, until nothing happens any more; a round may only skip some."""
    states: dict[str, str] = {}
    while True:
        answered = [instance for instance in run.get_task_instances(session=session) if instance.state == "scheduled"]
        ready = answered + run.update_state(session=session)[0]
        before, states = states, _states(run, session)
        if not ready and states == before:
            return
        yield ready


def _states(run: Any, session: Any) -> dict[str, str]:
    return {_name(instance): str(instance.state) for instance in run.get_task_instances(session=session)}


def _ran(run: Any, errors: dict[str, BaseException], session: Any) -> Ran:
    from airflow.models.asset import AssetEvent
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    here = (XComModel.dag_id == run.dag_id, XComModel.run_id == run.run_id)
    pushed = session.scalars(select(XComModel).where(*here)).all()
    tasks = _states(run, session)
    caused = session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == run.run_id))
    return Ran(
        run_id=run.run_id,
        state=str(run.state),
        states=tasks,
        results={_name(row): row.value for row in pushed if row.key == "return_value"},
        sizes={task: max((len(json.dumps(r.value)) for r in pushed if _name(r) == task), default=0) for task in tasks},
        errors=errors,
        links={
            task: {r.key.removeprefix("_link_"): r.value for r in pushed if _name(r) == task and r.key[:5] == "_link"}
            for task in tasks
        },
        events={_mapped(event.asset.name, event.source_map_index): event.extra for event in caused},
    )


def _name(row: Any) -> str:
    return _mapped(row.task_id, row.map_index)


def _mapped(name: str, index: int) -> str:
    return name if index < 0 else f"{name}[{index}]"


@pytest.fixture(scope="session")
def _airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessAirflow]:
    """Airflow reads its settings when it is imported, so there is one home per test process."""
    home = tmp_path_factory.mktemp("airflow")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(home))
        for name, value in {
            "CORE__DAGS_FOLDER": str(DAGS),
            "CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__HOSTNAME_CALLABLE": "socket.gethostname",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
            "API_AUTH__JWT_SECRET": "only for tests " * 5,
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        }.items():
            patch.setenv(f"AIRFLOW__{name}", value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import airflow.settings
            from airflow.utils.db import initdb

            airflow.settings.initialize()
            initdb()
        # Airflow has set up the root logger for itself; the other tests of this process know another one.
        root.handlers[:] = handlers
        root.setLevel(level)
        yield InProcessAirflow()
        airflow.settings.dispose_orm()


@pytest.fixture(scope="module")
def deploy(
    _airflow: InProcessAirflow, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., InProcessAirflow]]:
    """A function that deploys job documents in a home of this module and returns the Airflow that knows their DAGs."""
    home = tmp_path_factory.mktemp("deployment")
    (home / "jobs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_HOME", str(home))
        patch.setenv("PIPELINE_JOBS", str(home / "jobs"))

        def start(*documents: Mapping[str, Any]) -> InProcessAirflow:
            for document in documents:
                (home / "jobs" / f"{document['name']}.yaml").write_text(json.dumps(document))
            assert _airflow.parse() == {}
            return _airflow

        yield start


@pytest.fixture(scope="session")
def parcels(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """A factory of documents of a daily job on 16 simulated days of 300 rows; the world changes on 2026-01-13.

    Keyword arguments replace top-level fields, or extend those that are mappings.
    """
    data = tmp_path_factory.mktemp("parcels")
    simulate(data, date(2026, 1, 1), 16, date(2026, 1, 13), rows=300)

    def document(**changes: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            "name": "parcels",
            "task": "binary",
            "schedule": {"interval": "1d", "start": "2026-01-01T00:00:00Z", "end": "2026-01-17T00:00:00Z"},
            "features": {"uri": str(data / "features"), "key": ["row_id"], "time": "event_ts", "columns": _COLUMNS},
            "labels": {
                "uri": str(data / "labels"),
                "column": "label",
                "available_at": "label_available_at",
                "mature_after": "P1D",
            },
            "checks": {"rules": [{"column": "weight_kg", "rule": "between", "min": 0, "max": 200}]},
            "model": {"parameters": {"max_iter": 20}},
            "drift": {"detector": "scipy", "min_rows": 100},
            "retrain": {"window": "P7D", "holdout": "P2D", "min_rows": 100},
            "promote": {"mode": "enabled"},
        }
        for name, value in changes.items():
            made[name] = {**made.get(name, {}), **value} if isinstance(value, dict) else value
        return made

    return document
