"""Input that changes after it was scored: the next scheduled run scores those intervals again, and only those."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from examples.simulate import simulate
from pipeline.errors import PipelineError
from pipeline.runtime import Runtime

pytestmark = pytest.mark.airflow

RESTATE, MONITOR_AGAIN = "changed.restate", "changed.monitor"
NOTHING_TO_RESTATE = {
    **dict.fromkeys(("score", "monitor", "find_changed"), "success"),
    **dict.fromkeys((RESTATE, MONITOR_AGAIN), "skipped"),
}


def interval(number):
    """The data interval of that day of January 2026."""
    start = datetime(2026, 1, number, tzinfo=UTC)
    return start, start + timedelta(days=1)


def versions():
    """The fingerprint of what is published, by day."""
    with Runtime.open() as runtime:
        return {m.start.day: m.fingerprint for m in runtime.ledger.manifests("late")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of this module's own input, which its tests change."""
    folder = tmp_path_factory.mktemp("restated")
    simulate(folder, date(2026, 1, 1), 16, None, rows=300)
    return folder


@pytest.fixture(scope="module")
def airflow(deploy, parcels, data):
    """An Airflow whose job has its first champion."""
    sources = {name: {"uri": str(data / name)} for name in ("features", "labels")}
    started = deploy(parcels(name="late", **sources, retrain={"violations": 2, "of_last": 3}))
    assert started.run("late__retrain", conf={"as_of": "2026-01-08", "bootstrap": True}).state == "success"
    return started


@pytest.fixture(scope="module")
def input_of(data):
    """The input file of that day."""
    return lambda number: data / "features" / f"ds=2026-01-{number:02}" / "part-0.parquet"


@pytest.fixture(scope="module")
def score(airflow):
    """A function that runs the scoring of that day."""
    return lambda number, kind="scheduled": airflow.run("late__score", kind=kind, interval=interval(number))


@pytest.fixture(scope="module")
def course(score, input_of):
    """The runs of the 9th to the 11th, by day; of the 10th only half has come by then, the rest comes afterwards."""
    whole = pq.read_table(input_of(10), partitioning=None)
    pq.write_table(whole.slice(0, whole.num_rows // 2), input_of(10))
    runs = {number: score(number) for number in (9, 10, 11)}
    pq.write_table(whole, input_of(10))
    return runs


@pytest.fixture(scope="module")
def evaluation(airflow, course):
    """What was evaluated with the half day."""
    return airflow.run("late__evaluate", kind="asset_triggered", causes=[*course.values()])


@pytest.fixture(scope="module")
def finder(score, course, evaluation):
    """The run of the 12th, which finds the 10th changed."""
    return score(12)


@pytest.fixture(scope="module")
def unasked(airflow, score, input_of, finder):
    """Runs of the 13th after the 11th has changed again: those that must leave it alone; and what was published then."""
    table = pq.read_table(input_of(11), partitioning=None)
    pq.write_table(table.slice(0, 200), input_of(11))
    before = versions()
    by_hand = {"start": "2026-01-13", "quiet": True}
    return [score(13, "backfill"), airflow.run("late__score", conf=by_hand)], before


@pytest.fixture(scope="module")
def spoiled(score, input_of, unasked):
    """The run of the 14th: the 11th has changed, and the file of the 12th is none any more."""
    input_of(12).write_bytes(b"PAR1 but no more")
    return score(14)


def test_a_run_that_finds_nothing_changed_restates_nothing_and_succeeds(course):
    assert {n: run.state for n, run in course.items()} == {9: "success", 10: "success", 11: "success"}
    assert [run.states for run in course.values()] == [NOTHING_TO_RESTATE] * 3
    assert [run.results["find_changed"] for run in course.values()] == [[]] * 3
    assert [set(run.events) for run in course.values()] == [{"late.predictions", "late.drift"}] * 3


def test_exactly_the_changed_interval_is_restated_and_its_event_carries_the_new_manifest(course, finder):
    assert finder.state == "success"
    assert finder.results["find_changed"] == ["2026-01-10T00:00:00Z"]
    mapped = {f"{RESTATE}[0]": "success", f"{MONITOR_AGAIN}[0]": "success"}
    assert finder.states == {**dict.fromkeys(("score", "monitor", "find_changed"), "success"), **mapped}
    event, before = finder.events["late.predictions[0]"], course[10].results["score"]
    assert event == finder.results[f"{RESTATE}[0]"]
    assert (event["start"], event["status"], event["quiet"]) == ("2026-01-10T00:00:00Z", "published", False)
    assert event["rows_in"] == event["rows_scored"] + event["rows_quarantined"]
    assert before["rows_in"] == event["rows_in"] // 2
    assert (event["path"], event["model_version"]) == (before["path"], before["model_version"])
    assert pq.read_metadata(event["path"]).num_rows == event["rows_scored"]
    assert set(finder.events) == {f"late.{name}{n}" for name in ("predictions", "drift") for n in ("", "[0]")}


def test_a_restated_interval_has_links_of_its_own(finder):
    assert finder.links[f"{RESTATE}[0]"] == {
        "ReportLink": "/pipeline/reports/late/ds=2026-01-10/validation.html",
        "ModelLink": "/pipeline/models/late/1",
    }
    assert finder.links[f"{MONITOR_AGAIN}[0]"]["ReportLink"].endswith("/ds=2026-01-10/drift.html")


def test_the_drift_of_a_restated_interval_is_judged_again_as_of_the_run_that_found_it(finder):
    judged = finder.results[f"{MONITOR_AGAIN}[0]"]
    assert finder.events["late.drift[0]"] == judged
    assert (judged["start"], judged["end"]) == ("2026-01-10T00:00:00Z", "2026-01-11T00:00:00Z")
    assert judged["as_of"] == finder.results["monitor"]["as_of"] == finder.results["monitor"]["end"]


def test_a_restated_interval_is_evaluated_again_although_it_had_been_measured(airflow, evaluation, finder):
    assert evaluation.results["evaluate"]["as_of"] == "2026-01-12T00:00:00Z"
    assert evaluation.results["evaluate"]["evaluated"] == 2
    again = airflow.run("late__evaluate", kind="asset_triggered", causes=[finder])
    assert again.state == "success"
    assert again.results["evaluate"]["as_of"] == "2026-01-13T00:00:00Z"
    with Runtime.open() as runtime:
        known = {r.start.day: r for r in runtime.ledger.performance("late")}
    assert {n: report.as_of.day for n, report in known.items()} == {9: 13, 10: 13, 11: 13}
    # Of the 9th only some labels had come on the 12th.
    assert {n: report.restated for n, report in known.items()} == {9: True, 10: False, 11: False}
    assert known[10].rows_scored == finder.results[f"{RESTATE}[0]"]["rows_scored"]


def test_a_backfill_and_a_quiet_run_restate_nothing_whatever_has_changed(unasked):
    runs, before = unasked
    assert [run.state for run in runs] == ["success", "success"]
    assert [run.states for run in runs] == [NOTHING_TO_RESTATE] * 2
    assert [run.results["find_changed"] for run in runs] == [[], []]
    now = versions()
    assert {number: now[number] for number in before} == before


def test_a_restatement_that_fails_takes_nothing_else_with_it(spoiled):
    assert spoiled.results["find_changed"] == ["2026-01-11T00:00:00Z", "2026-01-12T00:00:00Z"]
    assert spoiled.states == {
        **dict.fromkeys(("score", "monitor", "find_changed"), "success"),
        f"{RESTATE}[0]": "success",
        f"{MONITOR_AGAIN}[0]": "success",
        f"{RESTATE}[1]": "failed",
        f"{MONITOR_AGAIN}[1]": "upstream_failed",
    }
    assert spoiled.state == "failed"
    assert set(spoiled.events) == {f"late.{name}{n}" for name in ("predictions", "drift") for n in ("", "[0]")}
    with pytest.raises(PipelineError, match=r"ds=2026-01-12"):
        raise spoiled.errors[f"{RESTATE}[1]"]


def test_of_several_restated_intervals_each_has_its_own_links(score, input_of, spoiled):
    for number in (13, 14):
        pq.write_table(pq.read_table(input_of(number), partitioning=None).slice(0, 200), input_of(number))
    run = score(15)
    assert run.results["find_changed"] == [f"2026-01-{n}T00:00:00Z" for n in (12, 13, 14)]
    linked = {index: run.links[f"{RESTATE}[{index}]"]["ReportLink"] for index in (1, 2)}
    assert linked == {n: f"/pipeline/reports/late/ds=2026-01-{12 + n}/validation.html" for n in (1, 2)}
