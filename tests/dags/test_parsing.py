"""DAG files: cheap to parse, a bad job hides no good one, and what the DAGs of a job declare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.errors import LedgerUnavailable, NoChampion, TerminalError

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted(path.name for path in (REPOSITORY / "dags").glob("*.py"))
KINDS = ("score", "evaluate", "retrain", "operations")
HEAVY = ("mlflow", "great_expectations", "alibi_detect", "sklearn", "pandas", "pyarrow", "scipy", "numpy", "skops")
# Parses each file like a DAG processor: Airflow is loaded, the process is forked, the child imports the file.
PARSE = """
import importlib.util, json, os, sys, time

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"{name} must not be needed here")

HEAVY, FILES = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sys.meta_path.insert(0, Refuse())
import airflow.sdk

def parse(file):
    began = time.process_time()
    spec = importlib.util.spec_from_file_location("parsed", file)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    seconds = time.process_time() - began
    return {"seconds": seconds, "loaded": [name for name in HEAVY if name in sys.modules]}

for file in FILES:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(parse(file)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        print(json.dumps([os.path.basename(file), json.loads(answer.read() or "null")]))
    os.wait()
"""


@pytest.fixture
def parse(tmp_path):
    """A function that parses files in an interpreter without heavy libraries; facts of each file by its name."""

    def run(jobs: Path, *files: Path, task_of: str = ""):
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        environ |= {
            "AIRFLOW_HOME": str(tmp_path),
            "PIPELINE_JOBS": str(jobs),
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "dags", REPOSITORY / "plugins"))),
        }
        if task_of:
            environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = task_of
        command = [sys.executable, "-c", PARSE, json.dumps(HEAVY), json.dumps([str(file) for file in files])]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        facts = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
        assert all(facts.values()), done.stderr
        return facts

    return run


@pytest.fixture
def folder(tmp_path, parcels):
    """A function that fills a folder with that many jobs and returns it."""

    def fill(count, **changes):
        made = tmp_path / f"jobs{count}"
        made.mkdir()
        for number in range(count):
            (made / f"job_{number}.yaml").write_text(json.dumps(parcels(name=f"job_{number}", **changes)))
        return made

    return fill


@pytest.mark.parametrize("promote", [{}, {"approval": {"required": True}}], ids=["", "with approval"])
def test_every_file_is_parsed_where_no_heavy_library_can_be_imported(parse, folder, promote):
    plugins = sorted((REPOSITORY / "plugins").glob("*.py"))
    facts = parse(folder(1, promote=promote), *(REPOSITORY / "dags" / name for name in FILES), *plugins)
    assert set(facts) == {*FILES, *(path.name for path in plugins)}
    assert {name: fact["loaded"] for name, fact in facts.items() if fact["loaded"]} == {}


@pytest.mark.parametrize(("jobs", "limit"), [(1, 0.3), (100, 1.5)])
def test_parsing_a_file_costs_little_more_than_airflow_itself(parse, folder, jobs, limit):
    facts = parse(folder(jobs), *(REPOSITORY / "dags" / name for name in FILES))
    seconds = {name: round(fact["seconds"], 2) for name, fact in facts.items()}
    print(f"CPU seconds with {jobs} job(s): {seconds}")
    assert max(seconds.values()) <= limit


def test_a_tasks_process_parses_as_fast_beside_500_jobs_as_beside_5(parse, folder):
    few, many = folder(5), folder(500)
    file = REPOSITORY / "dags" / "scoring.py"

    def seconds(jobs):
        facts = (parse(jobs, file, task_of="job_3__score") for _ in range(3))
        return min(fact["scoring.py"]["seconds"] for fact in facts)

    found = seconds(few), seconds(many)
    print(f"CPU seconds in a task's process beside 5 and 500 jobs: {found}")
    assert found[1] <= 1.5 * found[0]


def test_a_broken_job_hides_no_good_one_and_is_reported_with_file_and_field(deploy, parcels, folder, monkeypatch):
    airflow, jobs = type(deploy())(), folder(2)
    broken = parcels(name="broken", schedule={"interval": "7x"})
    (jobs / "broken.yaml").write_text(json.dumps(broken))
    monkeypatch.setenv("PIPELINE_JOBS", str(jobs))
    errors = airflow.parse()
    assert set(airflow.dags) == {f"job_{number}__{kind}" for number in range(2) for kind in KINDS}
    ((file, text),) = errors.items()
    assert file == "invalid_jobs.py"
    assert f"job file {jobs / 'broken.yaml'} has 1 problem" in text
    assert "schedule.interval" in text


@pytest.fixture(scope="module")
def airflow(deploy, parcels):
    """An Airflow that knows a daily job that ends and an hourly one that does not."""
    hourly = {
        "interval": "6h",
        "start": "2026-01-01T00:00:00Z",
        "max_active_runs": 3,
        "timeout": "PT20M",
        "catchup": True,
    }
    return deploy(parcels(), parcels(name="by_hour") | {"schedule": hourly})


def core(dag):
    """The DAG as the scheduler knows it."""
    from airflow.serialization.serialized_objects import DagSerialization

    return DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))


def test_a_job_has_one_dag_of_each_kind_named_after_it(airflow):
    assert {dag for dag in airflow.dags if dag.startswith("parcels_")} == {f"parcels__{kind}" for kind in KINDS}


def test_a_task_process_declares_only_its_own_dag(airflow):
    assert set(airflow.as_in_a_task("parcels__evaluate")) == {"parcels__evaluate"}


@pytest.mark.parametrize(
    ("interval", "start", "end", "expected"),
    [
        ("1d", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z", ["01-01T00", "01-02T00", "01-03T00", "01-04T00"]),
        ("1d", "2026-01-01T00:00:00Z", "2026-01-03T23:00:00Z", ["01-01T00", "01-02T00", "01-03T00"]),
        ("6h", "2026-01-01T12:00:00Z", "2026-01-02T06:00:00Z", ["01-01T12", "01-01T18", "01-02T00", "01-02T06"]),
        ("1w", "2026-01-05T00:00:00Z", "2026-01-20T00:00:00Z", ["01-05T00", "01-12T00", "01-19T00"]),
        ("1mo", "2026-01-01T00:00:00Z", "2026-04-01T00:00:00Z", ["01-01T00", "02-01T00", "03-01T00", "04-01T00"]),
    ],
)
def test_scoring_is_scheduled_on_the_jobs_intervals_up_to_its_end(deploy, parcels, interval, start, end, expected):
    name = f"every_{interval}_to_{end[5:13]}".lower().replace("-", "_")
    schedule = {"interval": interval, "start": start, "end": end, "catchup": True}
    dag = core(deploy(parcels(name=name, schedule=schedule)).dags[f"{name}__score"])
    made, info = [], None
    while info := dag.next_dagrun_info(last_automated_run_info=info):
        made.append((f"{info.data_interval.start:%m-%dT%H}", f"{info.data_interval.end:%m-%dT%H}"))
    assert made == list(pairwise(expected))


def test_a_job_decides_how_its_dags_run(airflow):
    score, daily = airflow.dags["by_hour__score"], airflow.dags["parcels__score"]
    assert (score.max_active_runs, score.catchup) == (3, True)
    assert (daily.max_active_runs, daily.catchup) == (1, False)
    for kind in KINDS:
        for task in airflow.dags[f"by_hour__{kind}"].tasks:
            assert (task.execution_timeout, task.retries) == (timedelta(minutes=20), 10)


def test_the_first_retry_is_as_quick_as_the_environment_asks_and_none_waits_longer_than_ten_minutes(
    airflow, monkeypatch
):
    def delays():
        (task, *_) = airflow.as_in_a_task("parcels__score")["parcels__score"].tasks
        return task.retry_delay, task.max_retry_delay, task.retry_exponential_backoff

    assert delays() == (timedelta(seconds=30), timedelta(minutes=10), 2.0)
    monkeypatch.setenv("PIPELINE_RETRY_DELAY_SECONDS", "1.5")
    monkeypatch.delitem(sys.modules, "declared")  # read once per process
    assert delays() == (timedelta(seconds=1.5), timedelta(minutes=10), 2.0)


def test_the_retries_of_a_task_outlast_an_hour(airflow):
    (task, *_) = airflow.dags["parcels__score"].tasks
    # Airflow waits at least this long after each try, and less than twice as long.
    shortest = [min(task.retry_delay * 2**tried, task.max_retry_delay) for tried in range(task.retries)]
    assert sum(shortest, timedelta()) > timedelta(hours=1)


def test_the_chain_is_held_together_by_assets_that_name_the_job(airflow):
    def outlets(kind):
        return {asset.name for task in airflow.dags[f"parcels__{kind}"].tasks for asset in task.outlets}

    def causes(kind):
        return {
            asset.name for _, asset in core(airflow.dags[f"parcels__{kind}"]).timetable.asset_condition.iter_assets()
        }

    assert outlets("score") == {"parcels.predictions", "parcels.drift"}
    assert (causes("evaluate"), outlets("evaluate")) == ({"parcels.drift"}, {"parcels.performance", "parcels.model"})
    assert (causes("retrain"), outlets("retrain")) == ({"parcels.performance"}, {"parcels.model"})


def test_pools_come_from_the_environment_because_only_a_deployment_knows_which_exist(airflow, monkeypatch):
    assert {task.pool for dag in airflow.dags.values() for task in dag.tasks} == {"default_pool"}
    monkeypatch.setenv("PIPELINE_SCORING_POOL", "few")
    monkeypatch.setenv("PIPELINE_TRAINING_POOL", "one")
    monkeypatch.delitem(sys.modules, "declared")  # read once per process
    tasks = {
        f"{kind}.{task.task_id}": task.pool
        for kind in KINDS
        for task in airflow.as_in_a_task(f"parcels__{kind}")[f"parcels__{kind}"].tasks
    }
    assert tasks == {
        "score.score": "few",
        "score.monitor": "few",
        "score.find_changed": "few",
        "score.changed.restate": "few",
        "score.changed.monitor": "few",
        "evaluate.evaluate": "few",
        "evaluate.report_unmeasured": "default_pool",
        "evaluate.notify": "default_pool",
        "evaluate.notify_rollback": "default_pool",
        "evaluate.watch": "one",
        "retrain.decide": "few",
        "retrain.train": "one",
        "operations.sweep": "default_pool",
        "operations.find_gaps": "default_pool",
    }


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (TerminalError("it is so"), "fail"),
        (NoChampion("it is so"), "fail"),
        (LedgerUnavailable("later, perhaps"), "default"),
        (OSError("disk"), "default"),
        (KeyError("unforeseen"), "default"),
    ],
)
def test_only_terminal_errors_end_the_retries(airflow, error, action):
    for dag in airflow.dags.values():
        for task in dag.tasks:
            assert task.retry_policy.evaluate(error, 1, 3).action.value == action


INSTANTS = [
    "../",
    "{{ 7*7 }}",
    "$(id)",
    "1" * 1_000_000,
    "9999-99-99",
    "2026-02-01\n",
    "now",
    "2026-13-01",
    20260101,
    ["x"],
]
MODELS = ["../", "{{ 7*7 }}", "$(id)", "1" * 1_000_000, "", "0", "-1", "1.0", "champion", "current\n", 1, None]


@pytest.mark.parametrize(
    ("kind", "conf"),
    [
        *(("score", {"start": value}) for value in INSTANTS),
        *((kind, {"as_of": value}) for kind in ("evaluate", "retrain", "operations") for value in INSTANTS),
        *(("score", {"model": value}) for value in MODELS),
        *(("score", {"quiet": value}) for value in ("yes", "{{ True }}", 1)),
        *(("retrain", {"bootstrap": value}) for value in ("yes", 1)),
        ("retrain", {"reason": "x" * 1_000_000}),
        ("retrain", {"reason": "x" * 201}),
        ("retrain", {"reason": {"a": 1}}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_param_that_is_none_is_refused_before_a_run_exists(airflow, kind, conf):
    with pytest.raises(ValueError, match="Invalid input for param"):
        trigger(f"parcels__{kind}", conf)


@pytest.mark.parametrize(
    "start",
    [
        None,
        "2026-01-31",
        "2026-01-31T06:00",
        "2026-01-31T06:00:00Z",
        "2026-01-31T06:00:00.000Z",
        "2026-01-31T00:00+01:00",
    ],
)
def test_every_way_to_write_an_instant_is_accepted(airflow, start):
    assert trigger("parcels__score", {"start": start, "model": "12"}).state == "queued"


def trigger(dag_id, conf):
    """Queue a run as the API and the command line do."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.utils.types import DagRunTriggeredByType

    return trigger_dag(dag_id, triggered_by=DagRunTriggeredByType.TEST, conf=conf)


def test_the_dags_use_nothing_that_airflow_3_has_dropped():
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "AIR3", "dags", "plugins"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
