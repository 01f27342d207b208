"""The evidence of the gate on a small real world: slices, speed, size, and what a first champion must show."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import cli, engine
from pipeline.errors import FirstChampionRefused
from pipeline.intervals import Interval
from pipeline.steps import comparison, retrain
from tests.worlds import write_world


class Slow:
    """A fitted estimator that takes its time."""

    def __init__(self, fitted, seconds):
        self.fitted, self.seconds, self.classes_ = fitted, seconds, fitted.classes_

    def predict_proba(self, frame):
        time.sleep(self.seconds)
        return self.fitted.predict_proba(frame)


@pytest.fixture
def compared(runtime, orders_on, worlds, day):
    """The context of a job with slices, its two versions, and the rows that neither learnt from; the world turns on day 15."""
    job = orders_on(
        worlds(first=-9, days=26, rows=400, change_on=15),
        performance={"slices": ["country", "amount"]},
        promote={"mode": "disabled"},
    )
    runtime.retrain(job, day(10), bootstrap=True)
    runtime.retrain(job, day(26))
    ctx = runtime.context(job)
    registered = ctx.registered(2)
    rows, _, _ = retrain.collect(ctx, Interval(registered.train_end, registered.holdout_end), day(26))
    return ctx, ctx.load(1), ctx.load(2), rows


def test_every_column_of_slices_is_tested_numbers_by_quarters(compared):
    ctx, old, new, rows = compared
    found = comparison.decide(ctx, old, new, rows)
    assert found.outcome == "promote"
    assert [guard.name for guard in found.guards] == ["slices", "calibration", "churn", "speed", "size", "constant"]
    # Three countries and three quarters of the amount; in the fourth hardly anything is returned.
    assert "0 of 6 slices proven worse" in found.guards[0].detail
    back = comparison.decide(ctx, new, old, rows)
    assert back.outcome == "keep"
    assert "besides, the guard slices" in back.reason
    assert {told.slice.split("=")[0] for told in back.slices} <= {"country", "amount"}
    assert all(told.is_worse for told in back.slices)


def test_one_comparison_made_twice_is_the_same_to_the_last_digit(compared):
    assert comparison.decide(*compared) == comparison.decide(*compared)
    assert comparison.decide(*compared).guards[3].value is None


def test_a_challenger_that_scores_too_slowly_is_kept_out(compared):
    ctx, old, new, rows = compared
    slow = replace(new, estimator=Slow(new.estimator, 0.3))
    found = comparison.decide(ctx, old, slow, rows)
    assert found.outcome == "keep"
    assert "but the guard speed (limit 3) is not met: scoring takes " in found.reason
    assert [guard.name for guard in found.guards if not guard.is_met] == ["speed"]


def test_a_machine_that_stumbles_once_slows_no_challenger_down(compared):
    ctx, old, new, rows = compared

    class Stumbling(Slow):
        calls = 0

        def predict_proba(self, frame):
            self.calls += 1
            self.seconds = 0.5 if self.calls <= 3 else 0.0
            return super().predict_proba(frame)

    frame = engine.to_frame(rows, ctx.model_columns(new))
    stumbling = replace(new, estimator=Stumbling(new.estimator, 0))
    assert comparison.slowdown(ctx, (old, stumbling), [frame, frame]) is None


def test_a_challenger_that_is_much_larger_is_kept_out(compared):
    ctx, old, new, rows = compared
    found = comparison.decide(ctx, old, replace(new, size=max(6 * old.size, 1 << 20)), rows)
    assert [guard.name for guard in found.guards if not guard.is_met] == ["size"]
    assert old.size > 1000


@pytest.fixture
def noise(orders_on, tmp_path):
    """A job whose labels are drawn without a look at the features."""

    def drawn(**changes):
        world = write_world(tmp_path / "noise", first=-9, days=10, rows=200)
        for number in range(-9, 11):
            rng = np.random.default_rng(number + 100)
            labels = pa.array(rng.integers(2, size=200))
            world.rewrite(number, lambda table, labels=labels: table.set_column(1, "label", labels), labels=True)
        return orders_on(world, **changes)

    return drawn


def test_a_first_champion_that_beats_no_constant_is_refused_with_its_evidence(runtime, noise, day, capsys, monkeypatch):
    job = noise()
    with pytest.raises(FirstChampionRefused, match=r"roc_auc 0\.\d+ against 0\.5 of a constant prediction") as refused:
        runtime.retrain(job, day(10), bootstrap=True)
    assert "pipeline promote orders --version 1 --reason TEXT" in str(refused.value)
    assert runtime.registry.champion("orders") is None
    assert runtime.ledger.promotions("orders") == []
    (decision,) = runtime.ledger.decisions("orders", kind="gate")
    assert decision.outcome == "keep"
    assert decision.details["champion_version"] is None
    assert (
        "against 0.5 of a constant"
        in Path(f"{runtime.context(job).output}/reports/gates/{decision.id}.html").read_text()
    )
    with pytest.raises(FirstChampionRefused, match="nobody is promoted"):
        runtime.retrain(job, day(10), bootstrap=True)
    assert len(runtime.ledger.decisions("orders", kind="gate")) == 1
    monkeypatch.setenv("PIPELINE_HOME", str(runtime.settings.home))
    assert cli.main(["explain", decision.id]) == 0
    assert "with a constant prediction, and found no proof that it is better." in capsys.readouterr().out
    runtime.promote(job, 1, "it will do", day(10))
    assert runtime.registry.champion("orders") == 1


def test_any_first_champion_may_rule_where_the_policy_says_so(runtime, noise, day):
    job = noise(promote={"first": "any"})
    assert runtime.retrain(job, day(10), bootstrap=True).outcome == "promoted"


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_first_champion_that_learnt_something_rules_and_says_why(runtime, orders_on, worlds, day, task):
    job = orders_on(worlds(first=-9, days=10, rows=200, task=task), task=task)
    report = runtime.retrain(job, day(10), bootstrap=True)
    assert report.outcome == "promoted"
    assert "of a constant prediction on the same " in report.reason
    assert report.reason.endswith("it may be the first champion.")
