"""The local Airflow answers, runs DAGs, says why they failed, stays on loopback and leaves no process behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from deploy.airflow_api import AirflowRefused, AirflowUnavailable
from deploy.local_airflow import POOLS, LocalAirflow, is_running
from pipeline.errors import TerminalError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.airflow]

REPOSITORY = Path(__file__).resolve().parents[2]
DAG = """
from datetime import UTC, datetime

from airflow.sdk import CronDataIntervalTimetable, Param, dag, task

@task(pool="pipeline_scoring")
def work(**context):
    import os
    if context["params"]["mood"] == "bad":
        raise ValueError("a reason to remember")
    return [os.environ["PIPELINE_HOME"], os.environ["PIPELINE_JOBS"]]

@dag(schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"), start_date=datetime(2026, 1, 1, tzinfo=UTC),
     end_date=datetime(2026, 1, 3, tzinfo=UTC), catchup=False,
     params={"mood": Param("good", enum=["good", "bad"])})
def toy():
    work()

toy()
"""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    """A running Airflow with one good DAG, unpaused, and one broken DAG file."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "dags").mkdir()
    (folder / "dags" / "toy.py").write_text(DAG)
    (folder / "dags" / "broken.py").write_text("# an airflow dag\nraise RuntimeError('cannot be imported')\n")
    with LocalAirflow(folder / "home", folder / "jobs", dags=folder / "dags") as running:
        eventually("both files were processed", lambda: running.import_errors() and is_known(running, "toy"))
        running.unpause("toy")
        yield running


def is_known(airflow: LocalAirflow, dag_id: str) -> bool:
    try:
        airflow.runs(dag_id)
    except AirflowRefused:
        return False
    return True


def eventually(what: str, is_true, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def sessions(root: int) -> set[int]:
    """The sessions of all processes below ``root``."""
    return {os.getsid(child.pid) for child in psutil.Process(root).children(recursive=True)}


def alive(wanted: set[int]) -> list[str]:
    """The command lines of running processes in these sessions."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in wanted and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def test_every_started_component_is_healthy_and_none_listens_beyond_loopback(airflow: LocalAirflow):
    health = airflow.health()
    assert {health[name] for name in ("metadatabase", "scheduler", "dag_processor")} == {"healthy"}
    listening = [
        connection.laddr
        for child in psutil.Process().children(recursive=True)
        for connection in child.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert airflow.port in {address.port for address in listening}


def test_a_run_reaches_success_and_its_tasks_see_home_and_jobs(airflow: LocalAirflow):
    run_id = airflow.trigger("toy")
    assert airflow.wait("toy", run_id, 120) == "success"
    assert airflow.failure("toy", run_id) == ""
    run = airflow.run("toy", run_id)
    assert (run.kind, run.conf, run.is_over) == ("manual", {}, True)
    log = next((airflow.airflow_home / "logs").rglob(f"*{run_id}*/**/attempt=1.log")).read_text()
    assert str(airflow.home) in log
    assert str(airflow.jobs) in log


def test_the_log_of_a_failed_run_names_the_exception_and_the_line(airflow: LocalAirflow):
    run_id = airflow.trigger("toy", {"mood": "bad"})
    assert airflow.wait("toy", run_id, 120) == "failed"
    told = airflow.failure("toy", run_id)
    assert "ValueError: a reason to remember" in told
    assert "toy.py:10 in work" in told
    assert [run.run_id for run in airflow.failed_runs()] == [run_id]


def test_a_refused_request_says_what_airflow_answered(airflow: LocalAirflow):
    with pytest.raises(AirflowRefused, match=r"404.*nowhere"):
        airflow.trigger("nowhere")
    with pytest.raises(AirflowRefused, match=r"400.*awful"):
        airflow.trigger("toy", {"mood": "awful"})


def test_a_dag_file_that_cannot_be_imported_is_reported_with_its_reason(airflow: LocalAirflow):
    assert len(airflow.import_errors()) == 1
    with pytest.raises(AirflowRefused, match=r"(?s)broken\.py.*cannot be imported"):
        airflow.wait_for_dags(["toy"], 10)


def test_a_backfill_runs_every_interval_between_two_dates_both_included(airflow: LocalAirflow):
    first, last = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)
    airflow.backfill("toy", first, last, max_active_runs=2)

    def states() -> list[str]:
        return [run.state for run in airflow.runs("toy") if run.kind == "backfill"]

    eventually("three runs have succeeded", lambda: states() == ["success"] * 3)


def test_waiting_longer_than_allowed_is_an_error_that_names_the_state(airflow: LocalAirflow):
    run_id = airflow.trigger("toy")
    with pytest.raises(AirflowUnavailable, match=r"is not over after 0 s.*(queued|running)"):
        airflow.wait("toy", run_id, 0)
    assert airflow.wait("toy", run_id, 120) == "success"


def test_the_pools_exist_and_a_second_definition_changes_their_slots(airflow: LocalAirflow):
    airflow.set_pool("pipeline_training", 3, "changed")
    listed = airflow.cli("pools", "list", "--output", "plain")
    slots = {line.split()[0]: line.split()[1] for line in listed.splitlines() if line.startswith("pipeline_")}
    assert slots == {"pipeline_training": "3", "pipeline_scoring": str(POOLS["pipeline_scoring"][0])}


def test_a_failing_command_says_what_it_printed(airflow: LocalAirflow):
    with pytest.raises(TerminalError, match="no-such-command"):
        airflow.cli("no-such-command")


def test_secrets_are_readable_by_the_owner_only(airflow: LocalAirflow):
    for name in ("airflow.cfg", "keys.json", "passwords.json"):
        assert stat.S_IMODE((airflow.airflow_home / name).stat().st_mode) == 0o600, name


def test_a_second_start_in_a_running_home_is_refused_and_harms_nothing(airflow: LocalAirflow):
    config = (airflow.airflow_home / "airflow.cfg").read_text()
    assert is_running(airflow.home)
    with pytest.raises(TerminalError, match="already running"):
        LocalAirflow(airflow.home, airflow.jobs).start()
    assert (airflow.airflow_home / "airflow.cfg").read_text() == config
    assert airflow.health()["scheduler"] == "healthy"


def test_no_process_is_left_after_ctrl_c_or_a_kill_and_a_restart_keeps_address_and_password(tmp_path: Path):
    command = [sys.executable, "-m", "deploy.local_airflow", "--home", str(tmp_path / "home"), "--jobs", str(tmp_path)]
    told = []
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 0)):
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as starter:
            assert starter.stdout is not None
            lines = [starter.stdout.readline() for _ in range(3)]
            told.append([line for line in lines if "UI" in line or "password" in line])
            started = sessions(starter.pid)
            assert len(alive(started)) >= 4
            starter.send_signal(number)
            starter.stdout.read()
        assert starter.returncode == code
        eventually("no process is left", lambda wanted=started: not alive(wanted), 30)
        assert not is_running(tmp_path / "home")
    assert told[0] == told[1]
    assert len(told[0]) == 2
