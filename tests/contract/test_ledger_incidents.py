"""Incidents in the ledger: on SQLite, and on PostgreSQL where PIPELINE_TEST_POSTGRES names an empty database."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from pipeline.ledger import Ledger
from pipeline.verdicts import Incident, Notice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = timedelta(days=1)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
RECORDED = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", *(["postgresql"] if os.environ.get("PIPELINE_TEST_POSTGRES") else [])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    url = os.environ["PIPELINE_TEST_POSTGRES"]
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for table in ("incidents", "told", "standing"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
    engine.dispose()
    return url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger(url, lambda: RECORDED)
    yield opened
    opened.close()


def incident(day: int = 0, **changes: Any) -> Incident:
    start = T0 + day * DAY
    fields: dict[str, Any] = {
        "id": f"incident-{day:012x}",
        "job": "orders",
        "cause": "broken_data:größe",
        "kind": "broken_data",
        "tier": "page",
        "status": "open",
        "columns": ("größe",),
        "opened": start,
        "latest": start,
        "intervals": 1,
        "reason": "stuck: 0.30000000000000004 in all rows",
        "shown": (start,),
    }
    return Incident(**{**fields, **changes})


def closed(day: int = 0) -> Incident:
    ends = (T0 + (day + 2) * DAY, T0 + (day + 3) * DAY)
    return incident(day, status="closed", closed=ends[-1], clear=ends)


def rows_in(url: str) -> int:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        count = connection.exec_driver_sql("SELECT count(*) FROM incidents").scalar_one()
    engine.dispose()
    return int(count)


def test_what_is_read_equals_what_was_recorded_also_by_another_ledger(ledger, url):
    for state in (incident(), closed(1)):
        ledger.record_incident(state)
    other = Ledger(url, lambda: RECORDED)
    assert other.incidents("orders") == ledger.incidents("orders") == [incident(), closed(1)]
    other.close()


def test_the_state_recorded_last_counts_and_every_state_is_kept(ledger, url):
    for state in (incident(), incident(intervals=2), closed()):
        ledger.record_incident(state)
    assert ledger.incidents("orders") == [closed()]
    assert rows_in(url) == 3


def test_the_same_state_is_recorded_once(ledger, url):
    for state in (incident(), incident(), closed(), closed()):
        ledger.record_incident(state)
    assert rows_in(url) == 2


def test_incidents_come_by_opening_whatever_was_recorded_last(ledger):
    for state in (incident(2), incident(0), incident(1), incident(0, intervals=2)):
        ledger.record_incident(state)
    assert [found.opened for found in ledger.incidents("orders")] == [T0, T0 + DAY, T0 + 2 * DAY]
    assert [found.opened for found in ledger.incidents("orders", last=2)] == [T0 + DAY, T0 + 2 * DAY]


def test_only_open_ones_are_those_whose_latest_state_is_open(ledger):
    for state in (incident(0), incident(1), incident(2), closed(2), incident(3, job="returns")):
        ledger.record_incident(state)
    assert ledger.incidents("orders", open_only=True) == [incident(0), incident(1)]
    assert ledger.incidents("orders", open_only=True, last=1) == [incident(1)]
    assert ledger.incidents("returns") == [incident(3, job="returns")]
    assert ledger.incidents("unknown") == []


def test_a_revision_is_given_the_open_incidents_and_those_asked_for_and_records_what_it_returns(ledger):
    former = incident(9, cause="label_drift", status="closed", closed=T0, clear=(T0,))
    for state in (incident(1), closed(0), closed(3), former, incident(2, job="returns")):
        ledger.record_incident(state)
    given: list[Incident] = []

    def revise(known: list[Incident]) -> list[Incident]:
        given.extend(known)
        return [closed(1)]

    assert ledger.revise_incidents("orders", revise, closed_after=T0 + 3 * DAY, cause="label_drift") == [closed(1)]
    assert given == [incident(1), closed(3), former]
    assert ledger.incidents("orders") == [closed(0), closed(1), closed(3), former]
    given.clear()
    ledger.revise_incidents("orders", lambda known: given.extend(known) or [])
    assert given == []


def test_a_revision_that_fails_records_nothing(ledger, url):
    with pytest.raises(ZeroDivisionError, match="division"):
        ledger.revise_incidents("orders", lambda known: [incident(1 // len(known))])
    assert rows_in(url) == 0


def test_revisions_at_the_same_time_see_each_other(url):
    def open_the_next() -> None:
        ledger = Ledger(url, lambda: RECORDED)
        start.wait()
        for _ in range(5):
            ledger.revise_incidents("orders", lambda known: [incident(len(known))])
        ledger.close()

    Ledger(url, lambda: RECORDED).close()
    start = threading.Barrier(4)
    writers = [threading.Thread(target=open_the_next) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    ledger = Ledger(url, lambda: RECORDED)
    assert [found.opened for found in ledger.incidents("orders")] == [T0 + day * DAY for day in range(20)]
    ledger.close()


def told(state: Incident) -> Notice:
    return Notice(incident=state, news="opened", channels=1)


def test_what_people_were_not_told_is_each_changed_incident_with_what_they_know_of_it(ledger):
    for state in (incident(0), incident(1), incident(1, intervals=2), incident(2, job="returns")):
        ledger.record_incident(state)
    untold = ledger.untold("orders")
    assert [(before, after) for _, before, after in untold] == [(None, incident(0)), (None, incident(1, intervals=2))]
    for state, _, after in untold:
        ledger.record_told(state, told(after))
    assert ledger.untold("orders") == []
    for state in (closed(1), incident(3), incident(0, intervals=2)):
        ledger.record_incident(state)
    assert [(before, after) for _, before, after in ledger.untold("orders")] == [
        (incident(1, intervals=2), closed(1)),
        (None, incident(3)),
        (incident(0), incident(0, intervals=2)),
    ]


def test_a_change_after_reading_is_not_taken_for_told(ledger):
    ledger.record_incident(incident())
    ((state, _, seen),) = ledger.untold("orders")
    ledger.record_incident(incident(intervals=2))
    ledger.record_told(state, told(seen))
    assert [(before, after) for _, before, after in ledger.untold("orders")] == [(incident(), incident(intervals=2))]
