"""A promoted model that proves worse in production is taken back by itself, and what it published is made again."""

from __future__ import annotations

import pytest

from pipeline.registry import Registry
from pipeline.reports import TriggerDecision
from pipeline.runtime import Runtime
from tests.worlds import write_world

CHANGE, BACK = 15, 20


@pytest.fixture
def turning_back(tmp_path):
    """A world that turns on day 15, and back on day 20."""
    return turned(tmp_path, BACK)


def turned(tmp_path, back):
    """A world that turns on day 15, and back on day ``back``."""
    changed = write_world(tmp_path / "changed", first=-9, days=26, rows=400, change_on=CHANGE)
    usual = write_world(tmp_path / "usual", first=-9, days=26, rows=400)
    for number in range(back, 27):
        changed.features(number).write_bytes(usual.features(number).read_bytes())
        changed.labels(number).write_bytes(usual.labels(number).read_bytes())
    return changed


@pytest.fixture
def promoted(runtime, orders_on, turning_back, day):
    """A job whose second version won its gate on day 20, and has scored days 20 to 23 since."""
    job = orders_on(turning_back)
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10), day(20)))
    cause = TriggerDecision(fire=True, cause="degradation", reason="It turned.", since=day(CHANGE))
    assert runtime.retrain(job, day(BACK), trigger=cause).outcome == "promoted"
    list(runtime.score(job, day(20), day(24)))
    return job


def versions(runtime, job):
    return {m.start.day: m.model_version for m in runtime.ledger.manifests(job.name)}


def test_a_model_that_is_worse_than_the_one_before_is_rolled_back_within_two_matured_intervals(runtime, promoted, day):
    runtime.evaluate(promoted, day(22))
    assert runtime.watch(promoted, day(22)) is None
    runtime.evaluate(promoted, day(23))
    first = runtime.watch(promoted, day(23))
    assert (first.outcome, first.version, first.intervals, first.lost) == ("kept", 2, 1, 1)
    runtime.evaluate(promoted, day(24))
    second = runtime.watch(promoted, day(24))
    assert (second.outcome, second.version, second.back_to, second.intervals) == ("rolled_back", 2, 1, 2)
    assert second.restated == tuple(day(number) for number in range(20, 24))
    assert "is worse than version 1, which it replaced, in each of the last 2 matured intervals" in second.reason
    assert set(versions(runtime, promoted).values()) == {1}
    assert runtime.ledger.champion(promoted.name).model.version == 1
    (decision,) = runtime.ledger.decisions(promoted.name, kind="watch")
    assert (decision.outcome, decision.details["version"], decision.details["back_to"]) == ("rolled_back", 2, 1)
    assert decision.details["low"] > 0
    move = runtime.explain(runtime.ledger.promotions(promoted.name)[-1].decision_id)
    assert f"The watch withdrew version 2 by itself ({decision.id})." in runtime.story(move)
    assert runtime.watch(promoted, day(24)) is None


def test_a_restatement_that_was_interrupted_is_completed_by_the_next_look(runtime, promoted, day):
    runtime.evaluate(promoted, day(24))
    runtime.watch(promoted, day(24))
    list(runtime.score(promoted, day(21), model=2, quiet=True))
    again = runtime.watch(promoted, day(25))
    assert (again.outcome, again.restated) == ("rolled_back", (day(21),))
    assert versions(runtime, promoted)[21] == 1
    assert len(runtime.ledger.decisions(promoted.name, kind="watch")) == 1


def test_what_a_person_brought_back_only_a_person_takes_away(runtime, promoted, day):
    runtime.rollback(promoted, "not yet", at=day(20))
    runtime.promote(promoted, 2, "I know better", day(20))
    list(runtime.score(promoted, day(20), day(24)))
    runtime.evaluate(promoted, day(24))
    assert runtime.watch(promoted, day(24)) is None
    assert runtime.ledger.champion(promoted.name).model.version == 2


def test_a_watch_that_is_switched_off_moves_nothing(runtime, promoted, day):
    watch = promoted.promote.watch.model_copy(update={"enabled": False})
    quiet = promoted.model_copy(update={"promote": promoted.promote.model_copy(update={"watch": watch})})
    careful = promoted.model_copy(update={"promote": promoted.promote.model_copy(update={"mode": "dry_run"})})
    runtime.evaluate(promoted, day(24))
    assert [runtime.watch(job, day(24)) for job in (quiet, careful)] == [None, None]


def test_a_model_that_turns_bad_after_good_days_is_rolled_back_within_two_bad_intervals(
    runtime, orders_on, tmp_path, day
):
    job = orders_on(turned(tmp_path, BACK + 2))
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10), day(20)))
    cause = TriggerDecision(fire=True, cause="degradation", reason="It turned.", since=day(CHANGE))
    assert runtime.retrain(job, day(20), trigger=cause).outcome == "promoted"
    list(runtime.score(job, day(20), day(25)))
    seen = []
    for number in range(23, 27):
        runtime.evaluate(job, day(number))
        seen.append(runtime.watch(job, day(number)))
    assert [(found.outcome, found.lost) for found in seen] == [
        ("kept", 0),
        ("kept", 0),
        ("kept", 1),
        ("rolled_back", 2),
    ]
    assert "in each of the last 2 matured intervals, and over the last 2: " in seen[-1].reason
    assert runtime.ledger.champion(job.name).model.version == 1


def test_a_good_model_stays_and_is_no_longer_watched_after_its_time(runtime, orders_on, worlds, day):
    world = worlds(first=-9, days=26, rows=400, change_on=15)
    job = orders_on(world, promote={"mode": "enabled", "watch": {"intervals": 2}})
    runtime.retrain(job, day(10), bootstrap=True)
    list(runtime.score(job, day(10), day(20)))
    cause = TriggerDecision(fire=True, cause="degradation", reason="It turned.", since=day(15))
    assert runtime.retrain(job, day(20), trigger=cause).outcome == "promoted"
    list(runtime.score(job, day(20), day(25)))
    runtime.evaluate(job, day(24))
    kept = runtime.watch(job, day(24))
    assert (kept.outcome, kept.lost) == ("kept", 0)
    runtime.evaluate(job, day(25))
    assert runtime.watch(job, day(25)) is None


class Killed(BaseException):
    """Nothing that any handler expects, as a signal would be."""


def withdrawals(runtime, job):
    return [known for known in runtime.ledger.incidents(job.name) if known.kind == "promotion_withdrawn"]


class DiesBeforeAlias(Registry):
    def move_alias(self, *args, **kwargs):
        raise Killed


def test_a_rollback_that_was_decided_and_killed_before_the_alias_moved_is_made_by_the_next_look(runtime, promoted, day):
    runtime.evaluate(promoted, day(24))
    with Runtime(runtime.settings, runtime.clock) as dying:
        dying.registry = DiesBeforeAlias(runtime.settings.tracking_uri, runtime.settings.home / "models")
        with pytest.raises(Killed):
            dying.watch(promoted, day(24))
    assert runtime.registry.champion("orders") == 2
    again = runtime.watch(promoted, day(25))
    assert (again.outcome, again.back_to, len(again.restated)) == ("rolled_back", 1, 4)
    assert runtime.registry.champion("orders") == 1
    assert len(runtime.ledger.decisions(promoted.name, kind="watch")) == 1
    assert len(withdrawals(runtime, promoted)) == 1


def test_a_partition_whose_input_is_gone_holds_up_no_other_one(runtime, promoted, turning_back, day, caplog):
    runtime.evaluate(promoted, day(24))
    turning_back.features(23).unlink()
    found = runtime.watch(promoted, day(24))
    assert found.restated == (day(20), day(21), day(22))
    assert "is not scored again by version 1: job 'orders' has no input" in caplog.text
    assert versions(runtime, promoted)[23] == 2
    assert runtime.watch(promoted, day(25)) is None


def test_a_rollback_pages_once_and_the_incident_ends_with_the_next_promotion(runtime, promoted, day):
    runtime.evaluate(promoted, day(24))
    told = runtime.watch(promoted, day(24))
    (incident,) = withdrawals(runtime, promoted)
    assert (incident.cause, incident.tier, incident.opened) == ("promotion_withdrawn:2", "page", day(24))
    assert incident.reason == told.reason
    (notice,) = [known for known in runtime.notify(promoted) if known.incident.id == incident.id]
    assert notice.news == "opened"
    runtime.decide(promoted, day(25))
    assert withdrawals(runtime, promoted) == [incident]
    runtime.promote(promoted, 2, "I know better", day(26))
    runtime.decide(promoted, day(27))
    (over,) = withdrawals(runtime, promoted)
    assert (over.status, over.closed) == ("closed", day(26))


def test_nothing_is_looked_at_twice_and_nothing_at_all_once_the_watch_is_over(runtime, promoted, day):
    runtime.evaluate(promoted, day(23))
    assert runtime.watch(promoted, day(23)).outcome == "kept"
    assert runtime.watch(promoted, day(24)) is None
    runtime.evaluate(promoted, day(24))
    short = promoted.promote.watch.model_copy(update={"intervals": 1})
    over = promoted.model_copy(update={"promote": promoted.promote.model_copy(update={"watch": short})})
    assert runtime.watch(over, day(24)) is None
    assert runtime.watch(promoted, day(24)).outcome == "rolled_back"
