"""What a challenger learns from, chosen by backtest; and that it is never compared on what either model has learnt."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import NotEnoughLabels
from pipeline.intervals import Interval
from pipeline.reports import TriggerDecision
from pipeline.steps import disjoint, promote, retrain


def trained(runtime, job, as_of, since=None):
    return retrain.train(runtime.context(job), as_of, since)


@pytest.fixture
def turned(worlds):
    """A world whose meaning turns on day 15."""
    return worlds(first=-9, days=26, rows=400, change_on=15)


def test_after_a_change_the_stretch_since_then_wins_and_the_contest_is_told(runtime, orders_on, turned, day):
    model = trained(runtime, orders_on(turned), day(24), since=day(15))
    assert (model.window, model.train_start) == ("since_change", day(15))
    assert set(model.contest) == {"sliding default", "expanding default", "since_change default"}
    assert max(model.contest, key=model.contest.get) == "since_change default"


def test_without_a_change_all_candidates_are_judged_on_the_same_later_rows(runtime, orders_on, worlds, day):
    job = orders_on(worlds(first=-9, days=20, rows=400), retrain={"window": "P7D", "holdout": "P2D"})
    model = trained(runtime, job, day(18))
    assert set(model.contest) == {"sliding default", "expanding default"}
    assert model.holdout_end == day(16)
    assert model.train_end in (day(14), day(15))


@pytest.mark.parametrize(
    ("policy", "start"), [("sliding", 4), ("expanding", -9), ("since_change", 15)], ids=lambda value: str(value)
)
def test_a_policy_without_a_backtest_takes_its_stretch_and_fits_nothing_else(
    runtime, orders_on, turned, day, policy, start
):
    job = orders_on(turned, retrain={"window": "P14D", "window_policy": policy, "holdout": "P1D"})
    model = trained(runtime, job, day(20), since=day(15))
    assert (model.window, model.train_start, model.contest) == (policy, day(start), {})


def test_a_change_too_young_to_learn_from_leaves_the_sliding_window(runtime, orders_on, turned, day):
    job = orders_on(turned, retrain={"window_policy": "since_change"})
    assert trained(runtime, job, day(18), since=day(15)).window == "sliding"


def test_settings_compete_and_the_best_is_trained_under_its_name(runtime, orders_on, worlds, day):
    candidates = {"shy": {"learning_rate": 0.01}, "deep": {"max_iter": 60, "max_leaf_nodes": 31}}
    job = orders_on(
        worlds(first=-9, days=20, rows=400),
        model={"parameters": {"max_iter": 1, "max_leaf_nodes": 2}, "candidates": candidates},
        retrain={"window_policy": "sliding"},
    )
    model = trained(runtime, job, day(18))
    assert set(model.contest) == {"sliding default", "sliding shy", "sliding deep"}
    assert model.settings == "deep"
    assert runtime.context(job).load(model.model.version).estimator["model"].n_iter_ == 60


def test_labels_of_a_single_interval_are_too_few(runtime, orders_on, worlds, day):
    job = orders_on(
        worlds(first=-9, days=20, rows=400), retrain={"window": "P1D", "holdout": "PT1H", "window_policy": "sliding"}
    )
    with pytest.raises(NotEnoughLabels, match="too few intervals to learn from some and compare on others"):
        trained(runtime, job, day(12))


def test_a_row_that_a_model_has_learnt_is_found_and_named(runtime, orders_on, worlds, day):
    job = orders_on(worlds(first=-9, days=20, rows=400))
    ctx = runtime.context(job)
    model = trained(runtime, job, day(12))
    loaded = ctx.load(model.model.version)
    assert len(loaded.learnt) == loaded.profile.rows
    later, _, _ = retrain.collect(ctx, Interval(model.train_end, model.holdout_end), day(12))
    assert disjoint.overlap(ctx, later, (loaded,)) == ""
    known, _, _ = retrain.collect(ctx, Interval(model.train_start, model.train_end), day(12))
    mixed = pa.concat_tables([later, known.slice(7, 1)])
    told = disjoint.overlap(ctx, mixed, (loaded,))
    row = known.slice(7, 1)["row_id"][0].as_py()
    assert told.startswith(f"1 of {mixed.num_rows} rows to compare on are among those that version 1 was trained on; ")
    assert f"the first is row_id = {row} at 20" in told


def test_the_gate_refuses_a_comparison_with_rows_that_were_learnt_and_names_one(runtime, orders_on, worlds, day):
    job = orders_on(worlds(first=-9, days=26, rows=400))
    runtime.retrain(job, day(10), bootstrap=True)
    ctx, cause = runtime.context(job), TriggerDecision(fire=True, cause="schedule", reason="It is time.")
    challenger = trained(runtime, job, day(19))
    # A record that claims less history than the model has learnt.
    lying = challenger.model_copy(update={"train_end": day(13)})
    assert challenger.train_end > lying.train_end
    report = promote.consider(ctx, day(19), cause, lying)
    assert report.outcome == "refused"
    assert (
        "rows to compare on are among those that version 2 was trained on; the first is row_id = 1013" in report.reason
    )
    assert runtime.ledger.champion(job.name).model.version == 1
    (decision,) = runtime.ledger.decisions(job.name, kind="gate")
    assert decision.outcome == "refused"


def test_identities_do_not_depend_on_the_order_of_rows(runtime, orders_on, worlds, day):
    ctx = runtime.context(orders_on(worlds(first=-9, days=20, rows=400)))
    rows, _, _ = retrain.collect(ctx, Interval(day(8), day(10)), day(12))
    found = disjoint.identities(ctx, rows)
    shuffled = rows.take(pa.array(np.random.default_rng(0).permutation(rows.num_rows)))
    assert found.tolist() == disjoint.identities(ctx, shuffled).tolist() == sorted(set(found.tolist()))
