"""Tell people of incidents: when one opens, gets louder, or closes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import incidents
from pipeline.intervals import format_instant
from pipeline.verdicts import Notice

if TYPE_CHECKING:
    from pipeline.channels import Channels
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import Incident, News


def notify(ctx: JobContext, channels: Channels) -> list[Notice]:
    """Tell of everything that changed since people were last told; returns what was told, in the order of the changes.

    Each message is sent at least once: it is repeated when the process dies between sending and recording. What opened and
    closed unseen is not told. Two calls for one job at a time may tell twice. Raises `NotDelivered` at the first message
    that a channel refuses; those before it are recorded, the rest is told by the next call.
    """
    found = []
    for state, before, after in ctx.ledger.untold(ctx.job.name):
        news = incidents.news(before, after)
        sent = channels.send(after.tier, _title(after, news), _body(after)) if news else 0
        notice = Notice(incident=after, news=news, channels=sent)
        ctx.ledger.record_told(state, notice)
        found += [notice] if news else []
    return found


def _title(incident: Incident, news: News) -> str:
    cause = incident.cause.replace("_", " ").replace(":", ": ")
    return f"[{incident.tier}] {incident.job}: {cause} ({news})"


def _body(incident: Incident) -> str:
    lasting = f"{incident.intervals} interval{'s' if incident.intervals > 1 else ''}"
    since = f"{lasting} since {format_instant(incident.opened)}, the latest {format_instant(incident.latest)}"
    ended = f"; over since {format_instant(incident.closed)}" if incident.closed else ""
    return f"{incident.reason}\n\n{since}{ended}\n{incident.id} - pipeline incidents {incident.job}"
