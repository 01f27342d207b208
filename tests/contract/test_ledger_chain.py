"""Decisions and promotions are links of one chain per job: every byte counts, and old ledgers get theirs when opened."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from pipeline.chain import link
from pipeline.errors import LedgerUnavailable
from pipeline.ledger import Ledger
from pipeline.reports import Decision, ModelRef, Promotion
from pipeline.steps.audit import broken_link

T0 = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
# The two tables as they were before there was a chain.
BEFORE = """
CREATE TABLE decisions (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, decision TEXT NOT NULL, kind TEXT NOT NULL,
    at BIGINT NOT NULL, recorded_at BIGINT NOT NULL, payload TEXT NOT NULL, UNIQUE (decision)
);
CREATE INDEX decisions_by_job ON decisions (job);
CREATE TABLE promotions (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, effective_at BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL, payload TEXT NOT NULL
);
CREATE INDEX promotions_by_job_effective_at ON promotions (job, effective_at);
"""


def decision(number, job="orders"):
    """The decision on a move to version ``number``, größer than the one before."""
    details = {"version": number, "previous_version": number - 1 or None}
    return Decision.of(job, "promotion", T0 + number * DAY, "orders", f"größer {number}", details)


def promotion(number, job="orders"):
    made = decision(number, job)
    return Promotion(
        job=job,
        model=ModelRef(name="orders", version=number, digest=f"d{number}"),
        effective_at=made.at,
        previous_version=number - 1 or None,
        decision_id=made.id,
        reason=made.reason,
    )


def fill(ledger, *jobs):
    for number in (1, 2, 3):
        for job in jobs:
            ledger.record_decision(decision(number, job))
            ledger.record_promotion(promotion(number, job))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


def opened(path):
    """A ledger whose clock ticks a second at every row."""
    ticks = iter(range(10_000))
    return closing(Ledger(f"sqlite:///{path}", lambda: T0 + timedelta(seconds=next(ticks))))


@pytest.fixture
def filled(path):
    """A ledger with six records of each of two jobs."""
    with opened(path) as ledger:
        fill(ledger, "orders", "returns")
        yield ledger


def test_both_kinds_share_one_chain_per_job_in_order_of_recording(filled):
    for job in ("orders", "returns"):
        records = filled.records(job)
        assert [record.kind for record in records] == ["decision", "promotion"] * 3
        assert [record.position for record in records] == [1, 2, 3, 4, 5, 6]
        assert broken_link(records) is None
        assert filled.head(job) == (6, records[-1].chain)
    assert filled.jobs() == ["orders", "returns"]
    assert filled.head("unknown") == (0, "")
    assert filled.records("orders")[0].chain != filled.records("returns")[0].chain


def test_the_link_is_the_digest_of_the_link_before_and_of_every_column(filled):
    first, second, *_ = filled.records("orders")
    assert set(first.columns) == {"id", "job", "decision", "kind", "at", "position", "recorded_at", "payload"}
    assert set(second.columns) == {"id", "job", "effective_at", "position", "recorded_at", "payload"}
    assert first.chain == link("", "decision", first.columns)
    assert second.chain == link(first.chain, "promotion", second.columns)


def test_recording_the_same_again_adds_no_link(filled):
    before = filled.records("orders")
    filled.record_decision(decision(3))
    filled.record_promotion(promotion(3))
    assert filled.records("orders") == before


def bytes_of(text):
    """Some of the places where a text can be changed: both ends, and some between."""
    return sorted({0, 1, len(text) // 3, len(text) // 2, len(text) - 2, len(text) - 1} & set(range(len(text))))


def test_a_flipped_byte_of_any_column_of_any_record_is_found_and_the_record_is_named(filled, path):
    tried = 0
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for table in ("decisions", "promotions"):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            for row in database.execute(f"SELECT id FROM {table} WHERE job = 'orders' ORDER BY id").fetchall():
                for column in columns:
                    ((value,),) = database.execute(f"SELECT {column} FROM {table} WHERE id = ?", row)
                    text = str(value).encode()
                    for place in bytes_of(text):
                        changed = bytearray(text)
                        changed[place] ^= 1
                        new = int(changed) if isinstance(value, int) and changed.isdigit() else bytes(changed)
                        if new == value or (column == "id" and not isinstance(new, int)):
                            continue
                        # Below the database's own rules, as a changed file would be.
                        database.execute("BEGIN")
                        write = "CAST(? AS TEXT)" if isinstance(new, bytes) else "?"
                        taken = (
                            column == "id"
                            and database.execute(f"SELECT 1 FROM {table} WHERE id = ?", (new,)).fetchone()
                        )
                        if taken:
                            database.execute(f"UPDATE {table} SET id = -id WHERE id = ?", (new,))
                        database.execute(f"UPDATE {table} SET {column} = {write} WHERE id = ?", (new, *row))
                        database.execute("COMMIT")
                        found = [broken_link(filled.records(job)) for job in filled.jobs()]
                        assert any(found), f"{table} {row}: {column}, byte {place}: {value!r} became {new!r}"
                        tried += 1
                        back = (value, new) if column == "id" else (value, *row)
                        database.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", back)
                        if taken:
                            database.execute(f"UPDATE {table} SET id = -id WHERE id = ?", (-new,))
                        assert broken_link(filled.records("orders")) is None
    assert tried > 150


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("DELETE FROM promotions WHERE id = 3", r"decision promotion-\w+, position 4"),
        ("UPDATE decisions SET position = 4 - position WHERE job = 'orders' AND position IN (1, 3)", "position 1"),
        ("UPDATE promotions SET job = 'returns' WHERE job = 'orders' AND position = 2", "position 2"),
    ],
)
def test_a_record_that_is_gone_or_elsewhere_is_named_by_the_first_that_does_not_fit(filled, path, change, named):
    with closing(sqlite3.connect(path)) as database:
        database.execute(change)
        database.commit()
    misfit = broken_link(filled.records("orders"))
    assert misfit is not None
    with pytest.raises(AssertionError, match=named):
        raise AssertionError(misfit.at)


def test_text_that_is_none_any_more_is_found_and_not_stumbled_over(filled, path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE decisions SET payload = CAST(x'ff' || payload AS TEXT) WHERE id = 1")
        database.commit()
    misfit = broken_link(filled.records("orders"))
    assert misfit is not None
    assert misfit.expected.startswith("chain ")


def test_a_ledger_from_before_the_chain_gets_one_when_it_is_opened_and_goes_on(path):
    with closing(sqlite3.connect(path)) as database:
        database.executescript(BEFORE)
        for number in (1, 2, 3):
            for job in ("orders", "returns"):
                made, done = decision(number, job), promotion(number, job)
                at = int(made.at.timestamp()) * 1_000_000
                database.execute(
                    "INSERT INTO decisions (job, decision, kind, at, recorded_at, payload) VALUES (?, ?, ?, ?, ?, ?)",
                    (job, made.id, made.kind, at, number, made.model_dump_json()),
                )
                database.execute(
                    "INSERT INTO promotions (job, effective_at, recorded_at, payload) VALUES (?, ?, ?, ?)",
                    (job, at, number, done.model_dump_json()),
                )
        database.commit()
    with opened(path) as ledger:
        kinds = [record.kind for record in ledger.records("orders")]
        before = [ledger.records(job) for job in ledger.jobs()]
        assert kinds == ["decision", "promotion"] * 3
        assert [broken_link(records) for records in before] == [None, None]
        assert [p.model.version for p in ledger.promotions("orders")] == [1, 2, 3]
    with opened(path) as again:
        assert [again.records(job) for job in again.jobs()] == before
        again.record_decision(decision(4))
        records = again.records("orders")
        assert broken_link(records) is None
        assert [record.position for record in records] == [1, 2, 3, 4, 5, 6, 7]


def test_decisions_of_one_kind_are_found_by_an_index_that_older_ledgers_get_when_they_are_opened(path):
    with closing(sqlite3.connect(path)) as database:
        database.executescript(BEFORE)
    with opened(path):
        pass
    with closing(sqlite3.connect(path)) as database:
        asked = "EXPLAIN QUERY PLAN SELECT payload FROM decisions WHERE job = 'orders' AND kind = 'rollout' ORDER BY id DESC"
        ((*_, plan),) = database.execute(asked).fetchall()
    assert plan == "SEARCH decisions USING INDEX decisions_by_job_kind (job=? AND kind=?)"


def test_the_chain_of_an_upgraded_ledger_is_that_of_one_that_always_had_it(filled, path, tmp_path):
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as database:
        database.executescript(BEFORE)
        database.execute("ATTACH ? AS made", (str(path),))
        for table in ("decisions", "promotions"):
            columns = ", ".join(row[1] for row in database.execute(f"PRAGMA main.table_info({table})"))
            database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM made.{table}")
        database.commit()
    with opened(old) as ledger:
        assert ledger.records("orders") == filled.records("orders")


@pytest.mark.skipif("PIPELINE_TEST_POSTGRES" not in os.environ, reason="PIPELINE_TEST_POSTGRES names no empty database")
def test_postgresql_chains_upgrades_and_locks_alike(filled):
    url = os.environ["PIPELINE_TEST_POSTGRES"]
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for table in ("decisions", "promotions"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
    ticks = iter(range(10_000))
    with closing(Ledger(url, lambda: T0 + timedelta(seconds=next(ticks)))) as ledger:
        fill(ledger, "orders", "returns")
        assert ledger.records("orders") == filled.records("orders")
        with engine.begin() as connection:
            for table in ("decisions", "promotions"):
                connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN position, DROP COLUMN chain")
    with closing(Ledger(url, lambda: T0)) as ledger, closing(Ledger(url, lambda: T0)) as other:
        assert ledger.records("orders") == filled.records("orders")
        ledger.record_decision(decision(4))
        assert broken_link(ledger.records("orders")) is None
        order = []

        def second():
            with other.moving("orders"):
                order.append("second")

        thread = threading.Thread(target=second)
        with ledger.moving("orders"):
            thread.start()
            thread.join(0.3)
            with other.moving("returns"):
                order.append("first")
        thread.join()
        assert order == ["first", "second"]
    engine.dispose()


def test_only_one_at_a_time_moves_the_champion_of_a_job_and_other_jobs_do_not_wait(filled, path):
    order, holds = [], threading.Event()

    def second():
        with opened(path) as other:
            holds.wait()
            with other.moving("orders"):
                order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with filled.moving("orders"):
        holds.set()
        with filled.moving("returns"):
            order.append("another job")
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["another job", "first", "second"]


def test_a_lock_that_cannot_be_made_is_an_error_that_may_be_retried(filled, path):
    (path.parent / ".ledger.db.orders.lock").mkdir()
    with pytest.raises(LedgerUnavailable, match="did not answer while being locked"), filled.moving("orders"):
        pass
