"""Rollouts on a small real world: ramp, rollback, shadow, and bytes that do not depend on when an interval is scored."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import replay
from pipeline.errors import InvalidRequest, PromotionConflict
from pipeline.ledger import Ledger
from pipeline.registry import Registry
from pipeline.reports import Challenger, TriggerDecision
from pipeline.runtime import Runtime
from pipeline.steps import plan, rollout, score
from tests.worlds import day as start_of
from tests.worlds import write_world

DRIFT = TriggerDecision(fire=True, cause="drift", reason="Inputs drifted.")
CANARY = {"kind": "canary", "steps": [0.25, 0.5, 1.0], "intervals_per_step": 2, "min_labels": 40}


class Killed(BaseException):
    """The process ends here."""


class DiesBeforeAlias(Registry):
    def move_alias(self, *args, **kwargs):
        raise Killed


@pytest.fixture
def changed(worlds):
    """Days that turn on day 15: what was learnt before is wrong afterwards."""
    return worlds(first=-9, days=40, rows=200, change_on=15)


@pytest.fixture
def make(runtime, orders_on, changed, day):
    """A factory of jobs with a rollout policy, version 1 trained before the change and champion since day 10."""

    def made(**policy):
        job = orders_on(changed, promote={"mode": "enabled", "rollout": policy}, model={"parameters": {"max_iter": 8}})
        runtime.retrain(job, day(10), bootstrap=True)
        return job

    return made


def live(runtime, job, day, first, last):
    """Score, evaluate and advance as the DAGs do, day by day; returns the decisions on the rollout by day."""
    found = {}
    for number in range(first, last + 1):
        list(runtime.score(job, day(number)))
        runtime.evaluate(job, day(number + 1), strict=False)
        if decision := runtime.advance(job, day(number + 1)):
            found[number + 1] = decision
    return found


def trained(runtime, job, day, number):
    """A version trained on day ``number`` that nobody considers."""
    idle = job.model_copy(update={"promote": job.promote.model_copy(update={"mode": "disabled"})})
    return runtime.retrain(idle, day(number), trigger=DRIFT).model


def begin(runtime, job, day, number, ruling, challenger):
    context = runtime.context(job)
    models = [context.registered(version).model for version in (ruling, challenger)]
    return rollout.start(context, day(number), *models, "For this test.")


def published(runtime, job, number, dataset="predictions"):
    return Path(runtime.context(job).output) / dataset / f"ds={start_of(number):%Y-%m-%d}" / "part-0.parquet"


def rows(runtime, job, number, dataset="predictions"):
    return pq.read_table(published(runtime, job, number, dataset), partitioning=None)


def test_a_proven_challenger_takes_over_share_by_share_and_every_rerun_finds_the_same_bytes(runtime, make, day):
    job = make(**CANARY)
    list(runtime.score(job, day(25)))
    begun = runtime.retrain(job, day(26), trigger=DRIFT)
    assert (begun.outcome, begun.model.version, len(begun.decision_ids)) == ("rollout", 2, 2)
    assert runtime.registry.champion("orders") == 1
    assert runtime.retrain(job, day(26), trigger=DRIFT).decision_ids == begun.decision_ids
    decisions = live(runtime, job, day, 26, 29)
    busy = runtime.retrain(job, day(30), trigger=DRIFT)
    assert busy.outcome == "not_considered"
    assert f"version 2 is in rollout ({begun.decision_ids[1]})" in busy.reason
    assert runtime.status(job)["rollout"] == begun.decision_ids[1]
    decisions |= live(runtime, job, day, 30, 34)
    assert {number: (d.outcome, d.details["share"]) for number, d in decisions.items()} == {
        30: ("advanced", 0.5),
        34: ("completed", 1.0),
    }
    assert runtime.registry.champion("orders") == 2
    moved = runtime.ledger.promotions("orders")[-1]
    assert (moved.model.version, moved.previous_version, moved.effective_at) == (2, 1, day(35))
    assert moved.reason.startswith(f"Rollout {begun.decision_ids[1]} is complete. The challenger passed every share")
    story = runtime.story(runtime.explain(moved.decision_id))
    assert f"Version 2 had won the gate, and its rollout was completed ({decisions[34].id})." in story

    shares = [np.mean(rows(runtime, job, n)["variant"].to_numpy() == "challenger") for n in range(25, 35)]
    assert shares[0] == shares[-1] == 0
    assert shares[1:5] == pytest.approx([0.25] * 4, abs=0.1)
    assert shares[5:9] == pytest.approx([0.5] * 4, abs=0.1)
    for number in range(25, 35):
        table = rows(runtime, job, number)
        pairs = set(zip(table["variant"].to_pylist(), table["model_version"].to_pylist(), strict=True))
        assert pairs == (
            {("champion", 1 + number // 34)} if number in (25, 34) else {("champion", 1), ("challenger", 2)}
        )
    manifest = runtime.ledger.manifests("orders")[1]
    assert (manifest.model_version, manifest.challenger_version) == (1, 2)
    assert manifest.rows_challenger == round(shares[1] * manifest.rows_scored)
    footer = pq.read_metadata(published(runtime, job, 26)).metadata
    assert footer[b"challenger_version"] == b"2"
    assert footer[b"rollout"].decode() == begun.decision_ids[1]

    before = {n: published(runtime, job, n).read_bytes() for n in range(25, 35)}
    assert {m.status for m in runtime.score(job, day(25), day(35))} == {"unchanged"}
    for number in before:
        published(runtime, job, number).unlink()
    assert {m.status for m in runtime.score(job, day(25), day(35), quiet=True)} == {"published"}
    assert {n: published(runtime, job, n).read_bytes() for n in before} == before
    count = len(runtime.ledger.decisions("orders"))
    assert runtime.advance(job, day(34)) is None
    assert runtime.advance(job, day(30)) is None
    assert len(runtime.ledger.decisions("orders")) == count
    again = runtime.retrain(job, day(26), trigger=DRIFT)
    assert again.outcome == "kept"
    assert runtime.registry.champion("orders") == 2


@pytest.fixture
def worse(runtime, make, day):
    """A canary on the days 26 to 33 that proved worse on day 34: the job, and the decision to withdraw it."""

    def lived(**policy):
        job = make(**CANARY, **policy)
        trained(runtime, job, day, 26)
        runtime.promote(job, 2, "It is right since the change.", day(26))
        begin(runtime, job, day, 26, 2, 1)
        ((number, ended),) = live(runtime, job, day, 26, 34).items()
        # Five intervals prove it at the earliest, and labels mature after two days.
        assert (number <= 34, ended.outcome, ended.details["cause"]) == (True, "rolled_back", "worse")
        return job, number, ended

    return lived


def variants(runtime, job, numbers):
    return [set(rows(runtime, job, number)["variant"].to_pylist()) for number in numbers]


def test_a_challenger_that_turns_out_worse_is_rolled_back_while_few_meet_it(runtime, worse, day):
    job, number, ended = worse(restate=False)
    assert "proven worse: gain -0." in ended.reason
    assert ended.details["high"] < 0
    assert runtime.registry.champion("orders") == 2
    assert variants(runtime, job, range(26, number)) == [{"champion", "challenger"}] * (number - 26)
    assert variants(runtime, job, range(number, 35)) == [{"champion"}] * (35 - number)
    assert max(np.mean(rows(runtime, job, n)["variant"].to_numpy() == "challenger") for n in range(26, 35)) < 0.35
    assert runtime.status(job)["rollout"] is None


def test_what_a_withdrawn_challenger_had_scored_is_made_again_by_the_champion_and_stays_so(runtime, worse, day):
    job, number, ended = worse()
    assert ended.details["effective_at"] == "2026-01-27T00:00:00Z"
    assert variants(runtime, job, range(26, number)) == [{"champion"}] * (number - 26)
    made = [m for m in runtime.ledger.manifests("orders") if m.start >= day(26)]
    assert {(m.model_version, m.challenger_version) for m in made} == {(2, None)}
    assert {m.status for m in runtime.score(job, day(26), day(number))} == {"unchanged"}
    (incident,) = runtime.ledger.incidents("orders", open_only=True)
    assert (incident.cause, incident.tier, incident.opened) == ("challenger_withdrawn:1", "ticket", ended.at)

    # As a run leaves it that had planned before: the next call completes it, unless that is long ago.
    ctx, split = runtime.context(job), rollout.started(runtime.context(job), 1)
    other = Challenger(
        model=ctx.registered(1).model, kind="canary", share=0.25, salt=split.id, key=tuple(split.details["key"])
    )
    left = plan.plan(ctx, job.interval(day(28)), model=2, challenger=other)
    assert score.score(ctx, left).rows_challenger > 0
    assert runtime.advance(job, day(number) + timedelta(days=15)) is None
    assert variants(runtime, job, [28]) == [{"champion", "challenger"}]
    assert runtime.advance(job, day(number + 1)) is None
    assert variants(runtime, job, [28]) == [{"champion"}]
    assert runtime.ledger.incidents("orders", open_only=True) == [incident]
    runtime.decide(job, ended.at + timedelta(days=6))
    assert runtime.ledger.incidents("orders", open_only=True) == [incident]
    runtime.decide(job, ended.at + timedelta(days=7))
    (over,) = [known for known in runtime.ledger.incidents("orders") if known.id == incident.id]
    assert (over.status, over.closed) == ("closed", ended.at + timedelta(days=7))


def test_realised_performance_rests_on_the_champions_rows_and_tells_the_arms_apart(runtime, make, day):
    job = make(kind="ab")
    trained(runtime, job, day, 26)
    begin(runtime, job, day, 26, 1, 2)
    live(runtime, job, day, 26, 28)
    (report,) = [r for r in runtime.ledger.performance("orders") if r.start == day(26)]
    arms = {s.slice: (s.value, s.n) for s in report.slices if s.slice.startswith("variant=")}
    assert arms["variant=champion"] == (report.value, report.n) == (report.arms.champion, report.arms.n_champion)
    assert arms["variant=challenger"] == (report.arms.challenger, report.arms.n_challenger)
    assert report.n + report.arms.n_challenger == report.maturity.labelled == report.rows_scored == 200
    assert report.value < 0.5 < report.arms.challenger
    assert report.arms.gain == pytest.approx(report.arms.challenger - report.value)
    assert (report.arms.entities, report.arms.assigned) == (200, report.arms.n_challenger)
    assert report.model_version == 1


def test_a_shadow_publishes_nothing_and_completes_on_proof(runtime, make, day):
    job = make(kind="shadow")
    trained(runtime, job, day, 26)
    list(runtime.score(job, day(26), day(32)))
    alone = {n: published(runtime, job, n).read_bytes() for n in range(26, 32)}
    begin(runtime, job, day, 26, 1, 2)
    decisions = live(runtime, job, day, 26, 33)
    assert {n: published(runtime, job, n).read_bytes() for n in alone} == alone
    shadow = rows(runtime, job, 26, "shadow")
    assert set(shadow["model_version"].to_pylist()) == {2}
    assert shadow["row_id"].equals(rows(runtime, job, 26)["row_id"])
    assert "variant" not in shadow.column_names
    assert not list(Path(runtime.context(job).output, "predictions").rglob("*shadow*"))
    ((number, ended),) = decisions.items()
    assert (number, ended.outcome) == (33, "completed")
    assert "proven better" in ended.reason
    assert [m.model_version for m in runtime.score(job, day(32), day(34))] == [1, 2]
    assert not published(runtime, job, 33, "shadow").exists()

    kept = published(runtime, job, 28, "shadow").read_bytes()
    published(runtime, job, 28, "shadow").unlink()
    (again,) = runtime.score(job, day(28))
    assert again.status == "unchanged"
    assert published(runtime, job, 28, "shadow").read_bytes() == kept


@pytest.mark.parametrize("kind", ["ab", "shadow"])
def test_a_trial_without_proof_is_given_up_when_its_time_is_over(runtime, make, day, kind):
    job = make(kind=kind, max_intervals=2)
    trained(runtime, job, day, 26)
    begin(runtime, job, day, 26, 1, 2)
    ((number, ended),) = live(runtime, job, day, 26, 30).items()
    assert (number, ended.outcome) == (30, "rolled_back")
    assert ended.reason.startswith("2 intervals (days, if shorter) have matured, 2 are allowed, without an end")
    assert runtime.registry.champion("orders") == 1


def test_an_entity_keeps_its_model_from_interval_to_interval(runtime, orders_on, tmp_path, day):
    world = write_world(tmp_path / "data", first=1, days=20, rows=300)
    customers = [f"customer {number}" for number in range(80)]

    def with_customer(table):
        rng = np.random.default_rng(int(table["row_id"][0].as_py()))
        return table.append_column("customer", pa.array(rng.choice(customers, table.num_rows)))

    def like_features(number):
        known = pq.read_table(world.features(number), partitioning=None)["customer"]
        return lambda table: table.append_column("customer", known)

    for number in range(1, 21):
        world.rewrite(number, with_customer)
        world.rewrite(number, like_features(number), labels=True)
    policy = {
        "kind": "canary",
        "key": ["customer"],
        "steps": [0.2, 0.5, 1.0],
        "intervals_per_step": 2,
        "min_labels": 10,
    }
    job = orders_on(
        world,
        features={"uri": str(world.root / "features"), "key": ["row_id", "customer"]},
        promote={"mode": "enabled", "rollout": policy},
    )
    runtime.retrain(job, day(10), bootstrap=True)
    trained(runtime, job, day, 12)
    begin(runtime, job, day, 12, 1, 2)
    decisions = live(runtime, job, day, 12, 18)
    assert decisions[16].outcome == "advanced"
    belonged: dict[str, str] = {}
    for number in range(12, 19):
        table = rows(runtime, job, number)
        pairs = set(zip(table["customer"].to_pylist(), table["variant"].to_pylist(), strict=True))
        assert len(pairs) == len(dict(pairs))
        for customer, variant in pairs:
            assert not (belonged.get(customer) == "challenger" and variant == "champion")
            if number != 16:
                assert belonged.get(customer, variant) == variant
        belonged |= dict(pairs)
    report = next(r for r in runtime.ledger.performance("orders") if r.start == day(12))
    assert report.arms.entities == len(set(rows(runtime, job, 12)["customer"].to_pylist()))
    assert 0 < report.arms.assigned < report.arms.entities


def test_a_challenger_that_cannot_score_leaves_its_rows_to_the_champion_and_is_withdrawn_at_once(runtime, make, day):
    job = make(**CANARY)
    few = job.model_copy(
        update={"features": job.features.model_copy(update={"columns": {"amount": job.features.columns["amount"]}})}
    )
    trained(runtime, few, day, 26)
    begin(runtime, job, day, 26, 1, 2)
    (manifest,) = runtime.score(job, day(26))
    assert (manifest.rows_scored, manifest.rows_challenger) == (200, 0)
    assert manifest.challenger_fault.startswith(
        "version 2 cannot be used: version 2 of model 'orders' was trained on other"
    )
    assert set(rows(runtime, job, 26)["model_version"].to_pylist()) == {1}
    assert {m.status for m in runtime.score(job, day(26))} == {"unchanged"}
    ended = runtime.advance(job, day(27))
    assert (ended.outcome, ended.details["cause"]) == ("rolled_back", "fault")
    assert "cannot be used" in ended.reason


FRAGILE = """
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder


def build(job):
    known = ColumnTransformer([("country", OneHotEncoder(handle_unknown="error"), ["country"])])
    return make_pipeline(known, LogisticRegression())
"""


@pytest.mark.parametrize("kind", ["ab", "shadow"])
def test_a_challenger_that_breaks_on_new_values_never_stops_production(
    runtime, orders_on, tmp_path, day, monkeypatch, kind
):
    (tmp_path / "fragile.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    world = write_world(tmp_path / "data", first=-9, days=18, rows=200)
    job = orders_on(world, promote={"mode": "enabled", "rollout": {"kind": kind}})
    runtime.retrain(job, day(10), bootstrap=True)
    fragile = job.model_copy(
        update={"model": job.model.model_copy(update={"trainer": "fragile:build", "parameters": {}})}
    )
    trained(runtime, fragile, day, 12)
    begin(runtime, job, day, 12, 1, 2)

    def with_new_country(table):
        country = ["xx", *table["country"].to_pylist()[1:-1], "xx"]
        return table.set_column(table.column_names.index("country"), "country", pa.array(country))

    for number in (13, 14):
        world.rewrite(number, with_new_country)
    decisions = live(runtime, job, day, 12, 16)
    assert set(rows(runtime, job, 13)["model_version"].to_pylist()) == {1}
    assert rows(runtime, job, 13).num_rows == 200
    ((number, ended),) = decisions.items()
    assert ended.outcome == "rolled_back"
    assert "version 2 cannot score: ValueError: Found unknown categories ['xx']" in ended.reason
    # At once: no label of the 13th has come by then.
    assert number == 14
    manifest = runtime.ledger.manifest("orders", job.interval(day(13)))
    assert {m.status for m in runtime.score(job, day(13))} == {"unchanged"}
    assert runtime.ledger.manifest("orders", job.interval(day(13))) == manifest
    assert manifest.challenger_version is None
    if kind == "shadow":
        assert manifest.challenger_fault
        assert manifest.challenger_fault in ended.reason
        assert rows(runtime, job, 13, "shadow").num_rows == 0
    (incident,) = runtime.ledger.incidents("orders", open_only=True)
    assert (incident.cause, incident.tier, incident.reason) == ("challenger_withdrawn:2", "ticket", ended.reason)


def test_a_partition_whose_input_changed_is_made_again_by_both_of_its_versions(runtime, orders_on, tmp_path, day):
    world = write_world(tmp_path / "data", first=-9, days=30, rows=300, change_on=15)
    job = orders_on(world, promote={"mode": "enabled", "rollout": CANARY})
    runtime.retrain(job, day(10), bootstrap=True)
    trained(runtime, job, day, 26)
    begin(runtime, job, day, 26, 1, 2)
    list(runtime.score(job, day(26)))
    before = rows(runtime, job, 26)
    world.rewrite(26, lambda table: table.slice(0, 290))
    again = runtime.restate(job, day(26))
    assert (again.rows_scored, again.challenger_version) == (290, 2)
    assert rows(runtime, job, 26).equals(before.slice(0, 290))


def test_a_completion_that_was_killed_before_the_alias_moved_is_finished_by_the_next_run(runtime, make, day):
    job = make(kind="shadow")
    trained(runtime, job, day, 26)
    begin(runtime, job, day, 26, 1, 2)
    live(runtime, job, day, 26, 31)
    list(runtime.score(job, day(32)))
    runtime.evaluate(job, day(33), strict=False)

    with Runtime(runtime.settings, runtime.clock) as dying:
        dying.registry = DiesBeforeAlias(runtime.settings.tracking_uri, runtime.settings.home / "models")
        with pytest.raises(Killed):
            dying.advance(job, day(33))
    assert runtime.registry.champion("orders") == 1
    assert runtime.advance(job, day(33)) is None
    assert runtime.registry.champion("orders") == 2
    assert runtime.ledger.promotions("orders")[-1].effective_at == day(34)


class Overtaken(Ledger):
    """A ledger whose user is always a moment too late."""

    def moving(self, job):
        self.overtake()
        return super().moving(job)


def test_of_a_person_who_stops_a_rollout_and_a_step_at_the_same_time_one_wins_and_the_other_is_told(runtime, make, day):
    job = make(kind="ab", max_intervals=1)
    trained(runtime, job, day, 26)
    begin(runtime, job, day, 26, 1, 2)
    list(runtime.score(job, day(26)))
    runtime.evaluate(job, day(29))
    with Runtime(runtime.settings, lambda: day(29)) as slow, Runtime(runtime.settings, lambda: day(29)) as person:
        slow.ledger.close()
        slow.ledger = Overtaken(runtime.settings.ledger_url, slow.clock)
        slow.ledger.overtake = lambda: person.stop_rollout(job, "It looks odd.")
        with pytest.raises(
            PromotionConflict, match=r"went on while this step was prepared.*got rolled_back \(rollout-"
        ):
            slow.advance(job, day(29))
    (_, ended) = runtime.ledger.decisions("orders", kind="rollout")
    assert ended.reason == "Stopped by hand: It looks odd."


def test_a_person_who_moves_the_alias_ends_the_rollout(runtime, make, day):
    job = make(**CANARY)
    trained(runtime, job, day, 24)
    trained(runtime, job, day, 26)
    begin(runtime, job, day, 26, 1, 2)
    list(runtime.score(job, day(26)))
    runtime.promote(job, 3, "By hand.", day(28))
    assert [m.challenger_version for m in runtime.score(job, day(27))] == [None]
    ended = runtime.advance(job, day(28))
    assert (ended.outcome, ended.reason) == (
        "superseded",
        "The rollout of version 2 ends: version 3 became champion meanwhile.",
    )


def test_a_person_stops_a_rollout_and_is_told_when_there_is_none(runtime, make, day):
    job = make(**CANARY)
    trained(runtime, job, day, 26)
    with pytest.raises(InvalidRequest, match=r"no rollout under way.*pipeline rollout orders lists those"):
        runtime.stop_rollout(job, "Never mind.")
    begin(runtime, job, day, 26, 1, 2)
    (mixed,) = runtime.score(job, day(26))
    assert mixed.rows_challenger > 0
    with Runtime(runtime.settings, lambda: day(27)) as now:
        ended = now.stop_rollout(job, "It looks odd.")
        with pytest.raises(InvalidRequest, match="whoever overrules the loop says why"):
            now.stop_rollout(job, " ")
    assert (ended.outcome, ended.reason) == ("rolled_back", "Stopped by hand: It looks odd.")
    assert runtime.ledger.manifest("orders", job.interval(day(26))).challenger_version is None
    assert [m.challenger_version for m in runtime.score(job, day(26), day(28))] == [None, None]
    assert runtime.ledger.incidents("orders") == []


@pytest.mark.slow
def test_a_replay_lives_through_a_rollout(orders_on, changed, tmp_path, day):
    job = orders_on(
        changed,
        promote={"mode": "enabled", "rollout": CANARY},
        model={"parameters": {"max_iter": 8}},
        retrain={"every": "P9D"},
    )
    found = replay.replay(
        job,
        day(16),
        day(35),
        policy="closed_loop",
        workspace=tmp_path / "replay",
        jobs=tmp_path,
        progress=lambda _: None,
    )
    outcomes = [d["outcome"] for d in found["decisions"] if d["kind"] == "rollout"]
    assert outcomes[:3] == ["started", "advanced", "completed"]
    assert found["promotions"] == outcomes.count("completed")


def test_nothing_advances_while_promotion_is_not_enabled(runtime, make, day):
    job = make(**CANARY)
    trained(runtime, job, day, 26)
    begin(runtime, job, day, 26, 1, 2)
    careful = job.model_copy(update={"promote": job.promote.model_copy(update={"mode": "dry_run"})})
    assert live(runtime, careful, day, 26, 30) == {}
    assert runtime.advance(job, day(31)).outcome == "advanced"


def test_what_only_backfills_saw_advances_nothing(runtime, make, day):
    job = make(**CANARY)
    trained(runtime, job, day, 26)
    begin(runtime, job, day, 26, 1, 2)
    list(runtime.score(job, day(26), day(30), quiet=True))
    runtime.evaluate(job, day(33), quiet=True)
    assert runtime.advance(job, day(33)) is None


def test_a_job_without_split_rollouts_has_no_variant_column(runtime, make, day):
    job = make(kind="direct")
    (manifest,) = runtime.score(job, day(26))
    assert "variant" not in rows(runtime, job, 26).column_names
    assert manifest.challenger_version is None
    assert not any(b"challenger" in key for key in pq.read_metadata(published(runtime, job, 26)).metadata)
