"""Moving the champion: killed half way, moved by strangers, dated back, rolled back, twice."""

from __future__ import annotations

import pytest

from pipeline.errors import AliasConflict, InvalidRequest
from pipeline.ledger import Ledger
from pipeline.registry import Registry
from pipeline.reports import TriggerDecision
from pipeline.runtime import Runtime
from pipeline.settings import Settings
from pipeline.steps import champion

DRIFT = TriggerDecision(fire=True, cause="drift", reason="test")


class Killed(BaseException):
    """Nothing that any handler expects, as a signal would be."""


class DiesBeforePromotion(Ledger):
    def record_promotion(self, promotion):
        raise Killed


class DiesBeforeModel(Ledger):
    def record_model(self, job, registered):
        raise Killed


class DiesBeforeAlias(Registry):
    def move_alias(self, name, version, expected):
        raise Killed


@pytest.fixture
def job(orders_on, worlds):
    """A job on a world that turns on day 15."""
    return orders_on(worlds(first=-9, days=26, rows=150, change_on=15), model={"parameters": {"max_iter": 8}})


@pytest.fixture
def ready(runtime, job, day):
    """A deployment with the champion of day 10."""
    runtime.retrain(job, day(10), bootstrap=True)
    return runtime


@pytest.fixture
def three(ready, job, day):
    """Versions 1, 2 and 3, promoted on days 10, 14 and 18; days 12 to 19 are scored."""
    careful = job.model_copy(update={"promote": job.promote.model_copy(update={"mode": "disabled"})})
    for version, number in ((2, 14), (3, 18)):
        ready.retrain(careful, day(number))
        ready.promote(job, version, f"version {version}", day(number))
    list(ready.score(job, day(12), day(20)))
    return ready


def broken(runtime, part):
    """The deployment with one part replaced; the other parts are shared."""
    other = Runtime(runtime.settings, runtime.clock)
    if issubclass(part, Ledger):
        other.ledger.close()
        other.ledger = part(runtime.settings.ledger_url, runtime.clock)
    else:
        other.registry = part(runtime.settings.tracking_uri, runtime.settings.home / "models")
    return other


def ruling(runtime, day, *numbers):
    return [runtime.ledger.champion("orders", day(n)).model.version for n in numbers]


@pytest.mark.parametrize("part", [DiesBeforeAlias, DiesBeforePromotion])
def test_a_promotion_that_was_killed_half_way_is_completed_by_the_next_run(ready, job, day, part):
    with broken(ready, part) as dying, pytest.raises(Killed):
        dying.retrain(job, day(26), trigger=DRIFT)
    assert len(ready.ledger.promotions("orders")) == 1
    assert ready.retrain(job, day(26), trigger=DRIFT).outcome == "promoted"
    assert ready.registry.champion("orders") == 2
    assert [(p.model.version, p.previous_version, p.effective_at) for p in ready.ledger.promotions("orders")] == [
        (1, None, day(10)),
        (2, 1, day(26)),
    ]
    assert ready.registry.versions("orders") == [1, 2]


def test_scoring_goes_on_after_a_promotion_was_killed_half_way(ready, job, day):
    with broken(ready, DiesBeforePromotion) as dying, pytest.raises(Killed):
        dying.retrain(job, day(26), trigger=DRIFT)
    assert [m.model_version for m in ready.score(job, day(24), day(27))] == [1, 2, 2]
    (_, completed) = ready.ledger.promotions("orders")
    assert ready.explain(completed.decision_id).details == {"version": 2, "previous_version": 1}
    assert "challenger wins" in completed.reason


def test_a_bootstrap_that_was_killed_half_way_is_completed_by_the_next_run(runtime, job, day):
    with broken(runtime, DiesBeforePromotion) as dying, pytest.raises(Killed):
        dying.retrain(job, day(10), bootstrap=True)
    assert runtime.retrain(job, day(10), bootstrap=True).outcome == "promoted"
    assert [m.model_version for m in runtime.score(job, day(10))] == [1]


def test_a_training_that_was_killed_after_registration_registers_again(runtime, job, day):
    with broken(runtime, DiesBeforeModel) as dying, pytest.raises(Killed):
        dying.retrain(job, day(10), bootstrap=True)
    made = runtime.retrain(job, day(10), bootstrap=True)
    assert (made.outcome, made.model.version) == ("promoted", 2)
    assert runtime.registry.versions("orders") == [1, 2]
    assert [m.model_version for m in runtime.score(job, day(10))] == [2]
    with pytest.raises(InvalidRequest, match=r"version 1 was not registered by this deployment.*one of \[2\]"):
        runtime.promote(job, 1, "the orphan")


@pytest.mark.parametrize("right", [1, 2, 3])
def test_an_alias_that_strangers_moved_stops_everything_until_a_person_says_who_is_right(three, job, day, right):
    three.registry.move_alias("orders", 1, expected=3)
    conflict = (
        r"moved outside.*expected version 3, promoted by decision promotion-.*got version 1.*promote orders .*1, 2, 3"
    )
    for attempt in (
        lambda: list(three.score(job, day(20))),
        lambda: list(three.score(job, day(20), model="current")),
        lambda: three.decide(job, day(21)),
        lambda: three.retrain(job, day(21)),
    ):
        with pytest.raises(AliasConflict, match=conflict):
            attempt()
    with pytest.raises(AliasConflict, match="not where it should be"):
        three.rollback(job, "not this one")
    three.promote(job, right, "settled", day(20))
    assert three.registry.champion("orders") == right
    assert [m.model_version for m in three.score(job, day(20))] == [right]


def test_a_removed_alias_is_put_back_by_promoting(three, job, day):
    three.registry._client.delete_registered_model_alias("orders", "champion")
    with pytest.raises(AliasConflict, match="got no alias"):
        list(three.score(job, day(20)))
    three.promote(job, 3, "put back", day(18))
    assert [m.model_version for m in three.score(job, day(20))] == [3]


def test_another_deployments_alias_is_named_before_anything_is_trained_over_it(ready, job, day, tmp_path):
    settings = Settings.in_home(tmp_path / "other", jobs=tmp_path, tracking_uri=ready.settings.tracking_uri)
    with Runtime(settings, ready.clock) as other:
        with pytest.raises(AliasConflict, match=r"the ledger knows no promotion.*PIPELINE_LEDGER_URL.*model\.name"):
            list(other.score(job, day(10)))
        with pytest.raises(AliasConflict):
            other.retrain(job, day(12), bootstrap=True)
    assert ready.registry.champion("orders") == 1
    assert ready.registry.versions("orders") == [1]


def test_each_rollback_goes_one_champion_further_back_and_the_first_one_stays(three, job, day):
    assert three.rollback(job, "3 is bad")[0].model.version == 2
    assert three.rollback(job, "2 is bad too")[0].model.version == 1
    assert three.registry.champion("orders") == 1
    with pytest.raises(InvalidRequest, match=r"no earlier champion.*version 1, the first one.*pipeline promote"):
        three.rollback(job, "1 as well")
    three.promote(job, 3, "it was not that bad")
    assert three.rollback(job, "it was")[0].model.version == 1


def test_rollbacks_with_restating_give_every_withdrawn_partition_to_the_version_that_stands(three, job, day):
    assert [m.model_version for m in three.ledger.manifests("orders")] == [1, 2, 2, 2, 2, 3, 3, 3]
    _, restated = three.rollback(job, "3 is bad", restated=True)
    assert [m.start for m in restated] == [day(17), day(18), day(19)]
    _, restated = three.rollback(job, "2 is bad too", restated=True)
    assert [m.start for m in restated] == [day(n) for n in range(13, 20)]
    assert {m.model_version for m in three.ledger.manifests("orders")} == {1}
    assert {m.status for m in three.score(job, day(12), day(20))} == {"unchanged"}
    assert ruling(three, day, 12, 16, 20) == [1, 1, 1]


def test_a_restatement_that_was_killed_half_way_is_finished_and_goes_no_further_back(three, job, day):
    class DiesAtSecond(Ledger):
        def record_plan(self, plan):
            super().record_plan(plan)
            if plan.start == day(18):
                raise Killed

    with broken(three, DiesAtSecond) as dying, pytest.raises(Killed):
        dying.rollback(job, "3 is bad", restated=True)
    assert [m.model_version for m in three.ledger.manifests("orders")][-3:] == [2, 3, 3]
    done, restated = three.rollback(job, "3 is bad", restated=True)
    assert (done.model.version, [m.start for m in restated]) == (2, [day(18), day(19)])
    assert three.registry.champion("orders") == 2
    assert three.rollback(job, "2 is bad too", restated=True)[0].model.version == 1


def test_a_rollback_can_be_restated_afterwards(three, job, day):
    three.rollback(job, "3 is bad")
    assert ruling(three, day, 18) == [3]
    done, restated = three.rollback(job, "and what it published", restated=True)
    assert (done.model.version, len(restated)) == (2, 3)
    assert ruling(three, day, 17, 18, 20) == [2, 2, 2]


def test_a_promotion_that_is_dated_back_rules_from_then_on_and_can_be_rolled_back(three, job, day):
    three.rollback(job, "3 is bad")
    three.promote(job, 3, "it was good all along", day(19))
    assert ruling(three, day, 17, 18, 19, 25) == [2, 3, 3, 3]
    assert [m.model_version for m in three.score(job, day(20))] == [3]
    assert three.rollback(job, "it was not", restated=True)[0].model.version == 2
    assert ruling(three, day, 17, 19, 25) == [2, 2, 2]
    assert [m.model_version for m in three.score(job, day(20))] == [2]


def test_a_version_cannot_be_champion_before_it_was_trained(three, job, day):
    with pytest.raises(
        InvalidRequest, match=r"version 2 .*learnt from what came later.*at or after 2026-01-14.*--model 2"
    ):
        three.promote(job, 2, "for the past", day(12))
    with pytest.raises(InvalidRequest, match=r"version 3 .*is already the champion"):
        three.promote(job, 3, "again", day(19))


def test_a_training_of_an_earlier_time_never_moves_the_alias(three, job, day):
    made = three.retrain(job, day(17), trigger=DRIFT)
    assert made.outcome in ("kept", "insufficient_data")
    forced = three.retrain(job, day(16), trigger=DRIFT)
    assert three.registry.champion("orders") == 3
    assert ruling(three, day, 16, 17, 20) == [2, 2, 3]
    assert forced.outcome != "promoted"


def test_a_proven_challenger_of_an_earlier_time_is_recorded_and_kept(ready, job, day):
    careful = job.model_copy(update={"promote": job.promote.model_copy(update={"mode": "disabled"})})
    ready.retrain(careful, day(24))
    ready.promote(job, 2, "by hand", day(28))
    made = ready.retrain(job, day(26), trigger=DRIFT)
    assert (made.outcome, made.gate.outcome) == ("kept", "promote")
    assert "Nothing is moved: version 2 took over later, at 2026-01-28T00:00:00Z." in made.reason
    assert ready.registry.champion("orders") == 2


def test_a_version_that_was_rolled_back_is_not_brought_back_by_a_rerun_of_its_training(ready, job, day):
    ready.retrain(job, day(26), trigger=DRIFT)
    ready.rollback(job, "it is bad", restated=True)
    made = ready.retrain(job, day(26), trigger=DRIFT)
    assert made.outcome == "kept"
    assert "version 2 was champion before and was replaced; only a person brings it back" in made.reason
    assert ready.registry.champion("orders") == 1


def test_a_model_of_the_registry_without_the_ledgers_knowledge_is_no_champion(runtime, job, day):
    context = runtime.context(job)
    assert champion.latest(context) is None
    runtime.retrain(job, day(10), bootstrap=True)
    assert champion.latest(context).model == champion.current(context) == champion.at(context, day(10))
