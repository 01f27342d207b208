"""Thresholds measured on a job's own history: written beside the job file, used from then on, never laxer than asked."""

from __future__ import annotations

import json

import pyarrow.compute as pc
import pytest

from pipeline import cli, jobfile
from pipeline.errors import NoData
from pipeline.intervals import Interval, format_instant
from pipeline.steps import calibrate, reference


@pytest.fixture
def folder(in_environment, orders):
    """The folder of job files of the deployment."""
    return in_environment(orders)


def command(capsys, day, *more, last=18):
    span = ["--from", format_instant(day(1)), "--to", format_instant(day(last))]
    code = cli.main(["calibrate", "orders", *span, *more, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_writes_thresholds_that_the_job_uses_from_then_on(folder, day, capsys):
    code, answer = command(capsys, day, "--budget", "30")
    assert code == 0
    assert answer["path"] == str(folder / "orders.calibration.json")
    assert (answer["intervals"], answer["rate"], answer["budget"]) == (17, 0.0, 1 / 30)
    assert set(answer["thresholds"]) == {"amount", "country", "missing:amount"}
    assert jobfile.load(folder / "orders.yaml").drift.thresholds == answer["thresholds"]


def test_a_dry_run_measures_the_same_and_writes_nothing(folder, day, capsys):
    measured = command(capsys, day, "--dry-run")[1]
    assert (measured["path"], list(folder.iterdir())) == (None, [folder / "orders.yaml"])
    assert command(capsys, day)[1]["thresholds"] == measured["thresholds"]


def test_no_threshold_is_below_what_the_champions_training_period_showed(runtime, orders, day):
    runtime.retrain(orders, day(10), bootstrap=True)
    ctx = runtime.context(orders)
    found = calibrate.calibrate(ctx, Interval(day(1), day(18)), budget=1 / 30)
    natural = reference.natural(ctx.load(1), "all")
    assert found.model_version == 1
    assert "prediction" in found.thresholds
    assert all(found.thresholds[name] >= natural[name] for name in ("amount", "country"))


def test_a_column_that_varies_from_day_to_day_gets_a_threshold_that_holds_that_variation(runtime, orders, day, world):
    def tripled(table):
        return table.set_column(table.column_names.index("amount"), "amount", pc.multiply(table["amount"], 3.0))

    ctx = runtime.context(orders)
    quiet = calibrate.calibrate(ctx, Interval(day(1), day(20)), budget=1 / 30)
    for number in (3, 4, 8, 9, 13, 14, 18, 19):
        world.rewrite(number, tripled)
    restless = calibrate.calibrate(ctx, Interval(day(1), day(20)), budget=1 / 30)
    assert restless.thresholds["amount"] > 5 * quiet.thresholds["amount"]
    assert restless.thresholds["country"] == pytest.approx(quiet.thresholds["country"], rel=0.2)
    assert restless.rate <= 1 / 30


def test_a_history_that_is_too_short_or_a_budget_that_is_none_is_refused(folder, runtime, orders, day, capsys):
    with pytest.raises(NoData, match=r"too short to measure thresholds on.*expected at least 14 readable intervals"):
        calibrate.calibrate(runtime.context(orders), Interval(day(1), day(10)), budget=1 / 90)
    code, answer = command(capsys, day, "--budget", "1")
    assert (code, answer["error"]) == (65, "InvalidRequest")
    assert "a budget of one false alarm per 1 intervals is none" in answer["message"]
