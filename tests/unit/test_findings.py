"""The demo's verdict on itself: every expectation that does not come true is named, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from examples import findings as found
from examples.findings import Findings
from pipeline.intervals import Interval
from pipeline.reports import Decision, Manifest, ModelRef, Promotion
from pipeline.verdicts import DriftReport, PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.job import JobSpec

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
CHANGE, PROMOTED = START + 2 * DAY, START + 4 * DAY
DAYS = [START + n * DAY for n in range(6)]


def manifest(start: datetime, version: int, **changes: object) -> Manifest:
    facts = {
        "job": "orders", "start": start, "end": start + DAY, "path": "p", "rows_in": 100, "rows_scored": 99,
        "rows_quarantined": 1, "reasons": {"null_key:row_id": 1}, "model_name": "orders", "model_version": version,
        "model_digest": "d", "fingerprint": "f", "sha256": "s", "code_version": "1", "quarantine_path": None,
        "report_uri": None, "status": "published",
    }  # fmt: skip
    return Manifest.model_validate({**facts, **changes})


def drift(start: datetime, verdict: str) -> DriftReport:
    return DriftReport.model_validate({
        "job": "orders", "start": start, "end": start + DAY, "verdict": verdict, "reason": "Because.", "rows": 99,
        "window_start": start, "model_version": 1, "detector": "scipy", "columns": (),
    })  # fmt: skip


def performance(start: datetime, value: float) -> PerformanceReport:
    return PerformanceReport.model_validate({
        "job": "orders", "start": start, "end": start + DAY, "as_of": start + 2 * DAY, "verdict": "stable", "reason": "",
        "metric": "roc_auc", "value": value, "limit": 0.7, "n": 99, "rows_scored": 99, "model_version": 1, "slices": (),
    })  # fmt: skip


def promotion(version: int, at: datetime, previous: int | None) -> Promotion:
    model = ModelRef(name="orders", version=version, digest="d")
    return Promotion(
        job="orders", model=model, effective_at=at, previous_version=previous, decision_id="x", reason="Better."
    )


def decision(kind, at: datetime, outcome: str) -> Decision:
    return Decision.of("orders", kind, at, outcome, "For a reason.", {"cause": "drift"})


@pytest.fixture
def good(make_job: Callable[..., JobSpec]) -> Findings:
    """Two quiet days, a change that is noticed and mended after two days, two good days."""
    return Findings(
        make_job(),
        tuple(Interval(day, day + DAY) for day in DAYS),
        {day: manifest(day, 1 if day < PROMOTED else 2) for day in DAYS},
        {day: drift(day, "drift" if CHANGE <= day < PROMOTED else "stable") for day in DAYS},
        {day: performance(day, value) for day, value in zip(DAYS, (0.8, 0.8, 0.5, 0.5, 0.75, 0.75), strict=True)},
        (decision("trigger", PROMOTED, "fire"), decision("gate", PROMOTED, "promote")),
        (promotion(1, START, None), promotion(2, PROMOTED, 1)),
    )


def test_a_loop_that_did_everything_has_no_unmet_expectation(good: Findings):
    assert found.unmet(good, CHANGE) == []
    assert found.unaccounted(good) == []


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (lambda f: replace(f, manifests={d: manifest(d, m.model_version, rows_quarantined=0) for d, m in f.manifests.items()}),
         "rows were quarantined"),
        (lambda f: replace(f, drift={**f.drift, DAYS[1]: drift(DAYS[1], "drift")}), "before the world changed"),
        (lambda f: replace(f, drift={d: drift(d, "stable") for d in DAYS}), "a drift verdict after"),
        (lambda f: replace(f, decisions=f.decisions[1:]), "a challenger trained"),
        (lambda f: replace(f, decisions=f.decisions[:1]), "passed the gate"),
        (lambda f: replace(f, promotions=f.promotions[:1]), "was promoted"),
        (lambda f: replace(f, drift={**f.drift, DAYS[5]: drift(DAYS[5], "drift")}), "no drift any more"),
        (lambda f: replace(f, manifests={**f.manifests, DAYS[5]: manifest(DAYS[5], 1)}), "not scored by v2.*2026-01-06"),
        (lambda f: replace(f, performance={**f.performance, DAYS[5]: performance(DAYS[5], 0.2)}), "is not better"),
        (lambda f: replace(f, performance={d: p for d, p in f.performance.items() if d < PROMOTED}), "not known"),
    ],
)  # fmt: skip
def test_an_expectation_that_did_not_come_true_is_named_alone(
    good: Findings, broken: Callable[[Findings], Findings], complaint: str
):
    (only,) = found.unmet(broken(good), CHANGE)
    assert re.search(complaint, only)


def test_missing_intervals_and_rows_that_do_not_add_up_are_named(good: Findings):
    manifests = {**good.manifests, DAYS[1]: manifest(DAYS[1], 1, rows_in=101)}
    del manifests[DAYS[0]]
    missing, wrong = found.unaccounted(replace(good, manifests=manifests))
    assert missing == "the interval 2026-01-01 was not scored"
    assert wrong == "rows of 2026-01-02 do not add up: 101 in, 99 scored, 1 quarantined"


def test_the_table_has_a_line_per_interval_also_for_one_that_is_not_known_yet(good: Findings):
    partial = replace(good, manifests={}, performance={}, drift={})
    lines = found.table(partial)
    assert lines[0].split() == ["interval", "rows", "quarantined", "drift", "roc_auc", "model"]
    assert len(lines) == 7
    assert found.table(good)[6].split() == ["2026-01-06", "100", "1", "stable", "0.750", "v2"]


def test_the_account_tells_change_alarm_training_gate_and_effect_in_order(good: Findings):
    story = "\n".join(found.account(good, CHANGE))
    parts = [
        "2026-01-03 the world changed",
        "first drift verdict",
        "training was started",
        "passed the gate",
        "replaced v1",
    ]
    assert [story.find(part) for part in parts] == sorted(story.find(part) for part in parts)
    assert all(part in story for part in parts)
    assert "0.500 from 2026-01-03 up to the promotion, 0.750 after it. Before the change it was 0.800" in story


def test_a_progress_line_says_what_was_known_and_decided_at_the_end_of_the_interval(good: Findings):
    line = found.progress(good, good.intervals[3], 2.5)
    assert "100 rows, 1 quarantined, v1" in line
    assert "roc_auc 0.500 on 2026-01-03" in line  # the latest that was known at its end, not the latest of all
    assert "TRAINING (drift): v2 promoted" in line
    assert line.endswith("[2.5 s]")
