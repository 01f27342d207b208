"""The HTML page of a report on realised performance: the verdict, its course, every slice, and how complete the labels are.

Pure: values in, text out; must not judge anything again, the report has the verdicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import charts, driftpage, frame
from pipeline.charts import Course, Point, number, percent, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from pipeline.verdicts import Maturity, PerformanceReport, SliceMetric

_CAUSES = {
    "concept": "The inputs are stable, so what they mean has changed (concept drift).",
    "inputs": "The inputs drifted too: the model meets data that it was not trained on.",
    "broken_data": "Broken data was scored: repair it; training on it would help nobody.",
}
_HOW_TO_READ = (
    "Whiskers and bands are 95 % confidence intervals: a wide one means few labelled rows. The dashed line is the limit "
    "from which an interval counts as degraded; a diamond marks one that did. Slices are told for finding a cause, and "
    "the verdict rests on all rows together."
)


def performance_page(report: PerformanceReport, history: Sequence[PerformanceReport] = ()) -> str:
    """The HTML page of one performance report; ``history`` holds reports on earlier intervals, drawn as its course."""
    kicker = f"{report.job}: performance of {frame.moment(report.start)}"
    cause = f'<p class="note">{_CAUSES[report.cause]}</p>' if report.cause else ""
    word = f"{frame.SIGNS['drift']} Degraded" if report.verdict == "drift" else frame.headline(report.verdict)
    sections = [
        frame.banner(
            kicker, word, report.verdict, None, [frame.reason(report.reason), cause, frame.facts(_facts(report))]
        ),
        _course(report, history),
        _slices(report),
        frame.section("The labels against those of the training", [driftpage.card(report.label)])
        if report.label
        else "",
        frame.footer(_HOW_TO_READ),
    ]
    return frame.document(f"{kicker}: {report.verdict}", sections)


def _facts(report: PerformanceReport) -> list[tuple[str, str]]:
    band = "" if report.low is None else f" ({number(report.low)} to {number(report.high)})"
    pairs = [
        (report.metric, f"{number(report.value)}{band}"),
        ("Limit", number(report.limit)),
        ("Labelled rows", f"{report.n:,} of {report.rows_scored:,} scored"),
        ("Interval", f"{frame.moment(report.start)} to {frame.moment(report.end)}"),
        ("Labels known at", frame.moment(report.as_of)),
        ("Model", f"version {report.model_version}"),
    ]
    if report.restated:
        pairs.append(("Restated", "more labels have come since an earlier report"))
    return [*pairs, ("Backfill", "told to nobody")] if report.quiet else pairs


def _course(report: PerformanceReport, history: Sequence[PerformanceReport]) -> str:
    """The latest report on each interval, oldest first, as far as they have the same metric."""
    known = sorted((r for r in history if r.metric == report.metric), key=lambda r: r.as_of)
    latest = {r.start: r for r in [*known, report]}
    drawn = [latest[start] for start in sorted(latest)]
    points = tuple(Point(r.start.timestamp(), r.value, r.low, r.high, marked=r.verdict == "drift") for r in drawn)
    ends = (frame.moment(drawn[0].start), frame.moment(drawn[-1].start))
    chart = charts.timeline(
        [Course(points)],
        report.limit,
        ends,
        f"{report.metric} from {ends[0]} to {ends[1]}",
        limit_name="limit",
        is_large=True,
    )
    legend = (
        '<p class="dim small"><span class="key now"></span>realised, with its 95 % interval<span class="key bad"></span>'
        'degraded<span class="key line"></span>limit</p>'
    )
    return frame.section(
        f"{report.metric} over time",
        [f'<div class="sheet"><div class="panels"><div>{chart}{legend}</div>{_maturity(report.maturity)}</div></div>'],
    )


def _slices(report: PerformanceReport) -> str:
    if not report.slices:
        return ""
    rows = "".join(_row(found, report) for found in report.slices)
    head = (
        '<th>slice</th><th>metric</th><th class="number">value</th><th class="number">95 % interval</th>'
        '<th class="number">rows</th><th>value, interval and limit</th>'
    )
    table = f'<table class="compact"><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>'
    return frame.section("By slice", [f'<div class="wide">{table}</div>'])


def _row(found: SliceMetric, report: PerformanceReport) -> str:
    limit = report.limit if found.metric == report.metric else None
    band = charts.DASH if found.low is None else f"{number(found.low)} to {number(found.high)}"
    drawn = charts.whisker(
        found.value,
        found.low,
        found.high,
        limit,
        f"{found.metric} of {found.slice}: {number(found.value)}, 95 % interval {band}",
        domain=_domain(report, found.metric),
        is_row=True,
    )
    return (
        f'<tr><td title="{shown(found.slice)}"><span class="name">{shown(found.slice)}</span></td>'
        f'<td>{shown(found.metric)}</td><td class="number">{number(found.value)}</td><td class="number">{band}</td>'
        f'<td class="number">{found.n:,}</td><td>{drawn}</td></tr>\n'
    )


def _domain(report: PerformanceReport, metric: str) -> tuple[float, float]:
    """What the lines of all slices of a metric span, so that they can be compared with each other and with the limit."""
    ends = [end for s in report.slices if s.metric == metric for end in (s.value, s.low, s.high)]
    known = charts.finite([*ends, report.limit if metric == report.metric else None])
    return min(known, default=0.0), max(known, default=1.0)


def _maturity(found: Maturity | None) -> str:
    if found is None:
        return ""
    pairs = [
        ("Labelled so far", f"{found.labelled:,} of {found.rows:,} rows ({percent(found.share)})"),
        ("Usual at this age", percent(found.expected)),
        ("Usual in the end", percent(found.final)),
        ("Age of the interval", _age(found.age)),
    ]
    return f"<div><h4>How complete the labels are</h4>{frame.facts(pairs)}</div>"


def _age(age: timedelta) -> str:
    hours = age.total_seconds() / 3600
    return f"{number(hours / 24, 3)} days" if hours >= 48 else f"{number(hours, 3)} hours"
