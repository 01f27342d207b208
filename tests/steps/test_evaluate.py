"""Realised performance with late, partial and broken labels: what is measured, restated, explained and refused."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline import cli
from pipeline.errors import ContractViolation, InvalidJob, LabelsOverdue
from pipeline.steps import kept
from pipeline.verdicts import ColumnDrift, DriftReport, Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

INSTANT = pa.timestamp("us", "UTC")


def arriving(*parts: tuple[int, datetime]) -> Callable[[pa.Table], pa.Table]:
    """A change of a label file: so many labels arrive at each instant, in order of the rows."""

    def change(table: pa.Table) -> pa.Table:
        instants = [instant for count, instant in parts for _ in range(count)]
        return table.set_column(2, "label_available_at", pa.array(instants, INSTANT))

    return change


@pytest.fixture
def scored(runtime, orders_on, world, day):
    """A factory of jobs on the world, matured after a day, with a champion of day 10 and scored days from 10 on."""

    def make(until: int = 11, labels: dict[str, Any] | None = None, **changes: Any):
        job = orders_on(world, labels={"mature_after": "P1D", **(labels or {})}, **changes)
        runtime.retrain(job, day(10), bootstrap=True)
        list(runtime.score(job, day(10), day(until)))
        return job

    return make


def test_an_interval_is_measured_again_when_more_labels_have_arrived(runtime, scored, world, day):
    world.rewrite(10, arriving((200, day(11)), (100, day(14))), labels=True)
    job = scored()
    (first,) = runtime.evaluate(job, day(12))
    assert (first.n, first.maturity.rows, first.maturity.pending, first.restated) == (200, 300, day(14), False)
    assert runtime.evaluate(job, day(13)) == []
    (second,) = runtime.evaluate(job, day(14))
    assert (second.start, second.n, second.maturity.pending, second.restated) == (day(10), 300, None, True)
    assert runtime.evaluate(job, day(15)) == []
    assert runtime.ledger.performance("orders") == [second]
    assert runtime.ledger.performance("orders", as_of=day(13)) == [first]
    path = f"{runtime.context(job).output}/monitoring/performance/ds=2026-01-10/part-0.parquet"
    table = pq.read_table(path, partitioning=None)
    assert set(table["as_of"].to_pylist()) == {day(14)}
    assert set(table["labelled_share"].to_pylist()) == {1.0}


def test_label_files_that_come_late_count_as_well_as_arrivals_that_were_told(runtime, scored, world, day):
    whole = pq.read_table(world.labels(10), partitioning=None)
    pq.write_table(whole.slice(0, 120), world.labels(10))
    job = scored()
    assert [r.n for r in runtime.evaluate(job, day(12))] == [120]
    assert runtime.evaluate(job, day(13)) == []
    pq.write_table(whole.slice(120), world.labels(10).with_name("part-1.parquet"))
    assert [(r.n, r.restated) for r in runtime.evaluate(job, day(13))] == [(300, True)]


def test_labels_by_delay_are_counted_again_as_they_become_known(runtime, orders_on, world, day):
    job = orders_on(world, labels={"available_at": None, "delay": "P1D", "mature_after": "PT12H"})
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10)))
    at_noon = day(11) + timedelta(hours=12)
    (first,) = runtime.evaluate(job, at_noon)
    assert 0 < first.n < 300
    assert at_noon < first.maturity.pending < at_noon + timedelta(hours=1)
    assert [(r.n, r.restated) for r in runtime.evaluate(job, day(12))] == [(300, True)]


def test_nothing_is_restated_beyond_the_lookback_or_without_more_labels(runtime, scored, world, day):
    late = day(14)
    world.rewrite(10, arriving((200, day(11)), (100, late)), labels=True)
    world.rewrite(11, lambda table: table.slice(0, 200), labels=True)
    job = scored(12, labels={"restate_within": "P2D"})
    assert [r.n for r in runtime.evaluate(job, day(13))] == [200, 200]
    # The same labels once more, in another file.
    world.rewrite(11, lambda table: table.take(pa.array(np.arange(200)[::-1])), labels=True)
    assert runtime.evaluate(job, late) == []


def test_what_cannot_have_changed_is_not_read_again(runtime, scored, world, day, caplog):
    world.rewrite(10, lambda table: table.slice(0, 200), labels=True)
    job = scored()
    runtime.evaluate(job, day(12))
    # Whoever reads this file complains of it.
    Path(runtime.ledger.manifests("orders")[0].path).write_bytes(b"no Parquet")
    assert runtime.evaluate(job, day(13)) == []
    assert "measuring it again failed" not in caplog.text
    world.rewrite(10, lambda table: table.slice(0, 190), labels=True)
    assert runtime.evaluate(job, day(13)) == []
    assert "measuring it again failed" in caplog.text


def test_a_restated_interval_whose_labels_broke_keeps_its_report(runtime, scored, world, day, caplog):
    whole = world.labels(10).read_bytes()
    world.rewrite(10, lambda table: table.slice(0, 200), labels=True)
    job = scored()
    (first,) = runtime.evaluate(job, day(12))
    world.rewrite(10, lambda table: table.drop_columns(["label"]), labels=True)
    assert runtime.evaluate(job, day(13)) == []
    assert "measuring it again failed" in caplog.text
    assert runtime.ledger.performance("orders") == [first]
    world.labels(10).write_bytes(whole)
    assert [r.n for r in runtime.evaluate(job, day(14))] == [300]


def test_far_fewer_labels_than_usual_are_no_basis_for_a_verdict(runtime, scored, world, day):
    for number in range(10, 14):
        world.rewrite(number, lambda table: table.slice(0, 240), labels=True)
    # The first to come of the last day are all wrong: what a verdict would call a collapse.
    world.rewrite(14, lambda table: table.slice(0, 100).set_column(1, "label", pa.array([0, 1] * 50)), labels=True)
    job = scored(15)
    for number in range(12, 16):
        runtime.evaluate(job, day(number))
    (report,) = runtime.evaluate(job, day(16))
    assert (report.start, report.verdict, report.limit) == (day(14), "insufficient_data", None)
    assert "Only 33% of 300 rows are labelled; earlier intervals had 80% at this age" in report.reason
    assert (report.maturity.share, report.maturity.expected) == (pytest.approx(1 / 3), 0.8)
    assert report.value is not None


def test_a_report_holds_the_interval_of_its_metric_and_of_every_slice(runtime, scored, day):
    job = scored(performance={"slices": ["country"], "min_slice": 60})
    (report,) = runtime.evaluate(job, day(12))
    assert report.low < report.value < report.high
    slices = {m.slice: m for m in report.slices if m.slice != "all"}
    assert slices["country=de"].low < slices["country=de"].value < slices["country=de"].high
    small = slices["country=nl"]
    assert (small.n < 60, small.value, small.low) == (True, None, None)
    path = f"{runtime.context(job).output}/monitoring/performance/ds=2026-01-10/part-0.parquet"
    table = pq.read_table(path, partitioning=None)
    assert table.schema.names[-3:] == ["low", "high", "labelled_share"]
    assert table["low"].to_pylist()[0] == report.low


@pytest.mark.parametrize("small", [kept.SMALL, 0], ids=["remembered", "read again"])
def test_slices_of_an_interval_that_is_measured_again_hold_the_rows_of_all_labels(
    runtime, scored, world, day, monkeypatch, small
):
    monkeypatch.setattr(kept, "SMALL", small)
    world.rewrite(10, arriving((200, day(11)), (100, day(14))), labels=True)
    job = scored(performance={"slices": ["country"]})
    counted = pc.value_counts(pq.read_table(world.features(10), partitioning=None)["country"]).to_pylist()
    parts, whole = (
        {m.slice: m.n for m in runtime.evaluate(job, at)[0].slices if m.slice != "all"} for at in (day(12), day(14))
    )
    assert whole == {f"country={level['values']}": level["counts"] for level in counted}
    assert sum(parts.values()) == 200
    assert all(parts[name] <= n for name, n in whole.items())


@pytest.fixture
def degraded(runtime, orders_on, worlds, day):
    """Day 16 of a world that turned on day 15, scored and not evaluated yet; and a drift report to vary."""
    job = orders_on(worlds(first=-9, days=26, rows=400, change_on=15), labels={"mature_after": "P1D"})
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(16)))

    def drift(**changes: Any) -> DriftReport:
        fields: dict[str, Any] = {
            "job": "orders",
            "start": day(16),
            "end": day(17),
            "verdict": "stable",
            "reason": "",
            "rows": 400,
            "window_start": day(16),
            "model_version": 1,
            "detector": "scipy",
            "columns": (),
        }
        return DriftReport(**{**fields, **changes})

    return runtime, job, drift


def moved(importance: float | None) -> ColumnDrift:
    numbers = dict.fromkeys(("p_value", "effect", "psi"), 0.5)
    shares = dict.fromkeys(("null_share", "reference_null_share", "unseen_share", "threshold"), 0.0)
    told = {"column": "amount", "role": "feature", "kind": "number", "rows": 400, "reason": ""}
    return ColumnDrift(**told, **numbers, **shares, verdict="stable", moved=True, importance=importance)


@pytest.mark.parametrize(
    ("changes", "cause", "told"),
    [
        ({}, "concept", "while the inputs are stable: what they mean has changed."),
        ({"columns": (moved(0.001),)}, "concept", "what they mean has changed."),
        ({"columns": (moved(0.4),)}, "inputs", "while the inputs drifted"),
        ({"columns": (moved(None),)}, "inputs", "while the inputs drifted"),
        ({"verdict": "drift"}, "inputs", "while the inputs drifted"),
        ({"verdict": "insufficient_data"}, None, "spread"),
        (
            {"verdict": "drift", "faults": (Fault(kind="unit", column="amount", detail="x100"),)},
            "broken_data",
            "on broken data.",
        ),
    ],
)
def test_degraded_performance_is_put_down_to_what_the_drift_report_of_the_interval_saw(
    degraded, day, changes, cause, told
):
    runtime, job, drift = degraded
    runtime.ledger.record_drift(drift(**changes))
    (report,) = runtime.evaluate(job, day(18))
    assert (report.verdict, report.cause) == ("drift", cause)
    assert told in report.reason
    assert report.is_violation == (cause != "broken_data")


def test_without_a_drift_report_nothing_is_said_of_the_cause(degraded, day):
    runtime, job, _ = degraded
    (report,) = runtime.evaluate(job, day(18))
    assert (report.verdict, report.cause) == ("drift", None)


def test_a_degradation_opens_an_incident(degraded, day):
    runtime, job, drift = degraded
    runtime.ledger.record_drift(drift())
    runtime.evaluate(job, day(18))
    assert [incident.kind for incident in runtime.ledger.incidents("orders")] == ["concept_drift"]


def test_labels_unlike_those_of_the_training_drift_when_it_lasts(runtime, orders_on, world, day):
    for number in range(12, 16):
        world.rewrite(
            number,
            lambda table: table.set_column(1, "label", pa.array(np.arange(300) % 20 > 0).cast("int64")),
            labels=True,
        )
    job = orders_on(world)
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10), day(15)))
    labels = [report.label for report in runtime.evaluate(job, day(17))]
    assert {(label.column, label.role, label.kind) for label in labels} == {("label", "label", "category")}
    assert [label.moved for label in labels] == [False, False, True, True, True]
    assert [label.verdict for label in labels] == ["stable", "stable", "stable", "drift", "drift"]


def test_an_evaluation_tells_what_it_could_not_measure_after_it_has_recorded_the_rest(
    runtime, scored, world, day, monkeypatch
):
    job = scored(13, labels={"overdue_after": "P1D"})
    world.labels(10).unlink()
    world.rewrite(11, lambda table: table.drop_columns(["label"]), labels=True)
    reports = runtime.evaluate(job, day(15), strict=False)
    assert [(r.start, r.n) for r in reports] == [(day(10), 0), (day(11), 0), (day(12), 300)]
    with pytest.raises(ContractViolation, match=r"1 interval\(s\) cannot be measured: 2026-01-11"):
        runtime.require_measured(job, day(15))
    # A repeated task fails again; an evaluation of another time had no news of it.
    with pytest.raises(ContractViolation, match="cannot be measured"):
        runtime.require_measured(job, day(15))
    runtime.require_measured(job, day(16))
    world.rewrite(11, lambda table: table.append_column("label", pa.array([0] * 300)), labels=True)
    runtime.evaluate(job, day(15), strict=False)
    with pytest.raises(LabelsOverdue, match=r"no label has come for 1 interval\(s\): 2026-01-10"):
        runtime.require_measured(job, day(15))


def test_quiet_reports_raise_nothing(runtime, scored, world, day):
    job = scored(labels={"overdue_after": "P1D"})
    world.labels(10).unlink()
    assert [r.quiet for r in runtime.evaluate(job, day(15), quiet=True)] == [True]
    runtime.require_measured(job, day(15))


@pytest.fixture
def own_metrics(tmp_path, monkeypatch):
    """A user's module of metrics that can be imported."""
    (tmp_path / "own_metrics.py").write_text(
        "import numpy as np\n"
        "def cost(truth, prediction, scores):\n"
        "    assert scores.shape == (len(truth), 2)\n"
        "    return float(np.mean(5 * (truth > prediction) + (truth < prediction)))\n"
        "def broken(truth, prediction, scores):\n"
        "    raise KeyError('nothing here')\n"
        "def undefined(truth, prediction, scores):\n"
        "    return float('nan')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_users_metrics_are_reported_with_intervals_and_never_fail_the_evaluation(
    runtime, scored, day, own_metrics, caplog
):
    names = [f"own_metrics:{name}" for name in ("cost", "broken", "undefined")]
    job = scored(performance={"extra": names})
    (report,) = runtime.evaluate(job, day(12))
    cost, broken, undefined = (next(m for m in report.slices if m.metric == name) for name in names)
    assert cost.slice == "all"
    assert 0 < cost.low < cost.value < cost.high
    assert (broken.value, undefined.value, report.verdict) == (None, None, "stable")
    assert caplog.text.count("own_metrics:broken failed, KeyError: 'nothing here'") == 1
    assert "own_metrics:undefined has no value" in caplog.text


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("absent_module:cost", "ModuleNotFoundError"),
        ("own_metrics:absent", "AttributeError"),
        ("own_metrics:number", "cannot be called"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_before_anything_is_measured(
    runtime, scored, day, own_metrics, name, problem
):
    job = scored(performance={"extra": [name]})
    with pytest.raises(InvalidJob, match=rf"names '{name}', which cannot be used.*{problem}.*pipeline check orders"):
        runtime.evaluate(job, day(12))
    assert runtime.ledger.performance("orders") == []


def test_check_finds_a_metric_that_is_not_there(orders_on, world, tmp_path, monkeypatch, capsys, own_metrics):
    (tmp_path / "jobs").mkdir()
    monkeypatch.setenv("PIPELINE_JOBS", str(tmp_path / "jobs"))
    for name, code in (("own_metrics:cost", 0), ("own_metrics:absent", 65)):
        job = orders_on(world, performance={"extra": [name]})
        (tmp_path / "jobs" / "orders.yaml").write_text(job.model_dump_json(), encoding="utf-8")
        assert cli.main(["check", "orders", "--json"]) == code
    assert "names 'own_metrics:absent', which cannot be used" in capsys.readouterr().out
