"""Nothing that is asked about the present grows with the past: counted in steps of the database's own machine, not in time.

And what a ledger keeps beside its history to that end follows from the history, also in one that was made without it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from pipeline.intervals import Interval, format_instant
from pipeline.ledger import Ledger, database
from pipeline.ledger.instants import microseconds
from pipeline.reports import Decision, Manifest, ModelRef, Promotion, ScoringPlan
from pipeline.steps import rollout
from pipeline.verdicts import DriftReport, Incident, Notice, PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np

DAY = timedelta(days=1)
END = datetime(2026, 1, 1, tzinfo=UTC)
FEW, MANY = 300, 3_000


def span(back: int) -> dict[str, Any]:
    return {"job": "orders", "start": END - back * DAY, "end": END - (back - 1) * DAY}


def manifest(back: int, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        **span(back),
        "path": "/out/part-0.parquet",
        "rows_in": 10,
        "rows_scored": 10,
        "rows_quarantined": 0,
        "reasons": {},
        "model_name": "orders",
        "model_version": 1,
        "model_digest": "d1",
        "fingerprint": f"f{back}",
        "sha256": "s",
        "code_version": "1",
        "quarantine_path": None,
        "report_uri": None,
        "status": "published",
    }
    return Manifest(**{**fields, **changes})


def plan(back: int) -> ScoringPlan:
    model = ModelRef(name="orders", version=1, digest="d1")
    return ScoringPlan(**span(back), model=model, files=(), fingerprint=f"f{back}")


def drift(back: int, **changes: Any) -> DriftReport:
    fields: dict[str, Any] = {
        **span(back),
        "verdict": "stable",
        "reason": "Nothing.",
        "rows": 10,
        "window_start": END - back * DAY,
        "model_version": 1,
        "detector": "scipy",
        "columns": (),
    }
    return DriftReport(**{**fields, **changes})


def performance(back: int, **changes: Any) -> PerformanceReport:
    fields: dict[str, Any] = {
        **span(back),
        "as_of": END - (back - 2) * DAY,
        "verdict": "stable",
        "reason": "Nothing.",
        "metric": "mae",
        "value": 2.0,
        "limit": 1.0,
        "n": 10,
        "rows_scored": 10,
        "model_version": 1,
        "slices": (),
    }
    return PerformanceReport(**{**fields, **changes})


def decision(number: int, kind: Any = "trigger", outcome: str = "hold", **details: Any) -> Decision:
    return Decision.of("orders", kind, END + number * DAY, outcome, f"Number {number}.", details)


def promotion(number: int) -> Promotion:
    model = ModelRef(name="orders", version=number, digest=f"d{number}")
    at = END - 10_000 * DAY + number * DAY
    return Promotion(
        job="orders",
        model=model,
        effective_at=at,
        previous_version=None,
        decision_id=f"promotion-{number}",
        reason="Good.",
    )


def incident(number: int, status: Any = "open", **changes: Any) -> Incident:
    opened = END - 10_000 * DAY + number * DAY
    fields: dict[str, Any] = {
        "id": f"incident-{number:012x}",
        "job": "orders",
        "cause": f"broken_data:c{number}",
        "kind": "broken_data",
        "tier": "page",
        "status": status,
        "columns": (),
        "opened": opened,
        "latest": opened,
        "closed": opened + DAY if status == "closed" else None,
        "intervals": 1,
        "reason": "stuck",
        "shown": (opened,),
    }
    return Incident(**{**fields, **changes})


def lived(path: Path, intervals: int) -> Ledger:
    """A ledger with that many intervals, all but the last three measured, and a promotion and an incident in each tenth."""
    ledger = Ledger(f"sqlite:///{path}", lambda: END)
    for number in range(intervals // 10):
        ledger.record_promotion(promotion(number + 1))
        for status in ("open", "closed"):
            ledger.record_incident(incident(number, status))
    for state, _, after in ledger.untold("orders"):
        ledger.record_told(state, Notice(incident=after, news="opened", channels=1))
    ledger.record_incident(incident(10_000))
    backs = range(intervals, 0, -1)
    rows: dict[sa.Table, list[dict[str, Any]]] = {
        database.plans: [facts(plan(back)) for back in backs],
        database.manifests: [{**facts(manifest(back)), "id": intervals - back + 1} for back in backs],
        database.drift: [{**facts(drift(back)), "loud_version": 1} for back in backs],
        database.performance: [
            {
                **facts(report),
                "as_of": microseconds(report.as_of),
                "loud_version": 1,
                "measured": intervals - back + 1,
            }
            for back in backs[:-3]
            for report in [performance(back)]
        ],
        database.decisions: [
            {
                "job": "orders",
                "recorded_at": 0,
                "payload": made.model_dump_json(),
                "decision": made.id,
                "kind": made.kind,
                "at": microseconds(made.at),
                "position": number,
                "chain": "link",
            }
            for number in range(intervals)
            for made in [decision(number - intervals)]
        ],
        database.tallies: [{"job": "orders", "intervals": intervals}],
        database.unmeasured: [
            {**{name: facts(manifest(back))[name] for name in KEYS}, "manifest": intervals - back + 1}
            for back in (3, 2, 1)
        ],
    }
    with ledger._writing() as connection:
        for table, made in rows.items():
            connection.execute(table.insert(), made)
    return ledger


KEYS = ("job", "interval_start", "interval_end")


def facts(report: Any) -> dict[str, Any]:
    return {
        "job": report.job,
        "interval_start": microseconds(report.start),
        "interval_end": microseconds(report.end),
        "recorded_at": 0,
        "payload": report.model_dump_json(),
    }


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Ledger]]:
    folder = tmp_path_factory.mktemp("ledgers")
    made = lived(folder / "few.db", FEW), lived(folder / "many.db", MANY)
    yield made
    for ledger in made:
        ledger.close()


@contextmanager
def counted(ledger: Ledger) -> Iterator[list[int]]:
    """Counts the statements, and the steps of SQLite's machine in hundreds, as they are taken."""
    count = [0, 0]

    def step() -> int:
        count[1] += 1
        return 0

    def statement(*_: Any) -> None:
        count[0] += 1

    def watch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(step, 100)

    sa.event.listen(ledger._engine, "checkout", watch)
    sa.event.listen(ledger._engine, "before_cursor_execute", statement)
    try:
        yield count
    finally:
        sa.event.remove(ledger._engine, "checkout", watch)
        sa.event.remove(ledger._engine, "before_cursor_execute", statement)


FORTNIGHT = {"since": END - 14 * DAY, "ended_by": END}
ASKED: dict[str, Callable[[Ledger], Any]] = {
    "plan": lambda ledger: ledger.plan("orders", Interval(END - DAY, END), "other"),
    "manifest": lambda ledger: ledger.manifest("orders", Interval(END - DAY, END)),
    "manifests": lambda ledger: ledger.manifests("orders", **FORTNIGHT),
    "published": lambda ledger: ledger.published("orders"),
    "unmeasured": lambda ledger: ledger.unmeasured("orders", ended_by=END),
    "drift of a fortnight": lambda ledger: ledger.drift("orders", **FORTNIGHT),
    "last drift": lambda ledger: ledger.drift("orders", ended_by=END, last=60),
    "last loud drift": lambda ledger: ledger.drift("orders", ended_by=END, last=60, loud_on=1),
    "drift of a version without any": lambda ledger: ledger.drift("orders", ended_by=END, last=60, loud_on=9),
    "performance of a fortnight": lambda ledger: ledger.performance("orders", since=END - 14 * DAY, as_of=END),
    "last performance": lambda ledger: ledger.performance("orders", as_of=END + DAY, last=60),
    "last loud performance": lambda ledger: ledger.performance("orders", as_of=END + DAY, last=60, loud_on=1),
    "course": lambda ledger: ledger.performance_course("orders", as_of=END, last=60),
    "performance at": lambda ledger: ledger.performance_at("orders", END),
    "champion": lambda ledger: ledger.champion("orders"),
    "champion at": lambda ledger: ledger.champion("orders", END),
    "rollouts": lambda ledger: ledger.decisions("orders", kind="rollout", until=END),
    "moves": lambda ledger: ledger.decisions("orders", kind=("promotion", "rollback"), last=1),
    "last decisions": lambda ledger: ledger.decisions("orders", last=5),
    "head": lambda ledger: ledger.head("orders"),
    "open incidents": lambda ledger: ledger.incidents("orders", open_only=True),
    "relevant incidents": lambda ledger: ledger.revise_incidents("orders", lambda _: [], closed_after=END, cause="x:1"),
    "untold": lambda ledger: ledger.untold("orders"),
    "status": lambda ledger: ledger.glances(["orders"], decided=5, rollouts=16),
}
RECORDED: dict[str, Callable[[Ledger], Any]] = {
    "manifest": lambda ledger: ledger.record_manifest(manifest(-1)),
    "drift": lambda ledger: ledger.record_drift(drift(-1)),
    "performance": lambda ledger: ledger.record_performance(performance(-1), manifest(-1)),
    "decision": lambda ledger: ledger.record_decision(decision(1)),
    "promotion": lambda ledger: ledger.record_promotion(promotion(9_999)),
    "incident": lambda ledger: ledger.record_incident(incident(10_001)),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_question_takes_no_more_steps_after_ten_times_the_intervals(
    ledgers: tuple[Ledger, Ledger], what: str
) -> None:
    steps = []
    for ledger in ledgers:
        with counted(ledger) as count:
            ASKED[what](ledger)
        steps.append(count[1])
    few, many = steps
    assert many <= 1.1 * few + 3, steps


@pytest.mark.parametrize("what", RECORDED)
def test_recording_takes_no_more_steps_after_ten_times_the_intervals(ledgers: tuple[Ledger, Ledger], what: str) -> None:
    steps = []
    for ledger in ledgers:
        with counted(ledger) as count:
            RECORDED[what](ledger)
        steps.append(count[1])
    few, many = steps
    assert many <= 1.1 * few + 3, steps


def test_a_look_at_many_jobs_takes_as_many_statements_as_at_one(ledgers: tuple[Ledger, Ledger]) -> None:
    statements = []
    for jobs in (["orders"], ["orders", *(f"other_{number}" for number in range(700))]):
        with counted(ledgers[0]) as count:
            found = ledgers[0].glances(jobs, decided=5, rollouts=16)
        statements.append(count[0])
        assert list(found) == jobs
        assert found["orders"].intervals >= FEW
        assert found["orders"].manifest is not None
    assert statements[0] == statements[1]


def test_a_glance_shows_what_the_single_questions_answer(tmp_path: Path) -> None:
    with closing(Ledger(f"sqlite:///{tmp_path}/ledger.db", lambda: END)) as ledger:
        for back in (3, 2, 4):
            ledger.record_manifest(manifest(back))
            ledger.record_drift(drift(back))
            ledger.record_performance(performance(back))
        ledger.record_manifest(manifest(2, rows_in=11))
        ledger.record_performance(performance(2, as_of=END + 9 * DAY, value=3.0))
        ledger.record_performance(performance(2, as_of=END + 5 * DAY, value=4.0))
        for number in range(7):
            ledger.record_decision(decision(number))
            ledger.record_decision(decision(number, "rollout", "advanced"))
        for number in (2, 1):
            ledger.record_promotion(promotion(number))
        seen = ledger.glances(["orders", "absent"], decided=5, rollouts=3)
        own = seen["orders"]
        assert (own.intervals, own.manifest) == (3, manifest(2, rows_in=11))
        assert own.drift == ledger.drift("orders", last=1)[0]
        assert (
            own.performance == ledger.performance("orders", last=1)[0] == performance(2, as_of=END + 9 * DAY, value=3.0)
        )
        assert own.champion == ledger.champion("orders") == promotion(1)
        assert list(own.decisions) == ledger.decisions("orders", last=5)
        assert list(own.rollouts) == ledger.decisions("orders", kind="rollout", last=3)
        empty = seen["absent"]
        assert (empty.intervals, empty.manifest, empty.champion, empty.decisions) == (0, None, None, ())


def present(ledger: Ledger) -> list[Any]:
    return [
        ledger.published("orders"),
        ledger.unmeasured("orders", ended_by=END + DAY),
        ledger.incidents("orders"),
        ledger.incidents("orders", open_only=True),
        ledger.untold("orders"),
        ledger.glances(["orders"], decided=5, rollouts=5),
    ]


def test_a_ledger_made_without_summaries_gets_them_and_the_indexes_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(Ledger(f"sqlite:///{path}", lambda: END)) as ledger:
        for back in (4, 3, 2, 1):
            ledger.record_manifest(manifest(back))
        ledger.record_performance(performance(4), manifest(4))
        ledger.record_performance(performance(3), manifest(3))
        ledger.record_manifest(manifest(3, fingerprint="again"))
        for state in (incident(1), incident(2), incident(2, "closed"), incident(3)):
            ledger.record_incident(state)
        for state, _, after in ledger.untold("orders")[:2]:
            ledger.record_told(state, Notice(incident=after, news="opened", channels=1))
        ledger.record_incident(incident(1, intervals=2))
        before = present(ledger)
        indexes = {index.name for table in database.metadata.tables.values() for index in table.indexes}
    assert [m.fingerprint for m in before[1]] == ["again", "f2", "f1"]
    with closing(sqlite3.connect(path)) as old:
        for table in database.SUMMARIES:
            old.execute(f"DROP TABLE {table.name}")
        for (name,) in old.execute(
            "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        ).fetchall():
            old.execute(f"DROP INDEX {name}")
        old.commit()
    with closing(Ledger(f"sqlite:///{path}", lambda: END)) as ledger:
        assert present(ledger) == before
        ledger.record_manifest(manifest(0))
        assert ledger.published("orders")[0] == 5
    with closing(sqlite3.connect(path)) as again:
        assert indexes <= {name for (name,) in again.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}


def test_the_last_reports_are_those_that_reading_all_of_them_finds(tmp_path: Path, rng: np.random.Generator) -> None:
    with closing(Ledger(f"sqlite:///{tmp_path}/ledger.db", lambda: END)) as ledger:
        for _ in range(120):
            back, version = int(rng.integers(1, 25)), int(rng.integers(1, 3))
            as_of = END - (back - int(rng.integers(1, 4))) * DAY
            changes = {"model_version": version, "quiet": bool(rng.random() < 0.3), "reason": f"{rng.random()}"}
            ledger.record_performance(performance(back, as_of=as_of, **changes))
            ledger.record_drift(drift(back, **changes))
        for _ in range(40):
            last, until = int(rng.integers(1, 12)), END - int(rng.integers(-3, 25)) * DAY
            loud = [None, 1, 2][int(rng.integers(3))]
            every = ledger.performance("orders", as_of=until, loud_on=loud)
            assert ledger.performance("orders", as_of=until, loud_on=loud, last=last) == every[-last:]
            all_drift = ledger.drift("orders", ended_by=until, loud_on=loud)
            assert ledger.drift("orders", ended_by=until, loud_on=loud, last=last) == all_drift[-last:]


def test_the_latest_decisions_on_rollouts_tell_the_state_that_all_of_them_tell(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    at, running = END, ""
    with closing(Ledger(f"sqlite:///{tmp_path}/ledger.db", lambda: END)) as ledger:
        for number in range(150):
            at += DAY
            begins = not running or rng.random() < 0.02
            outcome = "started" if begins else str(rng.choice(["advanced", "rolled_back"], p=[0.96, 0.04]))
            back = at - int(rng.integers(0, 4)) * DAY if outcome == "rolled_back" else at + DAY
            details = {
                "rollout": running,
                "effective_at": format_instant(back),
                "kind": "canary",
                "champion_version": 1,
                "challenger_version": number,
                "share": 0.1,
                "key": ["id"],
            }
            made = Decision.of("orders", "rollout", at, outcome, f"Number {number}.", details)
            ledger.record_decision(made)
            running = made.id if begins else running if outcome == "advanced" else ""
        every = ledger.decisions("orders", kind="rollout")
        assert len(every) == 150
        for back in range(0, 150, 3):
            then = at - back * DAY
            known = ledger.decisions("orders", kind="rollout", until=then)
            assert rollout.state(rollout.recent(ledger, "orders", until=then)) == rollout.state(known)
            effective = [d for d in every if rollout.effective(d) <= then]
            latest = rollout.recent(ledger, "orders", effective_by=then)
            assert rollout.state(d for d in latest if rollout.effective(d) <= then) == rollout.state(effective)
