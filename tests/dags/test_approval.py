"""Approvals in Airflow: asked with the evidence, answered through its API, expired by its scheduler, and replayed."""

from __future__ import annotations

import json
import os
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.errors import InvalidRequest
from pipeline.runtime import Runtime

pytestmark = pytest.mark.airflow

JOBS = ("agreed", "refused", "ignored", "overtaken")
LATE = "2026-01-17T00:00:00Z"


@pytest.fixture(scope="module")
def airflow(deploy, parcels):
    """An Airflow whose jobs need approvals, but for one, each with a champion of the 8th."""
    eager = {"window": "P6D", "holdout": "P2D", "min_rows": 100}
    # Asked on the 16th, a challenger has hardly seen the change, and is not yet better than a constant.
    strict = {"mode": "enabled", "better_than_constant": False, "approval": {"required": True, "expires": "P2D"}}
    made = deploy(*(parcels(name=name, retrain=eager, promote=strict) for name in JOBS), parcels(name="free"))
    for name in JOBS:
        conf = {"as_of": "2026-01-08", "bootstrap": True}
        assert made.run(f"{name}__retrain", conf=conf).results["train"]["outcome"] == "promoted"
    return made


@pytest.fixture(scope="module")
def people(airflow):
    """A function that answers as a user of Airflow's API: dag, run, option, reason; returns the status code."""
    passwords = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    passwords.write_text(json.dumps({"admin": "correct", "viewer": "horse"}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.api_fastapi.app import create_app, purge_cached_app
        from fastapi.testclient import TestClient

        with TestClient(create_app(apps="core")) as client:

            def answer(dag_id, run_id, option, reason="", user=("admin", "correct")):
                login = client.post("/auth/token", json=dict(zip(("username", "password"), user, strict=True)))
                return client.patch(
                    f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/decide/-1/hitlDetails",
                    json={"chosen_options": [option], "params_input": {"reason": reason}},
                    headers={"Authorization": f"Bearer {login.json()['access_token']}"},
                ).status_code

            yield answer
        purge_cached_app()


@pytest.fixture(scope="module")
def ask(airflow):
    """A function that trains a challenger at that time and starts the run that asks about it."""

    def start(name, as_of=LATE):
        trained = airflow.run(f"{name}__retrain", conf={"as_of": as_of})
        assert trained.results["train"]["outcome"] == "awaiting_approval", trained.results["train"]["reason"]
        waiting = airflow.run(f"{name}__approve", kind="asset_triggered", causes=[trained])
        assert waiting.states == {"ask": "success", "decide": "awaiting_input", "answer": "None"}
        return waiting

    return start


def detail(dag_id, run_id):
    """What the person is shown, as Airflow keeps it, and the instance that waits."""
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        here = (TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id, TaskInstance.task_id == "decide")
        return session.scalars(select(HITLDetail).join(TaskInstance).where(*here)).one()


def recorded(name):
    with Runtime.open() as runtime:
        return (
            [decision.outcome for decision in runtime.ledger.decisions(name, kind="approval")],
            runtime.registry.champion(name),
            runtime.audit(runtime.job(name))[0].misfits,
        )


def test_only_a_job_that_requires_approval_has_the_dag_and_waiting_holds_up_no_training(airflow):
    assert "free__approve" not in airflow.dags
    approve, retrain = airflow.dags["agreed__approve"], airflow.dags["agreed__retrain"]
    assert (approve.max_active_runs, retrain.max_active_runs) == (16, 1)
    decide = approve.task_dict["decide"]
    assert (decide.response_timeout, decide.execution_timeout) == (timedelta(days=2), None)
    assert (decide.options, decide.defaults) == (["Promote", "Keep the champion"], ["Keep the champion"])


def test_a_training_that_asks_nobody_ends_the_run_before_anybody_is_asked(airflow):
    trained = airflow.run("agreed__retrain", conf={"as_of": "2026-01-08", "bootstrap": True})
    run = airflow.run("agreed__approve", kind="asset_triggered", causes=[trained])
    assert (run.state, run.states) == ("success", {"ask": "success", "decide": "skipped", "answer": "skipped"})


def test_a_run_that_nothing_is_asked_of_says_what_it_needs_and_a_request_is_no_free_text(airflow):
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.utils.types import DagRunTriggeredByType

    with pytest.raises(InvalidRequest, match="needs the parameter 'request'"):
        raise airflow.run("agreed__approve").errors["ask"]
    with pytest.raises(InvalidRequest, match="approval-000000000000 is no request for an approval of job 'agreed'"):
        raise airflow.run("agreed__approve", conf={"request": "approval-000000000000"}).errors["ask"]
    for text in ("../", "{{ 7*7 }}", "approval-000000000000\n", "gate-000000000000"):
        with pytest.raises(ValueError, match="Invalid input for param request"):
            trigger_dag("agreed__approve", triggered_by=DagRunTriggeredByType.TEST, conf={"request": text})


def test_an_approval_shows_the_evidence_promotes_and_announces_it_and_a_rerun_changes_nothing(airflow, ask, people):
    waiting = ask("agreed")
    asked, shown = waiting.results["ask"], detail("agreed__approve", waiting.run_id)
    assert shown.subject == "agreed: make version 2 the champion instead of version 1?"
    assert "- roc_auc of the challenger: 0." in shown.body
    assert f"/pipeline/reports/agreed/{asked['report']}" in shown.body
    assert waiting.links["ask"]["ReportLink"] == f"/pipeline/reports/agreed/{asked['report']}"
    assert people("agreed__approve", waiting.run_id, "Promote", user=("viewer", "horse")) == 403
    assert people("agreed__approve", waiting.run_id, "Promote", "{{ 7*7 }} <b>") == 200
    assert people("agreed__approve", waiting.run_id, "Keep the champion") == 409
    done = airflow.resume("agreed__approve", waiting.run_id)
    event = done.events["agreed.model"]
    assert (done.state, event, event["outcome"]) == ("success", done.results["answer"], "promoted")
    assert event["reason"] == "{{ 7*7 }} <b> (admin, in Airflow)"
    assert recorded("agreed") == (["requested", "approved"], 2, ())
    with Runtime.open() as runtime:
        before = runtime.ledger.records("agreed")
        promoted_at = runtime.ledger.champion("agreed").effective_at
        assert timedelta(0) <= promoted_at - datetime(2026, 1, 17, tzinfo=UTC) < timedelta(hours=1)
        clear("agreed__approve", waiting.run_id, "answer")
        again = airflow.resume("agreed__approve", waiting.run_id)
        assert (again.state, again.results["answer"]) == ("success", event)
        assert runtime.ledger.records("agreed") == before
    echo = airflow.run("agreed__approve", kind="asset_triggered", causes=[done])
    assert echo.states["decide"] == "skipped"


def clear(dag_id, run_id, task_id):
    """Let a finished task run again, as somebody does who clears it."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    with create_session() as session:
        here = (TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id, TaskInstance.task_id == task_id)
        session.execute(update(TaskInstance).where(*here).values(state=None))


def test_a_rejection_is_recorded_with_who_and_why(airflow, ask, people):
    waiting = ask("refused")
    assert people("refused__approve", waiting.run_id, "Keep the champion", "not on a Friday") == 200
    done = airflow.resume("refused__approve", waiting.run_id)
    assert (done.state, done.results["answer"]["outcome"]) == ("success", "rejected")
    assert done.results["answer"]["reason"] == "not on a Friday (admin, in Airflow)"
    assert recorded("refused") == (["requested", "rejected"], 1, ())


def test_an_unanswered_request_is_recorded_as_expired_and_the_champion_stays(airflow, ask):
    waiting = ask("ignored")
    let_time_pass("ignored__approve", waiting.run_id)
    done = airflow.resume("ignored__approve", waiting.run_id)
    assert (done.state, done.results["decide"]["responded_by_user"]) == ("success", None)
    assert done.results["answer"]["reason"] == "Nobody had answered by 2026-01-19T00:00:00Z; the champion stays."
    assert recorded("ignored") == (["requested", "expired"], 1, ())


def let_time_pass(dag_id, run_id):
    """Put the end of the waiting into the past, and let the scheduler look."""
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    with create_session() as session:
        here = (TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id, TaskInstance.task_id == "decide")
        session.execute(update(TaskInstance).where(*here).values(trigger_timeout=datetime(2026, 1, 1, tzinfo=UTC)))
    SchedulerJobRunner(Job()).check_awaiting_input_timeouts()


def test_a_newer_challenger_supersedes_the_request_that_somebody_still_answers(airflow, ask, people):
    old = ask("overtaken", "2026-01-16T00:00:00Z")
    new = ask("overtaken")
    for waiting in (old, new):
        assert people("overtaken__approve", waiting.run_id, "Promote", "looks right") == 200
    assert airflow.resume("overtaken__approve", old.run_id).results["answer"]["outcome"] == "superseded"
    assert recorded("overtaken")[1] == 1
    assert airflow.resume("overtaken__approve", new.run_id).results["answer"]["outcome"] == "promoted"
    assert recorded("overtaken") == (["requested", "superseded", "requested", "approved"], 3, ())
