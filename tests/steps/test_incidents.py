"""Reports lead to incidents in a real ledger, and the command line lists them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline import cli
from pipeline.intervals import format_instant
from pipeline.steps import incidents
from pipeline.verdicts import DriftReport, Fault, PerformanceReport


@pytest.fixture
def job(make_job):
    return make_job()


@pytest.fixture
def ctx(runtime, job):
    return runtime.context(job)


@pytest.fixture
def drift(day):
    """A factory of drift reports on day N, of a broken column or of nothing at all."""

    def make(number: int, *broken: str, **changes: Any) -> DriftReport:
        fields: dict[str, Any] = {
            "job": "orders",
            "start": day(number),
            "end": day(number + 1),
            "verdict": "stable",
            "reason": "",
            "rows": 100,
            "window_start": day(number),
            "model_version": 1,
            "detector": "scipy",
            "columns": (),
            "faults": tuple(Fault(kind="stuck", column=name, detail="one value in all rows") for name in broken),
        }
        return DriftReport(**{**fields, **changes})

    return make


@pytest.fixture
def degraded(day):
    """A factory of performance reports on a degraded day N."""

    def make(number: int, **changes: Any) -> PerformanceReport:
        fields: dict[str, Any] = {
            "job": "orders",
            "start": day(number),
            "end": day(number + 1),
            "as_of": day(number + 3),
            "verdict": "drift",
            "reason": "roc_auc 0.5 is worse than the limit 0.6",
            "metric": "roc_auc",
            "value": 0.5,
            "limit": 0.6,
            "n": 100,
            "rows_scored": 100,
            "model_version": 1,
            "slices": (),
        }
        return PerformanceReport(**{**fields, **changes})

    return make


def test_a_cause_opens_lasts_and_closes_in_the_ledger(ctx, drift, day):
    (first,) = incidents.follow(ctx, drift(1, "amount"))
    (second,) = incidents.follow(ctx, drift(2, "amount"))
    assert (first.id, first.intervals, second.id, second.intervals) == (first.id, 1, first.id, 2)
    assert ctx.ledger.incidents("orders", open_only=True) == [second]
    (doubtful,) = incidents.follow(ctx, drift(3))
    assert doubtful.status == "open"
    (over,) = incidents.follow(ctx, drift(4))
    assert (over.id, over.status, over.closed) == (first.id, "closed", day(5))
    assert ctx.ledger.incidents("orders") == [over]
    assert ctx.ledger.incidents("orders", open_only=True) == []


def test_all_reports_again_change_nothing(ctx, drift, degraded):
    reports = [
        drift(1, "amount"),
        drift(2, "amount", "country"),
        degraded(1),
        drift(3),
        degraded(2),
        drift(4),
        drift(5),
    ]
    for report in reports:
        incidents.follow(ctx, report)
    before = ctx.ledger.incidents("orders")
    assert {incident.status for incident in before} == {"open", "closed"}
    assert [incidents.follow(ctx, report) for report in reports] == [[]] * len(reports)
    assert ctx.ledger.incidents("orders") == before


def test_backfills_open_update_and_close_nothing(ctx, drift, degraded):
    assert incidents.follow(ctx, drift(1, "amount", quiet=True)) == []
    assert incidents.follow(ctx, degraded(1, quiet=True)) == []
    assert ctx.ledger.incidents("orders") == []
    lasting = incidents.follow(ctx, drift(2, "amount"))
    for number in (3, 4, 5):
        assert incidents.follow(ctx, drift(number, quiet=True)) == []
    assert ctx.ledger.incidents("orders") == lasting


def test_a_cause_that_comes_back_after_its_end_is_a_new_incident(ctx, drift):
    for number, broken in enumerate([["amount"], [], [], ["amount"]], start=1):
        incidents.follow(ctx, drift(number, *broken))
    first, second = ctx.ledger.incidents("orders")
    assert (first.status, second.status) == ("closed", "open")
    assert first.id != second.id


def test_every_change_is_one_line_in_the_log(ctx, drift, caplog):
    with caplog.at_level("INFO", logger="pipeline.steps.incidents"):
        (opened,) = incidents.follow(ctx, drift(1, "amount"))
        incidents.follow(ctx, drift(1, "amount"))
    (line,) = caplog.messages
    assert line == f"{opened.id} broken_data:amount: tier page, open, 1 intervals: stuck: one value in all rows"


def test_the_runtime_gives_open_incidents_or_all(runtime, job, ctx, drift, degraded):
    for report in (drift(1, "amount"), drift(2), drift(3), degraded(1)):
        incidents.follow(ctx, report)
    assert [i.cause for i in runtime.incidents(job)] == ["degradation"]
    assert {i.cause for i in runtime.incidents(job, open_only=False)} == {"degradation", "broken_data:amount"}


@pytest.fixture
def shell(in_environment, job, capsys):
    """The command line on the deployment of ``runtime``: exit code, lines, and what stdout holds in all."""
    in_environment(job)

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main(["incidents", "orders", *arguments])
        return code, capsys.readouterr().out

    return run


def test_the_command_lists_open_incidents_as_a_table(shell, ctx, drift, degraded, day):
    for report in (drift(1, "amount"), drift(2), drift(3), degraded(1), degraded(2)):
        incidents.follow(ctx, report)
    code, out = shell()
    head, facts, reason = out.splitlines()
    assert code == 0
    assert head.split() == ["tier", "cause", "opened", "latest", "intervals", "closed", "id"]
    (incident,) = ctx.ledger.incidents("orders", open_only=True)
    opened, latest = format_instant(day(1)), format_instant(day(2))
    assert facts.split() == ["page", "degradation", opened, latest, "2", "-", incident.id]
    assert facts.index(incident.id) == head.index("id")
    assert reason == f"  {incident.reason}"
    assert len(shell("--all")[1].splitlines()) == 5


def test_the_command_prints_json_that_reads_back(shell, ctx, drift):
    for report in (drift(1, "amount"), drift(2), drift(3), drift(4, "country")):
        incidents.follow(ctx, report)
    assert [i["cause"] for i in json.loads(shell("--json")[1])["incidents"]] == ["broken_data:country"]
    found = json.loads(shell("--json", "--all")[1])
    assert found["job"] == "orders"
    assert found["incidents"] == [i.model_dump(mode="json") for i in ctx.ledger.incidents("orders")]


def test_the_command_says_when_nothing_is_wrong(shell):
    assert shell() == (0, "job orders has no open incident\n")
    assert shell("--all") == (0, "job orders has no incident\n")
