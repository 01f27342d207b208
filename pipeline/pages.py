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
    """The HTML page of one comparison of challenger and champion: the decision, its reason and its numbers."""
    numbers = table(
        ["outcome", "metric", "champion", "challenger", "gain", "lower bound", "rows"],
        [(gate.outcome, gate.metric, gate.champion, gate.challenger, gate.gain, gate.low, gate.n)],
    )
    who = f"Challenger: version {challenger.version}, digest {challenger.digest[:16]}. {trigger.reason}"
    facts = f'<p class="dim">{shown(who)}</p>'
    return page(f"{job}: gate at {as_of}: {gate.outcome}", gate.reason, [facts, numbers])
