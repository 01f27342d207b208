"""Static HTML pages of reports: one self-contained file each, light and dark, no network.

Pure: values in, text out; nothing in a page depends on when it was rendered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.charts import shown
from pipeline.driftpage import drift_page
from pipeline.frame import page, table
from pipeline.performancepage import performance_page

if TYPE_CHECKING:
    from pipeline.reports import GateDecision, ModelRef, TriggerDecision

__all__ = ["drift_page", "gate_page", "page", "performance_page", "table"]


def gate_page(job: str, as_of: str, trigger: TriggerDecision, challenger: ModelRef, gate: GateDecision) -> str:
    """The HTML page of one comparison of challenger and champion: the decision, its reason, the test, and every guard."""
    asked = (gate.metric, gate.champion, gate.challenger, gate.gain, gate.low, gate.bar, gate.p_value, gate.n)
    header = ["metric", "champion", "challenger", "gain", "lower bound", "must exceed", "p-value", "rows"]
    numbers = table(["outcome", *header], [(gate.outcome, *asked)])
    who = f"Challenger: version {challenger.version}, digest {challenger.digest[:16]}. {trigger.reason}"
    sections = [f'<p class="dim">{shown(who)}</p>', numbers]
    if gate.test:
        sections.append(f"<p>{shown(f'Test: {gate.test}.')}</p>")
    if gate.guards:
        rows = [(g.name, "met" if g.is_met else "not met", g.value, g.limit, g.detail) for g in gate.guards]
        sections += ["<h2>Guards</h2>", table(["guard", "", "value", "limit", "detail"], rows)]
    if gate.slices:
        told = [
            (s.slice, "worse" if s.is_worse else "", s.champion, s.challenger, s.gain, s.p_value, s.n)
            for s in gate.slices
        ]
        columns = ["slice", "", "champion", "challenger", "gain", "p-value", "rows"]
        sections += ["<h2>Slices with the strongest evidence of a loss</h2>", table(columns, told)]
    return page(f"{job}: gate at {as_of}: {gate.outcome}", gate.reason, sections)
