"""Static HTML pages of reports: one self-contained file each, light and dark, no network.

Pure: values in, text out; nothing in a page depends on when it was rendered.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from pipeline.intervals import format_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.reports import DriftReport, GateDecision, ModelRef, TriggerDecision

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2330; --dim: #5c6675; --line: #d9dee6; --paper: #fff; --bad: #b3261e; --ok: #1e7d46; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --dim: #9aa5b5; --line: #333c49; --paper: #12161c; --bad: #ff8a80; --ok: #7bd6a0; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } p.lead { font-size: 1.05rem; } .dim { color: var(--dim); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 600; } .drift { color: var(--bad); font-weight: 600; }
.stable, .promote { color: var(--ok); } .keep, .insufficient_data { color: var(--dim); }
"""


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """A whole HTML document with a heading, one leading sentence and ready-made sections."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>"
        f'<p class="lead">{escape(lead)}</p>\n{"".join(sections)}\n</body></html>\n'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table: floats are shown with four significant digits, ``None`` as a dash, verdicts in their colour."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _cell(value: object) -> str:
    if value is None:
        return '<td class="dim">&ndash;</td>'
    if isinstance(value, float):
        return f"<td>{value:.4g}</td>"
    text = escape(str(value))
    verdict = f' class="{text}"' if text in ("drift", "stable", "insufficient_data", "promote", "keep") else ""
    return f"<td{verdict}>{text}</td>"


def drift_page(report: DriftReport) -> str:
    """The HTML page of one drift report: the verdict first, then every column, the most moved ones on top."""
    ranked = sorted(
        report.columns, key=lambda c: (c.verdict != "drift", -((c.effect or 0.0) / max(c.threshold, 1e-12)))
    )
    columns = table(
        [
            "column",
            "role",
            "verdict",
            "effect",
            "threshold",
            "p-value",
            "PSI",
            "missing now",
            "missing then",
            "unseen",
            "why",
        ],
        [
            (
                c.column,
                c.role,
                c.verdict,
                c.effect,
                c.threshold,
                c.p_value,
                c.psi,
                c.null_share,
                c.reference_null_share,
                c.unseen_share,
                c.reason,
            )
            for c in ranked
        ],
    )
    facts = (
        f'<p class="dim">{report.rows} rows from {format_instant(report.window_start)} to {format_instant(report.end)} against '
        f"the training data of version {report.model_version}; tests by {escape(report.detector)}.</p>"
    )
    title = f"{report.job}: drift of {format_instant(report.start)}: {report.verdict}"
    return page(title, report.reason, [facts, columns])


def gate_page(job: str, as_of: str, trigger: TriggerDecision, challenger: ModelRef, gate: GateDecision) -> str:
    """The HTML page of one comparison of challenger and champion: the decision, its reason and its numbers."""
    numbers = table(
        ["outcome", "metric", "champion", "challenger", "gain", "lower bound", "rows"],
        [(gate.outcome, gate.metric, gate.champion, gate.challenger, gate.gain, gate.low, gate.n)],
    )
    who = f"Challenger: version {challenger.version}, digest {challenger.digest[:16]}. {trigger.reason}"
    facts = f'<p class="dim">{escape(who)}</p>'
    return page(f"{job}: gate at {as_of}: {gate.outcome}", gate.reason, [facts, numbers])
