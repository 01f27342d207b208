"""Monitoring, evaluation, retraining, promotion and rollback on a small real world."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import (
    ContractViolation,
    IntervalsMissing,
    InvalidRequest,
    LabelsOverdue,
    NoChampion,
    NotEnoughLabels,
)
from pipeline.reports import TriggerDecision
from pipeline.steps import retrain
from tests.worlds import write_world


@pytest.fixture
def changing(runtime, orders_on, worlds, day):
    """A deployment and a job on a world that turns on day 15; champion of day 10; days 10 to 19 scored."""
    job = orders_on(worlds(first=-9, days=26, rows=400, change_on=15))
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10), day(20)))
    return runtime, job


def test_monitor_is_stable_before_the_change_and_drifts_from_its_second_day_on(changing, day):
    runtime, job = changing
    reports = list(runtime.monitor(job, day(10), day(20)))
    assert [r.verdict for r in reports] == ["stable"] * 6 + ["drift"] * 4
    assert [r.tier for r in reports] == [None] * 6 + ["page"] * 4
    first, second = reports[5:7]
    assert {c.column for c in first.columns if c.moved} == {c.column for c in second.columns if c.verdict == "drift"}
    amount = next(c for c in second.columns if c.column == "amount")
    assert (amount.verdict, amount.tier) == ("drift", "page")
    assert amount.importance > 0.3
    assert amount.impact > 0.3
    assert {c.role for c in first.columns} == {"feature", "prediction"}


def test_monitor_writes_one_row_per_column_and_a_page_without_network(changing, day):
    runtime, job = changing
    (report,) = runtime.monitor(job, day(15))
    table = pq.read_table(
        f"{runtime.context(job).output}/monitoring/drift/ds=2026-01-15/part-0.parquet", partitioning=None
    )
    assert sorted(table["column"].to_pylist()) == ["amount", "country", "prediction"]
    assert set(table["interval_verdict"].to_pylist()) == {"stable"}
    assert table["moved"].to_pylist().count(True) >= 2
    page = Path(report.report_uri).read_text()
    assert "drift" in page
    assert "http" not in page


def test_verdicts_come_out_the_same_in_whatever_order_intervals_are_monitored(runtime, orders_on, tmp_path, day):
    world = write_world(tmp_path / "data", first=-9, days=26, rows=400, change_on=15)
    delivered_twice = pq.read_table(world.features(17), partitioning=None)
    world.rewrite(
        18,
        lambda own: pa.table(
            {
                **dict(zip(own.column_names, own.columns, strict=True)),
                **{name: delivered_twice[name] for name in ("amount", "country")},
            }
        ),
    )
    job = orders_on(world)
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10), day(20)))
    drawn = np.random.default_rng(4).permutation(np.arange(10, 20))
    for number in drawn:
        list(runtime.monitor(job, day(int(number))))
    any_order, files = runtime.ledger.drift(job.name), drift_files(runtime, job)
    assert [r.verdict for r in any_order] == ["stable"] * 6 + ["drift"] * 2 + ["insufficient_data", "drift"]
    assert [fault.kind for fault in any_order[8].faults] == ["duplicated"]
    assert list(runtime.monitor(job, day(10), day(20))) == any_order
    assert drift_files(runtime, job) == files


def drift_files(runtime, job):
    root = Path(runtime.context(job).output) / "monitoring/drift"
    return {path.parent.name: path.read_bytes() for path in root.rglob("*.parquet")}


def test_monitor_of_an_unpublished_interval_says_what_to_do_first(changing, day):
    runtime, job = changing
    with pytest.raises(InvalidRequest, match=r"has not been published.*pipeline score orders --start 2026-01-21"):
        list(runtime.monitor(job, day(21)))


def test_evaluate_uses_only_labels_that_had_arrived(runtime, orders_on, world, day):
    job = orders_on(world)
    late = pa.array([day(14)] * 150, pa.timestamp("us", "UTC"))

    def delay(table: pa.Table) -> pa.Table:
        arrival = pa.concat_arrays([late, table["label_available_at"].combine_chunks().slice(150)])
        return table.set_column(2, "label_available_at", arrival)

    world.rewrite(10, delay, labels=True)
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10)))
    assert runtime.evaluate(job, day(12)) == []
    (report,) = runtime.evaluate(job, day(13))
    assert (report.start, report.n, report.rows_scored) == (day(10), 150, 300)
    assert runtime.evaluate(job, day(13)) == []


def test_evaluate_takes_the_latest_correction_of_a_label(runtime, orders_on, world, day):
    job = orders_on(world)
    runtime.retrain(job, day(10), bootstrap=True)
    (manifest,) = runtime.score(job, day(10))
    predicted = pq.read_table(manifest.path, partitioning=None)["prediction"]

    def correct(table: pa.Table) -> pa.Table:
        later = pa.array([day(12)] * table.num_rows, pa.timestamp("us", "UTC"))
        # In the file the correction comes first: the arrival decides, not the order.
        return pa.concat_tables(
            [table.set_column(1, "label", predicted).set_column(2, "label_available_at", later), table]
        )

    world.rewrite(10, correct, labels=True)
    (report,) = runtime.evaluate(job, day(13))
    accuracy = next(m.value for m in report.slices if m.metric == "accuracy")
    assert (report.n, accuracy) == (300, 1.0)


def test_evaluate_finds_the_degradation_and_writes_it_per_metric(changing, day):
    runtime, job = changing
    reports = runtime.evaluate(job, day(22))
    assert [r.verdict for r in reports] == ["stable"] * 5 + ["drift"] * 5
    assert min(r.value for r in reports[:5]) > 0.7 > 0.3 > max(r.value for r in reports[5:])
    path = f"{runtime.context(job).output}/monitoring/performance/ds=2026-01-15/part-0.parquet"
    table = pq.read_table(path, partitioning=None)
    assert table["metric"].to_pylist() == ["roc_auc", "log_loss", "brier", "calibration_error", "accuracy"]


def test_evaluate_breaks_performance_down_by_slice(runtime, orders_on, world, day):
    job = orders_on(world, performance={"slices": ["country"]})
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10)))
    (report,) = runtime.evaluate(job, day(13))
    slices = {m.slice: m.n for m in report.slices if m.slice != "all"}
    assert set(slices) == {"country=de", "country=fr", "country=nl"}
    assert sum(slices.values()) == 300


def test_labels_that_never_come_raise_once_and_are_evaluated_when_they_do(runtime, orders_on, world, day):
    job = orders_on(world)
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10), day(12)))
    kept = world.labels(10).read_bytes()
    world.labels(10).unlink()
    verdicts = {r.start: r.verdict for r in runtime.evaluate(job, day(15))}
    assert verdicts == {day(10): "insufficient_data", day(11): "stable"}
    with pytest.raises(LabelsOverdue, match=r"no label has come for 1 interval\(s\): 2026-01-10.*insufficient_data"):
        runtime.evaluate(job, day(19))
    assert runtime.evaluate(job, day(20)) == []
    world.labels(10).write_bytes(kept)
    (report,) = runtime.evaluate(job, day(20))
    assert (report.start, report.n) == (day(10), 300)


def test_backfilled_intervals_are_judged_quietly_whoever_asks(changing, day):
    runtime, job = changing
    list(runtime.score(job, day(20), day(22), quiet=True))
    assert [r.quiet for r in runtime.monitor(job, day(19), day(22))] == [False, True, True]
    assert [r.quiet for r in runtime.evaluate(job, day(24))] == [False] * 10 + [True] * 2


def test_evaluate_measures_again_what_was_published_anew_and_nothing_else(runtime, orders_on, world, day):
    job = orders_on(world)
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10), day(12)))
    assert len(runtime.evaluate(job, day(14))) == 2
    world.rewrite(10, lambda table: table.slice(0, 200))
    list(runtime.score(job, day(10)))
    (report,) = runtime.evaluate(job, day(15))
    assert (report.start, report.n) == (day(10), 200)
    assert runtime.evaluate(job, day(16)) == []


def test_evaluate_refuses_a_published_file_that_its_manifest_does_not_know(runtime, orders_on, world, day):
    job = orders_on(world)
    runtime.retrain(job, day(10), bootstrap=True)
    (manifest,) = runtime.score(job, day(10))
    published = pq.read_table(manifest.path, partitioning=None)
    pq.write_table(published.slice(0, 100), manifest.path)
    with pytest.raises(
        ContractViolation, match=r"not the one that its manifest records.*pipeline score orders --start"
    ):
        runtime.evaluate(job, day(13))
    Path(manifest.path).unlink()
    with pytest.raises(ContractViolation, match=r"got no file"):
        runtime.evaluate(job, day(13))
    list(runtime.score(job, day(10)))
    assert [r.n for r in runtime.evaluate(job, day(13))] == [300]


def test_an_unlabelled_interval_is_reported_once_and_not_at_every_call(runtime, orders_on, world, day):
    job = orders_on(world)
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10)))
    world.labels(10).unlink()
    assert [r.reason for r in runtime.evaluate(job, day(13))] == ["No label has come yet for 300 rows."]
    assert runtime.evaluate(job, day(14)) == []


def test_decide_fires_on_persistent_drift_once_it_can_be_learnt_and_the_cooldown_is_over(changing, day):
    runtime, job = changing
    # A change is proven on one day, so that three intervals of labels are enough.
    job = job.model_copy(update={"retrain": job.retrain.model_copy(update={"holdout": timedelta(days=1)})})
    list(runtime.monitor(job, day(10), day(15)))
    assert not runtime.decide(job, day(15)).fire
    list(runtime.monitor(job, day(15)))
    assert not runtime.decide(job, day(16)).fire
    list(runtime.monitor(job, day(16), day(20)))
    waiting = runtime.decide(job, day(20))
    assert (waiting.fire, waiting.cause, waiting.since) == (False, "drift", day(16))
    assert (
        "Waiting for labels since 2026-01-16T00:00:00Z: 0 labelled rows in 0 intervals are new, 200 in 3"
        in waiting.reason
    )
    runtime.evaluate(job, day(21))
    decision = runtime.decide(job, day(21))
    assert (decision.fire, decision.cause) == (True, "degradation")
    assert "3 of the last 3" in decision.reason
    (recorded,) = runtime.ledger.decisions("orders", kind="trigger", last=1)
    story = runtime.story(recorded)
    assert "intervals judged on version 1, the champion then, these violated:" in story[2]
    (drifted,) = (line for line in story if line.startswith("  2026-01-17T00:00:00Z drift: "))
    assert "amount" in drifted
    assert any(line.startswith("  2026-01-16T00:00:00Z roc_auc ") for line in story)


def test_decide_ignores_what_backfills_found(changing, day):
    runtime, job = changing
    list(runtime.monitor(job, day(10), day(20), quiet=True))
    assert not runtime.decide(job, day(20)).fire


def test_a_version_that_came_to_rule_later_ends_the_trainings_that_led_to_nothing(runtime, orders_on, worlds, day):
    job = orders_on(worlds(first=-9, days=26, rows=200), retrain={"breaker": {"after": 1}})
    runtime.retrain(job, day(10), bootstrap=True)
    cause = TriggerDecision(fire=True, cause="drift", reason="test")
    assert runtime.retrain(job, day(14), trigger=cause).outcome == "kept"
    idle = job.model_copy(update={"promote": job.promote.model_copy(update={"mode": "disabled"})})
    runtime.retrain(idle, day(18), trigger=cause)
    assert runtime.decide(job, day(19)).halted
    (told,) = runtime.ledger.incidents("orders", open_only=True)
    assert told.kind == "retraining_halted"
    runtime.promote(job, 3, "as after a rollout or an approval", day(20))
    assert not runtime.decide(job, day(21)).halted
    assert runtime.ledger.incidents("orders", open_only=True) == []


def test_a_challenger_that_learnt_the_new_world_is_promoted_with_its_evidence(changing, day):
    runtime, job = changing
    trigger = TriggerDecision(fire=True, cause="drift", reason="test")
    report = runtime.retrain(job, day(26), trigger=trigger)
    assert report.outcome == "promoted"
    assert report.gate.challenger > 0.7 > 0.3 > report.gate.champion
    assert runtime.registry.champion("orders") == 2
    promotion = runtime.ledger.promotions("orders")[-1]
    assert (promotion.model.version, promotion.previous_version, promotion.effective_at) == (2, 1, day(26))
    assert "<html" in Path(report.report_uri).read_text()
    gate, move = map(runtime.explain, report.decision_ids)
    assert gate.details["challenger_version"] == 2
    assert f"Version 2 had won the gate ({gate.id})." in runtime.story(move)


def test_a_challenger_that_is_no_better_is_kept_out(runtime, orders_on, worlds, day):
    job = orders_on(worlds(first=-9, days=26, rows=400))
    runtime.retrain(job, day(10), bootstrap=True)
    report = runtime.retrain(job, day(20))
    assert report.outcome == "kept"
    assert runtime.registry.champion("orders") == 1
    assert "champion stays" in report.reason


@pytest.mark.parametrize(("mode", "outcome"), [("dry_run", "dry_run"), ("disabled", "disabled")])
def test_promotion_moves_nothing_unless_it_is_enabled(runtime, orders_on, worlds, day, mode, outcome):
    job = orders_on(worlds(first=-9, days=26, rows=400, change_on=15), promote={"mode": mode})
    runtime.retrain(job, day(10), bootstrap=True)
    assert runtime.retrain(job, day(26)).outcome == outcome
    assert runtime.registry.champion("orders") == 1


def test_champion_and_challenger_are_compared_on_rows_that_neither_learnt_from(changing, day):
    runtime, job = changing
    trigger = TriggerDecision(fire=True, cause="drift", reason="test")
    first = runtime.retrain(job, day(26), trigger=trigger)
    old, new = (runtime.ledger.model("orders", v) for v in (1, 2))
    assert new.train_end >= old.train_end
    assert new.train_end < new.holdout_end
    assert first.gate.n == 400 * (new.holdout_end - new.train_end).days


def test_retrain_repeated_registers_and_promotes_once(changing, day):
    runtime, job = changing
    trigger = TriggerDecision(fire=True, cause="drift", reason="test")
    runtime.retrain(job, day(26), trigger=trigger)
    again = runtime.retrain(job, day(26), trigger=trigger)
    assert again.outcome == "promoted"
    assert runtime.registry.versions("orders") == [1, 2]
    assert len(runtime.ledger.promotions("orders")) == 2


def test_retrain_knows_nothing_that_came_later(changing, day):
    runtime, job = changing
    rows, _, _ = retrain.collect(runtime.context(job), retrain.windows.history(job, day(20)), day(20))
    assert max(rows["event_ts"].to_pylist()) < day(18)


def test_retrain_without_enough_labels_says_how_many_there_were(runtime, orders, day):
    with pytest.raises(NotEnoughLabels, match=r"at least 100 rows.*got 0 rows.*nothing was written"):
        runtime.retrain(orders, day(1), bootstrap=True)


def test_retrain_before_the_first_champion_asks_for_a_bootstrap(runtime, orders, day):
    with pytest.raises(NoChampion, match="--bootstrap"):
        runtime.retrain(orders, day(10))


def test_bootstrap_refuses_to_replace_a_champion(changing, day):
    runtime, job = changing
    with pytest.raises(InvalidRequest, match="a bootstrap makes the first one"):
        runtime.retrain(job, day(20), bootstrap=True)


def test_backfill_scores_with_the_champion_of_its_day(changing, day):
    runtime, job = changing
    runtime.retrain(job, day(26), trigger=TriggerDecision(fire=True, cause="drift", reason="test"))
    versions = [m.model_version for m in runtime.score(job, day(20), day(27))]
    assert versions == [1, 1, 1, 1, 1, 2, 2]


def test_rollback_with_restate_republishes_what_the_withdrawn_version_scored(changing, day):
    runtime, job = changing
    runtime.retrain(job, day(26), trigger=TriggerDecision(fire=True, cause="drift", reason="test"))
    list(runtime.score(job, day(24), day(27)))
    done, restated = runtime.rollback(job, "test of the way back", restated=True)
    assert done.model.version == 1 == runtime.registry.champion("orders")
    assert [(m.start, m.model_version) for m in restated] == [(day(25), 1), (day(26), 1)]
    assert [m.status for m in runtime.score(job, day(24), day(27))] == ["unchanged"] * 3


def test_rollback_without_restate_counts_from_now_on(changing, day):
    runtime, job = changing
    runtime.retrain(job, day(26), trigger=TriggerDecision(fire=True, cause="drift", reason="test"))
    done, restated = runtime.rollback(job, "test of the way back")
    assert (done.effective_at, restated) == (runtime.clock(), [])
    assert runtime.ledger.champion("orders", day(27)).model.version == 2
    assert runtime.ledger.champion("orders", runtime.clock()).model.version == 1


def test_promote_by_hand_needs_a_registered_version(changing, day):
    runtime, job = changing
    with pytest.raises(InvalidRequest, match=r"version 9 was not registered.*one of \[1\]"):
        runtime.promote(job, 9, "because")


def test_a_missing_interval_is_reported_and_a_complete_history_is_not(changing, day):
    runtime, job = changing
    assert len(runtime.find_gaps(job, day(20) + timedelta(hours=3))) == 10
    with pytest.raises(IntervalsMissing, match=r"1 of the latest 11 .* 2026-01-20T00:00:00Z"):
        runtime.find_gaps(job, day(21) + timedelta(hours=3))
