"""The ledger keeps every promise on SQLite; on PostgreSQL too where PIPELINE_TEST_POSTGRES names an empty database."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from pipeline.errors import InvalidRequest, LedgerUnavailable, ModelTampered
from pipeline.intervals import Interval
from pipeline.ledger import Ledger
from pipeline.reports import Decision, InputFile, Manifest, ModelRef, Promotion, RegisteredModel, ScoringPlan
from pipeline.verdicts import ColumnDrift, DriftReport, PerformanceReport, SliceMetric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DAY = timedelta(days=1)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
RECORDED = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
TABLES = ("plans", "manifests", "drift", "performance", "decisions", "promotions", "models", "tallies", "unmeasured")


def _backends() -> list[str]:
    return ["sqlite", *(["postgresql"] if os.environ.get("PIPELINE_TEST_POSTGRES") else [])]


@pytest.fixture(params=_backends())
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/ledger.db"
    url = os.environ["PIPELINE_TEST_POSTGRES"]
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for table in TABLES:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
    engine.dispose()
    return url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger(url, lambda: RECORDED)
    yield opened
    opened.close()


def rows_in(url: str, table: str) -> int:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        count = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
    engine.dispose()
    return int(count)


def model_ref(version: int = 1) -> ModelRef:
    return ModelRef(name="orders", version=version, digest=f"d{version}")


def plan(day: int = 0, **changes: Any) -> ScoringPlan:
    fields: dict[str, Any] = {
        "job": "orders",
        "start": T0 + day * DAY,
        "end": T0 + (day + 1) * DAY,
        "model": model_ref(),
        "files": (InputFile(uri="/in/a.parquet", path="a.parquet", size=1, sha256="s"),),
        "fingerprint": "f",
    }
    return ScoringPlan(**{**fields, **changes})


def manifest(day: int = 0, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "job": "orders",
        "start": T0 + day * DAY,
        "end": T0 + (day + 1) * DAY,
        "path": "/out/part-0.parquet",
        "rows_in": 10,
        "rows_scored": 9,
        "rows_quarantined": 1,
        "reasons": {"not_null:amount": 1},
        "model_name": "orders",
        "model_version": 1,
        "model_digest": "d1",
        "fingerprint": "f",
        "sha256": "s",
        "code_version": "1",
        "quarantine_path": None,
        "report_uri": None,
        "status": "published",
    }
    return Manifest(**{**fields, **changes})


def drift(day: int = 0, **changes: Any) -> DriftReport:
    column = ColumnDrift(
        column="amount",
        role="feature",
        kind="number",
        verdict="drift",
        p_value=0.1 + 0.2,
        effect=1e-300,
        threshold=0.1,
        psi=None,
        null_share=0.0,
        reference_null_share=0.0,
        unseen_share=0.0,
        rows=10,
        reason="größer",
    )
    fields: dict[str, Any] = {
        "job": "orders",
        "start": T0 + day * DAY,
        "end": T0 + (day + 1) * DAY,
        "verdict": "drift",
        "reason": "one column",
        "rows": 10,
        "window_start": T0,
        "model_version": 1,
        "detector": "scipy",
        "columns": (column,),
    }
    return DriftReport(**{**fields, **changes})


def performance(day: int = 0, *, as_of: datetime, **changes: Any) -> PerformanceReport:
    fields: dict[str, Any] = {
        "job": "orders",
        "start": T0 + day * DAY,
        "end": T0 + (day + 1) * DAY,
        "as_of": as_of,
        "verdict": "stable",
        "reason": "within the limit",
        "metric": "roc_auc",
        "value": 0.8,
        "limit": 0.7,
        "n": 100,
        "rows_scored": 120,
        "model_version": 1,
        "slices": (SliceMetric(metric="roc_auc", slice="all", value=0.8, n=100),),
    }
    return PerformanceReport(**{**fields, **changes})


def promotion(version: int, at: datetime, **changes: Any) -> Promotion:
    fields: dict[str, Any] = {
        "job": "orders",
        "model": model_ref(version),
        "effective_at": at,
        "previous_version": version - 1 or None,
        "decision_id": f"promotion-{version}",
        "reason": "better",
    }
    return Promotion(**{**fields, **changes})


def registered(version: int = 1, **changes: Any) -> RegisteredModel:
    fields: dict[str, Any] = {
        "model": model_ref(version),
        "files": {"model.skops": "abc"},
        "as_of": T0,
        "train_start": T0 - 30 * DAY,
        "train_end": T0 - 10 * DAY,
        "holdout_end": T0,
    }
    return RegisteredModel(**{**fields, **changes})


def test_every_report_comes_back_equal_to_what_was_recorded(ledger: Ledger) -> None:
    decision = Decision.of("orders", "trigger", T0, "train", "3 of 5", {"effects": {"amount": 0.25}, "days": [1, 2]})
    ledger.record_plan(plan())
    ledger.record_manifest(manifest())
    ledger.record_drift(drift())
    ledger.record_performance(performance(as_of=T0 + 3 * DAY))
    ledger.record_decision(decision)
    ledger.record_promotion(promotion(1, T0))
    ledger.record_model("orders", registered())

    assert ledger.manifest("orders", Interval(T0, T0 + DAY)) == manifest()
    assert ledger.drift("orders") == [drift()]
    assert ledger.performance("orders") == [performance(as_of=T0 + 3 * DAY)]
    assert ledger.decision(decision.id) == decision
    assert ledger.promotions("orders") == [promotion(1, T0)]
    assert ledger.model("orders", 1) == registered()


def test_a_ledger_opened_again_still_has_its_history(url: str) -> None:
    first = Ledger(url, lambda: RECORDED)
    first.record_manifest(manifest())
    first.close()
    second = Ledger(url, lambda: RECORDED)
    found = second.manifests("orders")
    second.close()
    assert found == [manifest()]


def test_what_was_never_recorded_is_none_or_empty(ledger: Ledger) -> None:
    assert ledger.manifest("orders", Interval(T0, T0 + DAY)) is None
    assert ledger.decision("trigger-0") is None
    assert ledger.champion("orders", T0) is None
    assert ledger.model("orders", 1) is None
    for history in (ledger.manifests, ledger.drift, ledger.performance, ledger.promotions, ledger.models):
        assert history("orders") == []
    assert ledger.decisions() == []


@pytest.mark.parametrize(
    ("table", "record"),
    [
        ("plans", lambda ledger: ledger.record_plan(plan())),
        ("manifests", lambda ledger: ledger.record_manifest(manifest())),
        ("drift", lambda ledger: ledger.record_drift(drift())),
        ("performance", lambda ledger: ledger.record_performance(performance(as_of=T0 + 3 * DAY))),
        ("decisions", lambda ledger: ledger.record_decision(Decision.of("orders", "gate", T0, "keep", "r", {}))),
        ("promotions", lambda ledger: ledger.record_promotion(promotion(1, T0))),
        ("models", lambda ledger: ledger.record_model("orders", registered())),
    ],
)
def test_recording_the_same_again_leaves_no_trace(
    ledger: Ledger, url: str, table: str, record: Callable[[Ledger], None]
) -> None:
    for _ in range(3):
        record(ledger)
    assert rows_in(url, table) == 1


def test_the_same_instant_in_another_time_zone_is_the_same_report(ledger: Ledger, url: str) -> None:
    tokyo = timezone(timedelta(hours=9))
    ledger.record_manifest(manifest())
    ledger.record_manifest(manifest(start=T0.astimezone(tokyo), end=(T0 + DAY).astimezone(tokyo)))
    assert rows_in(url, "manifests") == 1


def test_a_rerun_that_published_nothing_does_not_hide_the_publication(ledger: Ledger, url: str) -> None:
    ledger.record_manifest(manifest())
    ledger.record_manifest(manifest(status="unchanged", quiet=True))
    assert ledger.manifests("orders") == [manifest()]
    assert rows_in(url, "manifests") == 1


def test_the_latest_record_of_an_interval_wins_and_the_earlier_one_is_kept(ledger: Ledger, url: str) -> None:
    ledger.record_manifest(manifest(sha256="old"))
    ledger.record_manifest(manifest(day=1))
    ledger.record_manifest(manifest(sha256="new"))
    assert [m.sha256 for m in ledger.manifests("orders")] == ["new", "s"]
    assert rows_in(url, "manifests") == 3


def test_going_back_to_an_earlier_content_is_recorded(ledger: Ledger) -> None:
    for sha256 in ("one", "two", "one"):
        ledger.record_manifest(manifest(sha256=sha256))
    assert ledger.manifest("orders", Interval(T0, T0 + DAY)) == manifest(sha256="one")


def test_manifests_are_bounded_by_their_end_and_ordered_by_start(ledger: Ledger) -> None:
    for day in (3, 0, 2, 1):
        ledger.record_manifest(manifest(day))
    ledger.record_manifest(manifest(0, job="other"))
    found = ledger.manifests("orders", since=T0 + DAY, ended_by=T0 + 3 * DAY)
    assert found == [manifest(1), manifest(2)]


def test_last_selects_the_newest_intervals_in_order(ledger: Ledger) -> None:
    for day in (4, 1, 3, 0, 2):
        ledger.record_drift(drift(day))
    assert ledger.drift("orders", ended_by=T0 + 4 * DAY, last=2) == [drift(2), drift(3)]
    assert ledger.drift("orders", last=0) == []
    assert len(ledger.drift("orders", last=99)) == 5


def test_a_quiet_repeat_does_not_replace_a_loud_report(ledger: Ledger) -> None:
    as_of = T0 + 3 * DAY
    ledger.record_drift(drift())
    ledger.record_drift(drift(quiet=True))
    ledger.record_performance(performance(as_of=as_of))
    ledger.record_performance(performance(as_of=as_of, quiet=True))
    assert ledger.drift("orders") == [drift()]
    assert ledger.performance("orders") == [performance(as_of=as_of)]


def test_a_loud_report_replaces_its_quiet_twin_and_a_quiet_one_with_news_is_kept(ledger: Ledger) -> None:
    ledger.record_drift(drift(quiet=True))
    ledger.record_drift(drift())
    assert ledger.drift("orders") == [drift()]
    ledger.record_drift(drift(quiet=True, rows=11))
    assert ledger.drift("orders") == [drift(quiet=True, rows=11)]


def test_performance_is_what_was_known_at_the_time(ledger: Ledger) -> None:
    early, late = T0 + 3 * DAY, T0 + 9 * DAY
    ledger.record_performance(performance(as_of=late, value=0.6))
    ledger.record_performance(performance(as_of=early, value=0.8))  # a backfill, recorded later
    ledger.record_performance(performance(1, as_of=late))
    assert ledger.performance("orders", as_of=early) == [performance(as_of=early, value=0.8)]
    assert ledger.performance("orders", as_of=early - DAY) == []
    assert [r.value for r in ledger.performance("orders")] == [0.6, 0.8]
    assert ledger.performance("orders", last=1) == [performance(1, as_of=late)]


def test_decisions_come_in_order_of_recording_and_can_be_narrowed(ledger: Ledger) -> None:
    late = Decision.of("orders", "trigger", T0 + DAY, "train", "late", {})
    early = Decision.of("orders", "gate", T0, "keep", "early", {})
    other = Decision.of("other", "gate", T0, "keep", "other", {})
    for decision in (late, early, other):
        ledger.record_decision(decision)
    assert ledger.decisions() == [late, early, other]
    assert ledger.decisions("orders", kind="gate") == [early]
    assert ledger.decisions(until=T0) == [early, other]
    assert ledger.decisions("orders", kind=("gate", "trigger"), last=1) == [early]
    assert ledger.decisions(last=2) == [early, other]
    assert ledger.decisions("orders", since=T0 + DAY) == [late]
    assert ledger.decisions("orders", since=T0, until=T0) == [early]


def test_the_champion_is_the_last_promotion_effective_by_then(ledger: Ledger) -> None:
    ledger.record_promotion(promotion(1, T0))
    ledger.record_promotion(promotion(2, T0 + 10 * DAY))
    assert ledger.champion("orders", T0 - DAY) is None
    assert ledger.champion("orders", T0 + 9 * DAY) == promotion(1, T0)
    assert ledger.champion("orders", T0 + 20 * DAY) == promotion(2, T0 + 10 * DAY) == ledger.champion("orders")
    assert ledger.champion("other", T0) is None
    assert ledger.champion("other") is None


def test_a_promotion_that_is_dated_back_rules_over_everything_recorded_before_it(ledger: Ledger) -> None:
    for move in (promotion(1, T0), promotion(2, T0 + 10 * DAY), promotion(3, T0 + 5 * DAY)):
        ledger.record_promotion(move)
    ruling = [ledger.champion("orders", T0 + day * DAY) for day in (4, 5, 20)]
    assert [p.model.version for p in ruling if p] == [1, 3, 3]
    assert [p.model.version for p in ledger.promotions("orders")] == [1, 2, 3]


def test_an_interval_is_unmeasured_until_a_report_about_its_latest_manifest(ledger: Ledger) -> None:
    for day in (1, 0, 2):
        ledger.record_manifest(manifest(day))
    ended_by = T0 + 3 * DAY
    assert ledger.unmeasured("orders", ended_by=T0 + 2 * DAY) == [manifest(0), manifest(1)]
    assert ledger.unmeasured("other", ended_by=ended_by) == []
    ledger.record_performance(performance(0, as_of=ended_by))  # found no label
    ledger.record_performance(performance(1, as_of=ended_by), manifest(1))
    assert ledger.unmeasured("orders", ended_by=ended_by) == [manifest(0), manifest(2)]
    ledger.record_performance(performance(0, as_of=ended_by + DAY), manifest(0))
    ledger.record_manifest(manifest(1, sha256="again"))
    assert ledger.unmeasured("orders", ended_by=ended_by) == [manifest(1, sha256="again"), manifest(2)]


def test_published_counts_intervals_and_shows_both_ends(ledger: Ledger) -> None:
    assert ledger.published("orders") == (0, None, None)
    for made in (manifest(3), manifest(0), manifest(0, sha256="new"), manifest(1), manifest(9, job="other")):
        ledger.record_manifest(made)
    assert ledger.published("orders") == (3, manifest(0, sha256="new"), manifest(3))


def test_the_performance_of_one_interval_is_the_latest_known(ledger: Ledger) -> None:
    for day, as_of in ((0, T0 + 3 * DAY), (0, T0 + 4 * DAY), (1, T0 + 4 * DAY)):
        ledger.record_performance(performance(day, as_of=as_of))
    assert ledger.performance("orders", interval=Interval(T0, T0 + DAY)) == [performance(0, as_of=T0 + 4 * DAY)]
    assert ledger.performance("orders", interval=Interval(T0 + 5 * DAY, T0 + 6 * DAY)) == []


def test_of_promotions_effective_at_one_instant_the_last_recorded_rules(ledger: Ledger) -> None:
    forward, back = promotion(2, T0), promotion(1, T0, previous_version=2, reason="rollback")
    for move in (forward, back):
        ledger.record_promotion(move)
    assert ledger.champion("orders", T0) == back
    ledger.record_promotion(forward)  # the same move once more, after a rollback, is a new move
    assert ledger.champion("orders", T0) == forward
    assert len(ledger.promotions("orders")) == 3


def test_a_version_is_never_registered_twice_with_other_facts(ledger: Ledger) -> None:
    ledger.record_model("orders", registered())
    with pytest.raises(ModelTampered, match=r"version 1 of model 'orders' .* expected digest d1; got digest evil"):
        ledger.record_model("orders", registered(model=ModelRef(name="orders", version=1, digest="evil")))
    assert ledger.model("orders", 1) == registered()


def test_models_are_listed_by_job_in_order_of_recording(ledger: Ledger) -> None:
    for version in (2, 1):
        ledger.record_model("orders", registered(version))
    ledger.record_model("other", registered(7))
    assert ledger.models("orders") == [registered(2), registered(1)]


def test_instants_are_stored_as_microseconds_and_stamped_by_the_given_clock(ledger: Ledger, url: str) -> None:
    ledger.record_manifest(manifest())
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT interval_start, interval_end, recorded_at FROM manifests").one()
    engine.dispose()
    assert tuple(row) == (1_767_225_600_000_000, 1_767_312_000_000_000, 1_780_315_200_123_456)


_RECORDER = """
import sys
from datetime import UTC, datetime
from pipeline.ledger import Ledger
from pipeline.reports import Decision

url, who, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
at = datetime(2026, 1, 1, tzinfo=UTC)
print("ready", flush=True)
sys.stdin.readline()
ledger = Ledger(url, lambda: at)
for number in range(count):
    ledger.record_decision(Decision.of("orders", "trigger", at, "none", "r", {"who": who, "number": number}))
    ledger.record_decision(Decision.of("orders", "trigger", at, "none", "shared", {"number": number}))
ledger.close()
"""


def test_processes_that_start_together_on_a_fresh_database_lose_nothing(url: str) -> None:
    processes, count = 6, 8
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _RECORDER, url, str(who), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert errors == [""] * processes
    ledger = Ledger(url, lambda: RECORDED)
    recorded = ledger.decisions()
    ledger.close()
    # What each process recorded alone is all there; what they all recorded is there once.
    own = {(d.details["who"], d.details["number"]) for d in recorded if d.reason == "r"}
    assert own == {(who, number) for who in range(processes) for number in range(count)}
    assert len(recorded) == processes * count + count


def test_opening_waits_for_a_process_that_is_writing_to_the_new_database(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.close)
    release.start()
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", lambda: RECORDED)
    release.join()
    ledger.record_manifest(manifest())
    assert ledger.manifests("orders") == [manifest()]
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_database_that_is_none_is_unavailable_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, whatever its name may promise" * 100)
    with pytest.raises(LedgerUnavailable, match="did not answer while recording; got file is not a database"):
        Ledger(f"sqlite:///{path}", lambda: RECORDED)


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnavailable, match="did not answer while being opened"):
        Ledger(f"sqlite:///{tmp_path}/file/ledger.db", lambda: RECORDED)


def test_an_unreachable_server_is_unavailable_and_the_password_stays_secret() -> None:
    with pytest.raises(LedgerUnavailable, match="did not answer") as caught:
        Ledger("postgresql+psycopg2://scorer:hunter2@127.0.0.1:1/ledger", lambda: RECORDED)
    assert "hunter2" not in "".join([str(caught.value), str(caught.value.__cause__), repr(caught.value.attrs())])
    assert "scorer:***@" in str(caught.value)


@pytest.mark.parametrize("url", ["hunter2", "hunter2://x", "postgresql+nosuchdriver://u:hunter2@h/d"])
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidRequest, match="URL cannot be used") as caught:
        Ledger(url, lambda: RECORDED)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
