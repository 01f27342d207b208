"""The page of a drift report: impact first, everything in words, and only what the report and its history say."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.effects import Distribution
from pipeline.pages import drift_page
from pipeline.verdicts import ColumnDrift, DriftReport, PerformanceReport

START = datetime(2026, 3, 1, tzinfo=UTC)


class Reader(HTMLParser):
    """The text of a page as a browser shows it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data


def column(name: str, **changes: Any) -> ColumnDrift:
    fields = {
        "column": name,
        "role": "feature",
        "kind": "number",
        "verdict": "stable",
        "p_value": 0.5,
        "effect": 0.01,
        "threshold": 0.1,
        "psi": None,
        "null_share": 0.0,
        "reference_null_share": 0.0,
        "unseen_share": 0.0,
        "rows": 100,
        "reason": "",
    }
    return ColumnDrift.model_validate({**fields, **changes})


def drifted(name: str, **changes: Any) -> ColumnDrift:
    fields = {"verdict": "drift", "moved": True, "signals": ("distribution",), "effect": 0.3, "low": 0.2, "high": 0.4}
    return column(name, **{**fields, "tier": "page", "importance": 0.4, "impact": 0.2, **changes})


def drift_report(**changes: Any) -> DriftReport:
    fields = {
        "job": "orders",
        "start": START,
        "end": START + timedelta(days=1),
        "verdict": "stable",
        "reason": "No column moved.",
        "rows": 100,
        "window_start": START - timedelta(days=6),
        "model_version": 3,
        "detector": "scipy",
        "columns": (column("amount"),),
    }
    return DriftReport.model_validate({**fields, **changes})


def performance_report(**changes: Any) -> PerformanceReport:
    fields = {
        "job": "orders",
        "start": START,
        "end": START + timedelta(days=1),
        "as_of": START + timedelta(days=4),
        "verdict": "stable",
        "reason": "roc_auc is within the limit.",
        "metric": "roc_auc",
        "value": 0.74,
        "low": 0.72,
        "high": 0.76,
        "limit": 0.68,
        "n": 90,
        "rows_scored": 100,
        "model_version": 3,
        "slices": ({"metric": "roc_auc", "slice": "all", "value": 0.74, "n": 90, "low": 0.72, "high": 0.76},),
    }
    return PerformanceReport.model_validate({**fields, **changes})


def estimate(**changes: Any) -> dict[str, Any]:
    fields = {"metric": "roc_auc", "value": 0.7123, "low": 0.69, "high": 0.73, "n": 100, "error": 0.01, "compared": 9}
    return {**fields, "is_valid": True, "verdict": "stable", "reason": "within the limit", **changes}


def separation(*names: str) -> dict[str, Any]:
    ranked = [(name, 0.1) for name in names]
    return {
        "auc": 0.71,
        "threshold": 0.6,
        "p_value": 0.01,
        "moved": True,
        "verdict": "drift",
        "ranked": ranked,
        "rows": 90,
    }


def bars(text: str = "a", bins: int = 3) -> Distribution:
    labels = (text, *(f"{text} {index}" for index in range(1, bins)))
    return Distribution(labels, tuple([1 / bins] * bins), (1.0, *[0.0] * (bins - 1)))


def earlier_report(report: DriftReport, days: int) -> DriftReport:
    back = timedelta(days=days)
    return report.model_copy(update={"start": report.start - back, "end": report.end - back})


def test_the_drift_page_shows_drifted_columns_first_and_then_the_most_moved() -> None:
    columns = (
        column("calm", effect=0.01),
        column("unknown", verdict="insufficient_data", effect=None),
        column("moving", effect=0.5),
        column("drifted", verdict="drift", effect=0.2),
        column("gone", verdict="drift", effect=0.9),
    )
    rows = re.findall(r'<tr><td title="(\w+)">', drift_page(drift_report(verdict="drift", columns=columns)))
    assert rows == ["gone", "drifted", "moving", "calm", "unknown"]


def test_the_drift_page_says_verdict_reason_window_and_version() -> None:
    report = drift_report(interval_rows=40, usual_rows=38.0, reference="the training data of version 3, same weekday")
    text = Reader(drift_page(report)).text
    assert "orders: drift of 2026-03-01: stable" in text
    assert "No column moved." in text
    assert "Window2026-02-23 to 2026-03-02Rows of the window100" in text
    assert "Rows of the interval40 (usual: 38)" in text
    assert "version 3" in text
    assert "the training data of version 3, same weekday" in text


@pytest.mark.parametrize(
    ("verdict", "tier", "word"),
    [
        ("drift", "page", "\N{BLACK UP-POINTING TRIANGLE} Drift page: somebody should look now"),
        ("drift", "ticket", "\N{BLACK UP-POINTING TRIANGLE} Drift ticket: to be looked at within days"),
        ("stable", "log", "\N{BLACK CIRCLE} Stable log: nobody needs to act"),
        ("stable", None, "\N{BLACK CIRCLE} StableNo column moved."),
        ("insufficient_data", None, "\N{WHITE CIRCLE} Not enough dataNo column moved."),
    ],
)
def test_verdict_and_tier_are_told_in_words_and_by_a_sign(verdict: str, tier: str | None, word: str) -> None:
    assert word in Reader(drift_page(drift_report(verdict=verdict, tier=tier))).text


def test_broken_data_comes_before_all_else_and_says_what_it_blocks() -> None:
    faults = (
        {"kind": "unit", "column": "temp", "detail": "median 51 against 10"},
        {"kind": "truncated", "column": None, "detail": "212 rows, usually 598"},
    )
    report = drift_report(
        columns=(drifted("wind"), column("temp"), column("calm")),
        faults=faults,
        verdict="insufficient_data",
        tier="page",
    )
    text = Reader(drift_page(report)).text
    assert "Broken data" in text[: text.index("No column moved.")]
    assert "column temp: another unit: median 51 against 10" in text
    assert "the whole partition: too few rows: 212 rows, usually 598" in text
    assert "Training and promotion are blocked until the data is repaired." in text
    assert re.findall(r'<h3 class="name">(\w+)<', drift_page(report)) == ["temp", "wind"]
    assert "Broken data" not in drift_page(drift_report())


def test_columns_are_explained_by_tier_and_then_by_importance_times_effect() -> None:
    columns = (
        column("once", moved=True, effect=9.0, importance=0.5),
        drifted("ignored", tier="log", effect=9.0, importance=0.001),
        drifted("small", effect=0.2, importance=0.3),
        drifted("large", effect=0.5, importance=0.3),
        drifted("weighty", effect=0.2, importance=0.9),
        drifted("prediction", role="prediction", effect=0.3, importance=None),
        column("calm"),
    )
    cards = re.findall(r'<h3 class="name">(\w+)<', drift_page(drift_report(columns=columns, verdict="drift")))
    assert cards == ["prediction", "weighty", "large", "small", "ignored", "once"]


def test_a_card_says_how_far_how_important_what_it_does_and_what_else_changed() -> None:
    shown = drifted("temp", null_share=0.123, reference_null_share=0.002, unseen_share=0.05)
    text = Reader(drift_page(drift_report(columns=(shown,), verdict="drift"))).text
    for part in ("3.0 times its threshold", "0.3 (0.2 to 0.4)", "Importance40 %", "Moves predictions by0.2 sd"):
        assert part in text
    assert "Missing12.3 % (then 0.2 %)" in text
    assert "Unseen categories5 % of the rows" in text


def test_a_card_keeps_silent_about_shares_that_did_not_change() -> None:
    cards = drift_page(drift_report(columns=(drifted("temp"),), verdict="drift"))
    assert "<dt>Missing" not in cards
    assert "<dt>Unseen" not in cards


def test_a_column_that_moved_but_does_not_drift_says_so() -> None:
    text = Reader(drift_page(drift_report(columns=(column("temp", moved=True, effect=0.2),)))).text
    assert "moved, not drift yet" in text


def test_what_is_there_already_is_drawn_and_nothing_else() -> None:
    columns = (drifted("temp"), column("calm"))
    bare = drift_page(drift_report(columns=columns))
    full = drift_page(drift_report(columns=columns), {"temp": bars(), "calm": bars(), "gone": bars()})
    assert bare.count("distribution of") == 0
    assert [full.count(f"distribution of {name}") for name in ("temp", "calm", "gone")] == [1, 1, 0]


def test_drift_of_earlier_intervals_is_marked_in_the_trend() -> None:
    report = drift_report(columns=(column("temp", moved=True, effect=0.2),))
    before = earlier_report(report, 1).model_copy(update={"columns": (drifted("temp"), drifted("no longer a column"))})
    assert drift_page(report).count('class="bad"') == 0
    # Once in the card and once in the table.
    assert drift_page(report, history=[before]).count('class="bad"') == 2


@pytest.mark.parametrize("hour", [0, 6])
def test_hours_are_told_where_days_do_not_say_it(hour: int) -> None:
    report = drift_report(start=START + timedelta(hours=hour))
    assert ("2026-03-01 06:00" in drift_page(report)) == (hour == 6)


def test_what_a_classifier_found_is_told_with_its_columns_in_rank() -> None:
    text = Reader(drift_page(drift_report(multivariate=separation("gust", "temp")))).text
    assert "with an AUC of 0.71 (threshold 0.6, p = 0.01, 90 rows per side)" in text
    ranked = text[text.index("AUC lost without the column") :]
    assert ranked.index("gust") < ranked.index("temp")


def test_an_estimate_stands_beside_what_was_realised() -> None:
    report = drift_report(estimate=estimate())
    realised = [performance_report(start=START - timedelta(days=days), value=0.75) for days in (3, 2)]
    page = drift_page(report, history=[earlier_report(report, 2), earlier_report(report, 1)], performance=realised)
    text = Reader(page).text
    assert "0.7123 (0.69 to 0.73) on 100 rows" in text
    assert "off by 0.01 on average, over 9 matured intervals" in text
    assert "Not valid" not in text
    assert 'class="course now"' in page
    assert 'class="course truth"' in page
    assert "limit 0.68" in text


def test_an_invalid_estimate_says_that_nothing_may_rest_on_it() -> None:
    text = Reader(drift_page(drift_report(estimate=estimate(is_valid=False, error=None, compared=0)))).text
    assert "Not valid: decide nothing on this estimate." in text
    assert "No earlier estimate could be checked yet." in text


def test_what_is_in_another_metric_is_not_drawn_beside_the_estimate() -> None:
    report = drift_report(estimate=estimate())
    before = earlier_report(drift_report(estimate=estimate(metric="brier")), 1)
    page = drift_page(report, history=[before], performance=[performance_report(metric="brier")])
    assert 'class="course truth"' not in page
    assert "<polyline" not in page[page.index("estimated and realised") :].split("</svg>")[0]


def test_a_column_that_is_new_has_the_same_time_axis_as_the_others() -> None:
    report = drift_report(columns=(column("new"), column("old")))
    first = earlier_report(report, 3).model_copy(update={"columns": (column("old"),)})
    page = drift_page(report, history=[first, earlier_report(report, 1)])
    new, old = (re.findall(r"([\d.]+),", line) for line in re.findall(r'<polyline points="([^"]+)"', page))
    assert new == old[1:]


def test_a_large_page_is_small_enough_and_quickly_made() -> None:
    names = [f"column_{index}" for index in range(50)]
    report = drift_report(columns=tuple(drifted(name) if i % 2 else column(name) for i, name in enumerate(names)))
    history = [earlier_report(report, days) for days in range(60, 0, -1)]
    spent = []
    for _ in range(3):  # garbage of the tests before may be collected during one of them
        begun = time.process_time()
        page = drift_page(report, {name: bars(bins=24) for name in names}, history)
        spent.append(time.process_time() - begun)
    assert min(spent) < 0.5
    assert len(page.encode()) < 1_500_000


def test_more_columns_than_anybody_reads_are_in_the_table_only() -> None:
    columns = tuple(drifted(f"drifted_{index}") for index in range(32)) + tuple(column(f"calm_{i}") for i in range(70))
    page = drift_page(drift_report(columns=columns, verdict="drift"))
    assert page.count("<article") == 30
    assert "2 more are in the table below." in page
    assert "All other columns, then and now (60 of 72)" in page
    assert page.count("<tr><td title=") == 102
