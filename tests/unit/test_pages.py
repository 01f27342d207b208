"""Report pages: safe against what data contains, the same for the same values, complete without a network."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.pages import drift_page, gate_page, page, table
from pipeline.reports import ColumnDrift, DriftReport, GateDecision, ModelRef, TriggerDecision

HOSTILE = "<script>alert('x')</script><img src=x onerror=\"y\"> & \" '"
ALLOWED_TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "p", "div", "table", "thead", "tbody"} | {
    "tr",
    "th",
    "td",
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


def column(name: str, *, verdict: str = "stable", effect: float | None = 0.01, reason: str = "") -> ColumnDrift:
    return ColumnDrift.model_validate(
        {
            "column": name,
            "role": "feature",
            "kind": "number",
            "verdict": verdict,
            "p_value": 0.5,
            "effect": effect,
            "threshold": 0.1,
            "psi": None,
            "null_share": 0.0,
            "reference_null_share": 0.0,
            "unseen_share": 0.0,
            "rows": 100,
            "reason": reason,
        }
    )


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


def drift_text(text: str = "plain") -> str:
    hostile = column(text, reason=text)
    return drift_page(drift_report(job=text, reason=text, detector=text, columns=(hostile,)))


EVERY_PAGE = [
    pytest.param(drift_text, id="drift"),
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
    assert light.keys() == dark.keys() >= {"ink", "paper", "dim", "bad", "ok", "line"}
    assert luminance(light["paper"]) > 0.8
    assert luminance(dark["paper"]) < 0.1
    assert "color-scheme: light dark" in page("t", "l", [])


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "dim", "bad", "ok"])
def test_text_in_both_themes_has_the_contrast_that_wcag_asks_for(theme: dict[str, str], name: str) -> None:
    bright, dim = sorted((luminance(theme[name]), luminance(theme["paper"])), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= 4.5


def test_numbers_have_four_digits_and_missing_values_a_dash() -> None:
    cells = re.findall(r"<td.*?>(.*?)</td>", table(["a"], [[0.123456, 12, None, True, 1e-9, float("nan")]]))
    assert cells == ["0.1235", "12", "&ndash;", "True", "1e-09", "nan"]


def test_the_drift_page_shows_drifted_columns_first_and_then_the_most_moved() -> None:
    columns = (
        column("calm", effect=0.01),
        column("unknown", verdict="insufficient_data", effect=None),
        column("moving", effect=0.5),
        column("drifted", verdict="drift", effect=0.2),
        column("gone", verdict="drift", effect=0.9),
    )
    rows = re.findall(r"<tr><td>(\w+)</td>", drift_page(drift_report(verdict="drift", columns=columns)))
    assert rows == ["gone", "drifted", "moving", "calm", "unknown"]


def test_the_drift_page_says_verdict_reason_window_and_version() -> None:
    text = Reader(drift_page(drift_report())).text
    assert "orders: drift of 2026-03-01T00:00:00Z: stable" in text
    assert "No column moved." in text
    assert "100 rows from 2026-02-23T00:00:00Z to 2026-03-02T00:00:00Z" in text
    assert "version 3" in text


def test_the_gate_page_says_outcome_numbers_challenger_and_cause() -> None:
    text = Reader(gate_text("because", metric="roc_auc")).text
    for part in ("gate at because: keep", "roc_auc", "0.7123", "-0.01234", "900", "Challenger: version 4"):
        assert part in text
