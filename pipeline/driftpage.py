"""The HTML page of a drift report: what happened, what moved and how much it matters, then every column.

Pure: values in, text out; must not judge anything again, the report has the verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline import charts, frame
from pipeline.charts import Course, Point, number, percent, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.effects import Distribution
    from pipeline.verdicts import ColumnDrift, DriftReport, Estimate, Fault, Multivariate, PerformanceReport

# What a person reads; the table has the rest.
_MOST_CARDS = 30
_MOST_SMALL = 60
_NOTABLE_SHARE = 0.005
_TIERS = ("page", "ticket", "log", None)
_FAULTS = {
    "missing": "values are missing",
    "constant": "only one value",
    "stuck": "stuck at its last values",
    "unit": "another unit",
    "swapped": "swapped with another column",
    "recoded": "other codes",
    "duplicated": "delivered twice",
    "truncated": "too few rows",
    "surplus": "too many rows",
    "schema": "other columns or types",
}
_SIGNALS = {"distribution": "distribution", "missing": "missing values", "unseen": "unseen categories"}
_LEGEND = '<p class="dim small"><span class="key then"></span>reference<span class="key now"></span>this window</p>'
_HOW_TO_READ = (
    "An effect says how far a column moved, freed of what chance alone shows; whiskers and bands are 95 % intervals. A column "
    "moved when its effect reached the threshold and chance does not explain it, and it drifts when that lasts for several "
    "intervals. Importance is a feature's share of what moves the predictions: what the model ignores may drift unharmed."
)


@dataclass(frozen=True, slots=True)
class _Material:
    """What is drawn for a column beside its own numbers."""

    distributions: Mapping[str, Distribution]
    courses: Mapping[str, Course]
    ends: tuple[str, str]
    faults: Mapping[str, Fault]


def drift_page(
    report: DriftReport,
    distributions: Mapping[str, Distribution] = MappingProxyType({}),
    history: Sequence[DriftReport] = (),
    performance: Sequence[PerformanceReport] = (),
) -> str:
    """The HTML page of one drift report: the verdict first, then what moved by how much it matters, then every column.

    ``distributions`` are drawn per column; ``history`` holds earlier reports, oldest first, and ``performance`` realised
    performance, beside which the estimates are drawn. All three may be empty.
    """
    material = _Material(
        distributions,
        _courses([*history, report]),
        (frame.moment((history[0] if history else report).start), frame.moment(report.start)),
        {fault.column: fault for fault in reversed(report.faults) if fault.column},
    )
    chosen = _explained(report)
    cards = chosen[:_MOST_CARDS]
    kicker = f"{report.job}: drift of {frame.moment(report.start)}"
    sections = [
        _banner(kicker, report),
        _what_moved(cards, len(chosen), material),
        _together(report.multivariate),
        _performance(report, history, performance),
        frame.section("All columns", [_table(_most_moved_first(report.columns), material)]),
        _others([column for column in _most_moved_first(report.columns) if column not in cards], material),
        frame.footer(_HOW_TO_READ),
    ]
    return frame.document(f"{kicker}: {report.verdict}", sections)


def card(column: ColumnDrift, chart: str = "", trend: str = "", note: str = "") -> str:
    """One column explained: verdict, reason, its numbers, and the ready-made charts of its values and its course.

    A ``note`` stands in place of the verdict.
    """
    loud = f'<span class="pill{" solid" if column.tier == "page" else ""}">{column.tier}</span>' if column.tier else ""
    panels = [f"<h4>{_how_far(column)}</h4>{effect_chart(column)}{frame.facts(_numbers(column))}", chart, trend]
    return (
        f'<article class="sheet"><header><h3 class="name">{shown(column.column)}</h3><span class="dim small">'
        f"{column.role}, {column.kind}</span>{note or frame.badge(column.verdict, moved=column.moved)}{loud}</header>"
        f"<p>{shown(column.reason)}</p>"
        f'<div class="panels">{"".join(f"<div>{panel}</div>" for panel in panels if panel)}</div></article>\n'
    )


def effect_chart(column: ColumnDrift) -> str:
    """The effect with its interval on a line from zero, and the threshold across it."""
    label = (
        f"effect {number(column.effect, 3)}, 95 % interval {number(column.low, 3)} to {number(column.high, 3)}, "
        f"threshold {number(column.threshold, 3)}"
    )
    is_bad = column.verdict == "drift"
    return charts.whisker(column.effect, column.low, column.high, column.threshold, label, is_bad=is_bad)


def _courses(reports: Sequence[DriftReport]) -> dict[str, Course]:
    """A course per column of the latest report; reports that lack the column leave a gap, so that all span the same time."""
    points: dict[str, list[Point]] = {column.column: [] for column in reports[-1].columns}
    for report in reports:
        at, found = report.start.timestamp(), {column.column: column for column in report.columns}
        for name, course in points.items():
            c = found.get(name)
            course.append(Point(at, c.effect, c.low, c.high, marked=c.verdict == "drift") if c else Point(at, None))
    return {name: Course(tuple(course)) for name, course in points.items()}


def _explained(report: DriftReport) -> list[ColumnDrift]:
    """The columns that are worth a card: those of broken data, then by tier, then by importance times effect."""
    broken = {fault.column for fault in report.faults}
    chosen = [c for c in report.columns if c.verdict == "drift" or c.moved or c.column in broken]
    return sorted(
        chosen,
        key=lambda c: (
            c.column not in broken,
            _TIERS.index(c.tier),
            -(1.0 if c.importance is None else charts.level(c.importance)) * charts.level(c.effect),
        ),
    )


def _most_moved_first(columns: Iterable[ColumnDrift]) -> list[ColumnDrift]:
    return sorted(columns, key=lambda c: (c.verdict != "drift", not c.moved, -(_times(c) or 0.0)))


def _times(column: ColumnDrift) -> float | None:
    """The effect in thresholds; ``None`` where there is no effect or no threshold."""
    known = charts.finite([column.effect])
    return charts.level(known[0] / column.threshold) if known and column.threshold > 0 else None


def _banner(kicker: str, report: DriftReport) -> str:
    lead, facts = frame.reason(report.reason), _facts(report)
    if not report.faults:
        word = frame.headline(report.verdict)
        return frame.banner(kicker, word, report.verdict, report.tier, [lead, frame.facts(facts)])
    told = "".join(f"<li>{_fault(fault)}</li>" for fault in report.faults)
    blocked = "<p><b>Training and promotion are blocked until the data is repaired.</b></p>"
    alarm = f'<div class="alarm"><ul>{told}</ul>{blocked}</div>'
    facts = [("Verdict on drift", frame.WORDS[report.verdict]), *facts]
    return frame.banner(kicker, "\N{BLACK SQUARE} Broken data", "drift", report.tier, [alarm, lead, frame.facts(facts)])


def _fault(fault: Fault) -> str:
    where = f'column <span class="name">{shown(fault.column)}</span>' if fault.column else "the whole partition"
    return f"{where}: <b>{_FAULTS[fault.kind]}</b>: {shown(fault.detail)}"


def _facts(report: DriftReport) -> list[tuple[str, str]]:
    until = frame.moment(report.end)
    pairs = [("Interval", f"{frame.moment(report.start)} to {until}")]
    if report.interval_rows is not None:
        usual = "" if report.usual_rows is None else f" (usual: {report.usual_rows:,.0f})"
        pairs.append(("Rows of the interval", f"{report.interval_rows:,}{usual}"))
    if report.window_start != report.start:
        pairs.append(("Window", f"{frame.moment(report.window_start)} to {until}"))
    pairs += [
        ("Rows of the window", f"{report.rows:,}"),
        ("Model", f"version {report.model_version}"),
        ("Compared with", report.reference),
        ("Tests by", report.detector),
    ]
    return [*pairs, ("Backfill", "told to nobody")] if report.quiet else pairs


def _what_moved(cards: Sequence[ColumnDrift], all_of_them: int, material: _Material) -> str:
    if not cards:
        return frame.section("What moved", ["<p>No column moved beyond its threshold.</p>"])
    rest = all_of_them - len(cards)
    more = f'<p class="dim">{rest} more are in the table below.</p>' if rest else ""
    legend = (
        '<p class="dim small">Most important first. <span class="key bad"></span>drift<span class="key now"></span>no drift'
        '<span class="key line"></span>threshold</p>'
    )
    heading = "What is broken, and what moved" if material.faults else "What moved"
    return frame.section(heading, [legend, *(_explain(column, material) for column in cards), more])


def _explain(column: ColumnDrift, material: _Material) -> str:
    chart = _distribution(column, material)
    told = f"effect of {column.column} from {material.ends[0]} to {material.ends[1]}"
    course = charts.timeline([material.courses[column.column]], column.threshold, material.ends, told, from_zero=True)
    fault = material.faults.get(column.column)
    note = f'<span class="pill solid">broken data: {_FAULTS[fault.kind]}</span>' if fault else ""
    then = f"<h4>Then and now</h4>{chart}{_LEGEND}" if chart else ""
    return card(column, then, f"<h4>Effect over time</h4>{course}", note)


def _distribution(column: ColumnDrift, material: _Material) -> str:
    found = material.distributions.get(column.column)
    if found is None:
        return ""
    draw = charts.histogram if column.kind == "number" else charts.paired_rows
    return draw(found.labels, found.reference, found.current, f"distribution of {column.column}, reference and window")


def _how_far(column: ColumnDrift) -> str:
    times = _times(column)
    if times is None:
        return "No effect was measured"
    return f"{times:.1f} times its threshold" if times >= 0.05 else "No effect beyond chance"


def _numbers(column: ColumnDrift) -> list[tuple[str, str]]:
    band = "" if column.low is None else f" ({number(column.low, 3)} to {number(column.high, 3)})"
    pairs = [("Effect, 95 % interval", f"{number(column.effect, 3)}{band}")]
    if column.importance is not None:
        pairs.append(("Importance", percent(column.importance)))
    if column.impact is not None:
        pairs.append(("Moves predictions by", f"{number(column.impact, 2)} sd"))
    if "missing" in column.signals or abs(column.null_share - column.reference_null_share) >= _NOTABLE_SHARE:
        pairs.append(("Missing", f"{percent(column.null_share)} (then {percent(column.reference_null_share)})"))
    if column.unseen_share > 0:
        pairs.append(("Unseen categories", f"{percent(column.unseen_share)} of the rows"))
    if column.signals:
        pairs.append(("What of it moved", ", ".join(_SIGNALS[signal] for signal in column.signals)))
    return pairs


def _together(found: Multivariate | None) -> str:
    if found is None:
        return ""
    label = f"AUC {number(found.auc, 3)}, threshold {number(found.threshold, 3)}"
    scale = charts.whisker(
        found.auc, None, None, found.threshold, label, domain=(0.5, 1.0), is_bad=found.verdict == "drift"
    )
    told = (
        f"A classifier tells this window's rows from the reference's with an AUC of {number(found.auc, 3)} "
        f"(threshold {number(found.threshold, 3)}, p = {number(found.p_value, 2)}, {found.rows:,} rows per side); "
        "0.5 is not at all, 1 is always."
    )
    bars = charts.ranked(found.ranked[:10], "AUC that is lost without each column") if found.ranked else ""
    giving = f"<div><h4>What gives it away: AUC lost without the column</h4>{bars}</div>" if bars else ""
    return frame.section(
        "All features together",
        [
            f'<div class="sheet"><p>{frame.badge(found.verdict, moved=found.moved)} {told}</p>',
            f'<div class="panels"><div><h4>AUC</h4>{scale}</div>{giving}</div></div>',
        ],
    )


def _performance(report: DriftReport, history: Sequence[DriftReport], performance: Sequence[PerformanceReport]) -> str:
    metric = report.estimate.metric if report.estimate else performance[-1].metric if performance else None
    realised = {p.start: p for p in sorted(performance, key=lambda p: p.as_of) if p.metric == metric}
    estimates = [(r.start, r.estimate) for r in [*history, report] if r.estimate and r.estimate.metric == metric]
    starts = sorted({*realised, *(start for start, _ in estimates)})
    if not starts:
        return ""
    expected = Course(tuple(Point(at.timestamp(), e.value, e.low, e.high) for at, e in estimates))
    truth = Course(
        tuple(Point(at.timestamp(), p.value, p.low, p.high) for at, p in sorted(realised.items())), "truth", dotted=True
    )
    limit = next((p.limit for _, p in sorted(realised.items(), reverse=True) if p.limit is not None), None)
    label = f"{metric}, estimated and realised, from {frame.moment(starts[0])} to {frame.moment(starts[-1])}"
    chart = charts.timeline(
        [course for course in (truth, expected) if course.points],
        limit,
        (frame.moment(starts[0]), frame.moment(starts[-1])),
        label,
        limit_name="limit",
        is_large=True,
    )
    legend = '<p class="dim small"><span class="key now"></span>estimated<span class="key truth"></span>realised</p>'
    told = _estimate(report.estimate) if report.estimate else "<p>No estimate was made for this interval.</p>"
    return frame.section(
        f"Performance: {metric}",
        [f'<div class="sheet"><div class="panels"><div>{told}</div><div>{chart}{legend}</div></div></div>'],
    )


def _estimate(found: Estimate) -> str:
    error = (
        "No earlier estimate could be checked yet."
        if found.error is None
        else f"Earlier estimates were off by {number(found.error, 3)} on average, over {found.compared} matured intervals."
    )
    invalid = (
        ""
        if found.is_valid
        else '<p class="note"><b>Not valid: decide nothing on this estimate.</b> Realised performance left its band.</p>'
    )
    return (
        f"<h4>Estimated before labels</h4><p>{frame.badge(found.verdict)} <b>{number(found.value)}</b> "
        f"({number(found.low)} to {number(found.high)}) on {found.n:,} rows</p>{invalid}"
        f'<p>{shown(found.reason)}</p><p class="dim">{error}</p>'
    )


def _table(columns: Sequence[ColumnDrift], material: _Material) -> str:
    names = ("effect", "threshold", "p-value", "PSI", "JS", "missing", "unseen", "importance")
    head = "".join(f'<th class="number">{name}</th>' for name in names)
    rows = "".join(_row(column, material) for column in columns)
    return (
        f'<div class="wide"><table class="compact"><thead><tr><th>column</th><th>role</th><th>verdict</th>{head}'
        f"<th>trend</th></tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    )


def _row(c: ColumnDrift, material: _Material) -> str:
    word = "moved" if c.moved and c.verdict == "stable" else c.verdict
    cells = (number(c.effect, 3), number(c.threshold, 3), number(c.p_value, 2), number(c.psi, 3))
    shares = (number(c.jensen_shannon, 3), percent(c.null_share), percent(c.unseen_share), percent(c.importance))
    numbers = "".join(f'<td class="number">{shown(cell)}</td>' for cell in (*cells, *shares))
    course = charts.sparkline(material.courses[c.column], c.threshold, f"effect of {c.column} over time")
    return (
        f'<tr><td title="{shown(c.column)}"><span class="name">{shown(c.column)}</span></td><td>{c.role}</td>'
        f'<td class="{word}">{frame.headline(word).lower()}</td>{numbers}<td>{course}</td></tr>\n'
    )


def _others(columns: Sequence[ColumnDrift], material: _Material) -> str:
    if not columns:
        return ""
    drawn = columns[:_MOST_SMALL]
    told = f"{len(drawn)} of {len(columns)}" if len(drawn) < len(columns) else f"{len(drawn)}"
    panels = "".join(
        f'<div><h4><span class="name">{shown(column.column)}</span></h4><p class="small dim">{shown(column.reason)}</p>'
        f"{_distribution(column, material)}</div>"
        for column in drawn
    )
    return (
        f"<details><summary>All other columns, then and now ({told})</summary>{_LEGEND}"
        f'<div class="panels">{panels}</div></details>\n'
    )
