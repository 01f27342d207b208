"""People are told once of what opens, gets louder or closes, whatever fails in between."""

from __future__ import annotations

import json

import pytest

from pipeline import cli
from pipeline.channels import Channels
from pipeline.errors import NotDelivered
from pipeline.steps import notify
from pipeline.verdicts import Incident


@pytest.fixture
def job(make_job):
    return make_job()


@pytest.fixture
def ctx(runtime, job):
    return runtime.context(job)


@pytest.fixture
def record(ctx, day):
    """Record a state of the incident that opened on day N."""

    def recorded(number: int, **changes: object) -> Incident:
        fields = {
            "id": f"incident-{number:012x}",
            "job": "orders",
            "cause": "broken_data:amount",
            "kind": "broken_data",
            "tier": "page",
            "status": "open",
            "columns": ("amount",),
            "opened": day(number),
            "latest": day(number),
            "intervals": 1,
            "reason": "stuck: one value in all rows",
        }
        state = Incident.model_validate({**fields, **changes})
        ctx.ledger.record_incident(state)
        return state

    return recorded


@pytest.fixture
def told(ctx, mailbox):
    """Tell what is new: the titles that arrived."""

    def tell() -> list[str]:
        before = len(mailbox.received)
        notify.notify(ctx, Channels({"page": f"{mailbox.url}/page", "ticket": f"{mailbox.url}/ticket"}))
        return [f"{path} {post['title']}" for path, post in mailbox.received[before:]]

    return tell


def test_an_incident_is_told_when_it_opens_gets_louder_and_closes_and_not_while_it_lasts(record, told, day):
    assert told() == []
    record(1, tier="ticket")
    assert told() == ["/ticket [ticket] orders: broken data: amount (opened)"]
    record(1, tier="ticket", intervals=2)
    assert told() == []
    record(1, tier="page", intervals=3)
    assert told() == ["/page [page] orders: broken data: amount (escalated)"]
    record(1, tier="page", intervals=3, status="closed", closed=day(6))
    assert told() == ["/page [page] orders: broken data: amount (closed)"]
    assert told() == []


def test_a_message_says_why_since_when_and_where_to_look(record, told, mailbox, day):
    state = record(1, intervals=3, latest=day(3))
    told()
    ((_, post),) = mailbox.received
    assert post["message"].split("\n") == [
        "stuck: one value in all rows",
        "",
        "3 intervals since 2026-01-01T00:00:00Z, the latest 2026-01-03T00:00:00Z",
        f"{state.id} - pipeline incidents orders",
    ]


def test_log_lines_and_what_came_and_went_unseen_are_not_told(record, told, day):
    record(1, tier="log")
    record(2)
    record(2, status="closed", closed=day(5))
    assert told() == []
    record(1, tier="ticket")
    assert told() == ["/ticket [ticket] orders: broken data: amount (escalated)"]


def test_what_a_channel_refuses_is_told_later_and_nothing_is_told_twice(record, told, mailbox):
    record(1, tier="page")
    record(2, tier="ticket")
    record(3, tier="page")
    mailbox.refused.add("/ticket")
    with pytest.raises(NotDelivered, match="not told to 1 of 1 channels of tier 'ticket'"):
        told()
    mailbox.refused.clear()
    mailbox.received.clear()
    assert told() == [
        "/ticket [ticket] orders: broken data: amount (opened)",
        "/page [page] orders: broken data: amount (opened)",
    ]
    assert told() == []


def test_the_command_tells_the_channels_of_the_environment(in_environment, job, record, mailbox, monkeypatch, capsys):
    in_environment(job)
    monkeypatch.setenv("PIPELINE_NOTIFY_PAGE", f"{mailbox.url}/a {mailbox.url}/b")
    state = record(1)
    assert cli.main(["notify", "orders", "--json"]) == 0
    notice = {"incident": state.model_dump(mode="json"), "news": "opened", "channels": 2}
    assert json.loads(capsys.readouterr().out) == {"job": "orders", "told": [notice]}
    assert len(mailbox.received) == 2
    assert cli.main(["notify", "orders"]) == 0
    assert capsys.readouterr().out == "job orders has nothing new to tell\n"
