"""Report pages: safe against what data contains, the same for the same values, complete without a network."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.effects import Distribution
from pipeline.pages import drift_page, gate_page, page, performance_page, table
from pipeline.reports import GateDecision, ModelRef, TriggerDecision
from pipeline.verdicts import ColumnDrift, DriftReport, PerformanceReport

HOSTILE = "<script>alert('x')</script><img src=x onerror=\"y\"> & \" '"
ALLOWED_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "section", "article", "header", "footer", "details", "summary"),
    *("h1", "h2", "h3", "h4", "p", "div", "span", "b", "ul", "li", "dl", "dt", "dd"),
    *("table", "thead", "tbody", "tr", "th", "td"),
    *("svg", "g", "text", "line", "rect", "circle", "path", "polyline", "polygon"),
}
START = datetime(2026, 3, 1, tzinfo=UTC)


class Reader(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.unclosed: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.unclosed:
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


def gate_text(text: str = "plain", **changes: Any) -> str:
    gate = {
        "outcome": "keep",
        "reason": text,
        "metric": text,
        "champion": 0.71234,
        "challenger": 0.7,
        "gain": -0.01234,
        "low": None,
        "n": 900,
    }
    return gate_page(
        text,
        text,
        TriggerDecision(fire=True, cause="drift", reason=text),
        ModelRef(name=text, version=4, digest=text),
        GateDecision.model_validate({**gate, **changes}),
    )


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


def drift_text(text: str = "plain") -> str:
    """A page on which every text of the data is this one."""
    categories, broken = f"{text} of a category", f"{text} of broken data"
    report = drift_report(
        job=text,
        reason=text,
        detector=text,
        reference=text,
        verdict="drift",
        tier="page",
        columns=(
            drifted(text, reason=text),
            drifted(categories, kind="category", reason=text, unseen_share=0.2),
            column(broken, reason=text),
            column(f"{text} of calm", reason=text),
        ),
        multivariate=separation(text, categories),
        faults=(
            {"kind": "unit", "column": broken, "detail": text},
            {"kind": "truncated", "column": None, "detail": text},
        ),
        estimate=estimate(metric=text, reason=text),
    )
    earlier = [earlier_report(report, days) for days in (2, 1)]
    realised = [performance_report(metric=text, start=START - timedelta(days=days)) for days in (2, 1)]
    return drift_page(report, {c.column: bars(text) for c in report.columns}, earlier, realised)


def earlier_report(report: DriftReport, days: int) -> DriftReport:
    back = timedelta(days=days)
    return report.model_copy(update={"start": report.start - back, "end": report.end - back})


def performance_text(text: str = "plain") -> str:
    report = performance_report(
        job=text,
        reason=text,
        metric=text,
        verdict="drift",
        cause="inputs",
        restated=True,
        slices=({"metric": text, "slice": f"{text}=1", "value": 0.7, "n": 50},),
        label=drifted(text, role="label", reason=text),
        maturity={"age": "P4D", "labelled": 90, "rows": 100, "share": 0.9, "expected": 0.95, "final": None},
    )
    return performance_page(report, [report.model_copy(update={"start": START - timedelta(days=1)})])


EVERY_PAGE = [
    pytest.param(drift_text, id="drift"),
    pytest.param(performance_text, id="performance"),
    pytest.param(gate_text, id="gate"),
    pytest.param(lambda text="plain": page(text, text, [table([text], [[text], [None], [0.5]])]), id="page"),
]


@pytest.mark.parametrize("render", EVERY_PAGE)
def test_text_from_data_is_shown_and_never_becomes_markup(render: Any) -> None:
    found = Reader(render(HOSTILE))
    assert set(found.tags) <= ALLOWED_TAGS
    assert not any(name.startswith("on") or name in ("src", "href") for name, _ in found.attributes)
    assert HOSTILE in found.text
    assert found.unclosed == []


def test_text_that_looks_like_a_verdict_gets_no_other_class() -> None:
    cells = re.findall(r"<td[^>]*>", table(["v"], [["drift"], ['drift" onclick="x'], ["stable "], ["promote"]]))
    assert cells == ['<td class="drift">', "<td>", "<td>", '<td class="promote">']


@pytest.mark.parametrize("render", EVERY_PAGE)
def test_the_same_values_give_the_same_page(render: Any) -> None:
    assert render() == render()


@pytest.mark.parametrize("render", EVERY_PAGE)
def test_a_page_loads_nothing_and_names_no_address(render: Any) -> None:
    text = render()
    assert not re.search(r"http|//|url\(|@import|<link|<script|<img|<iframe", text, re.IGNORECASE)


@pytest.mark.parametrize("render", EVERY_PAGE)
def test_a_page_declares_its_encoding_before_any_text(render: Any) -> None:
    head = render("größer ≥ \N{SNOWMAN}").encode()
    assert head.index(b'charset="utf-8"') < min(1024, head.index("ö".encode()))


def themes() -> list[dict[str, str]]:
    text = page("t", "l", [])
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    return [dict(re.findall(r"--(\w+): #([0-9a-f]+);", part)) for part in (light, dark)]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.1 defines it."""
    full = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
    channels = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_page_has_a_light_and_a_dark_theme_with_the_same_colours_named() -> None:
    light, dark = themes()
    assert light.keys() == dark.keys() >= {"ink", "paper", "card", "dim", "bad", "ok", "line", "now", "then", "warn"}
    assert luminance(light["paper"]) > 0.8
    assert luminance(dark["paper"]) < 0.1
    assert "color-scheme: light dark" in page("t", "l", [])


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["paper", "card"])
@pytest.mark.parametrize(
    ("name", "least"), [*((name, 4.5) for name in ("ink", "dim", "bad", "ok", "warn")), ("now", 3.0), ("then", 3.0)]
)
def test_text_and_charts_in_both_themes_have_the_contrast_that_wcag_asks_for(
    theme: dict[str, str], name: str, least: float, ground: str
) -> None:
    bright, dim = sorted((luminance(theme[name]), luminance(theme[ground])), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= least


def test_numbers_have_four_digits_and_missing_values_a_dash() -> None:
    cells = re.findall(r"<td.*?>(.*?)</td>", table(["a"], [[0.123456, 12, None, True, 1e-9, float("nan")]]))
    assert cells == ["0.1235", "12", "\N{EN DASH}", "True", "1e-09", "\N{EN DASH}"]


def unknown_column(number: float | None) -> ColumnDrift:
    values = dict.fromkeys(("p_value", "effect", "expected", "low", "high", "psi", "jensen_shannon"), number)
    return column("odd", **values, importance=number, impact=number, moved=True, signals=("missing",))


@pytest.mark.parametrize("number", [None, math.nan, math.inf])
def test_numbers_that_are_not_known_are_dashes_and_never_nan(number: float | None) -> None:
    report = drift_report(columns=(unknown_column(number),))
    page = drift_page(report, {"odd": bars()}, [earlier_report(report, 1)])
    assert not re.search(r"\bnan\b|NaN|\binf\b|None", page)
    unknown = performance_report(value=number, low=number, high=number, limit=number)
    assert not re.search(r"\bnan\b|NaN|\binf\b|None", performance_page(unknown, [unknown]))


def test_reports_without_columns_and_without_slices_have_a_page() -> None:
    assert "No column moved beyond its threshold." in Reader(drift_page(drift_report(columns=()))).text
    assert "By slice" not in performance_page(performance_report(slices=()))


def test_the_performance_page_says_verdict_cause_value_limit_and_how_complete_the_labels_are() -> None:
    report = performance_report(
        verdict="drift",
        cause="concept",
        maturity={"age": "P4D", "labelled": 90, "rows": 100, "share": 0.9, "expected": 0.95, "final": 0.99},
    )
    text = Reader(performance_page(report)).text
    for part in ("orders: performance of 2026-03-01: drift", "Degraded", "concept drift", "0.74 (0.72 to 0.76)"):
        assert part in text
    for part in ("Limit0.68", "90 of 100 scored", "90 of 100 rows (90 %)", "95 %", "99 %", "4 days"):
        assert part in text


def test_the_latest_report_on_an_interval_is_the_one_that_is_drawn() -> None:
    before = [
        performance_report(start=START - timedelta(days=1), as_of=START + timedelta(days=days), verdict=verdict)
        for days, verdict in ((2, "drift"), (1, "stable"))
    ]
    assert performance_page(performance_report(), before).count('class="bad"') == 1


def test_the_gate_page_says_outcome_numbers_challenger_and_cause() -> None:
    text = Reader(gate_text("because", metric="roc_auc")).text
    for part in ("gate at because: keep", "roc_auc", "0.7123", "-0.01234", "900", "Challenger: version 4"):
        assert part in text


def test_the_gate_page_shows_the_test_every_guard_and_the_slices_that_lost() -> None:
    guards = [
        {"name": "slices", "value": 0.05, "limit": 0.02, "is_met": False, "detail": "1 of 4 slices proven worse"},
        {"name": "churn", "value": 0.125, "limit": None, "is_met": True, "detail": "12.50% of the rows"},
    ]
    lost = {"champion": 0.75, "challenger": 0.7, "gain": -0.05, "p_value": 0.0004, "n": 812, "is_worse": True}
    text = Reader(
        gate_text(
            test="block bootstrap of 14 days", p_value=0.03, guards=guards, slices=[{"slice": "country=<b>", **lost}]
        )
    ).text
    for part in ("Test: block bootstrap of 14 days.", "0.03", "not met", "1 of 4 slices proven worse", "0.125", "met"):
        assert part in text
    for part in ("country=<b>", "worse", "-0.05", "0.0004", "812"):
        assert part in text
