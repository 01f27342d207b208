"""Another look at a challenger that was better than the champion, and not proven so."""

from __future__ import annotations

import pytest

from pipeline.errors import InvalidRequest
from pipeline.reports import TriggerDecision

ASKED = TriggerDecision(fire=True, cause="schedule", reason="test")


@pytest.fixture
def unproven(runtime, orders_on, worlds, day):
    """A deployment, its job, and the report on a challenger that two days of labels do not prove better than a stump."""
    world = worlds(first=-9, days=60, rows=160)
    sections = {"retrain": {"holdout": "P2D"}, "promote": {"mode": "enabled", "confidence": 0.995}}
    stump = orders_on(world, model={"parameters": {"max_iter": 1, "max_leaf_nodes": 3}}, **sections)
    runtime.retrain(stump, day(10), bootstrap=True)
    job = orders_on(world, **sections)
    report = runtime.retrain(job, day(13), trigger=ASKED)
    assert (report.outcome, report.gate.gain > 0 > report.gate.low) == ("kept", True)
    return runtime, job, report


def test_it_is_compared_again_once_twice_as_much_is_labelled_and_wins_without_a_training(unproven, day):
    runtime, job, first = unproven
    assert not runtime.decide(job, day(14)).fire
    again = runtime.decide(job, day(15))
    assert (again.cause, again.version) == ("evidence", first.model.version)
    report = runtime.retrain(job, day(15), trigger=again)
    assert (report.outcome, report.gate.n) == ("promoted", 2 * first.gate.n)
    assert runtime.registry.champion("orders") == first.model.version
    assert runtime.registry.versions("orders") == [1, 2]
    trainings = runtime.ledger.decisions("orders", kind="training")
    assert [d.at for d in trainings if d.outcome == "started"] == [day(10), day(13)]
    gate, move = map(runtime.explain, report.decision_ids)
    assert (gate.details["look"], gate.details["begin"], gate.details["end"]) == (
        2,
        "2026-01-09T00:00:00Z",
        "2026-01-13T00:00:00Z",
    )
    assert (
        "rows that neither had learnt from: 640, of 2026-01-09T00:00:00Z to 2026-01-13T00:00:00Z; look 2"
        in "\n".join(runtime.story(gate))
    )
    assert move.at == day(15)
    assert not runtime.decide(job, day(25)).fire


def test_a_repeated_look_says_the_same_and_moves_nothing_twice(unproven, day):
    runtime, job, _ = unproven
    again = runtime.decide(job, day(15))
    assert runtime.decide(job, day(15)) == again
    reports = [runtime.retrain(job, day(15), trigger=again) for _ in range(2)]
    assert [report.outcome for report in reports] == ["promoted", "promoted"]
    assert len(runtime.ledger.promotions("orders")) == 2


def test_another_champion_or_a_guard_that_found_something_ends_it(unproven, orders_on, worlds, day):
    runtime, job, _ = unproven
    strict = job.model_copy(update={"promote": job.promote.model_copy(update={"max_churn": 1e-9})})
    kept = runtime.retrain(strict, day(20), trigger=ASKED)
    assert (kept.outcome, [g.name for g in kept.gate.guards if not g.is_met]) == ("kept", ["churn"])
    assert not any(runtime.decide(job, day(d)).fire for d in range(21, 40))


def test_a_version_that_does_not_exist_cannot_be_looked_at(unproven, day):
    runtime, job, _ = unproven
    with pytest.raises(InvalidRequest, match="version 9 was not registered"):
        runtime.retrain(job, day(15), trigger=ASKED.model_copy(update={"cause": "evidence", "version": 9}))
