"""What all HTML pages share: the document with its style, tables, badges and lists of facts.

Pure: values in, text out; nothing in a page depends on when it was rendered, and a page loads nothing.
"""

from __future__ import annotations

from datetime import UTC, time
from typing import TYPE_CHECKING

from pipeline.charts import DASH, number, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2330; --dim: #566070; --line: #d9dee6; --paper: #ffffff; --card: #f6f8fb;
  --bad: #b3261e; --ok: #1e7d46; --warn: #8a5300; --now: #2a6fcf; --then: #5b6675; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --dim: #a3adbb; --line: #333c49; --paper: #12161c; --card: #1a2029;
    --bad: #ff8a80; --ok: #7bd6a0; --warn: #f0b95b; --now: #5b9df0; --then: #aab4c2; }
}
* { box-sizing: border-box; }
body { max-width: 76rem; margin: 1.6rem auto; padding: 0 1rem; overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; }
h4 { font-size: .82rem; margin: 0 0 .3rem; color: var(--dim); }
p { margin: .4rem 0; }
p.lead { font-size: 1.05rem; }
.dim { color: var(--dim); }
.small { font-size: .87rem; }
.name { font-weight: 650; unicode-bidi: isolate; }
.drift { color: var(--bad); font-weight: 600; }
.moved { color: var(--warn); font-weight: 600; }
.stable, .promote { color: var(--ok); }
.keep, .insufficient_data { color: var(--dim); }
.pill { display: inline-block; padding: 0 .5rem; border: 1px solid currentcolor; border-radius: 1rem;
  font-size: .82rem; font-weight: 600; line-height: 1.4; white-space: nowrap; }
.pill.solid { background: var(--bad); border-color: var(--bad); color: var(--paper); }
.banner { padding: 1rem 1.2rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card);
  border-left: .5rem solid var(--dim); }
.banner.is-drift { border-left-color: var(--bad); }
.banner.is-stable { border-left-color: var(--ok); }
.banner .word { margin-right: .6rem; font-size: 1.7rem; font-weight: 700; line-height: 1.2; }
.alarm { margin: .6rem 0; padding: .5rem .9rem; border: 2px solid var(--bad); border-radius: .4rem; }
.alarm ul { margin: .2rem 0; padding-left: 1.2rem; }
.note { padding-left: .7rem; border-left: .25rem solid var(--warn); }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); gap: .5rem 1.2rem;
  margin: .9rem 0 0; }
dt { color: var(--dim); font-size: .82rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.sheet { margin: 0 0 .9rem; padding: .8rem 1rem 1rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); }
.sheet header { display: flex; flex-wrap: wrap; gap: .2rem .6rem; align-items: baseline; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1rem 1.8rem;
  margin-top: .6rem; }
.panels > div { min-width: 0; max-width: 40rem; }
.panels dl.facts { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .4rem .8rem; margin-top: .5rem; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--dim); font-weight: 600; }
table.compact { font-size: .87rem; }
table.compact th, table.compact td { padding: .25rem .5rem; vertical-align: middle; white-space: nowrap; }
table.compact .number { text-align: right; }
table.compact th:first-child, table.compact td:first-child { position: sticky; left: 0; max-width: min(14rem, 38vw);
  background: var(--paper); overflow: hidden; text-overflow: ellipsis; }
details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; }
footer { margin: 2.4rem 0 1rem; padding-top: .6rem; border-top: 1px solid var(--line); color: var(--dim);
  font-size: .87rem; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .7em; vertical-align: -.06em; }
.key:first-child { margin-left: 0; }
.key.now { background: var(--now); }
.key.then { border: 1.5px solid var(--then); }
.key.bad { background: var(--bad); transform: rotate(45deg) scale(.8); }
.key.line, .key.truth { width: 1.3em; height: 0; vertical-align: .25em; border-top: 2px dashed var(--ink); }
.key.truth { border-top-style: solid; }
svg { display: block; width: 100%; height: auto; }
svg.chart { max-width: 25rem; }
svg.large { max-width: 40rem; }
svg.row { width: 180px; min-width: 180px; }
svg.spark { width: 100px; min-width: 100px; }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); }
svg text.label { fill: var(--ink); }
svg text.halo { fill: var(--ink); stroke: var(--card); stroke-width: 3px; paint-order: stroke; }
svg .grid { stroke: var(--line); }
svg .axis { stroke: var(--then); }
svg .limit { stroke: var(--ink); stroke-dasharray: 4 3; }
svg .span { stroke: var(--now); stroke-width: 4; opacity: .55; }
svg .end { stroke: var(--now); stroke-width: 2; }
svg rect.then { fill: none; stroke: var(--then); }
svg rect.now, svg circle { fill: var(--now); }
svg path.bad { fill: var(--bad); }
svg polyline { fill: none; stroke: var(--now); stroke-width: 1.8; stroke-linejoin: round; }
svg .band { fill: var(--now); opacity: .2; }
svg .reach { stroke: var(--now); stroke-width: 5; opacity: .3; }
svg .truth circle { fill: var(--ink); }
svg .truth polyline, svg .reach.truth { stroke: var(--ink); }
svg .band.truth { fill: var(--ink); opacity: .12; }
@media (max-width: 600px) { svg.large { overflow: visible; } svg.large text { font-size: 13px; } }
@media print {
  * { print-color-adjust: exact; }
  :root { font-size: 11px; }
  body { max-width: none; margin: 0; padding: 0; font-size: 11px; }
  h2, h3 { break-after: avoid; }
  .sheet, .banner, .panels > div, tr { break-inside: avoid; }
  .panels { grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
  .wide { overflow: visible; }
  table.compact { font-size: 8.5px; }
  table.compact th, table.compact td { padding: .1rem .25rem; }
  table.compact th:first-child, table.compact td:first-child { position: static; }
  details::details-content { content-visibility: visible; }
}
"""
WORDS = {"drift": "Drift", "moved": "Moved", "stable": "Stable", "insufficient_data": "Not enough data"}
# By which verdicts are told apart without colour.
SIGNS = {
    "drift": "\N{BLACK UP-POINTING TRIANGLE}",
    "moved": "\N{WHITE UP-POINTING TRIANGLE}",
    "stable": "\N{BLACK CIRCLE}",
    "insufficient_data": "\N{WHITE CIRCLE}",
}
_TIERS = {
    "page": "page: somebody should look now",
    "ticket": "ticket: to be looked at within days",
    "log": "log: nobody needs to act",
}


def document(title: str, sections: Iterable[str]) -> str:
    """A whole HTML document of ready-made sections."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{shown(title)}</title><style>{_STYLE}</style></head>\n<body>{''.join(sections)}\n</body></html>\n"
    )


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """A whole HTML document with a heading, one leading sentence and ready-made sections."""
    return document(title, [f'<h1>{shown(title)}</h1><p class="lead">{shown(lead)}</p>\n', *sections])


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table: floats are shown with four significant digits, ``None`` as a dash, verdicts in their colour."""
    head = "".join(f"<th>{shown(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _cell(value: object) -> str:
    if isinstance(value, float):
        value = number(value)
    if value is None or value == DASH:
        return f'<td class="dim">{DASH}</td>'
    text = shown(str(value))
    verdict = f' class="{text}"' if text in ("drift", "stable", "insufficient_data", "promote", "keep") else ""
    return f"<td{verdict}>{text}</td>"


def banner(kicker: str, words: str, look: str, tier: str | None, inner: Iterable[str]) -> str:
    """The head of a report: what it is about, the verdict in words, how loudly it is told, and ready-made parts.

    ``look`` is the verdict whose colour the banner wears.
    """
    loud = f' <span class="pill{" solid" if tier == "page" else ""}">{_TIERS[tier]}</span>' if tier else ""
    return (
        f'<div class="banner is-{look}"><h1 class="dim small">{shown(kicker)}</h1>'
        f'<div><span class="word {look}">{shown(words)}</span>{loud}</div>{"".join(inner)}</div>\n'
    )


def headline(verdict: str) -> str:
    """A verdict as a sign and a word."""
    return f"{SIGNS[verdict]} {WORDS[verdict]}"


def reason(text: str) -> str:
    """A reason, of which the first clause is the sentence that leads and the rest are details."""
    lead, semicolon, rest = text.partition("; ")
    more = f'<span class="dim small">{shown(rest)}</span>' if rest else ""
    return f'<p class="lead">{shown(lead + semicolon)}{more}</p>'


def moment(instant: datetime) -> str:
    """An instant in UTC for reading: the day alone where that says it."""
    utc = instant.astimezone(UTC)
    return f"{utc:%Y-%m-%d}" if utc.time() == time.min else f"{utc:%Y-%m-%d %H:%M}"


def badge(verdict: str, *, moved: bool = False) -> str:
    """A verdict as a sign and a word; a column that moved but is no drift yet says so."""
    if verdict == "stable" and moved:
        return f'<span class="pill moved">{SIGNS["moved"]} moved, not drift yet</span>'
    return f'<span class="pill {verdict}">{headline(verdict).lower()}</span>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values."""
    return f'<dl class="facts">{"".join(f"<div><dt>{shown(k)}</dt><dd>{shown(v)}</dd></div>" for k, v in pairs)}</dl>'


def section(heading: str, inner: Iterable[str]) -> str:
    """Ready-made parts below a heading."""
    return f"<section><h2>{shown(heading)}</h2>{''.join(inner)}</section>\n"


def footer(sentences: str) -> str:
    """What a reader needs to know to read the page."""
    return f"<footer>{shown(sentences)}</footer>"
