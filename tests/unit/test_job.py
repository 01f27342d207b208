"""The rules of the job schema, and what a job derives from its fields."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from pipeline.intervals import Interval
from pipeline.job import JobSpec
from pipeline.policies import DECIDING, HIGHER_IS_BETTER, METRICS


def rule(**fields):
    return {"checks": {"rules": [{"column": "amount", **fields}]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Orders"}, "should match pattern"),
        ({"name": "x" * 64}, "should match pattern"),
        ({"task": "ranking"}, "'binary', 'multiclass' or 'regression'"),
        ({"owners": "me"}, "Extra inputs are not permitted"),
        ({"schedule": {"interval": "7h"}}, "'7h' is not a cadence"),
        ({"schedule": {"start": "2026-01-01T06:00:00Z"}}, "schedule.start 2026-01-01T06:00:00Z is not on the 1d grid"),
        ({"schedule": {"start": "2026-01-01T00:00:00"}}, "timezone"),
        ({"schedule": {"end": "2026-01-01T00:00:00Z"}}, "schedule.end must be after schedule.start"),
        ({"features": {"key": []}}, "at least 1 item"),
        ({"features": {"key": ["row_id", "row_id"]}}, "features.key names a column twice"),
        ({"features": {"key": ["amount"]}}, "must not learn from identifiers"),
        ({"features": {"time": "amount"}}, "must not learn from identifiers"),
        ({"features": {"key": ["score"]}}, "published files use themselves"),
        ({"features": {"key": ["score_a"]}}, "published files use themselves"),
        ({"features": {"time": "ds"}}, "published files use themselves"),
        ({"features": {"columns": {}}}, "at least 1 item"),
        ({"labels": {"column": "amount"}}, "labels.column 'amount' is also a feature"),
        ({"labels": {"column": "row_id"}}, "labels.column 'row_id' is also a key or the time column"),
        ({"labels": {"available_at": "amount"}}, "labels.available_at 'amount' is also a feature"),
        ({"labels": {"available_at": None}}, "give exactly one"),
        ({"labels": {"delay": "P1D"}}, "give exactly one"),
        ({"labels": {"mature_after": "-P1D"}}, "greater than or equal to 0"),
        ({"model": {"trainer": "not a trainer"}}, "should match pattern"),
        (rule(rule="between"), "rule between:amount needs min or max"),
        (rule(rule="between", min=2, max=1), "min 2.0 must not be above max 1.0"),
        (rule(rule="between", min=float("nan")), "finite number"),
        (rule(rule="between", max=float("inf")), "finite number"),
        (rule(rule="in_set", values=[]), "rule in_set:amount needs values"),
        (rule(rule="matches"), "rule matches:amount needs pattern"),
        (rule(rule="matches", pattern="("), r"pattern '\(' is not a regular expression"),
        ({"checks": {"rules": [{"column": "other", "rule": "not_null"}]}}, r"checks.rules\[0\] names column 'other'"),
        ({"checks": {"max_quarantined": 1.5}}, "less than or equal to 1"),
        ({"checks": {"expectations": [{"type": "drop table"}]}}, "should match pattern"),
        ({"drift": {"p_value": 0}}, "greater than 0"),
        ({"performance": {"metric": "mae"}}, "'mae' does not fit task 'binary'; use one of roc_auc"),
        ({"performance": {"slices": ["other"]}}, "performance.slices names 'other'"),
        (
            {"retrain": {"violations": 3, "of_last": 2}},
            r"retrain.violations \(3\) must not be above retrain.of_last \(2\)",
        ),
        ({"retrain": {"window": "P7D", "holdout": "P7D"}}, "holdout must be shorter than retrain.window"),
        ({"promote": {"mode": "yes"}}, "'disabled', 'dry_run' or 'enabled'"),
    ],
)
def test_a_job_that_breaks_a_rule_is_refused(make_job, changes, message):
    with pytest.raises(ValidationError, match=message):
        make_job(**changes)


def test_all_conflicts_between_fields_are_told_at_once(make_job):
    with pytest.raises(ValidationError) as caught:
        make_job(
            features={"key": ["row_id", "country"]},
            labels={"column": "amount"},
            performance={"metric": "rmse", "slices": ["city"]},
            **rule(rule="not_null", column="colour"),
        )
    (error,) = caught.value.errors()
    assert len(str(error["ctx"]["error"]).splitlines()) == 5


def test_a_job_cannot_be_changed_after_it_was_read(make_job):
    with pytest.raises(ValidationError, match="frozen"):
        make_job().name = "other"


def test_defaults_are_the_safe_ones(make_job):
    job = make_job()
    assert job.promote.mode == "dry_run"
    assert job.checks.max_quarantined == 0.05
    assert not job.schedule.catchup
    assert job.model_name == job.name == "orders"
    assert make_job(model={"name": "other"}).model_name == "other"


@pytest.mark.parametrize(("task", "metric"), [("binary", "roc_auc"), ("multiclass", "log_loss"), ("regression", "mae")])
def test_each_task_has_a_metric_of_its_own(make_job, task, metric):
    assert make_job(task=task).metric == metric
    for other in DECIDING[task]:
        assert make_job(task=task, performance={"metric": other}).metric == other
        assert other in HIGHER_IS_BETTER


@pytest.mark.parametrize(("task", "metric"), [("binary", "calibration_error"), ("regression", "bias")])
def test_a_metric_that_a_constant_prediction_wins_cannot_decide(make_job, task, metric):
    assert metric in METRICS[task]
    with pytest.raises(ValidationError, match=rf"{metric}' cannot decide.*use one of {DECIDING[task][0]}"):
        make_job(task=task, performance={"metric": metric})


def test_a_rule_is_known_by_its_kind_and_column(make_job):
    job = make_job(**rule(rule="between", min=0))
    assert [found.code for found in job.checks.rules] == ["between:amount"]
    assert job.checks.rules[0].action == "quarantine"


def test_rules_may_check_keys_and_the_time(make_job):
    job = make_job(checks={"rules": [{"column": column, "rule": "not_null"} for column in ("row_id", "event_ts")]})
    assert len(job.checks.rules) == 2


@pytest.mark.parametrize("address", ["ray://head.example:10001", "10.0.0.7:6379", "[fd00::7]:6379", "auto"])
def test_a_job_may_name_a_ray_cluster(make_job, address):
    job = make_job(engine={"backend": "ray", "address": address, "workers": 8})
    assert (job.engine.address, job.engine.workers) == (address, 8)
    assert job.scoring_digest() == make_job().scoring_digest()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"backend": "ray"}, r"engine\.backend ray needs engine\.address: ray://host:10001 from anywhere"),
        ({"address": "auto"}, r"engine\.address 'auto' is where a Ray cluster is, and engine\.backend is threads; set"),
        ({"backend": "processes", "address": "h:1"}, r"engine\.backend is processes; set backend: ray, or remove"),
        ({"backend": "ray", "address": "head"}, "String should match pattern"),
        ({"backend": "ray", "address": "http://head:8265"}, "String should match pattern"),
        ({"backend": "ray", "address": "head:6379\n"}, "String should match pattern"),
    ],
)
def test_an_address_belongs_to_a_ray_cluster_and_is_one(make_job, engine, message):
    with pytest.raises(ValidationError, match=message):
        make_job(engine=engine)


@pytest.mark.parametrize(
    ("features", "labels", "expected"),
    [
        ({}, {}, ("ds=%Y-%m-%d", "ds=%Y-%m-%d")),
        ({"partition": "d=%Y%m%d"}, {}, ("d=%Y%m%d", "d=%Y%m%d")),
        ({"partition": "d=%Y%m%d"}, {"partition": ""}, ("d=%Y%m%d", "")),
        ({"partition": ""}, {}, ("", "")),
    ],
)
def test_labels_lie_in_the_same_folders_as_features_unless_told(make_job, features, labels, expected):
    job = make_job(features=features, labels=labels)
    assert (job.feature_partition, job.label_partition) == expected


@pytest.mark.parametrize(
    ("interval", "partition", "filters"),
    [
        ("1d", None, False),
        ("1h", None, False),
        ("1d", "ds=%Y-%m-%d/hr=%H", False),
        ("1h", "ds=%Y-%m-%d", True),
        ("6h", "ds=%Y-%m-%d/hr=%H", False),
        ("1d", "month=%Y-%m", True),
        ("1mo", "month=%Y-%m", False),
        ("3mo", "month=%Y-%m", False),
        ("1d", "", True),
        ("6h", None, False),
    ],
)
def test_rows_are_selected_by_time_when_a_folder_holds_more_than_one_interval(make_job, interval, partition, filters):
    job = make_job(schedule={"interval": interval}, features={"partition": partition})
    assert job.filters_by_time is filters


def test_an_interval_and_its_output_partition_follow_the_schedule(make_job):
    job = make_job(schedule={"interval": "6h"})
    interval = job.interval(datetime(2026, 1, 1, 6, tzinfo=UTC))
    assert interval == Interval(datetime(2026, 1, 1, 6, tzinfo=UTC), datetime(2026, 1, 1, 12, tzinfo=UTC))
    assert job.output_partition(interval) == "ds=2026-01-01/hr=06"
    with pytest.raises(ValueError, match="not on the 6h grid"):
        job.interval(datetime(2026, 1, 1, 7, tzinfo=UTC))


def test_the_scoring_digest_follows_what_decides_the_published_rows(make_job):
    digest = make_job().scoring_digest()
    for changes in (
        {"name": "other"},
        {"task": "regression"},
        {"schedule": {"interval": "1h"}},
        {"features": {"key": ["row_id", "shop"]}},
        {"features": {"columns": {"amount": {"type": "number"}}}},
        rule(rule="not_null"),
    ):
        assert make_job(**changes).scoring_digest() != digest
    for changes in (
        {"features": {"uri": "elsewhere"}},
        {"output": {"uri": "elsewhere"}},
        {"drift": {"window": 7}},
        {"promote": {"mode": "enabled"}},
        {"retrain": {"cooldown": "P1D"}},
    ):
        assert make_job(**changes).scoring_digest() == digest


def test_a_job_survives_the_way_through_json(make_job):
    job = make_job(retrain={"every": "P30D"}, **rule(rule="in_set", values=["a", 1, 2.5, True]))
    copy = JobSpec.model_validate_json(job.model_dump_json())
    assert copy == job
    assert copy.retrain.every == timedelta(days=30)


def test_every_field_of_the_schema_is_described():
    schema = JobSpec.model_json_schema()
    undescribed = [
        f"{model['title']}.{name}"
        for model in (schema, *schema["$defs"].values())
        for name, field in model["properties"].items()
        if "description" not in field and "$ref" not in json.dumps(field)
    ]
    assert undescribed == []
