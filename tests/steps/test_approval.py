"""A person's last word: approved, rejected, expired, superseded, replayed, and killed half way."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from pipeline import cli, tasks
from pipeline.errors import InvalidRequest
from pipeline.ledger import Ledger
from pipeline.registry import Registry
from pipeline.reports import TriggerDecision
from pipeline.runtime import Runtime
from pipeline.settings import Settings
from pipeline.steps import rollout
from pipeline.steps.audit import require_sound

DRIFT = TriggerDecision(fire=True, cause="drift", reason="test")


class Killed(BaseException):
    """Nothing that any handler expects, as a signal would be."""


class DiesBeforeAlias(Registry):
    def move_alias(self, name, version, expected):
        raise Killed


class DiesAfterApproval(Ledger):
    def record_decision(self, decision):
        if decision.kind == "rollout":
            raise Killed
        super().record_decision(decision)


class DiesBeforePromotion(Ledger):
    def record_promotion(self, promotion):
        raise Killed


@pytest.fixture
def job(orders_on, worlds):
    """A job on a world that turns on day 15; a person has the last word for three days."""
    return orders_on(
        worlds(first=-9, days=26, rows=150, change_on=15),
        model={"parameters": {"max_iter": 8}},
        promote={"mode": "enabled", "approval": {"required": True, "expires": "P3D"}},
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Where the deployment of `ready` is made once."""
    return tmp_path_factory.mktemp("approval")


@pytest.fixture
def ready(template, tmp_path, job, day):
    """A deployment with the champion of day 10 and versions 2 and 3, trained on days 24 and 26 and not compared yet."""
    if not (template / "done").exists():
        quiet = job.model_copy(update={"promote": job.promote.model_copy(update={"mode": "disabled"})})
        with Runtime(Settings.in_home(template, jobs=template / "jobs")) as runtime:
            runtime.retrain(job, day(10), bootstrap=True)
            for number in (24, 26):
                runtime.retrain(quiet, day(number), trigger=DRIFT)
        (template / "done").touch()
    for name in ("ledger.db", "mlflow.db"):
        with closing(sqlite3.connect(template / name)) as source, closing(sqlite3.connect(tmp_path / name)) as copy:
            source.backup(copy)
    settings = Settings.in_home(tmp_path, jobs=tmp_path / "jobs")
    with Runtime(settings, clock=lambda: datetime(2026, 1, 27, tzinfo=UTC)) as opened:
        yield opened
        require_sound(opened.audit(job))
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)


@pytest.fixture
def asked(ready, job, day):
    """The id of the request for version 3."""
    return ask(ready, job, day(26))


def ask(runtime, job, as_of):
    report = runtime.retrain(job, as_of, trigger=DRIFT)
    assert report.outcome == "awaiting_approval"
    return report.decision_ids[-1]


def recorded(runtime):
    return [decision.outcome for decision in runtime.ledger.decisions("orders", kind="approval")]


def champion(runtime):
    return runtime.registry.champion("orders"), runtime.ledger.champion("orders").model.version


def dying(runtime, part):
    other = Runtime(runtime.settings, runtime.clock)
    if issubclass(part, Ledger):
        other.ledger.close()
        other.ledger = part(runtime.settings.ledger_url, runtime.clock)
    else:
        other.registry = part(runtime.settings.tracking_uri, runtime.settings.home / "models")
    return other


def test_a_challenger_that_wins_waits_and_the_request_says_for_what_and_how_long(ready, job, day, asked):
    request = ready.explain(asked)
    gate = ready.explain(request.details["gate"])
    assert champion(ready) == (1, 1)
    assert (request.outcome, request.at, gate.outcome) == ("requested", day(26), "promote")
    assert request.details == {
        "gate": gate.id,
        "version": 3,
        "champion_version": 1,
        "expires_at": "2026-01-29T00:00:00Z",
    }
    again = ready.retrain(job, day(26), trigger=DRIFT)
    assert (again.outcome, again.decision_ids) == ("awaiting_approval", (gate.id, asked))
    assert recorded(ready) == ["requested"]


def test_an_approval_promotes_the_version_that_the_gate_saw_and_says_who_said_so(ready, job, day, asked):
    given = ready.answer(job, asked, "approved", "  looks right to me ", day(27))
    assert (given.decision.outcome, given.decision.reason, given.replayed) == ("approved", "looks right to me", False)
    assert (given.promotion.model.version, given.promotion.effective_at) == (3, day(27))
    assert given.promotion.reason == f"Approved ({given.decision.id}): looks right to me"
    assert champion(ready) == (3, 3)
    gate = given.decision.details["gate"]
    story = ready.story(ready.explain(given.promotion.decision_id))
    assert f"Version 3 had won the gate ({gate}) and was approved ({given.decision.id})." in story


def test_the_same_answer_again_changes_nothing_and_another_one_is_refused(ready, job, day, asked):
    first = ready.answer(job, asked, "approved", "looks right", day(27))
    before = ready.ledger.records("orders")
    again = ready.answer(job, asked, "approved", "as I said", day(28))
    assert (again.decision, again.promotion, again.replayed) == (first.decision, first.promotion, True)
    with pytest.raises(
        InvalidRequest, match=rf"{asked} was approved at 2026-01-27T.*looks right; expected the same answer"
    ):
        ready.answer(job, asked, "rejected", "changed my mind", day(28))
    assert ready.answer(job, asked, "expired").decision == first.decision
    assert ready.ledger.records("orders") == before


def test_a_rejection_keeps_the_champion_and_a_rerun_of_the_training_does_not_ask_again(ready, job, day, asked):
    given = ready.answer(job, asked, "rejected", "not on a Friday", day(27))
    assert (given.decision.outcome, given.promotion, champion(ready)) == ("rejected", None, (1, 1))
    again = ready.retrain(job, day(26), trigger=DRIFT)
    assert again.outcome == "kept"
    assert f"Its approval was rejected ({given.decision.id}): not on a Friday" in again.reason
    with pytest.raises(InvalidRequest, match=r"was rejected at"):
        ready.answer(job, asked, "approved", "after all", day(27))
    assert recorded(ready) == ["requested", "rejected"]


@pytest.mark.parametrize(("verdict", "late"), [("approved", 0), ("approved", 5), ("rejected", 1), ("expired", -1)])
def test_from_its_end_on_a_request_is_expired_whatever_is_said(ready, job, day, asked, verdict, late):
    given = ready.answer(job, asked, verdict, "sorry, I was away", day(29) + timedelta(hours=late))
    assert (given.decision.outcome, given.decision.at, given.promotion) == ("expired", day(29), None)
    assert ready.answer(job, asked, "approved", "still away", day(27)).decision == given.decision
    assert champion(ready) == (1, 1)
    assert recorded(ready) == ["requested", "expired"]


def test_a_champion_that_changed_meanwhile_supersedes_the_request(ready, job, day, asked):
    ready.promote(job, 2, "we could not wait", day(26))
    given = ready.answer(job, asked, "approved", "looks right", day(27))
    assert (given.decision.outcome, given.promotion, champion(ready)) == ("superseded", None, (2, 2))
    assert given.decision.reason == "The champion is version 2; the challenger was compared with version 1."


def test_a_newer_challenger_that_asks_supersedes_the_older_request(ready, job, day):
    old = ask(ready, job, day(24))
    new = ask(ready, job, day(26))
    assert recorded(ready) == ["requested", "superseded", "requested"]
    given = ready.answer(job, old, "approved", "the older one", day(26))
    assert (given.decision.outcome, given.replayed, champion(ready)) == ("superseded", True, (1, 1))
    assert f"Version 3 won the gate later ({new})." in given.decision.reason
    assert ready.answer(job, new, "approved", "the newer one", day(27)).promotion.model.version == 3


def test_an_older_request_that_is_over_by_then_expired_and_was_not_superseded(ready, job, day):
    brief = job.promote.approval.model_copy(update={"expires": timedelta(days=1)})
    hasty = job.model_copy(update={"promote": job.promote.model_copy(update={"approval": brief})})
    ask(ready, hasty, day(24))
    ask(ready, job, day(26))
    assert recorded(ready) == ["requested", "expired", "requested"]


@pytest.mark.parametrize("part", [DiesBeforeAlias, DiesBeforePromotion])
def test_an_approval_that_was_killed_half_way_is_completed_by_the_same_answer(ready, job, day, asked, part):
    with dying(ready, part) as other, pytest.raises(Killed):
        other.answer(job, asked, "approved", "looks right", day(27))
    given = ready.answer(job, asked, "approved", "looks right", day(27))
    assert (given.replayed, given.promotion.model.version, champion(ready)) == (True, 3, (3, 3))
    assert recorded(ready) == ["requested", "approved"]
    assert len(ready.ledger.promotions("orders")) == 2


def test_an_approval_whose_turn_is_over_after_a_kill_moves_nothing(ready, job, day, asked):
    with dying(ready, DiesBeforeAlias) as other, pytest.raises(Killed):
        other.answer(job, asked, "approved", "looks right", day(27))
    ready.promote(job, 2, "somebody else was quicker", day(27))
    assert ready.answer(job, asked, "approved", "looks right", day(28)).promotion is None
    assert champion(ready) == (2, 2)


@pytest.mark.parametrize(
    ("id", "reason", "at", "problem"),
    [
        (
            "approval-000000000000",
            "looks right",
            27,
            r"no request for an approval of job 'orders'.*waits for an answer \(approval-",
        ),
        (None, " ok", 27, "overrules the loop says why"),
        (
            None,
            "looks right",
            25,
            r"cannot be answered before it was asked; expected an instant at or after 2026-01-26",
        ),
    ],
)
def test_an_answer_to_nothing_without_a_reason_or_too_early_is_refused(ready, job, day, asked, id, reason, at, problem):
    with pytest.raises(InvalidRequest, match=problem):
        ready.answer(job, id or asked, "approved", reason, day(at))
    assert recorded(ready) == ["requested"]


@pytest.fixture
def front(ready, monkeypatch, job):
    """The environment of the deployment, for commands and tasks; its job file lies beside it."""
    for name in ("MLFLOW_TRACKING_URI", "PIPELINE_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    ready.settings.jobs.mkdir()
    (ready.settings.jobs / "orders.yaml").write_text(job.model_dump_json(exclude_none=True, by_alias=True))
    monkeypatch.setenv("PIPELINE_HOME", str(ready.settings.home))
    monkeypatch.setenv("PIPELINE_JOBS", str(ready.settings.jobs))
    return ready


def test_the_commands_answer_and_explain_tells_the_dialogue(front, asked, capsys):
    arguments = ("orders", "--id", asked, "--reason", "not today", "--at", "2026-01-27")
    assert cli.main(["reject", *arguments]) == 0
    assert "the champion was not moved" in capsys.readouterr().out
    assert cli.main(["approve", *arguments, "--json"]) == 65
    assert json.loads(capsys.readouterr().out)["error"] == "InvalidRequest"
    assert cli.main(["explain", asked]) == 0
    out = capsys.readouterr().out
    assert "job orders asked for a person's approval, until 2026-01-29T00:00:00Z, to make version 3 the champion" in out
    assert "Answer: At 2026-01-27T00:00:00Z somebody rejected that version 3 becomes the champion of job orders." in out


def test_a_task_shows_the_evidence_and_records_what_was_answered_in_the_time_of_the_data(front, asked, day):
    shown = tasks.ask("orders", asked)
    assert shown["subject"] == "orders: make version 3 the champion instead of version 1?"
    assert "- gain: 0." in shown["body"]
    assert f"(/pipeline/reports/orders/{shown['report']})" in shown["body"]
    assert (front.settings.home / "outputs/orders/reports" / shown["report"]).is_file()
    given = tasks.answer("orders", shown, approved=True, by="Ada", reason="", waited=timedelta(hours=5))
    assert (given["outcome"], given["reason"]) == ("promoted", "No reason given. (Ada, in Airflow)")
    assert front.ledger.champion("orders").effective_at == day(26) + timedelta(hours=5)
    assert tasks.ask("orders", asked) is None
    assert max(len(json.dumps(result)) for result in (shown, given)) < 4096


def test_a_task_records_that_nobody_answered(front, asked):
    given = tasks.answer(
        "orders", tasks.ask("orders", asked), approved=False, by=None, reason="", waited=timedelta(days=3)
    )
    assert (given["outcome"], recorded(front)) == ("expired", ["requested", "expired"])


@pytest.fixture
def careful(job):
    """The same job, in which what a person approved still has to prove itself on half of the entities."""
    rollout = job.promote.rollout.model_copy(update={"kind": "ab"})
    return job.model_copy(update={"promote": job.promote.model_copy(update={"rollout": rollout})})


def test_an_approval_starts_the_rollout_that_the_job_asks_for_and_moves_nothing(ready, careful, day):
    asked = ask(ready, careful, day(26))
    given = ready.answer(careful, asked, "approved", "looks right", day(26))
    assert (given.decision.outcome, given.promotion, champion(ready)) == ("approved", None, (1, 1))
    started = given.rollout.details
    assert (given.rollout.outcome, started["champion_version"], started["challenger_version"]) == ("started", 1, 3)
    assert given.rollout.reason.endswith(f"Approved ({given.decision.id}): looks right")
    (manifest,) = ready.score(careful, day(26))
    assert (manifest.model_version, manifest.challenger_version) == (1, 3)
    assert 0 < manifest.rows_challenger < manifest.rows_scored
    before = ready.ledger.records("orders")
    changed = careful.promote.rollout.model_copy(update={"share": 0.1})
    later = careful.model_copy(update={"promote": careful.promote.model_copy(update={"rollout": changed})})
    for again in (careful, later):
        repeated = ready.answer(again, asked, "approved", "as I said", day(27))
        assert (repeated.rollout, repeated.replayed) == (given.rollout, True)
    assert ready.ledger.records("orders") == before
    rerun = ready.retrain(careful, day(26), trigger=DRIFT)
    assert rerun.outcome == "rollout"
    assert (
        f"Its approval was approved ({given.decision.id}), and its rollout started ({given.rollout.id})" in rerun.reason
    )


def test_a_rejection_starts_no_rollout(ready, careful, day):
    asked = ask(ready, careful, day(26))
    assert ready.answer(careful, asked, "rejected", "not now", day(26)).rollout is None
    assert ready.ledger.decisions("orders", kind="rollout") == []


def test_an_approval_starts_no_second_rollout_beside_another_one(ready, careful, day):
    asked = ask(ready, careful, day(26))
    ctx = ready.context(careful)
    rollout.start(ctx, day(26), ctx.registered(1).model, ctx.registered(2).model, "For this test.")
    given = ready.answer(careful, asked, "approved", "looks right", day(27))
    assert (given.decision.outcome, given.rollout, given.promotion) == ("superseded", None, None)
    assert given.decision.reason.startswith("Nothing is moved: version 2 is in rollout (rollout-")


def test_an_approval_that_was_killed_before_the_rollout_started_starts_it_when_repeated(ready, careful, day):
    asked = ask(ready, careful, day(26))
    with dying(ready, DiesAfterApproval) as other, pytest.raises(Killed):
        other.answer(careful, asked, "approved", "looks right", day(26))
    assert recorded(ready) == ["requested", "approved"]
    assert ready.ledger.decisions("orders", kind="rollout") == []
    given = ready.answer(careful, asked, "approved", "looks right", day(27))
    assert (given.replayed, given.rollout.at) == (True, day(26))


def test_the_front_doors_tell_that_a_rollout_started(front, careful, day, capsys):
    (front.settings.jobs / "orders.yaml").write_text(careful.model_dump_json(exclude_none=True, by_alias=True))
    asked = ask(front, careful, day(26))
    shown = tasks.ask("orders", asked)
    given = tasks.answer("orders", shown, approved=True, by="Ada", reason="", waited=timedelta(hours=5))
    assert (given["outcome"], given["model_version"]) == ("rollout", 3)
    assert cli.main(["approve", "orders", "--id", asked, "--reason", "as Ada said"]) == 0
    assert f"its rollout started ({given['decision_ids'][-1]})" in capsys.readouterr().out
