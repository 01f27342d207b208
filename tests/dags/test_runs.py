"""Every DAG, run for real on a small world: results, asset events, links, quiet runs, and failures that say why."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import IntervalsMissing, InvalidRequest, LedgerUnavailable, NoChampion, NoData
from pipeline.runtime import Runtime

pytestmark = pytest.mark.airflow

BOOTSTRAP = datetime(2026, 1, 8, tzinfo=UTC)
CHANGE = datetime(2026, 1, 13, tzinfo=UTC)
XCOM_LIMIT = 4096


def day(number):
    """The data interval of that day of January 2026."""
    start = datetime(2026, 1, number, tzinfo=UTC)
    return start, start + timedelta(days=1)


@pytest.fixture(scope="module")
def airflow(deploy, parcels):
    """An Airflow that knows a job with settings that react within days, and one that nobody has bootstrapped."""
    eager = {"window": "P6D", "holdout": "P1D", "min_rows": 100, "violations": 2, "of_last": 3, "cooldown": "P4D"}
    return deploy(parcels(retrain=eager), parcels(name="orphan"))


@pytest.fixture(scope="module")
def bootstrap(airflow):
    """The run that made the first champion."""
    conf = {"as_of": BOOTSTRAP.isoformat(), "bootstrap": True, "reason": "{{ 7*7 }} <b>"}
    return airflow.run("parcels__retrain", conf=conf)


@pytest.fixture(scope="module")
def course(airflow, bootstrap):
    """The scheduled scoring runs of the 9th to the 16th, by day; the world changes on the 13th."""
    return {n: airflow.run("parcels__score", kind="scheduled", interval=day(n)) for n in range(9, 17)}


@pytest.fixture(scope="module")
def backfill(airflow, bootstrap):
    """A backfill's run of the 8th."""
    return airflow.run("parcels__score", kind="backfill", interval=day(8))


@pytest.fixture(scope="module")
def evaluation(airflow, backfill, course):
    """The first evaluation, started by the events of the 9th and the 10th."""
    return airflow.run("parcels__evaluate", kind="asset_triggered", causes=[course[10], course[9]])


@pytest.fixture
def ledger(bootstrap):
    """The deployment's ledger."""
    with Runtime.open() as runtime:
        yield runtime.ledger


@pytest.fixture(scope="module")
def output():
    """Where the job's data sets lie."""
    return Path(os.environ["PIPELINE_HOME"]) / "outputs" / "parcels"


def test_a_bootstrap_run_promotes_the_first_champion_and_announces_it(bootstrap, ledger):
    (promotion,) = ledger.promotions("parcels")
    event = bootstrap.events["parcels.model"]
    assert bootstrap.states == {"decide": "success", "train": "success"}
    assert event == bootstrap.results["train"]
    assert (event["outcome"], event["model_version"], event["as_of"]) == ("promoted", 1, "2026-01-08T00:00:00Z")
    assert event["model"]["digest"] == promotion.model.digest
    assert promotion.effective_at == BOOTSTRAP


def test_text_of_a_user_is_kept_as_it_is_and_never_rendered(bootstrap, ledger):
    (trigger,) = [d for d in ledger.decisions("parcels") if d.kind == "trigger" and d.at == BOOTSTRAP]
    assert trigger.reason == bootstrap.results["train"]["trigger"]["reason"] == "{{ 7*7 }} <b>"


def test_a_second_bootstrap_is_refused_at_once(airflow, bootstrap):
    run = airflow.run("parcels__retrain", conf={"as_of": "2026-01-09", "bootstrap": True})
    assert run.states == {"decide": "success", "train": "failed"}
    with pytest.raises(InvalidRequest, match="has a champion since 2026-01-08"):
        raise run.errors["train"]


def test_a_scheduled_run_publishes_its_interval_and_its_event_carries_the_manifest(course, ledger, output):
    event = course[9].events["parcels.predictions"]
    recorded = next(m for m in ledger.manifests("parcels") if m.start == day(9)[0])
    assert event == {
        **recorded.model_dump(mode="json"),
        "rejected_files": 0,
        "report": "ds=2026-01-09/validation.html",
    }
    assert event == course[9].results["score"]
    assert event["path"] == str(output / "predictions/ds=2026-01-09/part-0.parquet")
    assert (
        pq.read_metadata(event["path"]).num_rows == event["rows_scored"] == event["rows_in"] - event["rows_quarantined"]
    )
    assert event["reasons"] == {"between:weight_kg": 4, "null_key:row_id": 3}


def test_a_manual_run_scores_the_interval_of_its_param_and_changes_nothing_that_is_right(airflow, course):
    before = course[10].results["score"]
    run = airflow.run("parcels__score", conf={"start": "2026-01-10"})
    assert run.state == "success"
    assert run.results["score"] == {**before, "status": "unchanged"}


@pytest.mark.parametrize("model", ["1", "current"])
def test_a_manual_run_may_name_the_model(airflow, course, model):
    run = airflow.run("parcels__score", conf={"start": "2026-01-10T00:00:00Z", "model": model, "quiet": True})
    assert (run.results["score"]["model_version"], run.results["score"]["status"]) == (1, "unchanged")


def test_monitor_finds_the_change_and_tells_the_columns(course, output):
    verdicts = {n: run.events["parcels.drift"]["verdict"] for n, run in course.items()}
    # Two of three intervals have to move.
    assert verdicts == {n: "drift" if n > CHANGE.day else "stable" for n in course}
    event = course[14].events["parcels.drift"]
    assert event == course[14].results["monitor"]
    assert {"weight_kg", "depot_load", "carrier"} <= {*event["columns"]}
    assert event["drifted"] == len(event["columns"])
    rows = pq.read_table(output / "monitoring/drift/ds=2026-01-14/part-0.parquet", partitioning=None).to_pylist()
    assert {row["column"] for row in rows if row["verdict"] == "drift"} == {*event["columns"]}


def test_every_link_leads_to_a_page_that_exists(course, bootstrap, output):
    links = course[9].links
    for task, name in (("score", "validation"), ("monitor", "drift")):
        assert links[task] == {
            "ReportLink": f"/pipeline/reports/parcels/ds=2026-01-09/{name}.html",
            "ModelLink": "/pipeline/models/parcels/1",
        }
        assert (output / f"reports/ds=2026-01-09/{name}.html").is_file()
    assert bootstrap.links["train"] == {"ReportLink": "", "ModelLink": "/pipeline/models/parcels/1"}


def test_a_backfill_publishes_but_its_events_start_no_evaluation(airflow, backfill):
    assert backfill.state == "success"
    assert [backfill.events[f"parcels.{name}"]["quiet"] for name in ("predictions", "drift")] == [True, True]
    evaluation = airflow.run("parcels__evaluate", kind="asset_triggered", causes=[backfill])
    assert (evaluation.state, evaluation.events) == ("success", {})
    assert evaluation.states == {
        "evaluate": "skipped",
        "report_unmeasured": "skipped",
        "watch": "skipped",
        "notify": "success",
        "notify_rollback": "skipped",
    }


def test_the_events_of_scored_intervals_evaluate_all_that_matured_by_the_end_of_the_latest(evaluation, output):
    event = evaluation.events["parcels.performance"]
    assert event == evaluation.results["evaluate"]
    assert {name: event[name] for name in ("as_of", "evaluated", "metric", "quiet")} == {
        "as_of": "2026-01-11T00:00:00Z",
        "evaluated": 2,
        "metric": "roc_auc",
        "quiet": False,
    }
    for number in (8, 9):
        rows = pq.read_table(output / f"monitoring/performance/ds=2026-01-0{number}/part-0.parquet", partitioning=None)
        assert set(rows["as_of"].to_pylist()) == {datetime(2026, 1, 11, tzinfo=UTC)}


def test_a_manual_evaluation_finds_nothing_new_at_the_same_time(airflow, evaluation):
    again = airflow.run("parcels__evaluate", conf={"as_of": "2026-01-11T01:00:00+01:00"})
    assert again.results["evaluate"] == {
        **evaluation.results["evaluate"],
        "evaluated": 0,
        "degraded": 0,
        "latest": None,
    }


def test_an_evaluation_without_a_cause_to_train_ends_before_the_training(airflow, evaluation):
    run = airflow.run("parcels__retrain", kind="asset_triggered", causes=[evaluation])
    assert (run.state, run.states, run.events) == ("success", {"decide": "success", "train": "skipped"}, {})


def test_a_quiet_event_among_loud_ones_does_not_move_the_evaluation(airflow, course, evaluation):
    quiet = airflow.run("parcels__score", conf={"start": "2026-01-16", "quiet": True})
    run = airflow.run("parcels__evaluate", kind="asset_triggered", causes=[quiet, course[10], course[9]])
    assert run.results["evaluate"]["as_of"] == "2026-01-11T00:00:00Z"


def test_an_event_between_the_planning_and_the_creation_of_a_run_is_not_left_for_the_next_one(airflow):
    planned = datetime.now(UTC)
    quiet = airflow.run("parcels__score", conf={"start": "2026-01-16", "quiet": True})
    airflow.run("parcels__score", conf={"start": "2026-01-10"})
    run = airflow.run("parcels__evaluate", kind="asset_triggered", causes=[quiet], planned=planned)
    assert run.results["evaluate"]["as_of"] == "2026-01-11T00:00:00Z"


def test_a_quiet_evaluation_starts_no_training(airflow, course):
    quiet = airflow.run("parcels__evaluate", conf={"as_of": "2026-01-09", "quiet": True})
    run = airflow.run("parcels__retrain", kind="asset_triggered", causes=[quiet])
    assert quiet.events["parcels.performance"]["quiet"] is True
    assert (run.state, run.states) == ("success", {"decide": "success", "train": "skipped"})


def test_lasting_change_trains_a_challenger_whose_gate_report_is_linked(airflow, course, evaluation, output):
    evaluated = airflow.run("parcels__evaluate", kind="asset_triggered", causes=[course[16]])
    run = airflow.run("parcels__retrain", kind="asset_triggered", causes=[evaluated])
    event, trigger = run.events["parcels.model"], run.results["decide"]["trigger"]
    assert (run.state, event, event["model_version"]) == ("success", run.results["train"], 2)
    assert event["trigger"] == trigger
    assert trigger["cause"] in ("drift", "degradation")
    assert event["gate"]["n"] > 100
    assert run.links["train"] == {
        "ReportLink": f"/pipeline/reports/parcels/gates/{event['decision_ids'][0]}.html",
        "ModelLink": "/pipeline/models/parcels/2",
    }
    assert (output / "reports" / event["report"]).is_file()


@pytest.mark.parametrize(
    ("kind", "task", "param"),
    [
        ("score", "score", "start"),
        ("evaluate", "evaluate", "as_of"),
        ("retrain", "decide", "as_of"),
        ("operations", "find_gaps", "as_of"),
    ],
)
def test_a_run_without_interval_and_param_fails_at_once_and_says_what_it_needs(airflow, kind, task, param):
    run = airflow.run(f"parcels__{kind}")
    assert (run.state, run.states[task]) == ("failed", "failed")
    with pytest.raises(InvalidRequest, match=f"needs the parameter '{param}'.*next: trigger it again with {param} set"):
        raise run.errors[task]


def test_a_day_that_the_calendar_does_not_have_fails_at_once(airflow):
    run = airflow.run("parcels__score", conf={"start": "2026-02-30"})
    assert run.states["score"] == "failed"
    with pytest.raises(InvalidRequest, match=r"given a time that is none.*got '2026-02-30'"):
        raise run.errors["score"]


def test_a_start_between_two_intervals_fails_at_once_and_says_which_ones_there_are(airflow, bootstrap):
    run = airflow.run("parcels__score", conf={"start": "2026-01-09T07:00"})
    assert (run.state, run.states["score"]) == ("failed", "failed")
    with pytest.raises(InvalidRequest, match="instants on the 1d grid"):
        raise run.errors["score"]


def test_an_interval_without_data_or_champion_fails_at_once(airflow, bootstrap):
    orphan = airflow.run("orphan__score", kind="scheduled", interval=day(9))
    early = airflow.run("parcels__score", kind="scheduled", interval=day(1))
    empty = airflow.run("parcels__score", conf={"start": "2026-01-20"})
    assert [run.states["score"] for run in (orphan, early, empty)] == ["failed"] * 3
    assert orphan.states["monitor"] == "upstream_failed"
    assert orphan.events == early.events == empty.events == {}
    with pytest.raises(NoChampion, match="pipeline retrain orphan --as-of T --bootstrap"):
        raise orphan.errors["score"]
    with pytest.raises(NoChampion, match="takes effect at 2026-01-08"):
        raise early.errors["score"]
    with pytest.raises(NoData, match="ds=2026-01-20"):
        raise empty.errors["score"]


def test_a_ledger_that_does_not_answer_is_tried_again(airflow, bootstrap, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPELINE_LEDGER_URL", f"sqlite:///{tmp_path / 'file' / 'ledger.db'}")
    run = airflow.run("parcels__score", conf={"start": "2026-01-09"})
    assert (run.state, run.states["score"]) == ("running", "up_for_retry")
    with pytest.raises(LedgerUnavailable, match="ledger"):
        raise run.errors["score"]


def test_operations_counts_intervals_to_the_end_of_the_job_and_not_beyond(airflow, backfill, course):
    for as_of in ("2026-01-17T03:00:00Z", "2026-03-01T00:30:00Z"):
        run = airflow.run("parcels__operations", conf={"as_of": as_of})
        assert run.results["find_gaps"] == {"job": "parcels", "intervals": 9}
        assert run.results["sweep"]["removed"] == 0


def test_operations_fails_at_once_when_an_interval_is_missing(airflow, bootstrap):
    conf = {"as_of": "2026-01-08T00:00:00Z", "bootstrap": True}
    assert airflow.run("orphan__retrain", conf=conf).state == "success"
    for number in (9, 11):
        assert airflow.run("orphan__score", conf={"start": f"2026-01-{number:02}"}).state == "success"
    start = datetime(2026, 1, 12, 0, 30, tzinfo=UTC)
    run = airflow.run("orphan__operations", kind="scheduled", interval=(start, start + timedelta(days=1)))
    assert run.states == {"sweep": "success", "find_gaps": "failed"}
    with pytest.raises(IntervalsMissing, match=r"1 of the latest 3 .* 2026-01-10"):
        raise run.errors["find_gaps"]


def test_results_stay_below_the_limit_even_for_a_job_with_many_columns_rules_and_words(deploy, parcels, tmp_path):
    names = [f"a_column_whose_name_is_quite_long_{number}" for number in range(60)]
    rng = np.random.default_rng(3)
    for number in range(1, 6):
        start, rows = datetime(2026, 1, number, tzinfo=UTC), 200
        at = pa.array([start + timedelta(minutes=n) for n in range(rows)], pa.timestamp("us", "UTC"))
        ids = pa.array(np.arange(rows) + number * 1000)
        columns = {name: rng.normal(5.0 if number == 5 else 0.0, 1.0, rows) for name in names}
        for position, name in enumerate(names):
            columns[name][position] = 1e6
        for source, table in (
            ("features", {"row_id": ids, "event_ts": at, **columns}),
            ("labels", {"row_id": ids, "label": (columns[names[0]] > columns[names[1]]).astype("int64"), "at": at}),
        ):
            folder = tmp_path / source / f"ds={start:%Y-%m-%d}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table(table), folder / "part-0.parquet")
    alone = {"violations": 1, "of_last": 1}
    wide = parcels(name="wide", checks={"max_quarantined": 1.0}, drift=alone) | {
        "features": {
            "uri": str(tmp_path / "features"),
            "key": ["row_id"],
            "time": "event_ts",
            "columns": {name: {"type": "number"} for name in names},
        },
        "labels": {"uri": str(tmp_path / "labels"), "column": "label", "available_at": "at", "mature_after": "P1D"},
    }
    wide["checks"]["rules"] = [{"column": name, "rule": "between", "max": 1000} for name in names]
    airflow = deploy(wide)
    conf = {"as_of": "2026-01-05", "bootstrap": True, "reason": "\N{PACKAGE}" * 200}
    runs = [airflow.run("wide__retrain", conf=conf), airflow.run("wide__score", kind="scheduled", interval=day(5))]
    assert [run.state for run in runs] == ["success", "success"]
    sizes = {(run.run_id, task): size for run in runs for task, size in run.sizes.items()}
    assert max(sizes.values()) < XCOM_LIMIT, sizes
    manifest, drift = runs[1].results["score"], runs[1].results["monitor"]
    assert (len(manifest["reasons"]), sum(manifest["reasons"].values())) == (11, manifest["rows_quarantined"])
    assert (len(drift["columns"]), drift["drifted"]) == (10, 61)
