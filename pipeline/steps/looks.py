"""How often a challenger was compared with the champion, and whether another look may yet prove it better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.intervals import Interval, parse_instant
from pipeline.triggers import Unproven

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.reports import Decision
    from pipeline.steps.context import JobContext
    from pipeline.triggers import Training

# Guards that ask for a proof: more rows may bring it. The others found something.
_PROOFS = {"constant"}
# Comparisons beyond which history does not matter.
_GATES = 60


def earlier(ctx: JobContext, as_of: datetime, champion: int, challenger: int) -> list[Decision]:
    """The gate's decisions before ``as_of`` on these two versions, by time."""
    found = ctx.ledger.decisions(ctx.job.name, kind="gate", until=as_of, last=_GATES)
    pair = (champion, challenger)
    return sorted(
        (d for d in found if (d.details["champion_version"], d.details["challenger_version"]) == pair and d.at < as_of),
        key=lambda decision: decision.at,
    )


def unproven(ctx: JobContext, as_of: datetime, champion: int, trainings: Sequence[Training]) -> Unproven | None:
    """The version of the last training, if it was last kept out for want of proof alone."""
    if not trainings or trainings[-1].outcome != "rejected":
        return None
    trained = next((m for m in ctx.ledger.models(ctx.job.name) if m.as_of == trainings[-1].as_of), None)
    seen = [] if trained is None else earlier(ctx, as_of, champion, trained.model.version)
    if trained is None or not seen or seen[-1].outcome != "keep":
        return None
    last = seen[-1].details
    unmet = {guard["name"] for guard in last["guards"] if not guard["is_met"]}
    # An earlier release did not say what it had compared them on.
    if "begin" not in last or last["gain"] <= (last["bar"] or 0.0) or unmet - _PROOFS:
        return None
    span = Interval(parse_instant(last["begin"]), parse_instant(last["end"]))
    return Unproven(trained.model.version, last["gain"], span, len(seen))
