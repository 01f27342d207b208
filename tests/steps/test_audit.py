"""The audit: sound after an honest life, and never after a change of ledger, alias or anchor; reasons are required."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from benchmarks.decisions.promotions import declared, deployment, measure
from pipeline import cli
from pipeline.errors import AuditFailed, InvalidRequest, PromotionConflict
from pipeline.runtime import Runtime
from pipeline.steps import champion
from pipeline.steps.audit import require_sound

DAY = timedelta(days=1)
T0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A deployment with five registered versions, of which 1, 2 and 3 were promoted and 3 was rolled back."""
    home = tmp_path_factory.mktemp("audit")
    settings = deployment(home)
    with Runtime(settings, clock=lambda: T0) as runtime:
        for version in (1, 2, 3):
            runtime.promote(declared(), version, f"because of {version}", T0 + version * DAY)
        runtime.rollback(declared(), "3 is bad", at=T0 + 9 * DAY)
    return home


@pytest.fixture
def runtime(template, tmp_path):
    """A copy of that deployment, opened."""
    for name in ("ledger.db", "mlflow.db"):
        with closing(sqlite3.connect(template / name)) as source, closing(sqlite3.connect(tmp_path / name)) as copy:
            source.backup(copy)
    from pipeline.settings import Settings

    with Runtime(Settings.in_home(tmp_path, jobs=tmp_path / "jobs"), clock=lambda: T0 + 20 * DAY) as opened:
        yield opened


def change(runtime, *statements):
    with closing(sqlite3.connect(runtime.settings.home / "ledger.db")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def misfits(runtime):
    (audit,) = runtime.audit(declared())
    return audit.misfits


def test_an_honest_life_is_sound_and_anchored_where_the_champion_was_last_moved(runtime):
    (audit,) = runtime.audit()
    assert audit.model_dump() == {
        "job": "orders",
        "records": 8,
        "promotions": 4,
        "champion": 2,
        "anchored": 7,
        "misfits": (),
    }
    require_sound([audit])


def test_a_job_without_any_record_is_sound(runtime):
    (audit,) = runtime.audit(declared().model_copy(update={"name": "returns"}))
    assert (audit.records, audit.anchored, audit.misfits) == (0, 0, ())


def test_a_changed_reason_is_named_with_what_was_expected(runtime):
    change(runtime, "UPDATE promotions SET payload = replace(payload, 'of 2', 'of 3') WHERE position = 4")
    (misfit,) = misfits(runtime)
    assert misfit.at == "promotion in row 2, position 4"
    with pytest.raises(
        AuditFailed, match=r"job 'orders' does not hold at promotion in row 2.*expected chain \w{64}; got chain"
    ):
        require_sound(runtime.audit())


def rewritten(runtime, table, old, new):
    """Change payloads and compute all links again, as somebody would who knows how."""
    change(
        runtime,
        f"UPDATE {table} SET payload = replace(payload, '{old}', '{new}')",
        *(
            f"ALTER TABLE {name} DROP COLUMN {column}"
            for name in ("decisions", "promotions")
            for column in ("position", "chain")
        ),
    )
    with Runtime(runtime.settings, runtime.clock):
        pass


def test_a_record_that_was_rewritten_with_all_its_links_contradicts_the_anchors(runtime):
    rewritten(runtime, "decisions", "of 2", "of 7")
    found = [misfit.at for misfit in misfits(runtime)]
    assert found[-1] == "the anchor on version 3, position 5"
    assert any(re.match(r"promotion in row 2 \(version 2 from 2026-01-03", at) for at in found)


def test_a_tail_that_was_cut_off_contradicts_the_anchors_and_the_alias(runtime):
    change(runtime, "DELETE FROM promotions WHERE position > 4", "DELETE FROM decisions WHERE position > 4")
    found = misfits(runtime)
    assert [misfit.at for misfit in found] == [
        "the anchor on version 2, position 7",
        "the anchor on version 3, position 5",
    ]
    assert found[0].got == "4 records in all"


def test_a_promotion_without_its_decision_or_with_another_one_is_found(runtime):
    rewritten(runtime, "promotions", "because of 3", "because I said so")
    assert misfits(runtime)[0].got == "version 3 after 2 from 2026-01-04T00:00:00Z: because I said so"
    decision = runtime.ledger.promotions("orders")[2].decision_id
    rewritten(runtime, "promotions", decision, "promotion-000000000000")
    assert misfits(runtime)[0].expected == "a decision promotion-000000000000"


def test_a_history_with_a_gap_is_no_linear_history(runtime):
    rewritten(runtime, "promotions", '"previous_version":2', '"previous_version":1')
    assert [misfit.expected for misfit in misfits(runtime)][1] == "previous version 2"


def test_an_alias_that_was_moved_elsewhere_is_found(runtime):
    runtime.registry.move_alias("orders", 5, expected=2)
    (misfit,) = misfits(runtime)
    assert (misfit.at, misfit.got) == ("alias 'champion' of model 'orders'", "version 5")


def test_an_anchor_that_was_changed_is_found(runtime):
    runtime.registry.tag("orders", 1, {champion.ANCHOR: "nonsense"})
    (misfit,) = misfits(runtime)
    assert (misfit.at, misfit.expected) == ("the anchor on version 1, position -1", "chain nonsense")


@pytest.fixture
def told(runtime, monkeypatch, capsys):
    """A function that runs a command on the deployment: exit code, output, errors."""
    monkeypatch.setenv("PIPELINE_HOME", str(runtime.settings.home))
    monkeypatch.setenv("PIPELINE_JOBS", str(runtime.settings.jobs))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PIPELINE_LEDGER_URL", raising=False)

    def run(*arguments):
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return run


def test_the_command_prints_a_line_per_job_and_ends_with_65_at_the_first_misfit(runtime, told):
    code, out, _ = told("audit")
    assert (code, out) == (0, "orders: sound: 8 records, 4 promotions, champion 2, anchored up to record 7\n")
    change(runtime, "UPDATE decisions SET at = at + 1 WHERE position = 1")
    code, out, err = told("audit", "--json")
    answer = json.loads(out)
    assert (code, answer["error"], answer["jobs"][0]["records"]) == (65, "AuditFailed", 8)
    assert re.search(r"orders: 1 do not fit: .*\n  decision promotion-\w{12}, position 1: expected chain", err)


@pytest.mark.parametrize("reason", ["", "  ", "ok", " a b "])
def test_whoever_overrules_the_loop_says_why(runtime, reason):
    job = declared()
    for attempt in (
        lambda: runtime.promote(job, 4, reason),
        lambda: runtime.rollback(job, reason),
        lambda: runtime.retrain(job, T0, bootstrap=True, reason=reason or " "),
    ):
        with pytest.raises(InvalidRequest, match=r"overrules the loop says why; expected a reason of at least 3 char"):
            attempt()
    assert runtime.audit(job)[0].records == 8


def test_a_move_that_was_decided_on_another_champion_is_a_conflict_and_moves_nothing(runtime):
    ctx, old = runtime.context(declared()), runtime.ledger.promotions("orders")[0]
    ref = ctx.registered(4).model
    with pytest.raises(
        PromotionConflict,
        match=r"expected version 1 by promotion-\w+; got version 2 by rollback-\w+.*run the same command again",
    ):
        champion.move(ctx, T0 + 30 * DAY, ref, "too late", "promotion", instead_of=old)
    (audit,) = runtime.audit()
    assert (audit.champion, audit.records, audit.misfits) == (2, 8, ())


def test_promotions_from_many_processes_make_one_linear_history(tmp_path):
    found = measure(processes=4, each=3, folder=tmp_path)
    assert {name: found[name] for name in ("promotions", "linear", "alias_is_last", "audit_sound", "unhandled")} == {
        "promotions": 12,
        "linear": True,
        "alias_is_last": True,
        "audit_sound": True,
        "unhandled": 0,
    }
    assert set(found["other_errors"]) <= {"InvalidRequest"}
